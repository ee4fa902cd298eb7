//! What a daemon that was taken over leaves to the next life: that one starts, once, and does not find it again.

use std::os::fd::{AsFd, OwnedFd};

use ctnetlink::{Groups, Socket};
use flowbus_attribution::events::EventFilter;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Machine, Namespace, SystemBus};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};

use super::{kill, table, wait_for_source};

const UNIT: &str = "flowbusd.service";

/// Kills flowbusd and returns when the next life, and no third, is there.
fn next_life(machine: &Machine) {
    let restarts = || machine.unit(UNIT, "NRestarts").parse::<u32>().unwrap();
    let before = restarts();
    kill(machine);
    wait_for("the next life", || (restarts() > before).then_some(()));
    machine.wait_until_synchronized();
    assert_eq!(restarts(), before + 1);
}

/// How often flowbusd has said something with this in it.
fn said(machine: &Machine, text: &str) -> usize {
    let entries = machine.journal(&["--identifier=flowbusd"]);
    entries
        .iter()
        .filter(|entry| entry["MESSAGE"].as_str().is_some_and(|message| message.contains(text)))
        .count()
}

#[test]
fn a_state_that_cannot_be_written_is_replaced_and_the_new_one_is_kept() {
    let machine = Machine::installed(SystemBus::Daemon);
    let (mut epoch, _) = table(&machine, 100);
    let own = machine.descriptor(UNIT, "flowbusd-state");
    assert_eq!(fcntl_add_seals(&own, SealFlags::FUTURE_WRITE), Err(rustix::io::Errno::PERM));
    let sealed = memfd_create("forged", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&sealed, u64::try_from(fstat(&own).unwrap().st_size).unwrap()).unwrap();
    fcntl_add_seals(&sealed, SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE).unwrap();
    let pipe = OwnedFd::from(std::io::pipe().unwrap().0);
    for (refusals, descriptor) in [(1, sealed), (2, pipe)] {
        machine.unstore(UNIT, "state");
        machine.store(UNIT, "state", descriptor.as_fd());
        next_life(&machine);
        let fresh = machine.property("Epoch").unwrap();
        assert_ne!(fresh, epoch);
        assert_eq!(said(&machine, "the state of the last run is refused"), refusals);
        next_life(&machine);
        assert_eq!(machine.property("Epoch").unwrap(), fresh, "the fresh one was kept");
        assert_eq!(said(&machine, "the state of the last run is refused"), refusals);
        epoch = fresh;
    }
    // Two by that name: nobody knows which.
    machine.store(UNIT, "state", std::io::pipe().unwrap().0.as_fd());
    next_life(&machine);
    next_life(&machine);
    let one = machine.shell("ls -l /proc/$(systemctl show -P MainPID flowbusd)/fd | grep -c flowbusd-state");
    assert_eq!(one.trim(), "1");
}

#[test]
fn what_was_kept_by_the_names_of_sockets_and_programs_is_passed_over_and_dropped() {
    let machine = Machine::installed(SystemBus::Daemon);
    let before = table(&machine, 100);
    let elsewhere = Namespace::tracked("elsewhere");
    let events = elsewhere.enter(|| {
        let events = Socket::open().unwrap();
        events.join(Groups::all()).unwrap();
        events
    });
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let pipe = || OwnedFd::from(std::io::pipe().unwrap().0);
    let memory = || memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
    let left = [
        ("events", OwnedFd::from(events)),
        ("dump", null()),
        ("links", pipe()),
        ("bpf-handover", null()),
        ("bpf-ring", memory()),
        ("bpf-statistics", pipe()),
        ("bpf-report", memory()),
        ("another", pipe()),
    ];
    for (name, descriptor) in &left {
        machine.store(UNIT, name, descriptor.as_fd());
    }
    next_life(&machine);
    assert_eq!(machine.property("Epoch").unwrap(), before.0);
    let dropped = || {
        ["two descriptors have this name", "a descriptor of this name is not known"]
            .map(|text| said(&machine, text))
    };
    assert_eq!(dropped(), [4, 1]);
    wait_for("the programs to be refused", || {
        (said(&machine, "the BPF programs of the last run are of no use") == 1).then_some(())
    });
    next_life(&machine);
    assert_eq!(dropped(), [4, 1], "PID 1 has dropped them");
    // Links come by the socket that is PID 1's own.
    assert_eq!(machine.property("Epoch").unwrap(), before.0);
}

#[test]
fn a_ring_that_cannot_be_told_from_something_else_is_replaced() {
    let machine = Machine::installed_with_bpf(SystemBus::Daemon);
    wait_for_source(&machine, "ring");
    let before = table(&machine, 100);
    let memory = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
    for name in EventFilter::NAMES {
        machine.store(UNIT, name, memory.as_fd());
    }
    let noticed = || said(&machine, "the event socket had a filter whose ring is gone");
    next_life(&machine);
    assert_eq!((machine.property("Epoch").unwrap(), noticed()), (before.0.clone(), 1));
    assert_eq!(machine.property("Resyncs").unwrap(), 2);
    // flowbus-attribution hands over another, and PID 1 keeps that one alone.
    wait_for_source(&machine, "ring");
    next_life(&machine);
    assert_eq!((machine.property("EventSource").unwrap(), noticed()), ("ring".into(), 1));
    assert_eq!(
        (machine.property("Epoch").unwrap(), machine.property("Resyncs").unwrap()),
        (before.0, 2.into())
    );
}

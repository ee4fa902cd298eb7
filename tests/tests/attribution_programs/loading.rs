//! The programs as such: how they are attached and go, which privileges loading and reading take, and what they count.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use flowbus_attribution::{Accept, Confidence, Kind, LoadError, Outcome, Programs, load};
use flowbus_tests::process::wait_for;
use flowbus_tests::sockets::by;
use flowbus_tests::{Namespace, Sockets};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{is_close, listen, one, shell, this_process};

/// The smallest ring that there can be.
fn page() -> u32 {
    rustix::param::page_size().try_into().unwrap()
}

#[test]
fn what_the_ring_cannot_hold_is_counted() {
    let namespace = Namespace::new("drops");
    let ring = page();
    let mut sockets = Sockets::watch_with(ring);
    // The ring is the whole machine's: others' sockets may have filled it already.
    let before = sockets.statistics().dropped;
    let listener = listen(&namespace, "127.0.0.1:0");
    let server = listener.local_addr().unwrap();
    // About 500 bytes of records each.
    for _ in 0..ring / 40 {
        let client = namespace.enter(|| TcpStream::connect(server).unwrap());
        drop((client, listener.accept().unwrap()));
    }
    let statistics = sockets.statistics();
    let dropped = statistics.dropped - before;
    assert!(dropped > u64::from(ring / 80) && statistics.written > 0, "{before} before: {statistics:?}");
    // What was dropped does not come back, and when there is room again what comes is reported.
    drop(listener);
    let read = sockets.events_until(&namespace, |_| true).len();
    assert!(read < ring as usize / 60, "{read} events in {ring} bytes");
    wait_for("a socket to be told of", || {
        let port = listen(&namespace, "127.0.0.1:0").local_addr().unwrap().port();
        let events = sockets.events_until(&namespace, |_| true);
        events.iter().any(|event| event.kind == Kind::Listen && event.local.port() == port).then_some(())
    });
}

#[test]
fn the_report_names_each_program_and_the_way_of_accept() {
    let sockets = Sockets::watch();
    let report = sockets.report();
    let outcome = |name: &str| {
        let found = report.programs.iter().find(|program| program.name == name);
        found.unwrap_or_else(|| panic!("{name} is not in {report:?}")).outcome.clone()
    };
    for program in [
        "tcp_state",
        "tcp_connect",
        "udp_send4",
        "udp_send6",
        "udp_bind4",
        "udp_bind6",
        "socket_release",
        "cgroup_made",
        "program_opens",
        "open_sockets",
    ] {
        assert_eq!(outcome(program), Outcome::Attached, "{program}");
    }
    // By function or by system call, as the kernel has it: the weaker ones would lose who accepts.
    match report.accept() {
        Accept::Function => assert_eq!(outcome("accept_syscall"), Outcome::NotNeeded),
        Accept::Syscall => {
            assert!(matches!(outcome("accept_exact"), Outcome::Failed(reason) if !reason.is_empty()))
        }
        way => panic!("{way:?}: {report:?}"),
    }
    assert_eq!(sockets.statistics().missed, Some(0));
}

/// Leaves this thread these capabilities.
fn keep(capabilities: CapabilitySet) {
    let sets = CapabilitySets {
        effective: capabilities,
        permitted: capabilities,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).unwrap();
}

#[test]
fn who_reads_first_is_told_where_no_accept_is_seen() {
    let namespace = Namespace::new("reader");
    // They do not mount the directory that says where system calls can be seen.
    let loaded = thread::spawn(|| {
        keep(CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::NET_ADMIN);
        load(1 << 20).unwrap()
    });
    let (programs, snapshot) = loaded.join().unwrap();
    let mut sockets = Sockets::of(programs, snapshot);
    match sockets.report().accept() {
        Accept::Reader => {}
        // This machine has a better way that nothing can take away.
        Accept::Function | Accept::Syscall => return,
        Accept::Inherited => panic!("{:?}", sockets.report()),
    }
    let listener = listen(&namespace, "127.0.0.1:0");
    let script =
        "exec perl -e 'accept(C, STDIN); sysread(C, $x, 1); syswrite(STDOUT, $x); sysread(C, $x, 1)'";
    let mut worker = shell(&namespace, script, OwnedFd::from(listener.try_clone().unwrap()));
    let mut client = namespace.enter(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    client.write_all(b"x").unwrap();
    worker.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    drop(client);
    assert!(worker.wait().unwrap().success());

    let events = sockets.events_with(&namespace, 2, is_close);
    let incoming = one(&events, |kind| kind == Kind::Incoming);
    assert_eq!((by(&incoming).pid, by(&incoming).confidence), (this_process(), Confidence::Inherited));
    let accept = one(&events, |kind| kind == Kind::Accept);
    assert_eq!((by(&accept).pid, by(&accept).confidence), (worker.id(), Confidence::Reader));
    assert_eq!(accept.cookie, incoming.cookie);
}

#[test]
fn without_the_capability_the_error_says_what_is_needed() {
    let refused = thread::spawn(|| {
        keep(CapabilitySet::empty());
        load(page())
    });
    let error = refused.join().unwrap().map(|_| ()).unwrap_err();
    assert!(matches!(error, LoadError::Object(_)), "{error:?}");
    assert!(error.to_string().contains("CAP_BPF"), "{error}");
}

/// The numbers of our own programs, by what the kernel says of their descriptors.
fn loaded_here(programs: &Programs) -> Vec<u32> {
    let number = |descriptor: &std::os::fd::BorrowedFd<'_>| {
        use std::os::fd::AsRawFd;
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd())).unwrap();
        text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
    };
    programs.named().filter_map(|(_, descriptor)| number(&descriptor.as_fd())).collect()
}

fn loaded() -> Vec<u32> {
    aya::programs::loaded_programs().filter_map(Result::ok).map(|program| program.id()).collect()
}

#[test]
fn no_program_outlives_the_descriptors() {
    let sockets = Sockets::watch();
    let ours = loaded_here(sockets.programs());
    assert!(ours.len() > 10 && ours.iter().all(|id| loaded().contains(id)), "{ours:?}");
    let programs = sockets.into_programs();
    assert!(ours.iter().all(|id| loaded().contains(id)), "whoever read the ring may go");
    drop(programs);
    wait_for("the kernel to unload them", || loaded().iter().all(|id| !ours.contains(id)).then_some(()));
}

#[test]
fn a_process_without_capabilities_reads_all_of_it() {
    let namespace = Namespace::new("unprivileged");
    let server = thread::scope(|scope| {
        let (programs, snapshot) = load(1 << 20).unwrap();
        let reader = || {
            keep(CapabilitySet::empty());
            let mut sockets = Sockets::of(programs, snapshot);
            sockets.open_before(&namespace);
            let events = sockets.events_with(&namespace, 1, |kind| kind == Kind::Listen);
            assert!(sockets.statistics().written > 0);
            one(&events, |kind| kind == Kind::Listen).local
        };
        let reader = scope.spawn(reader);
        let listener = listen(&namespace, "127.0.0.1:0");
        assert_eq!(reader.join().unwrap(), listener.local_addr().unwrap());
        listener
    });
    drop(server);
}

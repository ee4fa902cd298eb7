//! Callers that mean harm: descriptors nobody asked for, arguments of 30 MB, more calls than anyone answers. The helper by hand, without
//! a policy in front of it, and the booted package, where the bus refuses most of it.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use flowbus_interfaces::QueryMap;
use flowbus_tests::booted::{MEMBER, STRANGER, control, monitor};
use flowbus_tests::helper::CONTROL;
use flowbus_tests::process::wait_for;
use flowbus_tests::raw::Received;
use flowbus_tests::{
    Bus, Daemon, Helper, Machine, Namespace, RawConnection, SystemBus, companion, conntrack, inject,
};
use zbus::{Fd, Variant};

const BOTH: [SystemBus; 2] = [SystemBus::Daemon, SystemBus::Broker];
const LIMIT_EXCEEDED: &str = "org.flowbus.Error.LimitExceeded";
const ACCESS_DENIED: &str = "org.freedesktop.DBus.Error.AccessDenied";
/// The bus lets a connection wait for more replies than the daemon does.
const GENEROUS: &str = r#"<limit name="max_replies_per_connection">100000</limit>"#;

/// The most that a process ever had in memory, in KiB.
fn peak(process: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(process: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap().count()
}

fn owner(bus: &Bus, name: &str) -> String {
    let ask = ["org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetNameOwner"];
    bus.call(ask, &["s", name]).unwrap()[0].as_str().unwrap().to_owned()
}

/// A query whose `labels` are a text of 30 MB, which a test writes faster than bytes.
fn large() -> QueryMap<'static> {
    QueryMap::from([("labels", Variant::from("1".repeat(30_000_000)))])
}

fn refused(received: &Received) -> bool {
    received.is_error() && received.has(LIMIT_EXCEEDED)
}

#[test]
fn descriptors_that_nobody_asked_for_are_never_held_and_end_no_connection() {
    let helper = Helper::start(&["--user", "root", "--idle", "3600"]);
    let file = File::open("/dev/null").unwrap();
    let sixteen: Vec<Fd<'_>> = (0..16).map(|_| Fd::from(file.as_fd())).collect();
    helper.bus.call(control("GetKernelState"), &[]).unwrap();
    let (name, open) = (owner(&helper.bus, CONTROL[0]), descriptors(&helper.process));
    for round in 0..200 {
        let mut attacker = RawConnection::connect(&helper.bus);
        for member in ["DeleteFlows", "RequestDump", "NoSuchMethod"] {
            let reply = attacker.call_and_wait(control(member), &sixteen);
            assert!(refused(&reply) && reply.has("16"), "{member}, round {round}: {reply:?}");
        }
    }
    helper.bus.call(control("GetKernelState"), &[]).unwrap();
    assert_eq!((owner(&helper.bus, CONTROL[0]), descriptors(&helper.process)), (name, open));
    helper.process.stop();
}

#[test]
fn arguments_of_30_mb_are_refused_unread_and_others_are_served_meanwhile() {
    let helper = Helper::start(&["--user", "root", "--idle", "3600"]);
    helper.bus.call(control("GetKernelState"), &[]).unwrap();
    let before = peak(&helper.process);
    let large = large();
    let attack = |stop: &AtomicBool| {
        let mut attacker = RawConnection::connect(&helper.bus);
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) || sent < 8 {
            let reply = attacker.call_and_wait(control("DeleteFlows"), &(&large, QueryMap::new()));
            assert!(refused(&reply) && reply.has("1048576"), "{reply:?}");
            sent += 1;
        }
    };
    companion::during(attack, || {
        for _ in 0..20 {
            helper.bus.call(control("GetKernelState"), &[]).unwrap();
        }
    });
    // A copy of one argument would be 29,000.
    let after = peak(&helper.process);
    assert!(after < before + 16 * 1024, "{after} KiB at most, {before} before");
    helper.process.stop();
}

#[test]
fn flowbusd_by_hand_keeps_its_connections_whatever_is_sent_to_them() {
    let (namespace, bus) = (Namespace::tracked("attacked"), Bus::start());
    let daemon = Daemon::start(&namespace, &bus);
    let (name, open, before) = (owner(&bus, monitor("")[0]), descriptors(&daemon), peak(&daemon));
    let (file, large) = (File::open("/dev/null").unwrap(), large());
    let sixteen: Vec<Fd<'_>> = (0..16).map(|_| Fd::from(file.as_fd())).collect();
    for _ in 0..10 {
        let mut attacker = RawConnection::connect(&bus);
        for member in ["ListActive", "NoSuchMethod"] {
            let reply = attacker.call_and_wait(monitor(member), &sixteen);
            assert!(refused(&reply) && reply.has("16"), "{member}: {reply:?}");
            let reply = attacker.call_and_wait(monitor(member), &large);
            assert!(refused(&reply) && reply.has("1048576"), "{member}: {reply:?}");
        }
    }
    let statistics = bus.call(monitor("GetStatistics"), &[]).unwrap();
    assert_eq!(statistics[0]["calls_refused"], 40, "{statistics:?}");
    assert_eq!((owner(&bus, monitor("")[0]), descriptors(&daemon)), (name, open));
    // A copy of one argument would be 29,000.
    let after = peak(&daemon);
    assert!(after < before + 16 * 1024, "{after} KiB at most, {before} before");
    daemon.stop();
}

#[test]
fn calls_that_a_library_answers_are_bounded_too_and_each_is_answered() {
    const CALLS: u32 = 3_000;
    let (namespace, bus) = (Namespace::tracked("attacked"), Bus::start_with(GENEROUS));
    let helper = Daemon::spawn(Helper::command(&namespace, &bus).args(["--user", "root", "--idle", "3600"]));
    wait_for("the helper", || bus.call(control("GetKernelState"), &[]).ok());
    let [name, path, ..] = CONTROL;
    let mut refusals = 0;
    for [interface, member] in [
        ["org.freedesktop.DBus.Introspectable", "Introspect"],
        ["org.freedesktop.DBus.Properties", "GetAll"],
        ["org.freedesktop.DBus.Peer", "Ping"],
        ["org.flowbus.NoSuchInterface", "NoSuchMethod"],
    ] {
        let mut greedy = RawConnection::connect(&bus);
        let mut reader = greedy.reader();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..CALLS {
                    let _ = match member {
                        "GetAll" => greedy.call([name, path, interface, member], &name),
                        _ => greedy.call([name, path, interface, member], &()),
                    };
                }
            });
            let mut answered = 0;
            while answered < CALLS {
                let reply = reader.receive();
                if reply.reply_serial().is_some_and(|serial| serial > 1) {
                    answered += 1;
                    refusals += u32::from(refused(&reply));
                }
            }
        });
        bus.call(control("GetKernelState"), &[]).unwrap();
    }
    assert!(refusals > 0, "nothing was refused of {CALLS} calls of a kind at once");
    helper.stop();
}

#[tokio::test]
async fn the_helper_connects_again_when_the_bus_comes_back() {
    let mut helper = Helper::start(&["--user", "root", "--idle", "3600"]);
    let pid = helper.process.pid();
    for _ in 0..3 {
        helper.bus.restart();
        wait_for("the helper to be on the bus", || helper.has_name().then_some(()));
        let socket = helper.dump_socket();
        let proxy = helper.proxy().await;
        proxy.request_dump(Fd::from(socket.as_fd()), 1, &HashMap::new()).await.unwrap();
        assert_eq!(helper.process.pid(), pid);
    }
    // Confined as before: a second start of the confinement would be refused, and would warn.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Seccomp:\t2\n"), "{status}");
    assert!(!helper.process.log().contains("not confined"));
    helper.process.stop();
}

#[test]
fn a_helper_whose_bus_does_not_come_back_ends_in_time() {
    let mut helper = Helper::start(&["--user", "root", "--idle", "1"]);
    helper.bus.stop();
    let (status, log) = helper.process.ended();
    assert!(!status.success() && log.contains("cannot reach the bus"), "{log}");
}

/// Twelve calls with 16 descriptors each, three times a second, by a user in no group, while what was lost has to be fetched
/// by the helper.
#[test]
fn a_stranger_with_descriptors_keeps_no_overrun_from_healing() {
    for bus in BOTH {
        let machine = Machine::installed(bus);
        machine.wait_until_synchronized();
        let file = File::open("/dev/null").unwrap();
        let sixteen: Vec<Fd<'_>> = (0..16).map(|_| Fd::from(file.as_fd())).collect();
        let attack = |stop: &AtomicBool| {
            let mut attacker = machine.raw_connection(STRANGER);
            let mut answers = 0;
            while !stop.load(Ordering::Relaxed) {
                for member in ["DeleteFlows", "SetMark", "RequestDump"].iter().cycle().take(12) {
                    let serial = attacker.call(control(member), &sixteen);
                    assert!(attacker.reply_to(serial).has(ACCESS_DENIED), "{member} on {bus:?}");
                    answers += 1;
                }
                sleep(Duration::from_millis(333));
            }
            answers
        };
        let ((), answers) = companion::during(attack, || {
            for _ in 0..2 {
                let lost = machine.property("EventsLost").unwrap().as_u64().unwrap();
                machine.run("systemctl kill --signal=STOP --kill-whom=main flowbusd.service");
                // The buffer holds about 52,000 events.
                inject::udp(machine.namespace(), 1001, 40_000);
                conntrack::delete(machine.namespace(), "-p udp --orig-port-dst 1001");
                inject::udp(machine.namespace(), 1002, 20_000);
                machine.run("systemctl kill --signal=CONT --kill-whom=main flowbusd.service");
                wait_for("the loss to be noticed", || {
                    (machine.property("EventsLost").ok()?.as_u64()? > lost).then_some(())
                });
                machine.wait_until_synchronized();
                assert_eq!(machine.list("ListActive", &[]).unwrap().len(), 20_000, "{bus:?}");
                conntrack::delete(machine.namespace(), "-p udp --orig-port-dst 1002");
                machine.wait_until_synchronized();
            }
        });
        assert!(answers >= 12);
        assert_eq!(machine.unit("flowbus-control.service", "Result"), "success", "{bus:?}");
        assert_eq!(machine.unit("flowbus-control.service", "NRestarts"), "0");
        assert_eq!(machine.unit("flowbusd.service", "NRestarts"), "0");
    }
}

/// What each user gets who passes a descriptor to a method, by the service's name and by that of its connection.
#[test]
fn only_flowbusds_dump_request_may_carry_a_descriptor() {
    for bus in BOTH {
        let machine = Machine::installed(bus);
        machine.wait_until_synchronized();
        machine.call("flowbus", control("GetKernelState"), &[]).unwrap();
        let file = File::open("/dev/null").unwrap();
        let one = [Fd::from(file.as_fd())];
        let events = "org.flowbus.FlowEvents1";
        let introspectable = "org.freedesktop.DBus.Introspectable";
        let targets = [
            monitor("ListActive"),
            [events, "/org/flowbus/FlowEvents1", introspectable, "Introspect"],
            [CONTROL[0], CONTROL[1], introspectable, "Introspect"],
            control("GetCpuStatistics"),
            control("GetKernelState"),
            control("DeleteFlows"),
            control("ListExpectations"),
        ];
        let ask = ["org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetNameOwner"];
        for user in ["root", "flowbus", MEMBER, STRANGER] {
            let mut connection = machine.raw_connection(user);
            for target in targets {
                let unique =
                    machine.call("root", ask, &["s", target[0]]).unwrap()[0].as_str().unwrap().to_owned();
                for name in [target[0], &unique] {
                    let target = [name, target[1], target[2], target[3]];
                    let serial = connection.call(target, &one.as_slice());
                    assert!(connection.reply_to(serial).has(ACCESS_DENIED), "{user}, {target:?} on {bus:?}");
                }
            }
            let dump = |descriptors: usize| {
                let all: Vec<Fd<'_>> = (0..descriptors).map(|_| Fd::from(file.as_fd())).collect();
                machine.raw_connection(user).call_and_wait(control("RequestDump"), &all)
            };
            assert_eq!(dump(1).has(ACCESS_DENIED), user != "flowbus", "{user} on {bus:?}");
            assert!(dump(2).has(ACCESS_DENIED), "{user} on {bus:?}");
        }
        // What they are for goes on.
        machine.call(MEMBER, monitor("ListActive"), &["a{sv}", "0"]).unwrap();
        machine.call("root", control("DeleteFlows"), &["a{sv}a{sv}", "1", "dport", "q", "9", "0"]).unwrap();
    }
}

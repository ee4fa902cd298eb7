//! What the service publishes on both system buses: who sees it, and what a subscriber that stops reading costs the others.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use flowbus_tests::booted::{MEMBER, STRANGER, monitor};
use flowbus_tests::process::{DEADLINE, wait_for};
use flowbus_tests::{Machine, SystemBus, conntrack, inject};

use super::{BOTH, NEW, number};

/// The signals that a user gets: one line each, as dbus-monitor prints it.
struct Subscriber {
    process: Child,
    lines: Receiver<String>,
}

impl Subscriber {
    /// Where monitoring is refused dbus-monitor subscribes as any client does.
    fn start(machine: &Machine, user: &str) -> Self {
        let mut process = machine
            .command_as(user, "dbus-monitor")
            .args(["--system", "--profile"])
            .args([
                "type='signal',interface='org.flowbus.FlowEvents1'",
                "type='signal',interface='test.Mark'",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)).ok();
        });
        Self { process, lines }
    }

    /// How many signals of flowbus came before the mark; it is sent until it is seen.
    fn count_to(&self, mark: &str, machine: &Machine) -> usize {
        let mut count = 0;
        wait_for("a mark to come", || {
            machine.run(&format!("busctl --system emit /test test.Mark {mark}"));
            while let Ok(line) = self.lines.recv_timeout(DEADLINE / 100) {
                if line.contains(mark) {
                    return Some(());
                }
                count += usize::from(line.contains("org.flowbus.FlowEvents1"));
            }
            None
        });
        count
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_subscriber_that_stops_reading_stops_nobody_on_either_bus() {
    for bus in BOTH {
        let machine = Machine::installed(bus);
        machine.wait_until_synchronized();
        let subscriber = Subscriber::start(&machine, MEMBER);
        subscriber.count_to("Subscribed", &machine);
        machine.shell("kill -STOP $(pidof dbus-monitor)");
        let statistic = |name: &str| {
            let statistics = machine.monitor_call("GetStatistics", &[]).unwrap();
            statistics[0][name].as_u64().unwrap()
        };
        let sent = statistic("signals_sent");
        // Some megabytes of signals, which nobody takes.
        for port in 0..20 {
            inject::udp(machine.namespace(), 3000 + port, 200);
            conntrack::delete(machine.namespace(), &format!("-p udp --orig-port-dst {}", 3000 + port));
            machine.monitor_call("ListActive", &["a{sv}", "0"]).unwrap();
        }
        wait_for("signals to be sent or lost", || {
            (statistic("signals_sent") > sent + 20 || statistic("signals_lost") > 0).then_some(())
        });
        machine.wait_until_synchronized();
        assert_eq!(number(&machine, "ClosedCount"), 4_000, "on {bus:?}");
        machine.shell("kill -CONT $(pidof dbus-monitor)");
    }
}

#[test]
fn members_and_root_see_everything_and_strangers_nothing() {
    for bus in BOTH {
        let machine = Machine::installed(bus);
        machine.wait_until_synchronized();
        let events = [
            "org.flowbus.FlowEvents1",
            "/org/flowbus/FlowEvents1",
            "org.freedesktop.DBus.Introspectable",
            "Introspect",
        ];
        let calls: [([&str; 4], &[&str]); 3] =
            [(monitor("ListActive"), &["a{sv}", "0"]), (monitor("GetStatistics"), &[]), (events, &[])];
        for (target, arguments) in calls {
            let error = machine.call(STRANGER, target, arguments).unwrap_err();
            assert_eq!(error.name, "org.freedesktop.DBus.Error.AccessDenied", "{target:?} on {bus:?}");
            for user in ["root", MEMBER] {
                machine.call(user, target, arguments).unwrap();
            }
        }
        let subscribers = ["root", MEMBER, STRANGER].map(|user| (user, Subscriber::start(&machine, user)));
        for (_, subscriber) in &subscribers {
            // Now it is subscribed.
            subscriber.count_to("Subscribed", &machine);
        }
        for port in 0..5 {
            let before = number(&machine, "Sequence");
            inject::udp(machine.namespace(), 2000 + port, 10);
            wait_for("the changes", || (number(&machine, "Sequence") >= before + 10).then_some(()));
        }
        let sent = || {
            let statistics = machine.monitor_call("GetStatistics", &[]).unwrap();
            statistics[0]["signals_sent"].as_u64().unwrap()
        };
        // Quiet for longer than a batch waits.
        wait_for("the last signal to be sent", || {
            let before = sent();
            thread::sleep(std::time::Duration::from_millis(500));
            (sent() == before).then_some(())
        });
        for (user, subscriber) in &subscribers {
            let count = subscriber.count_to("Sent", &machine);
            assert_eq!(count > 0, *user != STRANGER, "{user} got {count} signals on {bus:?}");
        }
    }
}

#[test]
fn busctl_monitor_shows_root_the_events() {
    let machine = Machine::installed(SystemBus::Daemon);
    machine.wait_until_synchronized();
    let mut busctl = machine
        .command("busctl")
        .args(["monitor", "--system", "--json=short", "org.flowbus.FlowEvents1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(busctl.stdout.take().unwrap()).lines();
    let (sender, seen) = channel();
    thread::spawn(move || {
        let found = lines.find_map(|line| line.ok().filter(|line| line.contains("\"FlowEvents\"")));
        let _ = sender.send(found);
    });
    // busctl does not say when it listens: flows begin until it has seen one.
    let line = wait_for("busctl to show a signal", || {
        inject::udp(machine.namespace(), NEW, 1);
        conntrack::delete(machine.namespace(), &format!("-p udp --orig-port-dst {NEW}"));
        seen.recv_timeout(DEADLINE / 100).ok()
    });
    let _ = busctl.kill();
    let _ = busctl.wait();
    assert!(line.unwrap().contains("198.19.0.1"));
}

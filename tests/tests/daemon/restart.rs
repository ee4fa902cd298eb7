//! What survives the daemon: epoch, numbers, flows and history, over kills at any instant.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ctnetlink::Socket;
use flowbus_attribution::events::{EventFilter, EventReader, has_filter};
use flowbus_tests::daemon::BY_SOCKET;
use flowbus_tests::flow::agreed;
use flowbus_tests::kept::empty_state;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Kept, Namespace, burst, companion};
use rustix::process::Signal;
use serde_json::Value;

const BUFFER: usize = 64 * 1024 * 1024;

fn burst_namespace() -> Namespace {
    let namespace = Namespace::tracked("restart");
    burst::prepare(&namespace);
    namespace
}

fn property(bus: &Bus, name: &str) -> Value {
    bus.property(name).unwrap()
}

fn number(bus: &Bus, name: &str) -> u64 {
    property(bus, name).as_u64().unwrap()
}

fn statistics(bus: &Bus) -> Value {
    bus.monitor_call("GetStatistics", &[]).unwrap()[0].clone()
}

/// Each flow's number, by its tuple.
fn identities(flows: &[Value]) -> HashMap<String, u64> {
    flows
        .iter()
        .map(|flow| (format!("{} {}", flow["dst"], flow["dport"]), flow["id"].as_u64().unwrap()))
        .collect()
}

fn kill(mut daemon: Daemon) {
    daemon.signal(Signal::KILL);
    daemon.ended();
}

/// Tests daemons that receive events from a kept socket, then daemons that have a ring before it, which a burst overflows.
fn over_both_sources(receive_buffer: usize, test: impl Fn(&Namespace, &Bus, &Kept)) {
    for source in ["socket", "ring"] {
        let (namespace, bus) = (burst_namespace(), Bus::start());
        let mut kept = Kept::open(&namespace, receive_buffer);
        if source == "ring" {
            kept = kept.with_ring(64 << 10);
        }
        test(&namespace, &bus, &kept);
        let daemon = start(&kept, &namespace, &bus);
        assert_eq!(property(&bus, "EventSource"), source);
        daemon.stop();
    }
}

fn start(kept: &Kept, namespace: &Namespace, bus: &Bus) -> Daemon {
    let mut daemon = kept.spawn(namespace, bus);
    daemon.wait_until_synchronized(bus);
    daemon
}

#[test]
fn a_hundred_kills_under_churn_lose_double_and_renumber_nothing() {
    const PINNED: u32 = 500;
    over_both_sources(BUFFER, |namespace, bus, kept| {
        let daemon = start(kept, namespace, bus);
        burst::create(namespace, 0, PINNED);
        let (pinned, _) = agreed(bus, namespace);
        let pinned = identities(&pinned);
        let epoch = property(bus, "Epoch");
        kill(daemon);

        let churn = |stop: &AtomicBool| {
            let mut created = PINNED;
            while !stop.load(Ordering::Relaxed) {
                burst::create(namespace, created, 100);
                // Some end: those to one address, whatever their port.
                let [.., high, low] = created.to_be_bytes();
                let line = format!("conntrack -D -p udp -d 198.19.{high}.{low}");
                if created.is_multiple_of(200) {
                    namespace.run(&line);
                }
                created += 100;
                thread::sleep(Duration::from_millis(1));
            }
            created
        };
        let ((), created) = companion::during(churn, || {
            for round in 0..100_u64 {
                let daemon = kept.spawn(namespace, bus);
                // At the beginning, in the middle, later: a different instant every time.
                thread::sleep(Duration::from_micros(round * 733 % 61_000));
                kill(daemon);
            }
        });

        let daemon = start(kept, namespace, bus);
        let (flows, _) = agreed(bus, namespace);
        assert_eq!(property(bus, "Epoch"), epoch);
        assert_eq!(number(bus, "EventsLost"), 0);
        assert_eq!(number(bus, "Resyncs"), 1, "no dump was needed but the first");
        let statistics = statistics(bus);
        let count = |name: &str| statistics[name].as_u64().unwrap();
        // Every event was one change: none was missed, none applied twice.
        assert_eq!(count("events_repeated"), 0);
        assert_eq!(count("events_new"), u64::from(created));
        assert_eq!(
            number(bus, "Sequence"),
            count("events_new") + count("events_update") + count("events_destroy")
        );
        assert_eq!(count("events_new") - count("events_destroy"), flows.len() as u64);
        let now = identities(&flows);
        for (tuple, identity) in pinned {
            assert_eq!(now.get(&tuple).copied().unwrap_or(identity), identity, "{tuple} was renumbered");
        }
        let closed = bus.list("ListClosed", &[]).unwrap();
        let mut ids: Vec<u64> =
            flows.iter().chain(&closed).map(|flow| flow["id"].as_u64().unwrap()).collect();
        ids.sort_unstable();
        assert!(
            ids == (1..=count("events_new")).collect::<Vec<_>>(),
            "{} ids of {}",
            ids.len(),
            count("events_new")
        );
        daemon.stop();
        if let Some(filter) = &kept.filter {
            // Both the ring and the queue behind it were in use.
            let socket = Socket::from_fd(kept.events.try_clone().unwrap()).unwrap();
            let passed = EventReader::open(socket, filter).unwrap().passed();
            let sent = count("events_new") + count("events_destroy");
            assert!(passed > 0 && passed < sent / 2, "{passed} of {sent} events by the queue");
        }
    });
}

#[test]
fn flows_that_come_and_go_while_no_daemon_runs_are_told_by_the_next() {
    over_both_sources(BUFFER, |namespace, bus, kept| {
        let daemon = start(kept, namespace, bus);
        burst::create(namespace, 0, 5_000);
        let (flows, _) = agreed(bus, namespace);
        let (before, epoch) = (identities(&flows), property(bus, "Epoch"));
        kill(daemon);
        namespace.run("conntrack -F");
        burst::create(namespace, 5_000, 5_000);

        let daemon = start(kept, namespace, bus);
        let (flows, _) = agreed(bus, namespace);
        assert_eq!(flows.len(), 5_000);
        let closed = bus.list("ListClosed", &[]).unwrap();
        assert!(identities(&closed) == before, "flows were lost or renumbered");
        assert_eq!((property(bus, "Epoch"), number(bus, "Resyncs")), (epoch, 1));
        daemon.stop();
    });
}

#[test]
fn a_kill_in_the_middle_of_a_dump_closes_nothing() {
    let (namespace, bus) = (burst_namespace(), Bus::start());
    burst::create(&namespace, 0, 20_000);
    // A kill may come while the state is made, which the next life then refuses, and none may come in a dump: then once more.
    for _ in 0..10 {
        let kept = Kept::open(&namespace, BUFFER);
        // Each lives a little longer, until one comes to the end of its dump.
        for life in 0.. {
            let mut daemon = kept.spawn(&namespace, &bus);
            thread::sleep(Duration::from_millis(2 * life));
            daemon.signal(Signal::KILL);
            if daemon.ended().1.contains("table synchronized") {
                break;
            }
        }
        let daemon = start(&kept, &namespace, &bus);
        assert_eq!((number(&bus, "ActiveCount"), number(&bus, "ClosedCount")), (20_000, 0));
        let dumps = statistics(&bus)["dumps"].as_u64();
        daemon.stop();
        if dumps > Some(1) {
            return;
        }
    }
    panic!("no kill was in a dump");
}

#[test]
fn a_damaged_state_is_refused_with_a_warning_and_a_new_epoch() {
    let (namespace, bus) = (burst_namespace(), Bus::start());
    let kept = Kept::open(&namespace, BUFFER);
    let daemon = start(&kept, &namespace, &bus);
    burst::create(&namespace, 0, 100);
    let _ = agreed(&bus, &namespace);
    let epoch = property(&bus, "Epoch");
    daemon.stop();
    rustix::io::pwrite(&kept.state, &[0xee; 64], 100).unwrap();

    let daemon = start(&kept, &namespace, &bus);
    let (flows, _) = agreed(&bus, &namespace);
    assert_eq!(flows.len(), 100);
    assert_ne!(property(&bus, "Epoch"), epoch);
    assert_eq!(daemon.log().matches("is refused").count(), 1, "{}", daemon.log());
    assert!(daemon.log().contains("state-refused"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn sockets_of_another_network_or_of_no_group_are_refused_by_name() {
    let (here, there, bus) = (Namespace::tracked("here"), Namespace::tracked("there"), Bus::start());
    let (own, other) = (|| Kept::open(&here, BUFFER), || Kept::open(&there, BUFFER));
    let groupless = here.enter(|| ctnetlink::Socket::open().unwrap());
    let cases = [
        ("dump", "another network namespace than events", Kept { dump: other().dump, ..own() }),
        ("events", "another network namespace than this process", other()),
        ("events", "not joined the groups NEW, UPDATE, DESTROY", Kept { events: groupless, ..own() }),
    ];
    for (name, fault, kept) in cases {
        let (status, log) = kept.spawn(&here, &bus).ended();
        assert!(!status.success(), "{name}: {log}");
        assert!(
            log.contains(&format!("the descriptor named {name} is of no use")) && log.contains(fault),
            "{log}"
        );
    }
}

#[test]
fn a_state_of_another_size_is_refused() {
    let (namespace, bus) = (burst_namespace(), Bus::start());
    let kept = Kept::open(&namespace, BUFFER);
    rustix::io::pwrite(&kept.state, b"an older flowbusd", 0).unwrap();
    let daemon = start(&kept, &namespace, &bus);
    assert!(daemon.log().contains("is refused"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn with_another_event_socket_flows_and_history_stay_and_what_was_missed_is_found() {
    let (namespace, bus) = (burst_namespace(), Bus::start());
    let mut kept = Kept::open(&namespace, BUFFER);
    let daemon = start(&kept, &namespace, &bus);
    burst::create(&namespace, 0, 300);
    let (flows, _) = agreed(&bus, &namespace);
    let (before, epoch) = (identities(&flows), property(&bus, "Epoch"));
    daemon.stop();
    let state = std::mem::replace(&mut kept.state, empty_state());
    drop(kept);
    namespace.run("conntrack -D -p udp -d 198.19.0.7");
    burst::create(&namespace, 300, 10);

    let kept = Kept { state, ..Kept::open(&namespace, BUFFER) };
    let daemon = start(&kept, &namespace, &bus);
    assert_eq!(property(&bus, "Epoch"), epoch);
    let (flows, _) = agreed(&bus, &namespace);
    let now = identities(&flows);
    assert_eq!(now.len(), 309);
    assert!(now.iter().all(|(tuple, identity)| before.get(tuple).is_none_or(|before| before == identity)));
    let closed = bus.list("ListClosed", &[]).unwrap();
    assert_eq!((closed.len(), &closed[0]["end_reason"]), (1, &Value::from("resync")));
    assert!(daemon.log().contains("new-socket"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn an_overrun_while_no_daemon_runs_is_counted_and_healed() {
    over_both_sources(256 * 1024, |namespace, bus, kept| {
        for (round, end) in (0..).zip([Daemon::stop, kill]) {
            end(start(kept, namespace, bus));
            burst::create(namespace, round * 5_000, 5_000);
            let mut daemon = kept.spawn(namespace, bus);
            let sent = u64::from(round + 1) * 5_000;
            wait_for("all events to be received or lost", || {
                let known = bus.property("EventsReceived").ok()?.as_u64()?
                    + bus.property("EventsLost").ok()?.as_u64()?;
                (known == sent).then_some(())
            });
            daemon.wait_until_synchronized(bus);
            assert!(number(bus, "EventsLost") > 3_000 * u64::from(round + 1));
            let (flows, _) = agreed(bus, namespace);
            assert_eq!(flows.len() as u64, sent);
            daemon.stop();
        }
    });
}

#[test]
fn a_filter_that_is_not_wanted_any_more_is_detached_and_what_its_ring_had_is_found() {
    let (namespace, bus) = (burst_namespace(), Bus::start());
    let kept = Kept::open(&namespace, BUFFER).with_ring(64 << 10);
    kill(start(&kept, &namespace, &bus));
    assert!(has_filter(kept.events.as_fd()).unwrap());
    burst::create(&namespace, 0, 10);
    let mut daemon = kept.spawn_with(&namespace, &bus, BY_SOCKET);
    daemon.wait_until_synchronized(&bus);
    assert!(!has_filter(kept.events.as_fd()).unwrap());
    assert_eq!((property(&bus, "EventSource"), number(&bus, "ActiveCount")), (Value::from("socket"), 10));
    burst::create(&namespace, 10, 10);
    assert_eq!(agreed(&bus, &namespace).0.len(), 20);
    assert_eq!((number(&bus, "Resyncs"), number(&bus, "EventsReceived")), (2, 10));
    daemon.stop();
    // And back.
    let daemon = start(&kept, &namespace, &bus);
    burst::create(&namespace, 20, 10);
    assert_eq!(agreed(&bus, &namespace).0.len(), 30);
    assert_eq!((property(&bus, "EventSource"), number(&bus, "Resyncs")), (Value::from("ring"), 2));
    daemon.stop();
}

#[test]
fn what_a_lost_ring_had_is_found_also_where_the_life_that_noticed_is_killed() {
    let (namespace, bus) = (burst_namespace(), Bus::start());
    for round in 0..25 {
        let kept = Kept::open(&namespace, BUFFER).with_ring(64 << 10);
        kill(start(&kept, &namespace, &bus));
        // In the ring, which the next lives do not have.
        burst::create(&namespace, round * 10, 10);
        for life in 0..3 {
            let daemon = kept.spawn_with(&namespace, &bus, BY_SOCKET);
            thread::sleep(Duration::from_micros(u64::from(round) * 1_500 + life * 500));
            kill(daemon);
        }
        let mut daemon = kept.spawn_with(&namespace, &bus, BY_SOCKET);
        daemon.wait_until_synchronized(&bus);
        assert_eq!(number(&bus, "ActiveCount"), u64::from(round + 1) * 10, "in round {round}");
        daemon.stop();
    }
}

#[test]
fn a_filter_that_cannot_be_attached_again_loses_nothing_that_its_ring_had() {
    let (namespace, bus) = (burst_namespace(), Bus::start());
    let mut kept = Kept::open(&namespace, BUFFER).with_ring(64 << 10);
    kill(start(&kept, &namespace, &bus));
    burst::create(&namespace, 0, 10);
    // A program that is no socket filter, by the name of one.
    let (programs, _) = flowbus_attribution::load(1 << 16).unwrap();
    let copy = |(name, fd): (&str, BorrowedFd<'_>)| (name.to_owned(), fd.try_clone_to_owned().unwrap());
    let other = programs.named().find(|(name, _)| *name == "bpf-program").map(copy).unwrap();
    let mut named: Vec<_> = kept.filter.as_ref().unwrap().named().map(copy).collect();
    named[0].1 = other.1;
    kept.filter = Some(EventFilter::from_named(named).unwrap());
    let daemon = start(&kept, &namespace, &bus);
    assert_eq!((property(&bus, "EventSource"), number(&bus, "ActiveCount")), (Value::from("socket"), 10));
    burst::create(&namespace, 10, 10);
    assert_eq!(agreed(&bus, &namespace).0.len(), 20);
    assert_eq!(number(&bus, "Resyncs"), 2);
    daemon.stop();
}

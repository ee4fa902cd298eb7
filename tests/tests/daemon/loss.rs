//! Bursts, overruns and readers that stop: what was lost is counted exactly, and the table is right again after it.

use std::os::fd::AsFd;

use ctnetlink::{Conntrack, Socket};
use flowbus_attribution::events::{EventFilter, has_filter};
use flowbus_tests::conntrack;
use flowbus_tests::daemon::{BY_SOCKET, UNATTRIBUTED};
use flowbus_tests::flow::agreed;
use flowbus_tests::inject::tuple;
use flowbus_tests::process::{Directory, wait_for};
use flowbus_tests::{Bus, Daemon, Kept, Namespace, burst};
use rustix::process::Signal;
use serde_json::Value;

const BURST: u32 = 200_000;

fn burst_namespace() -> Namespace {
    let namespace = Namespace::tracked("burst");
    burst::prepare(&namespace);
    namespace
}

/// Tests a daemon that has its events by a ring, then one that has them from the socket.
fn over_both_sources(test: impl Fn(&Namespace, &Bus, Daemon)) {
    for (source, configuration) in [("ring", UNATTRIBUTED), ("socket", BY_SOCKET)] {
        let (namespace, bus) = (burst_namespace(), Bus::start());
        let daemon = Daemon::start_with(&namespace, &bus, &["--config", configuration]);
        assert_eq!(bus.property("EventSource").unwrap(), source);
        test(&namespace, &bus, daemon);
    }
}

fn number(bus: &Bus, property: &str) -> u64 {
    bus.property(property).unwrap().as_u64().unwrap()
}

fn statistic(bus: &Bus, name: &str) -> u64 {
    bus.monitor_call("GetStatistics", &[]).unwrap()[0][name].as_u64().unwrap()
}

/// Waits until every event that the kernel sent is either received or known to be lost.
fn wait_for_events(bus: &Bus, emitted: u64) {
    wait_for(&format!("{emitted} events to be received or lost"), || {
        let known = number(bus, "EventsReceived") + number(bus, "EventsLost");
        assert!(known <= emitted, "{known} events of {emitted}");
        (known == emitted).then_some(())
    });
}

fn wait_until_synchronized(bus: &Bus) {
    wait_for("the table to be synchronized", || {
        (bus.property("Synchronized").ok()? == Value::Bool(true)).then_some(())
    });
}

/// Empties the kernel's table.
fn flush(namespace: &Namespace) {
    namespace.run("conntrack -F");
}

/// How much of a burst is read on its way depends on the machine, and ./bench measures it. Whatever the machine, nothing is lost of
/// what the event socket holds: about 50,000 events.
#[test]
fn of_200000_flows_that_begin_and_end_in_bursts_that_fit_nothing_is_lost() {
    const PIECES: u32 = 8;
    over_both_sources(|namespace, bus, daemon| {
        for piece in 0..PIECES {
            burst::create(namespace, piece * (BURST / PIECES), BURST / PIECES);
            wait_for_events(bus, u64::from((piece + 1) * (BURST / PIECES)));
        }
        assert_eq!((number(bus, "EventsLost"), number(bus, "ActiveCount")), (0, u64::from(BURST)));
        assert_eq!(namespace.sysctl_value("net.netfilter.nf_conntrack_count"), BURST.to_string());
        for piece in 0..PIECES {
            // An eighth of the addresses.
            namespace.run(&format!("conntrack -D -p udp -d 198.19.{}.0/19", piece * (256 / PIECES)));
            let left = namespace.sysctl_value("net.netfilter.nf_conntrack_count").parse::<u32>().unwrap();
            wait_for_events(bus, u64::from(2 * BURST - left));
        }
        assert_eq!((number(bus, "EventsLost"), number(bus, "ActiveCount")), (0, 0));
        assert_eq!(number(bus, "ClosedCount") + statistic(bus, "closed_evicted"), u64::from(BURST));
        assert_eq!(number(bus, "Sequence"), 2 * u64::from(BURST));
        daemon.stop();
    });
}

#[test]
fn a_daemon_that_is_stopped_under_load_says_exactly_what_it_lost() {
    over_both_sources(|namespace, bus, daemon| {
        daemon.signal(Signal::STOP);
        burst::create(namespace, 0, BURST);
        flush(namespace);
        burst::create(namespace, 0, 3_000);
        // Traffic did not notice: every packet made its flow.
        assert_eq!(namespace.sysctl_value("net.netfilter.nf_conntrack_count"), "3000");
        daemon.signal(Signal::CONT);
        wait_for_events(bus, 2 * u64::from(BURST) + 3_000);
        assert!(number(bus, "EventsLost") > 0, "the buffer cannot hold that");
        wait_until_synchronized(bus);
        // At once: a ghost would otherwise be found by the sweeps that follow.
        assert_eq!(number(bus, "ActiveCount"), 3_000);
        let (flows, table) = agreed(bus, namespace);
        assert_eq!((flows.len(), table.len()), (3_000, 3_000));
        assert!(number(bus, "Resyncs") >= 2);
        daemon.stop();
    });
}

#[test]
fn a_reader_with_a_small_buffer_has_no_ghosts_and_misses_nothing_after_its_resync() {
    let (namespace, bus) = (burst_namespace(), Bus::start());
    let kept = Kept::open(&namespace, 64 * 1024);
    let mut daemon = kept.spawn(&namespace, &bus);
    daemon.wait_until_synchronized(&bus);
    // Flows come, go and come again while dumps are merged.
    let mut emitted = 0;
    for round in 0..5 {
        burst::create(&namespace, round * 1_000, 20_000);
        flush(&namespace);
        emitted += 2 * 20_000;
    }
    has_lost_and_has_no_ghost(&namespace, &bus, emitted);
    daemon.stop();
}

/// Adds 4,000 flows to an empty namespace after `emitted` events, of which some are lost: the table has these flows and no other.
fn has_lost_and_has_no_ghost(namespace: &Namespace, bus: &Bus, emitted: u64) {
    burst::create(namespace, 0, 4_000);
    wait_for_events(bus, emitted + 4_000);
    assert!(number(bus, "EventsLost") > 0, "a buffer of 64 KiB holds a hundred events, a ring some 2,300");
    wait_until_synchronized(bus);
    assert_eq!(number(bus, "ActiveCount"), 4_000);
    let (flows, _) = agreed(bus, namespace);
    assert_eq!(flows.len(), 4_000);
}

#[test]
fn with_a_small_buffer_behind_it_a_ring_loses_what_is_counted_and_no_ghost_is_left() {
    let directory = Directory::new("small");
    for source in ["auto", "socket"] {
        let (namespace, bus) = (burst_namespace(), Bus::start());
        let text = format!(
            "[attribution]\ntier = \"none\"\n[events]\nsource = \"{source}\"\nreceive_buffer_bytes = 65536\n"
        );
        let configuration = directory.file(&format!("{source}.toml"), &text);
        let daemon =
            Daemon::start_with(&namespace, &bus, &["--config", configuration.to_str().expect("it is UTF-8")]);
        let mut emitted = 0;
        for round in 0..5 {
            // Or it might keep up.
            daemon.signal(Signal::STOP);
            std::thread::scope(|scope| {
                scope.spawn(|| burst::create(&namespace, 100_000 + round * 1_000, 20_000));
                burst::create(&namespace, round * 1_000, 20_000);
            });
            daemon.signal(Signal::CONT);
            flush(&namespace);
            emitted += 4 * 20_000;
        }
        has_lost_and_has_no_ghost(&namespace, &bus, emitted);
        daemon.stop();
    }
}

#[test]
fn a_kept_socket_with_a_filter_of_nobody_hears_again_and_is_resynchronized() {
    let (namespace, bus) = (burst_namespace(), Bus::start());
    let kept = Kept::open(&namespace, 1 << 20);
    let mut daemon = kept.spawn(&namespace, &bus);
    daemon.wait_until_synchronized(&bus);
    daemon.signal(Signal::KILL);
    let _ = daemon.ended();
    // As if a version that leaves filters on kept sockets had run meanwhile.
    let filter = EventFilter::load(1 << 20).unwrap();
    filter.attach(kept.events.as_fd()).unwrap();
    burst::create(&namespace, 0, 3);
    let mut daemon = kept.spawn(&namespace, &bus);
    daemon.wait_until_synchronized(&bus);
    assert!(!has_filter(kept.events.as_fd()).unwrap());
    assert_eq!(bus.property("EventSource").unwrap(), "socket");
    assert_eq!((number(&bus, "ActiveCount"), number(&bus, "EventsReceived")), (3, 0));
    burst::create(&namespace, 3, 3);
    wait_for_events(&bus, 3);
    assert_eq!((number(&bus, "ActiveCount"), number(&bus, "Resyncs")), (6, 2));
    daemon.stop();
}

#[test]
fn flows_older_than_the_daemon_leave_the_table_with_an_estimated_end() {
    let (namespace, bus) = (burst_namespace(), Bus::start());
    // Whether a flow sends events is settled when it is made. By default it does if anybody listens, in any namespace of
    // the machine: with 0 these are flows older than the first listener, whoever else is at work here.
    namespace.sysctl("net.netfilter.nf_conntrack_events", "0");
    burst::create(&namespace, 0, 5_000);
    namespace.sysctl("net.netfilter.nf_conntrack_events", "2");
    let daemon = Daemon::start(&namespace, &bus);
    burst::create(&namespace, 5_000, 5_000);
    wait_for_events(&bus, 5_000);
    assert_eq!(number(&bus, "ActiveCount"), 10_000);
    flush(&namespace);
    wait_for("all flows to leave", || (number(&bus, "ActiveCount") == 0).then_some(()));
    let closed = bus.list("ListClosed", &[]).unwrap();
    assert_eq!(closed.len(), 10_000);
    let by = |reason: &str, source: &str| {
        closed.iter().filter(|flow| flow["end_reason"] == reason && flow["end_source"] == source).count()
    };
    assert_eq!((by("resync", "estimated"), by("destroyed", "kernel")), (5_000, 5_000));
    let sweeps = statistic(&bus, "sweeps");
    assert!(sweeps > 0);
    assert_eq!(number(&bus, "Resyncs"), 1, "a sweep is not a resync");
    daemon.stop();
}

#[test]
fn a_flow_that_times_out_ended_when_the_kernel_says_however_late_it_says_so() {
    let (namespace, bus) = (burst_namespace(), Bus::start());
    namespace.sysctl("net.netfilter.nf_conntrack_udp_timeout", "3");
    let daemon = Daemon::start(&namespace, &bus);
    burst::create(&namespace, 0, 10);
    // The kernel looks for flows that timed out every now and then, at the latest when they are dumped; and the daemon
    // reads it later still.
    daemon.signal(Signal::STOP);
    wait_for("the flows to time out", || {
        let _ = conntrack::list(&namespace);
        (namespace.sysctl_value("net.netfilter.nf_conntrack_count") == "0").then_some(())
    });
    daemon.signal(Signal::CONT);
    wait_for_events(&bus, 20);
    for flow in bus.list("ListClosed", &[]).unwrap() {
        assert_eq!(
            (flow["start_source"].as_str(), flow["end_source"].as_str()),
            (Some("kernel"), Some("kernel"))
        );
        let duration = flow["duration_usec"].as_u64().unwrap();
        assert_eq!(duration, flow["end_usec"].as_u64().unwrap() - flow["start_usec"].as_u64().unwrap());
        // The kernel counts timeouts in ticks of its clock.
        assert_eq!((duration + 100_000) / 1_000_000, 3, "{flow}");
    }
    daemon.stop();
}

#[test]
fn messages_of_other_processes_are_counted_and_not_believed() {
    let (namespace, bus) = (burst_namespace(), Bus::start());
    let kept = Kept::open(&namespace, 1 << 20);
    let mut daemon = kept.spawn(&namespace, &bus);
    daemon.wait_until_synchronized(&bus);
    let port = kept.events.port().unwrap();
    // A NEW event as the kernel would send it, from somebody else.
    let recorder = Kept::open(&namespace, 1 << 20);
    burst::create(&namespace, 0, 1);
    let mut event = vec![0; 8192];
    let length = wait_for("an event to copy", || match recorder.events.receive(&mut event).unwrap() {
        ctnetlink::Received::Datagram(length) => Some(length),
        _ => None,
    });
    wait_for_events(&bus, 1);
    flush(&namespace);
    wait_for_events(&bus, 2);
    let impostor = namespace.enter(|| Socket::open().unwrap());
    let target = rustix::net::netlink::SocketAddrNetlink::new(port, 0);
    rustix::net::sendto(&impostor, &event[..length], rustix::net::SendFlags::empty(), &target).unwrap();
    wait_for("the message to be counted", || (statistic(&bus, "events_foreign") == 1).then_some(()));
    assert_eq!((number(&bus, "ActiveCount"), number(&bus, "EventsReceived")), (0, 2));
    daemon.stop();
}

#[test]
fn events_that_are_repeated_for_a_stalled_listener_change_nothing_twice() {
    const TUPLES: u32 = 2_000;
    let (namespace, bus) = (burst_namespace(), Bus::start());
    let daemon = Daemon::start(&namespace, &bus);
    let stalled = Kept::open(&namespace, 4_096);
    stalled.events.set_broadcast_error(true).unwrap();
    for _ in 0..3 {
        flush(&namespace);
        burst::create(&namespace, 0, TUPLES);
    }
    drop(stalled);
    // What could not be sent to the stalled listener is sent again, to everybody, after it has gone.
    wait_for("all 6,000 flows to be told", || {
        (number(&bus, "ActiveCount") + number(&bus, "ClosedCount") >= 3 * u64::from(TUPLES)).then_some(())
    });
    wait_for("the kernel to repeat an event", || (statistic(&bus, "events_repeated") > 0).then_some(()));
    let (flows, _) = agreed(&bus, &namespace);
    assert_eq!(flows.len(), TUPLES as usize);
    let closed = bus.list("ListClosed", &[]).unwrap();
    assert_eq!(closed.len(), 2 * TUPLES as usize);
    let mut ids: Vec<u64> = flows.iter().chain(&closed).map(|flow| flow["id"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3 * TUPLES as usize);
    daemon.stop();
}

#[test]
fn the_same_tuple_recreated_20000_times_is_20000_flows() {
    const TIMES: u64 = 20_000;
    over_both_sources(|namespace, bus, daemon| {
        let mut table = namespace.enter(|| Conntrack::open().unwrap());
        let (src, dst) = burst::tuple(0);
        let tuple = tuple(&src.ip().to_string(), &dst.ip().to_string(), 17, src.port(), dst.port());
        for _ in 0..TIMES {
            burst::create(namespace, 0, 1);
            table.delete(&tuple, None).unwrap();
        }
        wait_for_events(bus, 2 * TIMES);
        assert_eq!((number(bus, "ActiveCount"), number(bus, "ClosedCount")), (0, TIMES));
        let mut ids: Vec<u64> =
            bus.list("ListClosed", &[]).unwrap().iter().map(|flow| flow["id"].as_u64().unwrap()).collect();
        ids.sort_unstable();
        assert!(ids == (1..=TIMES).collect::<Vec<_>>(), "{} ids", ids.len());
        assert_eq!(conntrack::list(namespace).len(), 0);
        daemon.stop();
    });
}

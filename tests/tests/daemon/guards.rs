//! Callers that ask too much, or read nothing: they are refused, and nobody else notices.

use std::collections::HashSet;
use std::thread;

use flowbus_interfaces::QueryMap;
use flowbus_tests::flow::agreed;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Monitor, Namespace, RawConnection, burst, churn};

/// The bus lets a connection wait for more replies than the daemon does.
const GENEROUS: &str = r#"<limit name="max_replies_per_connection">100000</limit>
  <limit name="max_connections_per_user">1000</limit>
  <limit name="max_match_rules_per_connection">1000</limit>"#;
const EVENTS: &str = "type='signal',interface='org.flowbus.FlowEvents1',member='FlowEvents'";
const LIMIT_EXCEEDED: &str = "org.flowbus.Error.LimitExceeded";

/// What 64 calls in flight may cost, in KiB: a page of a mebibyte each, and as much again on its way to the bus.
const PAGES: u64 = 2 * 64 * 1024;

fn started(flows: u32) -> (Namespace, Bus, Daemon) {
    let (namespace, bus) = (Namespace::tracked("guards"), Bus::start_with(GENEROUS));
    churn::prepare(&namespace);
    let daemon = Daemon::start(&namespace, &bus);
    burst::create(&namespace, 0, flows);
    let _ = agreed(&bus, &namespace);
    (namespace, bus, daemon)
}

/// What a process has in memory, in KiB.
fn resident(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn statistic(bus: &Bus, name: &str) -> u64 {
    bus.monitor_call("GetStatistics", &[]).unwrap()[0][name].as_u64().unwrap()
}

/// Receives a reply to each of these calls: how many have a result, and how many are refused for the limit.
fn replies(connection: &mut RawConnection, mut calls: HashSet<u32>) -> (usize, usize) {
    let (mut results, mut refused) = (0, 0);
    while !calls.is_empty() {
        let received = connection.receive();
        let Some(serial) = received.reply_serial() else { continue };
        assert!(calls.remove(&serial), "a reply to {serial}, which has one already");
        if received.is_error() {
            assert!(received.has(LIMIT_EXCEEDED), "{received:?}");
            refused += 1;
        } else {
            results += 1;
        }
    }
    (results, refused)
}

#[test]
fn each_of_5000_calls_at_once_is_answered_and_other_callers_are_served() {
    const CALLS: u32 = 5_000;
    let (_namespace, bus, daemon) = started(3_000);
    let mut greedy = RawConnection::connect(&bus);
    let query = QueryMap::from([("limit", 1_000_u32.into())]);
    // What the daemon takes for the most that one may have in flight is part of what it has.
    let whole = || bus.list("ListActive", &[["fields", "as", "1 id"]]).unwrap().len();
    assert_eq!(whole(), 3_000);
    let before = resident(&daemon);
    let mut reader = greedy.reader();
    let (results, refused) = thread::scope(|scope| {
        // Serial 1 was the hello.
        let reading = scope.spawn(|| replies(&mut reader, (2..CALLS + 2).collect()));
        let writing = scope.spawn(|| (0..CALLS).for_each(|_| _ = greedy.list_active(&query)));
        while !reading.is_finished() {
            assert_eq!(whole(), 3_000);
        }
        writing.join().unwrap();
        reading.join().unwrap()
    });
    assert_eq!(results + refused, CALLS as usize);
    assert!(results >= 16, "{results} results");
    assert_eq!(statistic(&bus, "calls_refused"), refused as u64);
    let grown = resident(&daemon).saturating_sub(before);
    assert!(grown < PAGES, "{grown} KiB more than {before}");
    daemon.stop();
}

#[test]
fn a_page_has_a_thousand_flows_and_a_mebibyte_at_most() {
    let (_namespace, bus, daemon) = started(3_000);
    let mut connection = RawConnection::connect(&bus);
    let every_flow = [("limit", 1_000_u32.into()), ("dport", 5_000_u32.into())];
    let serial = connection.list_active(&QueryMap::from(every_flow));
    let mut received = connection.receive();
    // The bus has sent our name in between.
    while received.reply_serial() != Some(serial) {
        received = connection.receive();
    }
    assert!(!received.is_error(), "{received:?}");
    let bytes = received.bytes();
    assert!((256 * 1024..=1024 * 1024).contains(&bytes), "{bytes} bytes");
    let limit = ["limit", "u", "1000"];
    assert_eq!(bus.list("ListActive", &[limit, ["dport", "q", "5000"]]).unwrap().len(), 3_000);
    daemon.stop();
}

#[test]
fn calls_of_256_connections_at_once_are_each_answered() {
    const CONNECTIONS: usize = 256;
    const CALLS: u32 = 20;
    let (_namespace, bus, daemon) = started(1_000);
    let before = resident(&daemon);
    let mut connections: Vec<RawConnection> =
        (0..CONNECTIONS).map(|_| RawConnection::connect(&bus)).collect();
    let query = QueryMap::new();
    for connection in &mut connections {
        (0..CALLS).for_each(|_| _ = connection.list_active(&query));
    }
    let (mut results, mut refused) = (0, 0);
    for connection in &mut connections {
        let (some, others) = replies(connection, (2..CALLS + 2).collect());
        results += some;
        refused += others;
    }
    assert_eq!(results + refused, CONNECTIONS * CALLS as usize);
    assert!(results > 0);
    let grown = resident(&daemon).saturating_sub(before);
    assert!(grown < PAGES, "{grown} KiB more than {before}");
    assert_eq!(bus.list("ListActive", &[]).unwrap().len(), 1_000);
    daemon.stop();
}

#[test]
fn a_subscriber_of_signals_that_never_reads_stops_nobody() {
    const FLOWS: u32 = 20_000;
    let (namespace, bus, daemon) = started(0);
    let load = || {
        for _ in 0..4 {
            let before = bus.property("Sequence").unwrap().as_u64().unwrap();
            burst::create(&namespace, 0, FLOWS);
            assert!(bus.list("ListActive", &[["dport", "q", "1"]]).is_ok_and(|flows| flows.is_empty()));
            namespace.run("conntrack -F");
            wait_for("all changes", || {
                bus.monitor_call("ListActive", &["a{sv}", "0"]).unwrap();
                let sequence = bus.property("Sequence").unwrap().as_u64().unwrap();
                (sequence == before + 2 * u64::from(FLOWS)).then_some(())
            });
        }
    };
    load();
    let before = resident(&daemon);
    let mut stalled: Vec<RawConnection> = (0..4).map(|_| RawConnection::connect(&bus)).collect();
    for connection in &mut stalled {
        connection.add_match(EVENTS);
    }
    // One has as many rules as a bus lets it have.
    (0..511).for_each(|number| stalled[0].add_match(&format!("{EVENTS},arg1='{number}'")));
    load();
    let grown = resident(&daemon).saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more than {before}");
    // A subscriber that reads receives what happens from here on.
    let monitor = Monitor::start(&bus, "org.flowbus.FlowEvents1");
    burst::create(&namespace, 3 * 65_536, 1);
    let (events, _) = monitor.events_until(|events| events.iter().any(|event| event["dport"] == 5003));
    assert!(!events.is_empty());
    drop(stalled);
    daemon.stop();
}

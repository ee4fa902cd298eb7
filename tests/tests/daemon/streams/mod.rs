//! OpenStream: what its reader learns is what the daemon knows, whatever happens meanwhile, and nobody else pays for it.

mod resume;
mod table;

use flowbus_interfaces::{Error, QueryMap};
use flowbus_tests::client::Stream;
use flowbus_tests::flow::agreed;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Client, Daemon, Monitor, Namespace, burst, churn};
use serde_json::{Value, json};
use table::{Table, lasting};

/// How many rounds of churn are fewer changes than the daemon keeps for slow readers: nobody misses one.
const ROUNDS: u64 = 12_288 / churn::ROUND_CHANGES;

/// A namespace with flows to make, a bus, and the daemon.
fn started() -> (Namespace, Bus, Daemon) {
    let (namespace, bus) = (Namespace::tracked("stream"), Bus::start());
    churn::prepare(&namespace);
    let daemon = Daemon::start(&namespace, &bus);
    (namespace, bus, daemon)
}

fn number(bus: &Bus, property: &str) -> u64 {
    bus.property(property).unwrap().as_u64().unwrap()
}

fn statistic(bus: &Bus, name: &str) -> u64 {
    bus.monitor_call("GetStatistics", &[]).unwrap()[0][name].as_u64().unwrap()
}

fn sequence(line: &Value) -> u64 {
    line["sequence"].as_u64().unwrap_or_else(|| panic!("no sequence in {line}"))
}

fn id(flow: &Value) -> u64 {
    flow["id"].as_u64().unwrap_or_else(|| panic!("no id in {flow}"))
}

fn ids(flows: &[Value]) -> Vec<u64> {
    flows.iter().map(id).collect()
}

/// The events up to the newest that the daemon has, in their order and without a gap line.
fn events_up_to(stream: &mut Stream, newest: u64) -> Vec<Value> {
    let lines = stream.until(|line| sequence(line) >= newest);
    assert!(lines.is_sorted_by(|one, next| sequence(one) < sequence(next)), "events in their order");
    lines
}

/// A listing by pages of 100, with churn after the first of them, and the sequence of that one.
fn listing_under_churn(bus: &Bus, namespace: &Namespace) -> (Vec<Value>, u64) {
    let page = |after: u64| {
        let after = after.to_string();
        let query = ["a{sv}", "2", "limit", "u", "100", "after", "t", &after];
        let reply = bus.monitor_call("ListActive", &query).unwrap();
        (reply[0].as_array().unwrap().clone(), sequence(&reply[1]), reply[1]["next"].as_u64())
    };
    let (mut flows, first, mut next) = page(0);
    churn::during_rounds(namespace, ROUNDS, || {
        while let Some(after) = next {
            let more;
            (more, _, next) = page(after);
            flows.extend(more);
        }
    });
    (flows, first)
}

#[test]
fn a_table_rebuilt_from_a_stream_is_the_daemons_after_any_churn() {
    let (namespace, bus) = (Namespace::tracked("stream"), Bus::start());
    churn::prepare(&namespace);
    burst::create(&namespace, 0, 3_000);
    let daemon = Daemon::start(&namespace, &bus);
    burst::create(&namespace, 3_000, 3_000);
    let client = Client::connect(&bus);
    let mut table = Table::default();
    let mut stream = churn::during_rounds(&namespace, ROUNDS, || {
        let mut stream = client.open_stream(&QueryMap::new()).unwrap();
        let begin = stream.line().unwrap();
        assert_eq!((&begin["type"], &begin["epoch"]), (&json!("begin"), &bus.property("Epoch").unwrap()));
        for line in stream.until(|line| line["type"] == "snapshot-end") {
            match line["type"].as_str().unwrap() {
                "flow" => table.insert(&line),
                "snapshot-end" => assert!(sequence(&line) >= sequence(&begin)),
                _ => panic!("not of a snapshot: {line}"),
            }
        }
        stream
    });
    burst::create(&namespace, 6_000, 1);
    let (flows, _) = agreed(&bus, &namespace);
    for line in events_up_to(&mut stream, number(&bus, "Sequence")) {
        table.apply(line["type"].as_str().unwrap(), &line);
    }
    assert_eq!(flows.len(), 6_001);
    table.assert_is(&flows);
    daemon.stop();
}

#[test]
fn a_table_from_a_listing_and_the_events_after_its_first_page_is_the_daemons() {
    let (namespace, bus, daemon) = started();
    burst::create(&namespace, 0, 3_000);
    let (_, _) = agreed(&bus, &namespace);
    let client = Client::connect(&bus);
    let mut stream = client.open_stream(&QueryMap::from([("snapshot", false.into())])).unwrap();
    assert_eq!(stream.line().unwrap()["type"], "begin");
    let ((listed, first), lines) = std::thread::scope(|scope| {
        // The flow numbered 3,000 is the last one that is made.
        let reading = scope.spawn(|| stream.until(|line| line["dst"] == "198.19.11.184"));
        let listing = listing_under_churn(&bus, &namespace);
        burst::create(&namespace, 3_000, 1);
        (listing, reading.join().unwrap())
    });
    let (flows, _) = agreed(&bus, &namespace);

    let mut table = Table::default();
    listed.iter().for_each(|flow| table.insert(flow));
    assert!(lines.is_sorted_by(|one, next| sequence(one) < sequence(next)), "events in their order");
    assert!(lines.iter().any(|line| sequence(line) > first + churn::ROUND_CHANGES), "there was churn");
    for line in lines.iter().filter(|line| sequence(line) > first) {
        table.apply_again(line["type"].as_str().unwrap(), line);
    }
    table.assert_is(&flows);
    daemon.stop();
}

#[test]
fn a_table_from_a_listing_and_the_signals_after_its_first_page_is_the_daemons() {
    let (namespace, bus, daemon) = started();
    burst::create(&namespace, 0, 3_000);
    let (_, _) = agreed(&bus, &namespace);
    let monitor = Monitor::start(&bus, "org.flowbus.FlowEvents1");
    let (listed, first) = listing_under_churn(&bus, &namespace);
    burst::create(&namespace, 3_000, 1);
    let (_, _) = agreed(&bus, &namespace);
    let newest = number(&bus, "Sequence");
    let (events, lost) =
        monitor.events_until(|events| events.last().is_some_and(|event| sequence(event) >= newest));
    assert_eq!(lost, 0);
    let mut table = Table::default();
    listed.iter().for_each(|flow| table.insert(flow));
    for event in events.iter().filter(|event| sequence(event) > first) {
        table.apply_again(event["event"].as_str().unwrap(), event);
    }
    let (flows, _) = agreed(&bus, &namespace);
    table.assert_is(&flows);
    daemon.stop();
}

#[test]
fn a_stream_that_does_not_follow_has_the_closed_flows_then_the_active_ones_and_an_end() {
    let (namespace, bus, daemon) = started();
    burst::create(&namespace, 0, 50);
    churn::round(&namespace);
    churn::round(&namespace);
    let (active, _) = agreed(&bus, &namespace);
    let mut closed = bus.list("ListClosed", &[]).unwrap();
    closed.reverse();
    assert_eq!((active.len(), closed.len()), (50, 1_200));
    let newest = number(&bus, "Sequence");

    let query = QueryMap::from([("closed", true.into()), ("follow", false.into())]);
    let lines = Client::connect(&bus).open_stream(&query).unwrap().rest();
    let epoch = bus.property("Epoch").unwrap();
    assert_eq!(
        (&lines[0]["type"], &lines[0]["epoch"], sequence(&lines[0])),
        (&json!("begin"), &epoch, newest)
    );
    let [ended, alive] = [&lines[1..=1_200], &lines[1_201..=1_250]];
    assert!(
        ended.iter().all(|line| line["type"] == "closed") && alive.iter().all(|line| line["type"] == "flow")
    );
    assert!(ended.is_sorted_by(|one, next| sequence(one) < sequence(next)), "oldest end first");
    assert_eq!(ids(ended), ids(&closed));
    assert_eq!(ids(alive), ids(&active));
    for (line, flow) in ended.iter().zip(&closed) {
        assert_eq!(lasting(line), lasting(flow));
    }
    let end = [
        json!({ "type": "snapshot-end", "sequence": newest }),
        json!({ "type": "end", "reason": "complete" }),
    ];
    assert_eq!(lines[1_251..], end);
    wait_for("the stream's place to be free", || (statistic(&bus, "streams") == 0).then_some(()));
    daemon.stop();
}

#[test]
fn every_end_is_told_once_as_a_closed_flow_or_as_an_event() {
    let (namespace, bus, daemon) = started();
    burst::create(&namespace, 0, 6_000);
    let (_, _) = agreed(&bus, &namespace);
    let client = Client::connect(&bus);
    let query = QueryMap::from([("closed", true.into())]);
    let mut ended = Vec::new();
    let mut note = |line: &Value| {
        if line["type"] == "closed" || line["type"] == "destroy" {
            ended.push(id(line));
        }
    };
    let mut stream = churn::during_rounds(&namespace, ROUNDS, || {
        wait_for("some ends", || (number(&bus, "ClosedCount") > 1_000).then_some(()));
        let mut stream = client.open_stream(&query).unwrap();
        stream.until(|line| line["type"] == "snapshot-end").iter().for_each(&mut note);
        stream
    });
    churn::round(&namespace);
    let (_, _) = agreed(&bus, &namespace);
    let newest = number(&bus, "Sequence");
    stream.until(|line| sequence(line) >= newest).iter().for_each(&mut note);
    ended.sort_unstable();
    let mut closed = ids(&bus.list("ListClosed", &[]).unwrap());
    closed.sort_unstable();
    assert_eq!(statistic(&bus, "closed_evicted"), 0);
    assert_eq!(ended.len(), closed.len());
    assert_eq!(ended, closed);
    daemon.stop();
}

#[test]
fn a_stream_tells_the_events_and_fields_that_it_was_asked_for() {
    let (namespace, bus, daemon) = started();
    let client = Client::connect(&bus);
    let query = QueryMap::from([
        ("events", vec!["update", "destroy"].into()),
        ("fields", vec!["dst", "mark"].into()),
        ("dst", "198.19.0.2/31".into()),
    ]);
    let mut stream = client.open_stream(&query).unwrap();
    assert_eq!(stream.line().unwrap()["type"], "begin");
    assert_eq!(stream.line().unwrap()["type"], "snapshot-end");
    burst::create(&namespace, 0, 6);
    namespace.run("conntrack -U -p udp --orig-dst 198.19.0.3 -m 256");
    namespace.run("conntrack -D -p udp --orig-dst 198.19.0.2");
    let _ = agreed(&bus, &namespace);
    let newest = number(&bus, "Sequence");
    assert_eq!(
        stream.until(|line| sequence(line) >= newest),
        [
            json!({ "type": "update", "sequence": newest - 1, "dst": "198.19.0.3", "mark": 256 }),
            json!({ "type": "destroy", "sequence": newest, "dst": "198.19.0.2", "mark": 0 }),
        ]
    );
    daemon.stop();
}

#[test]
fn a_filtered_stream_tells_of_flows_that_leave_the_filter_and_of_those_that_come_in() {
    let (namespace, bus, daemon) = started();
    burst::create(&namespace, 0, 10);
    let _ = agreed(&bus, &namespace);
    let client = Client::connect(&bus);
    let query = QueryMap::from([("source", "UNKNOWN".into()), ("fields", vec!["dst", "mark"].into())]);
    let mut stream = client.open_stream(&query).unwrap();
    assert_eq!(stream.until(|line| line["type"] == "snapshot-end").len(), 1 + 10 + 1);
    let mark = |dst: &str, mark: u32| {
        drop(namespace.run(&format!("conntrack -U -p udp --orig-dst {dst} -m {mark}")))
    };
    let mut told = || {
        let mut line = stream.line().unwrap();
        line.as_object_mut().unwrap().remove("sequence").unwrap();
        line
    };

    mark("198.19.0.3", 0x0200);
    let left = json!({ "type": "update", "matches": false, "dst": "198.19.0.3", "mark": 0x0200 });
    assert_eq!(told(), left);
    // A flow outside of the filter has no lines, neither for changes nor for its end.
    mark("198.19.0.3", 0x0100);
    mark("198.19.0.4", 0x0200);
    assert_eq!(told()["dst"], "198.19.0.4");
    namespace.run("conntrack -D -p udp --orig-dst 198.19.0.4");
    // A flow that comes back into the filter has lines, also for its end.
    mark("198.19.0.3", 0);
    assert_eq!(told(), json!({ "type": "update", "dst": "198.19.0.3", "mark": 0 }));
    namespace.run("conntrack -D -p udp --orig-dst 198.19.0.3");
    assert_eq!(told(), json!({ "type": "destroy", "dst": "198.19.0.3", "mark": 0 }));
    daemon.stop();
}

#[test]
fn a_daemon_that_stops_says_so_on_every_stream() {
    let (namespace, bus, daemon) = started();
    burst::create(&namespace, 0, 10);
    let _ = agreed(&bus, &namespace);
    let client = Client::connect(&bus);
    let mut streams: Vec<Stream> = (0..3).map(|_| client.open_stream(&QueryMap::new()).unwrap()).collect();
    for stream in &mut streams {
        stream.until(|line| line["type"] == "snapshot-end");
    }
    daemon.stop();
    for stream in &mut streams {
        assert_eq!(stream.rest(), [json!({ "type": "end", "reason": "stopping" })]);
    }
}

/// What a process has in memory, in KiB.
fn resident(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_reader_that_stops_learns_exactly_what_it_missed_and_costs_little() {
    const FLOWS: u32 = 25_000;
    const ROUNDS: u64 = 6;
    let (namespace, bus, daemon) = started();
    // Only one end is remembered twice: what is measured is the stream, not the closed flows.
    let make_and_end = |rounds: u64| {
        // The event socket's buffer holds twice as many events.
        let all_told = |newest| {
            wait_for("all changes", || (number(&bus, "Sequence") == newest).then_some(()));
        };
        for _ in 0..rounds {
            let before = number(&bus, "Sequence");
            burst::create(&namespace, 0, FLOWS);
            all_told(before + u64::from(FLOWS));
            namespace.run("conntrack -F");
            all_told(before + 2 * u64::from(FLOWS));
        }
    };
    make_and_end(ROUNDS);
    let before = resident(&daemon);
    let client = Client::connect(&bus);
    let mut stream = client.open_stream(&QueryMap::new()).unwrap();
    let mut expected = number(&bus, "Sequence") + 1;
    make_and_end(ROUNDS);
    let grown = resident(&daemon).saturating_sub(before);
    assert!(grown < 12 * 1024, "{grown} KiB for a reader that does not read, {before} before");

    burst::create(&namespace, 0, 1);
    wait_for("the last change", || (number(&bus, "ActiveCount") == 1).then_some(()));
    let newest = number(&bus, "Sequence");
    stream.until(|line| line["type"] == "snapshot-end");
    let (mut lost, mut told) = (0, 0);
    while expected <= newest {
        let line = stream.line().unwrap();
        if line["type"] == "gap" {
            assert_eq!((&line["first"], &line["reason"]), (&json!(expected), &json!("slow-reader")));
            let last = line["last"].as_u64().unwrap();
            assert_eq!(line["lost"], last - expected + 1);
            lost += last - expected + 1;
            expected = last + 1;
        } else {
            assert_eq!(sequence(&line), expected, "{line}");
            (told, expected) = (told + 1, expected + 1);
        }
    }
    assert_eq!(expected, newest + 1);
    assert_eq!(told + lost, ROUNDS * 2 * u64::from(FLOWS) + 1);
    assert!(told > 0 && lost > 0, "{told} told, {lost} lost");
    assert!(statistic(&bus, "stream_gaps") > 0);
    daemon.stop();
}

#[test]
fn a_reader_that_leaves_frees_its_place() {
    let (namespace, bus, daemon) = started();
    let client = Client::connect(&bus);
    burst::create(&namespace, 0, 5_000);
    let _ = agreed(&bus, &namespace);
    let mut streams: Vec<Stream> = (0..16).map(|_| client.open_stream(&QueryMap::new()).unwrap()).collect();
    assert_eq!(statistic(&bus, "streams"), 16);
    let error = client.open_stream(&QueryMap::new()).unwrap_err();
    assert!(matches!(&error, Error::LimitExceeded(text) if text.contains("16")), "{error}");
    // One reads all, the others have a snapshot in their pipe that does not fit: both are seen to leave.
    streams[0].until(|line| line["type"] == "snapshot-end");
    drop(streams);
    wait_for("the places to be free", || (statistic(&bus, "streams") == 0).then_some(()));
    drop(client.open_stream(&QueryMap::new()).unwrap());
    daemon.stop();
}

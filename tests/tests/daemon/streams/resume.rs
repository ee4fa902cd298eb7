//! A stream that goes on where an earlier one was: what ended meanwhile is there once, or counted as forgotten.

use std::process::Command;

use flowbus_tests::Kept;
use flowbus_tests::process::{Directory, output_of};
use rustix::process::Signal;
use zbus::Variant;

use super::*;

const BUFFER: usize = 64 * 1024 * 1024;
/// An epoch that no table has.
const FOREIGN: &str = "00112233445566778899aabbccddeeff";

fn number_of(namespace: &Namespace, bus: &Bus, expected: u64) -> u64 {
    let _ = agreed(bus, namespace);
    wait_for("the changes", || (number(bus, "Sequence") == expected).then_some(expected))
}

/// All lines of a stream that ends with its snapshot.
fn lines(bus: &Bus, pairs: &[(&'static str, Variant<'static>)]) -> Vec<Value> {
    let mut query = QueryMap::from([("closed", true.into()), ("follow", false.into())]);
    query.extend(pairs.iter().map(|(key, value)| (*key, value.try_clone().unwrap())));
    Client::connect(bus).open_stream(&query).unwrap().rest()
}

fn resumed(bus: &Bus, epoch: &str, after: u64) -> Vec<Value> {
    lines(bus, &[("epoch", epoch.to_owned().into()), ("after", after.into())])
}

fn of_type<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["type"] == kind).collect()
}

fn epoch(bus: &Bus) -> String {
    bus.property("Epoch").unwrap().as_str().unwrap().to_owned()
}

/// Ten flows that begin, then end: changes 1 to 20.
fn ten_ended() -> (Namespace, Bus, Daemon) {
    let (namespace, bus, daemon) = started();
    burst::create(&namespace, 0, 10);
    let _ = number_of(&namespace, &bus, 10);
    namespace.run("conntrack -F");
    let _ = number_of(&namespace, &bus, 20);
    (namespace, bus, daemon)
}

#[test]
fn a_stream_goes_on_behind_the_last_change_of_the_one_before_also_over_a_kill() {
    let (namespace, bus) = (Namespace::tracked("stream"), Bus::start());
    churn::prepare(&namespace);
    let kept = Kept::open(&namespace, BUFFER);
    let mut daemon = kept.spawn(&namespace, &bus);
    daemon.wait_until_synchronized(&bus);
    burst::create(&namespace, 0, 10);
    let _ = number_of(&namespace, &bus, 10);
    namespace.run("conntrack -F");
    let after = number_of(&namespace, &bus, 20);
    let epoch = epoch(&bus);
    daemon.signal(Signal::KILL);
    daemon.ended();
    burst::create(&namespace, 10, 5);
    namespace.run("conntrack -D -p udp --orig-dst 198.19.0.11");
    namespace.run("conntrack -D -p udp --orig-dst 198.19.0.13");

    let mut daemon = kept.spawn(&namespace, &bus);
    daemon.wait_until_synchronized(&bus);
    let newest = number_of(&namespace, &bus, 27);
    let lines = resumed(&bus, &epoch, after);
    assert_eq!((sequence(&lines[0]), lines[0]["epoch"].as_str()), (newest, Some(&*epoch)));
    let ended: Vec<_> = of_type(&lines, "closed").iter().map(|line| line["dst"].clone()).collect();
    assert_eq!(ended, ["198.19.0.11", "198.19.0.13"]);
    assert_eq!(of_type(&lines, "flow").len(), 3);
    assert!(of_type(&lines, "gap").is_empty(), "{lines:?}");
    daemon.stop();
}

#[test]
fn the_ends_that_the_ring_has_forgotten_are_counted_exactly_also_after_a_kill() {
    let (namespace, bus) = (Namespace::tracked("stream"), Bus::start());
    churn::prepare(&namespace);
    let directory = Directory::new("resume");
    let configuration =
        directory.file("flowbusd.toml", "[attribution]\ntier = \"none\"\n[closed]\ncapacity = 300\n");
    let kept = Kept::open(&namespace, BUFFER);
    let spawn = || {
        let mut daemon = kept.spawn_with(&namespace, &bus, configuration.to_str().unwrap());
        daemon.wait_until_synchronized(&bus);
        daemon
    };
    let mut daemon = spawn();
    // The 600 ends of a round are the last of its 1,400 changes.
    for round in 1..=3 {
        churn::round(&namespace);
        let _ = number_of(&namespace, &bus, round * churn::ROUND_CHANGES);
    }
    let epoch = epoch(&bus);
    let asked = |after: u64| {
        let lines = resumed(&bus, &epoch, after);
        assert_eq!(of_type(&lines, "closed").len(), 300);
        let gaps = of_type(&lines, "gap");
        let numbers = |gap: &&Value| {
            assert_eq!(gap["reason"], "forgotten", "{gap}");
            ["first", "last", "lost"].map(|key| gap[key].as_u64().unwrap())
        };
        gaps.iter().map(numbers).collect::<Vec<_>>()
    };
    let rounds = churn::ROUND_CHANGES;
    let last = 3 * rounds - 300;
    // All that ended in two rounds and half of the third, and less, down to none.
    let expected = [(0, 1_500), (rounds - 100, 1_000), (rounds, 900), (last - 1, 1), (last, 0)];
    for life in ["before", "after"] {
        for (after, lost) in expected {
            let gaps = if lost > 0 { vec![[after + 1, last, lost]] } else { vec![] };
            assert_eq!(asked(after), gaps, "behind {after}, {life} the kill");
        }
        assert!(statistic(&bus, "stream_gaps") > 0);
        daemon.signal(Signal::KILL);
        daemon.ended();
        daemon = spawn();
    }
    // A stream that asks for all that is remembered misses nothing.
    assert!(of_type(&lines(&bus, &[]), "gap").is_empty());
    daemon.stop();
}

#[test]
fn a_filter_that_nothing_passes_keeps_no_place_long_behind() {
    let (namespace, bus, daemon) = started();
    let client = Client::connect(&bus);
    let query = QueryMap::from([("dst", "198.18.9.9".into())]);
    let mut stream = client.open_stream(&query).unwrap();
    stream.until(|line| line["type"] == "snapshot-end");
    burst::create(&namespace, 0, 5_000);
    let line = stream.line().unwrap();
    assert!(line["type"] == "reached" && sequence(&line) >= 4_096, "{line}");
    daemon.stop();
}

#[test]
fn an_after_in_the_future_is_ignored_and_begin_says_where_the_table_is() {
    let (_namespace, bus, daemon) = ten_ended();
    let lines = resumed(&bus, &epoch(&bus), 21);
    assert_eq!(sequence(&lines[0]), 20);
    assert_eq!(of_type(&lines, "closed").len(), 10);
    assert!(of_type(&lines, "gap").is_empty());
    assert!(of_type(&resumed(&bus, &epoch(&bus), 20), "closed").is_empty(), "the newest is no future");
    daemon.stop();
}

#[test]
fn a_place_in_another_epoch_is_ignored_and_begin_says_the_new_one() {
    let (_namespace, bus, daemon) = ten_ended();
    let lines = resumed(&bus, FOREIGN, 15);
    assert_eq!(lines[0]["epoch"], epoch(&bus));
    assert_eq!(of_type(&lines, "closed").len(), 10);
    daemon.stop();
}

#[test]
fn what_says_no_place_is_refused_by_name() {
    let (_namespace, bus, daemon) = started();
    let client = Client::connect(&bus);
    let refusal = |pairs: &[(&'static str, Variant<'static>)]| {
        let pairs = pairs.iter().map(|(key, value)| (*key, value.try_clone().unwrap()));
        match client.open_stream(&pairs.collect()).unwrap_err() {
            Error::InvalidArgument(text) => text,
            other => panic!("{other}"),
        }
    };
    let without_closed = refusal(&[("after", 5_u64.into()), ("epoch", FOREIGN.into())]);
    assert!(without_closed.contains("after, epoch and closed"), "{without_closed}");
    for (key, value) in [
        ("after", Variant::from("soon")),
        ("after", true.into()),
        ("after", (-1_i64).into()),
        ("epoch", 7_u64.into()),
        ("epoch", "7".into()),
    ] {
        let text = refusal(&[("closed", true.into()), (key, value)]);
        assert!(text.starts_with(&format!("{key} takes ")), "{text}");
    }
    daemon.stop();
}

#[test]
fn begin_has_the_machines_id_as_systemd_derives_it() {
    let (_namespace, bus, daemon) = started();
    let mut command = Command::new("systemd-id128");
    command.args(["machine-id", "-a", "ab5ed77833064470ad28e715b1f0e4f7"]);
    assert_eq!(lines(&bus, &[])[0]["machine"], output_of(&mut command).trim());
    daemon.stop();
}

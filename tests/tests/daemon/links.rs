//! The names of network interfaces, as a flow's routing table shows them: they follow the kernel's, whatever happens to them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ctnetlink::{Conntrack, Flow};
use flowbus_tests::inject::tuple;
use flowbus_tests::process::{output_with_input, wait_for};
use flowbus_tests::{Bus, Daemon, Namespace};
use rustix::process::Signal;
use serde_json::Value;

/// Routing tables of interfaces begin behind this one.
const TABLES: u32 = 1000;

/// Runs lines of `ip`.
fn ip(namespace: &Namespace, lines: &str) {
    output_with_input(namespace.command("ip").args(["-batch", "-"]), lines);
}

/// Pairs of interfaces with these numbers, the indexes of which are `index` and the next ones.
fn make(namespace: &Namespace, numbers: std::ops::Range<u32>, index: u32) {
    let mut lines = String::new();
    for number in numbers {
        let (first, second) = (index + 2 * number, index + 2 * number + 1);
        writeln!(lines, "link add l{number} index {first} type veth peer name r{number} index {second}")
            .unwrap();
    }
    ip(namespace, &lines);
}

/// Index and name of every interface that the kernel has.
fn interfaces(namespace: &Namespace) -> BTreeMap<u32, String> {
    let links: Vec<Value> = serde_json::from_str(&namespace.run("ip -json link")).unwrap();
    let named = |link: &Value| {
        let index = link["ifindex"].as_u64().unwrap();
        (u32::try_from(index).unwrap(), link["ifname"].as_str().unwrap().to_owned())
    };
    links.iter().map(named).collect()
}

/// Makes a flow for each of these interfaces.
fn flows_by_way_of(namespace: &Namespace, indexes: impl Iterator<Item = u32>) {
    let mut table = namespace.enter(|| Conntrack::open().unwrap());
    for index in indexes {
        let port = u16::try_from(index).unwrap();
        let mut flow = Flow::new(
            tuple("198.18.0.1", "198.18.0.2", 17, port, 7000),
            tuple("198.18.0.2", "198.18.0.1", 17, 7000, port),
        );
        (flow.timeout, flow.mark) = (Some(3_600), Some((TABLES + index) << 16));
        table.create(&flow).unwrap();
    }
}

/// Index and name of the interface of every flow that has one.
fn shown(bus: &Bus) -> BTreeMap<u32, String> {
    let flows = bus.list("ListActive", &[]).unwrap();
    let interface = |flow: &Value| {
        let table = u32::try_from(flow["routing_table"].as_u64()?).unwrap();
        Some((table - TABLES, flow.get("interface")?.as_str()?.to_owned()))
    };
    flows.iter().filter_map(interface).collect()
}

#[test]
fn many_interfaces_are_known_as_they_are_made_renamed_and_removed() {
    let (namespace, bus) = (Namespace::tracked("links"), Bus::start());
    make(&namespace, 0..50, 1_000);
    let daemon = Daemon::start(&namespace, &bus);
    make(&namespace, 50..100, 1_000);
    let names = interfaces(&namespace);
    flows_by_way_of(&namespace, names.keys().copied());
    assert!(names.len() > 200, "{names:?}");
    wait_for("interfaces from before and after the start", || (shown(&bus) == names).then_some(()));

    let mut lines = String::new();
    for number in 0..100 {
        writeln!(lines, "link set l{number} name renamed{number}").unwrap();
    }
    ip(&namespace, &lines);
    let renamed = interfaces(&namespace);
    wait_for("the new names", || (shown(&bus) == renamed).then_some(()));

    // Flows of an interface that is gone still show it.
    let lines: String = (0..100).map(|number| format!("link del renamed{number}\n")).collect();
    ip(&namespace, &lines);
    assert!(interfaces(&namespace).len() < 50);
    // The index is used again: all that was removed before has been read.
    ip(&namespace, "link add again index 1198 type veth peer name other index 1199");
    let mut expected = renamed;
    expected.extend([(1198, "again".to_owned()), (1199, "other".to_owned())]);
    wait_for("the name of an index that is used again", || (shown(&bus) == expected).then_some(()));
    daemon.stop();
}

/// The messages about such an interface are the longest that there are.
#[test]
fn an_interface_with_as_many_alternative_names_as_the_kernel_takes_is_named() {
    let (namespace, bus) = (Namespace::tracked("altnames"), Bus::start());
    make(&namespace, 0..1, 1_000);
    let started_before = Daemon::start(&namespace, &bus);
    flows_by_way_of(&namespace, [1_000, 1_001].into_iter());
    let mut taken = 0;
    for number in 0.. {
        // 127 bytes, and a zero.
        let name = format!("{number:0>127}");
        let mut command = namespace.command("ip");
        let output =
            command.args(["link", "property", "add", "dev", "l0", "altname", &name]).output().unwrap();
        if !output.status.success() {
            break;
        }
        taken += 1;
    }
    assert!(taken > 300, "only {taken} alternative names");
    ip(&namespace, "link set l0 name renamed0");
    let names = BTreeMap::from([(1_000, "renamed0".to_owned()), (1_001, "r0".to_owned())]);
    wait_for("the name in an event", || (shown(&bus) == names).then_some(()));
    started_before.stop();
    let (bus, flows) = (Bus::start(), names);
    let started_after = Daemon::start(&namespace, &bus);
    wait_for("the name in a dump", || (shown(&bus) == flows).then_some(()));
    started_after.stop();
}

/// How many messages the route sockets of a namespace have lost.
fn lost(namespace: &Namespace) -> u64 {
    let sockets = namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap());
    // sk, Eth (the protocol), Pid, Groups, Rmem, Wmem, Dump, Locks, Drops, Inode.
    let drops = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        (fields[1] == "0").then(|| fields[8].parse::<u64>().unwrap())
    };
    sockets.lines().skip(1).filter_map(drops).sum()
}

#[test]
fn names_are_right_again_after_the_kernel_could_not_tell_them() {
    let (namespace, bus) = (Namespace::tracked("overrun"), Bus::start());
    make(&namespace, 0..20, 1_000);
    let daemon = Daemon::start(&namespace, &bus);
    flows_by_way_of(&namespace, interfaces(&namespace).into_keys());
    let names = interfaces(&namespace);
    wait_for("the first names", || (shown(&bus) == names).then_some(()));

    daemon.signal(Signal::STOP);
    for round in 0.. {
        assert!(round < 1_000, "the socket takes everything");
        let lines: String =
            (0..20).map(|n| format!("link set l{n} name x{n}\nlink set x{n} name l{n}\n")).collect();
        ip(&namespace, &lines);
        if lost(&namespace) > 0 {
            break;
        }
    }
    // What happens here is reported to nobody.
    let lines: String = (0..20).map(|n| format!("link set l{n} name after{n}\n")).collect();
    ip(&namespace, &lines);
    let names = interfaces(&namespace);
    daemon.signal(Signal::CONT);
    wait_for("the names that were missed", || (shown(&bus) == names).then_some(()));
    // And it goes on.
    ip(&namespace, "link set after0 name last");
    wait_for("a name after that", || (shown(&bus).get(&1_000)? == "last").then_some(()));
    daemon.stop();
}

//! The query language on a table with everything in it: each key finds what a naive filter finds, and no walk misses a flow.

mod cases;

use std::collections::BTreeSet;
use std::net::IpAddr;

use cases::{Entry, FOUND, NOT_FOUND, REFUSED};
use flowbus_tests::bus::dictionary;
use flowbus_tests::conntrack;
use flowbus_tests::flow::{agreed, counters_agree, key};
use flowbus_tests::network::{
    BOTH_NAT, CHROME, CROSTINI, MASQUERADED, MASQUERADED_SERVER_V4, ORIGINAL_ZONED, PLAIN, REDIRECTED,
    ROUTER_V4, ROUTER_V6, SERVER_V4, SERVER_V6, UNKNOWN_SOURCE, ZONED, ip_address, socket_address,
};
use flowbus_tests::process::wait_for;
use flowbus_tests::traffic::{self, Connection};
use flowbus_tests::{Bus, CallError, Daemon, Namespace, Network, burst, churn};
use serde_json::Value;

fn call(bus: &Bus, member: &str, query: &[Entry<'_>]) -> Result<Value, CallError> {
    bus.monitor_call(member, &dictionary(query).iter().map(String::as_str).collect::<Vec<_>>())
}

fn ids(flows: &[Value]) -> Vec<u64> {
    flows.iter().map(|flow| flow["id"].as_u64().unwrap()).collect()
}

fn found(bus: &Bus, member: &str, query: &[Entry<'_>]) -> Vec<u64> {
    ids(&bus.list(member, query).unwrap_or_else(|error| panic!("{member} {query:?}: {error}")))
}

fn naive(flows: &[Value], filter: impl Fn(&Value) -> bool) -> Vec<u64> {
    ids(&flows.iter().filter(|flow| filter(flow)).cloned().collect::<Vec<_>>())
}

/// A router's table with each kind of flow that the network can carry, and the daemon.
struct Everything {
    network: Network,
    bus: Bus,
    daemon: Daemon,
    _open: Vec<Connection>,
}

impl Everything {
    fn start() -> Self {
        let (network, bus) = (Network::new(), Bus::start());
        let daemon = Daemon::start(&network.router, &bus);
        let mut open = Vec::new();
        for (at, port, ways) in [
            (SERVER_V4, PLAIN, &[(SERVER_V4, PLAIN), (ROUTER_V4, REDIRECTED), (ROUTER_V4, BOTH_NAT)][..]),
            (SERVER_V6, PLAIN, &[(SERVER_V6, PLAIN), (ROUTER_V6, REDIRECTED)]),
            (SERVER_V6, CHROME, &[(SERVER_V6, CHROME)]),
            (SERVER_V4, CROSTINI, &[(SERVER_V4, CROSTINI)]),
            (SERVER_V4, MASQUERADED, &[(SERVER_V4, MASQUERADED)]),
        ] {
            let service = network.tcp_service(at, port);
            for &(address, port) in ways {
                open.extend(service.connect(&network.client, socket_address(address, port), 2));
            }
        }
        for (at, port) in [
            (SERVER_V4, PLAIN),
            (SERVER_V4, CHROME),
            (SERVER_V6, UNKNOWN_SOURCE),
            (SERVER_V6, MASQUERADED),
            (SERVER_V4, ZONED),
            (SERVER_V4, ORIGINAL_ZONED),
        ] {
            network.udp_service(at, port).exchange(&network.client, socket_address(at, port), 2);
        }
        for (address, id) in [(SERVER_V4, 301), (SERVER_V6, 302), (MASQUERADED_SERVER_V4, 303)] {
            traffic::ping(&network.client, ip_address(address), id);
        }
        Self { network, bus, daemon, _open: open }
    }

    /// All active flows. Their counters are the kernel's: where another dump was asked for within a second, they are only
    /// after that.
    fn flows(&self) -> Vec<Value> {
        wait_for("the kernel's counters", || {
            let flows = self.bus.list("ListActive", &[["refresh", "b", "true"]]).unwrap();
            let table = conntrack::list(&self.network.router);
            let counted = |flow: &Value| {
                let entry = table.iter().find(|entry| entry.key() == key(flow));
                entry.is_some_and(|entry| entry.original.bytes > Some(0) && counters_agree(flow, entry))
            };
            (flows.len() == table.len() && flows.iter().all(counted)).then_some(flows)
        })
    }
}

#[test]
fn every_key_and_every_two_keys_find_what_a_naive_filter_finds() {
    let everything = Everything::start();
    let (bus, flows) = (&everything.bus, everything.flows());
    assert_eq!(flows.len(), 16 + 12 + 3);
    for (index, (entry, filter)) in FOUND.iter().enumerate() {
        let expected = naive(&flows, filter);
        assert!(!expected.is_empty() && expected.len() < flows.len(), "{entry:?}: {}", expected.len());
        assert_eq!(found(bus, "ListActive", &[*entry]), expected, "{entry:?}");
        // With each of the three keys that come next in the list, wherever the list ends.
        let others = FOUND.iter().cycle().skip(index + 1).take(3);
        for (other, other_filter) in others.filter(|(other, _)| other[0] != entry[0]) {
            let expected = naive(&flows, |flow| filter(flow) && other_filter(flow));
            assert_eq!(found(bus, "ListActive", &[*entry, *other]), expected, "{entry:?} {other:?}");
        }
    }
    for flow in &flows {
        let [id, kernels] = ["id", "conntrack_id"].map(|key| flow[key].to_string());
        assert_eq!(found(bus, "ListActive", &[["id", "t", &id]]), ids(std::slice::from_ref(flow)));
        let expected = naive(&flows, |other| other["conntrack_id"] == flow["conntrack_id"]);
        assert_eq!(found(bus, "ListActive", &[["conntrack_id", "u", &kernels]]), expected);
    }
    let mut starts: Vec<u64> = flows.iter().map(|flow| flow["start_usec"].as_u64().unwrap()).collect();
    starts.sort_unstable();
    let middle = starts[starts.len() / 2];
    let expected = naive(&flows, |flow| flow["start_usec"].as_u64().unwrap() <= middle);
    assert_eq!(found(bus, "ListActive", &[["until", "t", &middle.to_string()]]), expected);
    // What is alive has not ended by any time.
    assert_eq!(found(bus, "ListActive", &[["since", "t", &middle.to_string()]]), ids(&flows));

    // The flows are found once they are closed, too, newest end first.
    everything.network.router.run("conntrack -F");
    wait_for("all flows to be closed", || (bus.property("ActiveCount").unwrap() == 0).then_some(()));
    let closed = bus.list("ListClosed", &[]).unwrap();
    assert_eq!(closed.len(), flows.len());
    for (entry, filter) in FOUND {
        assert_eq!(found(bus, "ListClosed", &[*entry]), naive(&closed, filter), "closed {entry:?}");
    }
    let end = closed[9]["end_usec"].as_u64().unwrap();
    let expected = naive(&closed, |flow| flow["end_usec"].as_u64().unwrap() >= end);
    assert_eq!(found(bus, "ListClosed", &[["since", "t", &end.to_string()]]), expected);
    everything.daemon.stop();
}

#[test]
fn a_key_that_no_flow_fits_finds_none_and_a_wrong_value_is_refused_by_its_key() {
    let everything = Everything::start();
    let bus = &everything.bus;
    let _ = everything.flows();
    for entry in NOT_FOUND {
        // Within what is of one family the other one is not there.
        let query =
            if entry[0] == "family" { vec![*entry, ["dst", "s", "2001:2::/32"]] } else { vec![*entry] };
        assert_eq!(found(bus, "ListActive", &query), [0; 0], "{entry:?}");
    }
    for entry in REFUSED {
        for member in ["ListActive", "ListClosed"] {
            let error = call(bus, member, &[*entry]).expect_err(&format!("{entry:?}"));
            assert_eq!(error.name, "org.flowbus.Error.InvalidArgument", "{entry:?}: {error}");
            assert!(error.message.contains(entry[0]), "{entry:?}: {error}");
        }
    }
    let reversed = [["since", "t", "20"], ["until", "t", "10"]];
    assert!(call(bus, "ListActive", &reversed).unwrap_err().message.contains("until"));
    everything.daemon.stop();
}

#[test]
fn the_flow_that_held_a_translated_port_at_a_time_is_found_active_or_closed() {
    let everything = Everything::start();
    let bus = &everything.bus;
    let flows = everything.flows();
    let behind: Vec<&Value> =
        flows.iter().filter(|flow| flow["dport"] == MASQUERADED && flow["protocol"] == "tcp").collect();
    assert_eq!(behind.len(), 2);
    let [address, port, started] = ["nat_src", "nat_sport", "start_usec"].map(|key| behind[0][key].clone());
    let address: IpAddr = address.as_str().unwrap().parse().unwrap();
    let (address, port) = (address.to_string(), port.to_string());
    let held = |until: u64| -> Vec<Entry<'_>> {
        vec![
            ["protocol", "s", "tcp"],
            ["nat_src", "s", &address],
            ["nat_sport", "q", &port],
            ["until", "t", Box::leak(until.to_string().into_boxed_str())],
        ]
    };
    let started = started.as_u64().unwrap();
    let one = vec![behind[0]["id"].as_u64().unwrap()];
    assert_eq!(found(bus, "ListActive", &held(started)), one);
    assert_eq!(found(bus, "ListActive", &held(started - 1)), [0; 0]);
    assert_eq!(found(bus, "ListClosed", &held(started)), [0; 0]);

    let (sport, dport) = (&behind[0]["sport"], &behind[0]["dport"]);
    let tuple = format!("-p tcp --orig-port-src {sport} --orig-port-dst {dport}");
    conntrack::delete(&everything.network.router, &tuple);
    wait_for("its end", || (bus.property("ClosedCount").unwrap() == 1).then_some(()));
    assert_eq!(found(bus, "ListActive", &held(started)), [0; 0]);
    assert_eq!(found(bus, "ListClosed", &held(started)), one);
    everything.daemon.stop();
}

#[test]
fn refresh_brings_counters_to_the_kernels_and_without_accounting_there_are_none() {
    let everything = Everything::start();
    let bus = &everything.bus;
    assert!(everything.flows().iter().all(|flow| flow["orig_bytes"].as_u64() > Some(0)));

    let namespace = Namespace::tracked("uncounted");
    burst::prepare(&namespace);
    namespace.sysctl("net.netfilter.nf_conntrack_acct", "0");
    let other_bus = Bus::start();
    let other = Daemon::start(&namespace, &other_bus);
    burst::create(&namespace, 0, 10);
    let _ = agreed(&other_bus, &namespace);
    let flows = other_bus.list("ListActive", &[["refresh", "b", "true"]]).unwrap();
    assert_eq!(flows.len(), 10);
    for (flow, counter) in
        flows.iter().flat_map(|flow| ["orig_packets", "orig_bytes", "reply_packets"].map(|key| (flow, key)))
    {
        assert!(flow.get(counter).is_none(), "{counter} without accounting: {flow}");
    }
    assert_eq!(
        found(&other_bus, "ListActive", &[["min_bytes", "u", "0"]]),
        [0; 0],
        "nothing is known of them"
    );
    assert_eq!(bus.property("AccountingEnabled").unwrap(), true);
    assert_eq!(other_bus.property("AccountingEnabled").unwrap(), false);
    other.stop();
    everything.daemon.stop();
}

#[test]
fn a_walk_by_pages_of_100_over_20000_flows_under_churn_sees_each_that_lived_through_it_once() {
    const BLOCK: u32 = 1_000;
    let (namespace, bus) = (Namespace::tracked("walk"), Bus::start());
    churn::prepare(&namespace);
    let daemon = Daemon::start(&namespace, &bus);
    // Flows that live, and between them, by id, as many that end during the walk.
    for block in 0..20 {
        burst::create(&namespace, block * BLOCK, BLOCK);
        burst::create(&namespace, (1 + block % 4) * 65_536 + block * BLOCK, BLOCK / 2);
    }
    wait_for("30,000 flows", || (bus.property("ActiveCount").unwrap() == 30_000).then_some(()));
    let walked = churn::during(&namespace, || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for port in 5001..=5004 {
                    conntrack::delete(&namespace, &format!("-p udp --orig-port-dst {port}"));
                }
            });
            bus.list("ListActive", &[["limit", "u", "100"], ["fields", "as", "2 id dport"]]).unwrap()
        })
    });
    let seen = ids(&walked);
    assert!(seen.is_sorted_by(|one, next| one < next), "ascending, so none is there twice");
    let lived = |flows: &[Value]| -> BTreeSet<u64> {
        naive(flows, |flow| flow["dport"] == 5000).into_iter().collect()
    };
    let expected = lived(&bus.list("ListActive", &[["fields", "as", "2 id dport"]]).unwrap());
    assert_eq!(expected.len(), 20_000);
    assert_eq!(lived(&walked), expected);
    daemon.stop();
}

//! The query language on a table with everything in it: each key finds what a naive filter finds, and no walk misses a flow.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::net::IpAddr;

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

/// What `busctl` takes for one key: the key, a signature, and the value's words.
type Entry<'a> = [&'a str; 3];
/// The same question, asked of a flow as it was listed.
type Naive = fn(&Value) -> bool;

/// Each finds some of the flows of [`Everything`], and not all.
const FOUND: &[(Entry<'_>, Naive)] = &[
    (["family", "s", "ipv6"], |flow| flow["family"] == "ipv6"),
    (["protocol", "s", "tcp"], |flow| flow["protocol"] == "tcp"),
    (["protocol", "as", "2 UDP icmpv6"], |flow| flow["protocol"] == "udp" || flow["protocol"] == "icmpv6"),
    (["protocol", "y", "1"], |flow| flow["protocol_number"] == 1),
    (["src", "s", "198.18.0.2"], |flow| flow["src"] == "198.18.0.2"),
    (["src", "s", "::ffff:198.18.0.2"], |flow| flow["src"] == "198.18.0.2"),
    (["dst", "s", "198.18.1.0/24"], |flow| starts(&flow["dst"], "198.18.1.")),
    (["dst", "as", "2 198.18.1.3 2001:2:0:2::/64"], |flow| {
        flow["dst"] == MASQUERADED_SERVER_V4 || starts(&flow["dst"], "2001:2:0:2:")
    }),
    (["reply_src", "s", SERVER_V6], |flow| flow["reply_src"] == SERVER_V6),
    (["reply_dst", "s", "198.18.1.1"], |flow| flow["reply_dst"] == "198.18.1.1"),
    (["nat_src", "s", "198.18.1.1/32"], |flow| flow["nat_src"] == "198.18.1.1"),
    (["nat_dst", "s", "2001:2::/32"], |flow| starts(&flow["nat_dst"], "2001:2:")),
    (["address", "s", ROUTER_V4], |flow| has_address(flow, ROUTER_V4)),
    (["sport", "s", "32768-45000"], |flow| within(&flow["sport"], 32_768, 45_000)),
    (["dport", "q", "7000"], |flow| flow["dport"] == 7000),
    (["dport", "av", "2 q 7001 s 7100-7299"], |flow| {
        flow["dport"] == 7001 || within(&flow["dport"], 7100, 7299)
    }),
    (["reply_sport", "u", "7001"], |flow| flow["reply_sport"] == 7001),
    (["reply_dport", "s", "1024-40000"], |flow| within(&flow["reply_dport"], 1024, 40_000)),
    (["nat_sport", "s", "1-65535"], |flow| within(&flow["nat_sport"], 1, 65_535)),
    (["nat_dport", "i", "7000"], |flow| flow["nat_dport"] == 7000),
    (["port", "t", "7000"], |flow| {
        ["sport", "dport", "reply_sport", "reply_dport"].iter().any(|key| flow[key] == 7000)
    }),
    (["icmp_type", "y", "8"], |flow| flow["icmp_type"] == 8),
    (["icmp_code", "n", "0"], |flow| flow["icmp_code"] == 0),
    (["icmp_id", "aq", "2 301 302"], |flow| flow["icmp_id"] == 301 || flow["icmp_id"] == 302),
    (["nat", "s", "source"], |flow| flow.get("nat_src").is_some() || source_identifier_changed(flow)),
    (["nat", "s", "destination"], |flow| flow.get("nat_dst").is_some()),
    (["nat", "s", "any"], |flow| {
        flow.get("nat_src").is_some() || flow.get("nat_dst").is_some() || source_identifier_changed(flow)
    }),
    (["nat", "s", "none"], |flow| {
        flow.get("nat_src").is_none() && flow.get("nat_dst").is_none() && !source_identifier_changed(flow)
    }),
    (["mark", "u", "0"], |flow| flow["mark"] == 0),
    (["mark", "s", "0x040c0000/0xffff0000"], |flow| mark(flow) & 0xffff_0000 == 0x040c_0000),
    (["source", "s", "chrome"], |flow| flow["source"] == "CHROME"),
    (["source", "as", "2 0x29 CROSTINI_VM"], |flow| {
        flow["source"] == "0x29" || flow["source"] == "CROSTINI_VM"
    }),
    (["vpn", "s", "route"], |flow| flow["vpn"] == "route"),
    (["qos", "s", "network-control"], |flow| flow["qos"] == "network-control"),
    (["routing_table", "q", "1036"], |flow| flow["routing_table"] == 1036),
    (["interface", "s", "wlan0"], |flow| flow["interface"] == "wlan0"),
    (["zone", "q", "7"], |flow| flow["zone"] == 7),
    (["orig_zone", "aq", "2 7 9"], |flow| flow["zone"] == 7 || flow["orig_zone"] == 9),
    (["reply_zone", "q", "0"], |flow| {
        flow.get("zone").is_none() && flow["reply_zone"].as_u64().unwrap_or(0) == 0
    }),
    (["state", "s", "established"], |flow| flow["state"] == "ESTABLISHED"),
    (["status", "s", "dst-nat"], |flow| has_status(flow, "dst-nat")),
    (["status", "as", "2 !assured src_nat"], |flow| {
        !has_status(flow, "assured") || has_status(flow, "src-nat")
    }),
    (["min_bytes", "t", "300"], |flow| {
        ["orig_bytes", "reply_bytes"].map(|key| flow[key].as_u64().unwrap_or(0)).iter().sum::<u64>() >= 300
    }),
];

/// Each finds none of them.
const NOT_FOUND: &[Entry<'_>] = &[
    ["family", "as", "1 ipv4"],
    ["protocol", "s", "sctp"],
    ["src", "s", "198.18.9.0/24"],
    ["dst", "s", "::/128"],
    ["reply_src", "s", "198.18.0.2"],
    ["reply_dst", "s", SERVER_V4],
    ["nat_src", "s", "198.18.0.2"],
    ["nat_dst", "s", ROUTER_V4],
    ["address", "s", "198.19.0.0/16"],
    ["sport", "q", "7000"],
    ["dport", "q", "1"],
    ["reply_sport", "q", "1"],
    ["reply_dport", "q", "1"],
    ["nat_sport", "q", "1"],
    ["nat_dport", "q", "7001"],
    ["port", "s", "1-7"],
    ["icmp_type", "y", "0"],
    ["icmp_code", "y", "1"],
    ["icmp_id", "q", "9"],
    ["mark", "u", "1"],
    ["source", "s", "ARC"],
    ["vpn", "s", "route+bypass"],
    ["qos", "s", "webrtc"],
    ["routing_table", "q", "1037"],
    ["interface", "s", "eth9"],
    ["zone", "q", "8"],
    ["orig_zone", "q", "8"],
    ["reply_zone", "q", "9"],
    ["state", "s", "TIME_WAIT"],
    ["status", "s", "offload"],
    ["helper", "s", "ftp"],
    ["labels", "y", "1"],
    ["id", "t", "18446744073709551615"],
    ["conntrack_id", "u", "1"],
    ["pid", "u", "1"],
    ["comm", "s", "init"],
    ["uid", "u", "0"],
    ["unit", "s", "init.scope"],
    ["min_bytes", "t", "1000000000"],
    ["until", "t", "1"],
];

/// Each is refused by its key's name.
const REFUSED: &[Entry<'_>] = &[
    ["family", "s", "ipv5"],
    ["protocol", "s", "tpc"],
    ["protocol", "u", "256"],
    ["src", "s", "198.18.0.2/33"],
    ["dst", "s", "198.18.0"],
    ["reply_src", "s", "server"],
    ["reply_dst", "u", "3"],
    ["nat_src", "s", "::/129"],
    ["nat_dst", "s", "!198.18.0.2"],
    ["address", "as", "0"],
    ["sport", "s", "9-3"],
    ["dport", "u", "65536"],
    ["dport", "s", "+7000"],
    ["reply_sport", "i", "-1"],
    ["reply_dport", "s", "1-"],
    ["nat_sport", "b", "true"],
    ["nat_dport", "d", "7000"],
    ["port", "s", "http"],
    ["icmp_type", "u", "256"],
    ["icmp_code", "s", "x"],
    ["icmp_id", "u", "65536"],
    ["nat", "s", "both"],
    ["mark", "s", "0x100/0xff"],
    ["mark", "t", "4294967296"],
    ["source", "s", "CHROMIUM"],
    ["source", "u", "64"],
    ["vpn", "s", "yes"],
    ["qos", "u", "8"],
    ["routing_table", "q", "999"],
    ["interface", "s", "a_name_of_sixteen"],
    ["zone", "u", "65536"],
    ["orig_zone", "s", "x"],
    ["reply_zone", "i", "-1"],
    ["state", "s", "OPENED"],
    ["status", "s", "!new"],
    ["helper", "u", "3"],
    ["labels", "u", "128"],
    ["id", "s", "first"],
    ["conntrack_id", "t", "4294967296"],
    ["pid", "s", "init"],
    ["comm", "u", "3"],
    ["uid", "s", "root"],
    ["unit", "b", "true"],
    ["min_bytes", "as", "2 1 2"],
    ["since", "s", "now"],
    ["until", "i", "-1"],
    ["refresh", "s", "true"],
    ["snapshot", "b", "true"],
    ["events", "s", "new"],
];

fn starts(value: &Value, prefix: &str) -> bool {
    value.as_str().is_some_and(|text| text.starts_with(prefix))
}

fn within(value: &Value, low: u64, high: u64) -> bool {
    value.as_u64().is_some_and(|number| (low..=high).contains(&number))
}

fn mark(flow: &Value) -> u64 {
    flow["mark"].as_u64().unwrap()
}

fn has_address(flow: &Value, address: &str) -> bool {
    ["src", "dst", "reply_src", "reply_dst"].iter().any(|key| flow[key] == address)
}

fn has_status(flow: &Value, name: &str) -> bool {
    flow["status"].as_array().is_some_and(|names| names.iter().any(|other| other == name))
}

/// A ping behind another address keeps no port that could show it.
fn source_identifier_changed(flow: &Value) -> bool {
    flow.get("icmp_id").is_some() && flow["icmp_id"] != flow["reply_icmp_id"]
}

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

    // The same of the flows once they are closed, newest end first.
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
        // Of the families the other one is not there, within what is of one.
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

    conntrack::delete(&everything.network.router, &format!("-p tcp --orig-port-src {}", behind[0]["sport"]));
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
    // Those that live, and between them, by id, as many that end during the walk.
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

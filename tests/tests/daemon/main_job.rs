//! The main job, end to end: hundreds of real flows through a router with NAT and marks, half of them older than the daemon.

use std::collections::{BTreeMap, HashMap};
use std::net::{SocketAddr, UdpSocket};

use flowbus_tests::conntrack::{self, Events};
use flowbus_tests::flow::{self, agreed};
use flowbus_tests::network::{
    BOTH_NAT, CHROME, CROSTINI, LATE_MARK, MASQUERADED, MASQUERADED_SERVER_V4, ORIGINAL_ZONED, PLAIN,
    REDIRECTED, ROUTER_V4, ROUTER_V6, SERVER_V4, SERVER_V6, UNKNOWN_SOURCE, UPLINK, ZONED, ip_address,
    socket_address,
};
use flowbus_tests::process::wait_for;
use flowbus_tests::traffic::{self, Connection, TcpService, UdpService};
use flowbus_tests::{Bus, Daemon, Monitor, Network};
use serde_json::{Value, json};

/// An address, a port, and how many flows go there.
type Way = (&'static str, u16, usize);

/// Where the TCP services listen, and the addresses and numbers of flows that lead there.
const TCP: [(&str, u16, &[Way]); 10] = [
    (SERVER_V4, PLAIN, &[(SERVER_V4, PLAIN, 20), (ROUTER_V4, REDIRECTED, 10), (ROUTER_V4, BOTH_NAT, 5)]),
    (SERVER_V6, PLAIN, &[(SERVER_V6, PLAIN, 20), (ROUTER_V6, REDIRECTED, 5), (ROUTER_V6, BOTH_NAT, 5)]),
    (SERVER_V4, CHROME, &[(SERVER_V4, CHROME, 5)]),
    (SERVER_V6, CHROME, &[(SERVER_V6, CHROME, 5)]),
    (SERVER_V4, UNKNOWN_SOURCE, &[(SERVER_V4, UNKNOWN_SOURCE, 5)]),
    (SERVER_V6, CROSTINI, &[(SERVER_V6, CROSTINI, 5)]),
    (SERVER_V4, LATE_MARK, &[(SERVER_V4, LATE_MARK, 3)]),
    (SERVER_V6, LATE_MARK, &[(SERVER_V6, LATE_MARK, 2)]),
    (SERVER_V4, MASQUERADED, &[(SERVER_V4, MASQUERADED, 5)]),
    (SERVER_V6, MASQUERADED, &[(SERVER_V6, MASQUERADED, 5)]),
];

/// Where the UDP services listen, and the addresses and numbers of flows that lead there.
const UDP: [(&str, u16, &[Way]); 7] = [
    (SERVER_V4, PLAIN, &[(SERVER_V4, PLAIN, 5), (ROUTER_V4, REDIRECTED, 2), (ROUTER_V4, BOTH_NAT, 2)]),
    (SERVER_V6, PLAIN, &[(SERVER_V6, PLAIN, 5)]),
    (SERVER_V4, CHROME, &[(SERVER_V4, CHROME, 2)]),
    (SERVER_V6, MASQUERADED, &[(SERVER_V6, MASQUERADED, 2)]),
    (SERVER_V4, MASQUERADED, &[(SERVER_V4, MASQUERADED, 2)]),
    (SERVER_V4, ZONED, &[(SERVER_V4, ZONED, 3)]),
    (SERVER_V4, ORIGINAL_ZONED, &[(SERVER_V4, ORIGINAL_ZONED, 2)]),
];

struct Services {
    tcp: Vec<(TcpService, &'static [Way])>,
    udp: Vec<(UdpService, &'static [Way])>,
}

impl Services {
    fn start(network: &Network) -> Self {
        Self {
            tcp: TCP.iter().map(|(at, port, ways)| (network.tcp_service(at, *port), *ways)).collect(),
            udp: UDP.iter().map(|(at, port, ways)| (network.udp_service(at, *port), *ways)).collect(),
        }
    }

    /// 100 TCP connections, held open, 25 UDP exchanges, and 5 pings whose identifiers start at `first`.
    fn half_of_the_traffic(&self, network: &Network, first: u16) -> (Vec<Connection>, Vec<UdpSocket>) {
        let (mut open, mut asked) = (Vec::new(), Vec::new());
        let destination = |way: &Way| -> SocketAddr { socket_address(way.0, way.1) };
        for (service, ways) in &self.tcp {
            open.extend(
                ways.iter().flat_map(|way| service.connect(&network.client, destination(way), way.2)),
            );
        }
        for (service, ways) in &self.udp {
            asked.extend(
                ways.iter().flat_map(|way| service.exchange(&network.client, destination(way), way.2)),
            );
        }
        let pinged = [SERVER_V4, SERVER_V6, MASQUERADED_SERVER_V4, SERVER_V6, MASQUERADED_SERVER_V4];
        for (address, id) in pinged.iter().zip(first..) {
            traffic::ping(&network.client, ip_address(address), id);
        }
        assert_eq!(open.len(), 100);
        (open, asked)
    }
}

fn counted(flows: &[Value]) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for flow in flows {
        *counts.entry(flow::key(flow)).or_default() += 1;
    }
    counts
}

/// Both count the same flows, each as often.
fn assert_same(ours: &HashMap<String, usize>, kernels: &HashMap<String, usize>, what: &str) {
    let ours_only: Vec<_> = ours.iter().filter(|(key, count)| kernels.get(*key) != Some(count)).collect();
    let kernels_only: Vec<_> = kernels.iter().filter(|(key, count)| ours.get(*key) != Some(count)).collect();
    assert!(
        ours_only.is_empty() && kernels_only.is_empty(),
        "{what}: only flowbusd has {ours_only:#?}, only the kernel {kernels_only:#?}"
    );
}

#[test]
fn the_daemon_has_exactly_the_kernels_flows_and_tells_each_birth_and_end_once() {
    let network = Network::new();
    let bus = Bus::start();
    let services = Services::start(&network);
    // The witness is there from the first flow on, so the kernel reports the ends of flows older than the daemon as well.
    let witness = Events::listen(&network.router);
    let monitor = Monitor::start(&bus, "org.flowbus.FlowEvents1");

    let (mut open, _asked) = services.half_of_the_traffic(&network, 100);
    witness.wait_for("the new flows", |seen| {
        seen.iter().filter(|event| event.event == "NEW").count() == 100 + 25 + 5
    });
    let before = witness.count("NEW");
    let daemon = Daemon::start(&network.router, &bus);
    let (more, _asked_later) = services.half_of_the_traffic(&network, 200);
    open.extend(more);

    let (flows, table) = agreed(&bus, &network.router);
    assert_eq!(table.len(), 2 * (100 + 25 + 5));
    for flow in &flows {
        for key in ["id", "start_usec", "start_source", "source", "source_id", "vpn", "qos", "legacy_snat"] {
            assert!(flow.get(key).is_some(), "{key} is absent from {flow}");
        }
        assert!(flow.get("end_usec").is_none(), "an active flow has not ended: {flow}");
        if before.contains_key(&flow::key(flow)) {
            assert!(
                flow["orig_packets"].as_u64() > Some(0),
                "the dump brings the counters of older flows: {flow}"
            );
        }
    }
    let ids: BTreeMap<u64, String> =
        flows.iter().map(|flow| (flow["id"].as_u64().unwrap(), flow::key(flow))).collect();
    assert_eq!(ids.len(), flows.len(), "ids are unique");
    assert!(flows.is_sorted_by_key(|flow| flow["id"].as_u64()), "ListActive ascends by id");
    let of_port = |port: u16| flows.iter().find(|flow| flow["dport"] == port).unwrap().clone();
    let chrome = of_port(CHROME);
    assert_eq!((&chrome["source"], &chrome["routing_table"]), (&json!("CHROME"), &json!(1036)));
    assert_eq!(chrome["interface"], UPLINK);
    assert_eq!(of_port(UNKNOWN_SOURCE)["source"], "0x29");
    let crostini = of_port(CROSTINI);
    assert_eq!((&crostini["source"], &crostini["vpn"]), (&json!("CROSTINI_VM"), &json!("route")));
    assert_eq!(crostini["qos"], "network-control");
    assert_eq!(of_port(LATE_MARK)["source"], "USER");

    // Closed in order, the flow goes on in the table; ended is what the kernel takes out of it.
    open.drain(..20).for_each(Connection::close);
    for filter in [
        "-p tcp --orig-port-dst 7100",
        "-p tcp --orig-port-dst 7001",
        "-p udp --orig-port-dst 7000",
        "-p icmp",
    ] {
        conntrack::delete(&network.router, filter);
    }
    witness.wait_for("the ends", |seen| {
        seen.iter().filter(|event| event.event == "DESTROY").count() == 2 * (10 + 10 + 10 + 3)
    });
    let ended = witness.count("DESTROY");
    let closed = wait_for("the closed flows", || {
        let closed = bus.list("ListClosed", &[]).unwrap();
        (closed.len() >= ended.len()).then_some(closed)
    });
    assert_same(&counted(&closed), &ended, "ListClosed, exactly those that ended");
    assert!(
        closed.is_sorted_by(|a, b| a["sequence"].as_u64() > b["sequence"].as_u64()),
        "ListClosed has the last end first"
    );
    for event in witness.seen().iter().filter(|event| event.event == "DESTROY") {
        let flow = closed.iter().find(|flow| flow::key(flow) == event.key()).unwrap();
        assert_eq!(flow["end_reason"], "destroyed", "{flow}");
        assert_eq!(flow["conntrack_id"], event.id, "{flow}");
        assert_eq!(flow["mark"], event.mark.unwrap_or(0), "{flow}");
        assert_eq!(
            ids.get(&flow["id"].as_u64().unwrap()),
            Some(&event.key()),
            "a flow keeps its id when it ends"
        );
        assert!(flow::counters_agree(flow, event), "{flow}\n{event:?}");
        assert_eq!((&flow["start_source"], &flow["end_source"]), (&json!("kernel"), &json!("kernel")));
        assert!(flow["start_usec"].as_u64() <= flow["end_usec"].as_u64());
    }
    let (rest, _) = agreed(&bus, &network.router);
    assert_eq!(rest.len() + closed.len(), flows.len());

    let (events, lost) = monitor.events_until(|events| {
        events.iter().filter(|event| event["event"] == "destroy").count() >= ended.len()
    });
    assert_eq!(lost, 0);
    let of_kind = |kind: &str| -> Vec<Value> {
        events.iter().filter(|event| event["event"] == kind).cloned().collect()
    };
    // A flow that the daemon found in its first dump is new as well, if the bus was there before the dump was done.
    let born = counted(&of_kind("new"));
    let mut expected = witness.count("NEW");
    expected.retain(|key, _| !before.contains_key(key) || born.contains_key(key));
    assert_eq!(expected.len() - before.keys().filter(|key| born.contains_key(*key)).count(), 130);
    assert_same(&born, &expected, "flows born on the daemon's watch, new once each");
    assert_same(&counted(&of_kind("destroy")), &ended, "flows that ended, destroyed once each");
    for event in &events {
        assert_eq!(
            ids.get(&event["id"].as_u64().unwrap()),
            Some(&flow::key(event)),
            "events join listings by id: {event}"
        );
    }
    assert!(
        events.is_sorted_by_key(|event| event["sequence"].as_u64()),
        "events come in the order of their sequence"
    );
    daemon.stop();
}

//! Every kind of flow that the kernel takes from the conntrack tool, through events and through a dump.

use flowbus_tests::conntrack;
use flowbus_tests::flow::agreed;
use flowbus_tests::network::socket_address;
use flowbus_tests::traffic::UdpService;
use flowbus_tests::{Bus, Daemon, Namespace};

const FLOWS: [&str; 14] = [
    "-p tcp -s 198.18.0.1 -d 198.18.0.2 --sport 1 --dport 2 --state SYN_SENT",
    "-p tcp -s 2001:2::1 -d 2001:2::2 --sport 1 --dport 2 --state ESTABLISHED -u SEEN_REPLY,ASSURED",
    "-p udp -s 198.18.0.1 -d 198.18.0.2 --sport 1 --dport 2 -m 0x040c0100",
    "-p udp -s 198.18.0.1 -d 198.18.0.2 --sport 3 --dport 2 -n 198.18.0.9:99",
    "-p udp -s 198.18.0.1 -d 198.18.0.2 --sport 4 --dport 2 -g 198.18.0.9:99",
    "-p udp -s 198.18.0.1 -d 198.18.0.2 --sport 1 --dport 2 -w 3",
    "-p udp -s 198.18.0.1 -d 198.18.0.2 --sport 6 --dport 2 --orig-zone 4",
    "-p udp -s 198.18.0.1 -d 198.18.0.2 --sport 5 --dport 2 --reply-zone 5",
    "-p udplite -s 198.18.0.1 -d 198.18.0.2 --sport 1 --dport 2",
    "-p sctp -s 198.18.0.1 -d 198.18.0.2 --sport 1 --dport 2 --state ESTABLISHED --orig-vtag 1 --reply-vtag 2",
    "-p icmp -s 198.18.0.1 -d 198.18.0.2 --icmp-type 8 --icmp-code 0 --icmp-id 9",
    "-p icmpv6 -s 2001:2::1 -d 2001:2::2 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 9",
    "-p gre -s 198.18.0.1 -d 198.18.0.2 --srckey 1 --dstkey 2",
    "-p 50 -s 198.18.0.1 -d 198.18.0.2",
];

fn insert_all(namespace: &Namespace) {
    for flow in FLOWS {
        namespace.run(&format!("conntrack -I -t 300 {flow}"));
    }
}

#[test]
fn every_kind_of_flow_is_the_kernels_whether_seen_in_events_or_in_a_dump() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    let daemon = Daemon::start(&namespace, &bus);
    insert_all(&namespace);
    let (flows, _) = agreed(&bus, &namespace);
    assert_eq!(flows.len(), FLOWS.len());
    daemon.stop();

    let daemon = Daemon::start(&namespace, &bus);
    let (flows, _) = agreed(&bus, &namespace);
    assert_eq!(flows.len(), FLOWS.len());
    daemon.stop();
}

#[test]
fn ends_that_a_program_causes_arrive() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    let daemon = Daemon::start(&namespace, &bus);
    for port in [7000, 7001] {
        let address = socket_address("127.0.0.1", port);
        UdpService::bind(&namespace, address).exchange(&namespace, address, 3);
    }
    let (flows, _) = agreed(&bus, &namespace);
    assert_eq!(flows.len(), 6);

    conntrack::delete(&namespace, "-p udp --dport 7000");
    let (flows, _) = agreed(&bus, &namespace);
    assert_eq!(flows.len(), 3);
    daemon.stop();
}

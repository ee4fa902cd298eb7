//! The harness itself: what the other tests take for granted about the network, the rules and the tools.

use flowbus_tests::conntrack::{self, Entry, Events};
use flowbus_tests::network::{self, ip_address, socket_address};
use flowbus_tests::{Bus, Network, traffic};

fn only(entries: &[Entry], port: u16) -> &Entry {
    let mut found = entries.iter().filter(|entry| entry.original.dport == Some(port));
    let entry = found.next().unwrap_or_else(|| panic!("no flow to port {port} in {entries:#?}"));
    assert!(found.next().is_none(), "more than one flow to port {port}");
    entry
}

#[test]
fn the_router_translates_marks_and_zones_real_traffic() {
    let network = Network::new();
    let events = Events::listen(&network.router);
    for (address, router) in
        [(network::SERVER_V4, network::ROUTER_V4), (network::SERVER_V6, network::ROUTER_V6)]
    {
        conntrack_is_empty(&network);
        let plain = network.tcp_service(address, network::PLAIN);
        let mut open = plain.connect(&network.client, socket_address(router, network::REDIRECTED), 1);
        open.extend(plain.connect(&network.client, socket_address(router, network::BOTH_NAT), 1));
        for port in [network::CHROME, network::UNKNOWN_SOURCE, network::CROSTINI, network::LATE_MARK] {
            let service = network.tcp_service(address, port);
            open.extend(service.connect(&network.client, socket_address(address, port), 1));
        }
        for port in [network::MASQUERADED, network::ZONED, network::ORIGINAL_ZONED] {
            let service = network.udp_service(address, port);
            service.exchange(&network.client, socket_address(address, port), 1);
        }
        traffic::ping(&network.client, ip_address(address), 77);

        let table = conntrack::list(&network.router);
        let mark = |port| only(&table, port).mark;
        assert_eq!(mark(network::CHROME), Some(0x040C_0100));
        assert_eq!(mark(network::UNKNOWN_SOURCE), Some(0x2900));
        assert_eq!(mark(network::CROSTINI), Some(0xA160));
        assert_eq!(mark(network::LATE_MARK), Some(0x200));
        let redirected = only(&table, network::REDIRECTED);
        assert_eq!((redirected.reply.src.as_str(), redirected.reply.sport), (address, Some(network::PLAIN)));
        let both = only(&table, network::BOTH_NAT);
        assert_eq!((both.reply.src.as_str(), both.reply.sport), (address, Some(network::PLAIN)));
        assert_ne!((&both.reply.dst, both.reply.dport), (&both.original.src, both.original.sport));
        let masqueraded = only(&table, network::MASQUERADED);
        assert_ne!(masqueraded.reply.dst, masqueraded.original.src);
        assert_ne!(masqueraded.reply.dport, masqueraded.original.sport);
        assert_eq!(only(&table, network::ZONED).zone, Some(7));
        assert_eq!(only(&table, network::ORIGINAL_ZONED).original.zone, Some(9));
        assert!(table.iter().any(|entry| entry.original.icmp_id == Some(77)));
        conntrack::delete(&network.router, if address.contains(':') { "-f ipv6" } else { "-f ipv4" });
    }
    traffic::ping(&network.client, ip_address(network::MASQUERADED_SERVER_V4), 78);
    let table = conntrack::list(&network.router);
    assert_ne!(table[0].original.icmp_id, table[0].reply.icmp_id, "{:?}", table[0]);

    conntrack::delete(&network.router, "-p icmp");
    events.wait_for("the end of the last ping", |seen| {
        seen.last().is_some_and(|event| event.event == "DESTROY" && event.original.icmp_id == Some(78))
    });
    assert_eq!(events.count("NEW"), events.count("DESTROY"));
    assert!(events.count("NEW").values().all(|count| *count == 1));
}

fn conntrack_is_empty(network: &Network) {
    assert_eq!(conntrack::list(&network.router), []);
}

#[test]
fn a_bus_comes_back_at_its_address_and_names_its_errors() {
    let mut bus = Bus::start();
    let address = bus.address();
    bus.restart();
    assert_eq!(bus.address(), address);
    let error = bus.monitor_call("ListActive", &["a{sv}", "0"]).expect_err("nobody has the name");
    assert_eq!(error.name, "org.freedesktop.DBus.Error.ServiceUnknown");
}

//! Sockets without an address of their own, which send from one of their namespace's.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use flowbus_attribution::Kind;
use flowbus_tests::{Namespace, Sockets};

use super::of;

/// A namespace with these addresses besides those of the loopback interface, and routes to everything.
fn with_addresses(addresses: &[String]) -> Namespace {
    let namespace = Namespace::new("addresses");
    for (number, address) in addresses.iter().enumerate() {
        namespace.run(&format!("ip link add net{number} type bridge"));
        namespace.run(&format!("ip link set net{number} up"));
        namespace.run(&format!("ip address add {address} dev net{number}"));
    }
    namespace.run("ip route add default dev net0");
    namespace.run("ip -6 route add default dev net0");
    namespace
}

fn texts(addresses: &[&str]) -> Vec<String> {
    addresses.iter().map(|address| (*address).to_owned()).collect()
}

fn send(socket: &UdpSocket, to: &str) -> u16 {
    // Another one to the same destination is not reported.
    socket.send_to(b"x", to).unwrap();
    socket.send_to(b"x", to).unwrap();
    socket.local_addr().unwrap().port()
}

/// The addresses from which datagrams of this port were reported, in order.
fn sources(sockets: &mut Sockets, namespace: &Namespace, port: u16) -> Vec<IpAddr> {
    // What comes after them shows that they are all there.
    let last = namespace.enter(|| send(&UdpSocket::bind("127.0.0.1:0").unwrap(), "127.0.0.1:9"));
    let is_last = |local: SocketAddr| local.port() == last;
    let events = sockets.events_until(namespace, |events| {
        events.iter().any(|event| event.kind == Kind::Send && is_last(event.local))
    });
    let mut sent = of(&events, |kind| kind == Kind::Send);
    sent.retain(|event| event.local.port() == port);
    let mut sources: Vec<_> = sent.iter().map(|event| event.local.ip()).collect();
    sources.sort();
    sources
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_datagram_is_reported_from_each_address_of_its_namespace() {
    let here = ["198.18.0.1/32", "198.18.0.2/32", "2001:2::1/128", "2001:2::2/128"];
    let namespace = with_addresses(&texts(&here));
    namespace.run("ip address add 198.18.0.3/32 dev lo");
    namespace.run("ip address add 198.18.0.4/32 dev net0");
    let all_v4 = addresses(&["198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.4"]);
    let mut sockets = Sockets::watch();
    for (bound, to, expected) in [
        ("0.0.0.0:0", "198.18.1.1:9", all_v4.clone()),
        ("[::]:0", "[2001:2::9:1]:9", addresses(&["2001:2::1", "2001:2::2"])),
        ("[::]:0", "[::ffff:198.18.1.1]:9", all_v4),
        ("198.18.0.2:0", "198.18.1.1:9", addresses(&["198.18.0.2"])),
        ("[2001:2::2]:0", "[2001:2::9:1]:9", addresses(&["2001:2::2"])),
        ("0.0.0.0:0", "127.0.0.1:9", addresses(&["0.0.0.0"])),
        ("[::]:0", "[::1]:9", addresses(&["::"])),
    ] {
        let port = namespace.enter(|| send(&UdpSocket::bind(bound).unwrap(), to));
        assert_eq!(sources(&mut sockets, &namespace, port), expected, "{bound} to {to}");
    }
}

#[test]
fn where_not_all_addresses_are_known_a_datagram_is_reported_without_one_besides() {
    let mut sockets = Sockets::watch();
    // The loopback interface, and for each of the others two steps: one more than there are.
    let many: Vec<_> = (1..=8).map(|number| format!("198.18.0.{number}/32")).collect();
    let namespace = with_addresses(&many);
    let port = namespace.enter(|| send(&UdpSocket::bind("0.0.0.0:0").unwrap(), "198.18.1.1:9"));
    let found = sources(&mut sockets, &namespace, port);
    assert!(found.contains(&IpAddr::from([0, 0, 0, 0])) && found.len() > 6, "{found:?}");

    // A thread elsewhere sends by a socket of the namespace.
    let namespace = with_addresses(&texts(&["198.18.0.1/32"]));
    let socket = namespace.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let port = send(&socket, "198.18.1.1:9");
    assert_eq!(sources(&mut sockets, &namespace, port), addresses(&["0.0.0.0"]));

    // The tracked namespace is that of the loader, whose addresses are known.
    let namespace = with_addresses(&texts(&["198.18.0.1/32"]));
    let mut sockets = namespace.enter(Sockets::watch);
    let port = namespace.enter(|| send(&UdpSocket::bind("0.0.0.0:0").unwrap(), "198.18.1.1:9"));
    assert_eq!(sources(&mut sockets, &namespace, port), addresses(&["0.0.0.0"]));
}

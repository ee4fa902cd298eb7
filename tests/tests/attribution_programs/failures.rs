//! Connections that were asked for and failed: each is reported once, with the error that the process got.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

use flowbus_attribution::{Confidence, Event, Kind};
use flowbus_tests::sockets::by;
use flowbus_tests::{Namespace, Sockets};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt};

use super::{listen, of, one, this_process};

fn is_failure(kind: Kind) -> bool {
    matches!(kind, Kind::ConnectFailed { .. })
}

/// All that was reported in this namespace until now: up to the port that is taken here.
pub(super) fn all(sockets: &mut Sockets, namespace: &Namespace) -> Vec<Event> {
    let last = namespace.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let port = last.local_addr().unwrap().port();
    let is_last = |event: &Event| event.kind == Kind::Bind && event.local.port() == port;
    sockets.events_until(namespace, |events| events.iter().any(is_last))
}

pub(super) fn failures(sockets: &mut Sockets, namespace: &Namespace) -> Vec<Event> {
    of(&all(sockets, namespace), is_failure)
}

/// The only failure so far, which is of this process.
pub(super) fn failure(sockets: &mut Sockets, namespace: &Namespace) -> (SocketAddr, i32) {
    let failed = failures(sockets, namespace);
    let [event] = failed[..] else { panic!("one failure: {failed:#?}, {:?}", sockets.statistics()) };
    let process = by(&event);
    assert_eq!((process.pid, process.confidence), (this_process(), Confidence::Exact), "{event:?}");
    let Kind::ConnectFailed { errno } = event.kind else { panic!("{event:?}") };
    (event.remote, errno)
}

/// A namespace in which nothing but the loopback has a route, and these destinations a way to fail.
pub(super) fn dead_end() -> Namespace {
    let namespace = Namespace::new("deadend");
    for (kind, number) in [("unreachable", 1), ("blackhole", 2), ("prohibit", 3)] {
        namespace.run(&format!("ip route add {kind} 198.18.{number}.0/24"));
        namespace.run(&format!("ip -6 route add {kind} 2001:2:0:{number}::/64"));
    }
    namespace
}

const DEAD_ENDS: [(&str, Errno); 8] = [
    ("198.18.0.1:443", Errno::NETUNREACH),
    ("[2001:2::1]:443", Errno::NETUNREACH),
    ("198.18.1.1:443", Errno::HOSTUNREACH),
    ("[2001:2:0:1::1]:443", Errno::HOSTUNREACH),
    ("198.18.2.1:443", Errno::INVAL),
    ("[2001:2:0:2::1]:443", Errno::INVAL),
    ("198.18.3.1:443", Errno::ACCESS),
    ("[2001:2:0:3::1]:443", Errno::ACCESS),
];

pub(super) fn socket(of: SocketAddr, kind: SocketType, flags: SocketFlags) -> OwnedFd {
    let family = if of.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    socket_with(family, kind, flags | SocketFlags::CLOEXEC, None).unwrap()
}

#[test]
fn a_destination_without_a_way_is_told_with_the_error_of_connect() {
    for (to, expected) in DEAD_ENDS {
        let to: SocketAddr = to.parse().unwrap();
        let namespace = dead_end();
        let mut sockets = Sockets::watch();
        let error = namespace.enter(|| TcpStream::connect(to).unwrap_err());
        assert_eq!(error.raw_os_error(), Some(expected.raw_os_error()), "{to}");
        assert_eq!(failure(&mut sockets, &namespace), (to, expected.raw_os_error()), "{to}");
    }
}

#[test]
fn ports_that_are_used_up_are_told_with_the_destination() {
    let namespace = Namespace::new("ports");
    let listener = listen(&namespace, "127.0.0.1:0");
    let to = listener.local_addr().unwrap();
    namespace.sysctl("net.ipv4.ip_local_port_range", "40000 40000");
    let mut sockets = Sockets::watch();
    let (_held, error) =
        namespace.enter(|| (TcpStream::connect(to).unwrap(), TcpStream::connect(to).unwrap_err()));
    assert_eq!(error.raw_os_error(), Some(Errno::ADDRNOTAVAIL.raw_os_error()));
    namespace.sysctl("net.ipv4.ip_local_port_range", "32768 60999");
    assert_eq!(failure(&mut sockets, &namespace), (to, Errno::ADDRNOTAVAIL.raw_os_error()));
}

#[test]
fn a_reject_among_the_rules_of_this_machine_is_a_refusal() {
    for how in ["icmpx port-unreachable", "tcp reset"] {
        let namespace = Namespace::new("reject");
        namespace.nft(&format!(
            "table inet filter {{ chain output {{ type filter hook output priority 0; tcp dport 81 reject with {how}; }}; }}"
        ));
        for to in ["127.0.0.1:81", "[::1]:81"] {
            let to: SocketAddr = to.parse().unwrap();
            let mut sockets = Sockets::watch();
            let error = namespace.enter(|| TcpStream::connect(to).unwrap_err());
            assert_eq!(error.raw_os_error(), Some(Errno::CONNREFUSED.raw_os_error()), "{how} {to}");
            let told = failure(&mut sockets, &namespace);
            assert_eq!(told, (to, Errno::CONNREFUSED.raw_os_error()), "{how}");
        }
    }
}

#[test]
fn a_socket_that_failed_connects_anew_and_each_attempt_is_told() {
    let namespace = dead_end();
    let listener = listen(&namespace, "127.0.0.1:0");
    let to = listener.local_addr().unwrap();
    let dead: SocketAddr = "198.18.0.1:443".parse().unwrap();
    let refused: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let mut sockets = Sockets::watch();
    let client = namespace.enter(|| {
        let client = socket(to, SocketType::STREAM, SocketFlags::empty());
        assert_eq!(connect(&client, &dead), Err(Errno::NETUNREACH));
        assert_eq!(connect(&client, &refused), Err(Errno::CONNREFUSED));
        connect(&client, &to).unwrap();
        TcpStream::from(client)
    });
    let failed = failures(&mut sockets, &namespace);
    let told: Vec<_> = failed.iter().map(|event| (event.remote, event.kind)).collect();
    let failure = |error: Errno| Kind::ConnectFailed { errno: error.raw_os_error() };
    assert_eq!(told, [(dead, failure(Errno::NETUNREACH)), (refused, failure(Errno::CONNREFUSED))]);
    let events = sockets.events_with(&namespace, 1, |kind| kind == Kind::Connect);
    let connected = one(&events, |kind| kind == Kind::Connect);
    assert_eq!(connected.local, client.local_addr().unwrap());
    assert!(connected.connect_usec.is_some(), "{connected:?}");
}

#[test]
fn fast_open_is_told_of_as_other_connects_are() {
    let namespace = dead_end();
    let dead: SocketAddr = "198.18.0.1:443".parse().unwrap();
    let mut sockets = Sockets::watch();
    let sent = namespace.enter(|| {
        let client = socket(dead, SocketType::STREAM, SocketFlags::empty());
        const MSG_FASTOPEN: u32 = 0x2000_0000;
        let flags = rustix::net::SendFlags::from_bits_retain(MSG_FASTOPEN);
        rustix::net::sendto(&client, b"x", flags, &dead)
    });
    assert_eq!(sent, Err(Errno::NETUNREACH));
    assert_eq!(failure(&mut sockets, &namespace), (dead, Errno::NETUNREACH.raw_os_error()));
}

#[test]
fn a_datagram_that_cannot_be_sent_is_told_once_for_each_destination_and_process() {
    let namespace = dead_end();
    let mut sockets = Sockets::watch();
    namespace.enter(|| {
        for (to, expected) in DEAD_ENDS {
            let to: SocketAddr = to.parse().unwrap();
            let errno = Some(expected.raw_os_error());
            let here = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            for _ in 0..3 {
                let client = UdpSocket::bind(here).unwrap();
                assert_eq!(client.send_to(b"x", to).unwrap_err().raw_os_error(), errno, "{to}");
                assert_eq!(client.connect(to).unwrap_err().raw_os_error(), errno, "{to}");
            }
        }
    });
    let failed = failures(&mut sockets, &namespace);
    let told: Vec<_> = failed.iter().map(|event| (event.protocol, event.remote, event.kind)).collect();
    let expected = DEAD_ENDS
        .map(|(to, error)| (17, to.parse().unwrap(), Kind::ConnectFailed { errno: error.raw_os_error() }));
    assert_eq!(told, expected);
    assert!(failed.iter().all(|event| by(event).pid == this_process()), "{failed:#?}");
}

#[test]
fn a_connect_of_udp_alone_is_told_with_its_error() {
    let to: SocketAddr = "198.18.0.1:53".parse().unwrap();
    let namespace = dead_end();
    let mut sockets = Sockets::watch();
    let error = namespace.enter(|| connect(socket(to, SocketType::DGRAM, SocketFlags::empty()), &to));
    assert_eq!(error, Err(Errno::NETUNREACH));
    assert_eq!(failure(&mut sockets, &namespace), (to, Errno::NETUNREACH.raw_os_error()));
}

#[test]
fn what_a_call_gets_wrong_is_not_laid_on_the_destination_before() {
    let namespace = dead_end();
    let server = namespace.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let to = server.local_addr().unwrap();
    let mut sockets = Sockets::watch();
    namespace.enter(|| {
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client.send_to(b"x", to).unwrap();
        // Without a destination.
        assert_eq!(client.send(b"x").unwrap_err().raw_os_error(), Some(Errno::DESTADDRREQ.raw_os_error()));
        client.connect(to).unwrap();
        // With one of another family, after a connect that went well.
        let wrong: SocketAddr = "[::1]:53".parse().unwrap();
        assert_eq!(connect(&client, &wrong), Err(Errno::AFNOSUPPORT));
        let stream = socket(to, SocketType::STREAM, SocketFlags::empty());
        assert_eq!(connect(&stream, &wrong), Err(Errno::AFNOSUPPORT));
    });
    let failed = failures(&mut sockets, &namespace);
    assert!(failed.iter().all(|event| event.remote != to), "{failed:#?}");
}

#[test]
fn two_hundred_failures_at_once_are_two_hundred_events() {
    const COUNT: usize = 200;
    let namespace = dead_end();
    let mut sockets = Sockets::watch();
    namespace.enter(|| {
        let door = std::fs::File::open(namespace.path()).unwrap();
        std::thread::scope(|scope| {
            for number in 0..COUNT {
                let door = &door;
                scope.spawn(move || {
                    use std::os::fd::AsFd;
                    let kind = rustix::thread::LinkNameSpaceType::Network;
                    rustix::thread::move_into_link_name_space(door.as_fd(), Some(kind)).unwrap();
                    let to = SocketAddr::from(([198, 18, 0, 1], 1000 + u16::try_from(number).unwrap()));
                    TcpStream::connect(to).unwrap_err();
                });
            }
        });
    });
    let failed = failures(&mut sockets, &namespace);
    let mut ports: Vec<_> = failed.iter().map(|event| event.remote.port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, (1000..1000 + u16::try_from(COUNT).unwrap()).collect::<Vec<_>>());
    let mut threads: Vec<_> = failed.iter().map(|event| by(event).tid).collect();
    threads.sort_unstable();
    threads.dedup();
    assert_eq!(threads.len(), COUNT, "each of its own thread");
}

#[test]
fn mptcp_is_told_of_as_tcp_is() {
    let namespace = dead_end();
    let to: SocketAddr = "198.18.0.1:443".parse().unwrap();
    let refused: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let mut sockets = Sockets::watch();
    let mptcp = || {
        let flags = SocketFlags::CLOEXEC;
        socket_with(AddressFamily::INET, SocketType::STREAM, flags, Some(ipproto::MPTCP)).unwrap()
    };
    let (server, client, accepted) = namespace.enter(|| {
        assert_eq!(connect(mptcp(), &to), Err(Errno::NETUNREACH));
        assert_eq!(connect(mptcp(), &refused), Err(Errno::CONNREFUSED));
        let listener = mptcp();
        rustix::net::bind(&listener, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        rustix::net::listen(&listener, 8).unwrap();
        let listener = TcpListener::from(listener);
        let server = listener.local_addr().unwrap();
        let client = mptcp();
        connect(&client, &server).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.write_all(b"x").unwrap();
        (server, TcpStream::from(client), accepted)
    });
    let protocol = sockopt::socket_protocol(&accepted).unwrap();
    assert_eq!(protocol, Some(ipproto::MPTCP), "no fallback to TCP");
    let failed = failures(&mut sockets, &namespace);
    let told: Vec<_> = failed.iter().map(|event| (event.remote, event.kind)).collect();
    let failure = |error: Errno| Kind::ConnectFailed { errno: error.raw_os_error() };
    assert_eq!(told, [(to, failure(Errno::NETUNREACH)), (refused, failure(Errno::CONNREFUSED))]);
    let events = sockets.events_with(&namespace, 1, |kind| kind == Kind::Accept);
    let (accept, connected) =
        (one(&events, |kind| kind == Kind::Accept), one(&events, |kind| kind == Kind::Connect));
    assert_eq!((accept.local, accept.remote), (server, client.local_addr().unwrap()));
    assert_eq!((accept.opened, connected.opened), (Some(false), Some(true)));
    assert_eq!((by(&accept).pid, by(&accept).confidence), (this_process(), Confidence::Exact));
}

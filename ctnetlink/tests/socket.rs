//! The socket on the real kernel, each test in a network namespace of its own. They need root: without it they fail.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod namespace;

use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use ctnetlink::{
    EventKind, Family, Groups, Layer4, Message, Received, Socket, SocketError, cpu_stats_request,
    dump_request, messages, stats_request,
};
use namespace::{in_namespace, run};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketType, sockopt};
use rustix::thread::CapabilitySet;

/// One UDP packet to each of `count` ports: as many flows.
fn make_flows(count: u16) {
    let socket = UdpSocket::bind("127.0.0.1:40000").unwrap();
    for port in 0..count {
        // A refusal of an earlier packet (ICMP) may be reported here.
        let _ = socket.send_to(b"x", ("127.0.0.1", 10_000 + port));
    }
}

fn listener(groups: Groups) -> Socket {
    let socket = Socket::open().unwrap();
    socket.join(groups).unwrap();
    socket
}

/// Everything that waits: the datagrams, and whether an overrun was reported.
fn drain(socket: &Socket) -> (Vec<Vec<u8>>, usize) {
    let (mut datagrams, mut overruns) = (Vec::new(), 0);
    let mut buffer = vec![0; 65_536];
    loop {
        match socket.receive(&mut buffer).unwrap() {
            Received::Datagram(length) => datagrams.push(buffer[..length].to_vec()),
            Received::Overrun => overruns += 1,
            Received::Empty => return (datagrams, overruns),
            other => panic!("{other:?}"),
        }
    }
}

/// The datagrams of a reply, up to Done, Error or (statistics) the one there is.
fn ask(socket: &Socket, request: &[u8]) -> Vec<Vec<u8>> {
    socket.send(request).unwrap();
    let (mut datagrams, mut buffer) = (Vec::new(), vec![0; 65_536]);
    loop {
        poll(&mut [PollFd::new(socket, PollFlags::IN)], None).unwrap();
        let Received::Datagram(length) = socket.receive(&mut buffer).unwrap() else { continue };
        datagrams.push(buffer[..length].to_vec());
        let last = messages(&buffer[..length]).last().unwrap().unwrap();
        if matches!(last, Message::Done(..) | Message::Error(..) | Message::Stats(..)) {
            return datagrams;
        }
    }
}

#[test]
fn new_and_destroy_of_a_flow_arrive_in_order() {
    in_namespace(|| {
        let socket = listener(Groups::NEW | Groups::DESTROY);
        make_flows(1);
        run("conntrack -F");
        let (datagrams, overruns) = drain(&socket);
        let kinds: Vec<_> = datagrams
            .iter()
            .flat_map(|datagram| messages(datagram))
            .map(|message| match message.unwrap() {
                Message::Flow(_, kind, flow) => (kind, flow.original.layer4),
                other => panic!("{other:?}"),
            })
            .collect();
        let ports = Layer4::Ports { src: 40_000, dst: 10_000 };
        assert_eq!(kinds, [(EventKind::New, ports), (EventKind::Destroy, ports)]);
        assert_eq!(overruns, 0);
    });
}

#[test]
fn only_joined_groups_are_heard() {
    in_namespace(|| {
        let (new, destroy) = (listener(Groups::NEW), listener(Groups::DESTROY));
        make_flows(3);
        assert_eq!((drain(&new).0.len(), drain(&destroy).0.len()), (3, 0));
        run("conntrack -F");
        assert_eq!((drain(&new).0.len(), drain(&destroy).0.len()), (0, 3));
    });
}

#[test]
fn received_and_dropped_add_up_to_what_the_kernel_sent() {
    in_namespace(|| {
        let (all, small) = (listener(Groups::all()), listener(Groups::all()));
        all.set_receive_buffer(32 << 20).unwrap();
        sockopt::set_socket_recv_buffer_size(&small, 16 << 10).unwrap();
        assert_eq!(small.drops().unwrap(), 0);
        make_flows(2_000);
        run("conntrack -F");
        let (emitted, told) = drain(&all);
        assert_eq!((told, all.drops().unwrap()), (0, 0), "the large buffer holds everything");
        assert!(emitted.len() >= 4_000);
        let (received, told) = drain(&small);
        assert!(told >= 1, "an overrun is told");
        assert_eq!(received.len() + small.drops().unwrap() as usize, emitted.len());
    });
}

#[test]
fn an_overrun_can_be_silenced_but_is_still_counted() {
    in_namespace(|| {
        let socket = listener(Groups::all());
        sockopt::set_socket_recv_buffer_size(&socket, 1).unwrap();
        socket.set_no_enobufs(true).unwrap();
        make_flows(100);
        let (received, told) = drain(&socket);
        assert_eq!(told, 0);
        assert!(received.len() < 100 && socket.drops().unwrap() as usize >= 100 - received.len());
    });
}

#[test]
fn a_datagram_of_another_process_is_foreign() {
    in_namespace(|| {
        let (socket, other) = (Socket::open().unwrap(), Socket::open().unwrap());
        let to = SocketAddrNetlink::new(socket.port().unwrap(), 0);
        let forged = dump_request(1, None);
        rustix::net::sendto(&other, &forged, SendFlags::empty(), &to).unwrap();
        let mut buffer = [0; 100];
        assert_eq!(socket.receive(&mut buffer).unwrap(), Received::Foreign(forged.len()));
        assert_eq!(socket.receive(&mut buffer).unwrap(), Received::Empty);
    });
}

#[test]
fn a_datagram_longer_than_the_buffer_is_told_with_its_length() {
    in_namespace(|| {
        let socket = listener(Groups::NEW);
        make_flows(2);
        let mut buffer = [0; 64];
        let Received::Truncated(length) = socket.receive(&mut buffer).unwrap() else { panic!("truncated") };
        assert!(length > 64);
        let mut buffer = vec![0; length];
        assert_eq!(socket.receive(&mut buffer).unwrap(), Received::Datagram(length));
    });
}

#[test]
fn a_dump_has_every_flow_and_one_family_if_asked() {
    in_namespace(|| {
        make_flows(500);
        let socket = Socket::open().unwrap();
        for (family, flows) in [(None, 500), (Some(Family::Ipv4), 500), (Some(Family::Ipv6), 0)] {
            let datagrams = ask(&socket, &dump_request(77, family));
            let mut ports = std::collections::HashSet::new();
            for message in datagrams.iter().flat_map(|datagram| messages(datagram)) {
                match message.unwrap() {
                    // Refusals are ICMP errors that belong to the UDP flows, not flows of their own.
                    Message::Flow(header, _, flow) => {
                        assert_eq!(header.sequence, 77);
                        ports.insert(flow.original.layer4);
                    }
                    Message::Done(header, code) => assert_eq!((header.sequence, code), (77, 0)),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(ports.len(), flows);
        }
    });
}

#[test]
fn statistics_count_the_flows_of_this_namespace() {
    in_namespace(|| {
        make_flows(5);
        let socket = Socket::open().unwrap();
        let reply = ask(&socket, &stats_request(1)).concat();
        let Some(Ok(Message::Stats(_, stats))) = messages(&reply).next() else { panic!("statistics") };
        assert_eq!(stats.entries, 5);
        assert!(stats.maximum.unwrap() > 0);
        let reply = ask(&socket, &cpu_stats_request(2)).concat();
        let cpus = messages(&reply).filter(|message| matches!(message, Ok(Message::CpuStats(..)))).count();
        assert!(cpus >= 1);
        assert_eq!(socket.receive(&mut [0; 100]).unwrap(), Received::Empty);
    });
}

#[test]
fn the_receive_buffer_is_what_was_asked_for_and_never_shrinks() {
    in_namespace(|| {
        let socket = Socket::open().unwrap();
        assert_eq!(socket.set_receive_buffer(32 << 20).unwrap(), 64 << 20);
        assert_eq!(socket.set_receive_buffer(1 << 20).unwrap(), 64 << 20);
        assert_eq!(socket.set_receive_buffer(usize::MAX).unwrap(), 0x7fff_fffe);
    });
}

#[test]
fn without_the_capability_the_buffer_is_limited_and_a_dump_refused() {
    in_namespace(|| {
        let (small, large) = (Socket::open().unwrap(), Socket::open().unwrap());
        let limit = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        large.set_receive_buffer(2 * limit).unwrap();
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        rustix::thread::set_capabilities(None, sets).unwrap(); // of this thread alone

        assert_eq!(small.set_receive_buffer(2 * limit).unwrap(), 2 * limit);
        assert_eq!(
            large.set_receive_buffer(2 * limit).unwrap(),
            4 * limit,
            "what a privileged opener gave stays"
        );

        let reply = ask(&small, &dump_request(1, None)).concat();
        let Some(Ok(Message::Error(_, code))) = messages(&reply).next() else { panic!("an error") };
        let error = SocketError::refused("dump", code);
        assert!(matches!(error, SocketError::PermissionDenied { .. }));
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    });
}

#[test]
fn a_passed_socket_keeps_its_groups_and_becomes_non_blocking() {
    in_namespace(|| {
        let fd =
            rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::NETFILTER)).unwrap();
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, Groups::all().bits())).unwrap();
        let cookie = sockopt::socket_cookie(&fd).unwrap();
        let socket = Socket::from_fd(fd).unwrap();
        assert_eq!(socket.cookie().unwrap(), cookie);
        assert_eq!(socket.receive(&mut [0; 100]).unwrap(), Received::Empty);
        let flags = rustix::fs::fcntl_getfl(&socket).unwrap();
        assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
        make_flows(1);
        assert_eq!(drain(&socket).0.len(), 1);
    });
}

#[test]
fn what_is_not_a_netfilter_socket_is_refused_with_the_reason() {
    let unix: OwnedFd = std::os::unix::net::UnixDatagram::unbound().unwrap().into();
    let route = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap();
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    for (fd, says) in [
        (
            unix,
            "the socket has domain 1 and protocol 0, a netfilter netlink socket has domain 16 and protocol 12",
        ),
        (
            route,
            "the socket has domain 16 and protocol 0, a netfilter netlink socket has domain 16 and protocol 12",
        ),
        (file, "getsockopt(SO_DOMAIN): Socket operation on non-socket (os error 88)"),
    ] {
        assert_eq!(Socket::from_fd(fd).unwrap_err().to_string(), says);
    }
}

#[test]
fn a_missing_subsystem_is_told_with_the_remedy() {
    let error = SocketError::refused("dump", -22);
    assert!(error.to_string().contains("modprobe nf_conntrack_netlink"), "{error}");
}

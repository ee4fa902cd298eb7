//! The socket filter that puts events into a ring, with a socket's queue as its overflow: all of them, in order, byte for byte.

use std::collections::HashMap;
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ctnetlink::{EventKind, Groups, Layer4, Message, Received, Socket, messages};
use flowbus_attribution::events::{
    DEFAULT_EVENT_RING_BYTES, EventFilter, EventReader, FilterError, SenderBy, has_filter, remove_filter,
};
use flowbus_tests::process::DEADLINE;
use flowbus_tests::{Namespace, burst, companion};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{SendFlags, sendto};

/// The smallest ring there can be where pages are of 64 KiB.
const SMALL_RING: u32 = 64 << 10;
/// 50,000 events.
const LARGE_QUEUE: usize = 32 << 20;
/// What two senders send, each.
const FLOWS: u32 = 5_000;

/// A namespace for bursts that is its own other end, as some kernels of tools/test-machine have no devices.
fn burst_namespace() -> Namespace {
    let namespace = Namespace::tracked("ring");
    namespace.run("ip address add 198.18.0.1/32 dev lo");
    namespace.run("ip route add local 198.19.0.0/16 dev lo");
    // Packets have made their flow when they are dropped there.
    namespace.nft(
        "table inet sink { chain in { type filter hook input priority 0; ip daddr 198.19.0.0/16 drop; }; }",
    );
    namespace.sysctl("net.netfilter.nf_conntrack_udp_timeout", "600");
    namespace
}

fn open(namespace: &Namespace) -> Socket {
    namespace.enter(|| Socket::open().unwrap())
}

/// A reader of all events of a namespace.
fn reader(namespace: &Namespace, ring_bytes: u32, queue_bytes: usize) -> EventReader {
    reader_of(namespace, &EventFilter::load(ring_bytes).unwrap(), queue_bytes)
}

fn reader_of(namespace: &Namespace, filter: &EventFilter, queue_bytes: usize) -> EventReader {
    let socket = open(namespace);
    socket.set_receive_buffer(queue_bytes).unwrap();
    let reader = EventReader::attach(socket, filter).unwrap();
    reader.socket().join(Groups::all()).unwrap();
    reader
}

/// Everything that there is, and what is on its way.
fn drain(reader: &mut EventReader) -> Vec<Vec<u8>> {
    let mut all = drain_now(reader);
    let end = Instant::now() + DEADLINE;
    while reader.is_held_back() {
        assert!(Instant::now() < end, "a message is on its way for ever");
        thread::sleep(Duration::from_millis(1));
        all.extend(drain_now(reader));
    }
    all
}

/// Everything that there is.
fn drain_now(reader: &mut EventReader) -> Vec<Vec<u8>> {
    let (mut buffer, mut all) = (vec![0; 1 << 16], Vec::new());
    loop {
        match reader.receive(&mut buffer).unwrap() {
            Received::Datagram(length) => all.push(buffer[..length].to_vec()),
            Received::Overrun => {}
            Received::Empty => return all,
            other => panic!("{other:?}"),
        }
    }
}

/// What a listener without a filter has, in the order in which it was sent.
fn drain_socket(socket: &Socket) -> Vec<Vec<u8>> {
    let (mut buffer, mut all) = (vec![0; 1 << 16], Vec::new());
    loop {
        match socket.receive(&mut buffer).unwrap() {
            Received::Datagram(length) => all.push(buffer[..length].to_vec()),
            Received::Empty => return all,
            other => panic!("{other:?}"),
        }
    }
}

/// The number of the flow in a burst, and what happened to it.
fn event_of(message: &[u8]) -> (u32, EventKind) {
    let decoded: Vec<_> = messages(message).collect();
    let [Ok(Message::Flow(_, kind, flow))] = decoded.as_slice() else { panic!("{decoded:?}") };
    let (IpAddr::V4(address), Layer4::Ports { dst, .. }) = (flow.original.dst, flow.original.layer4) else {
        panic!("{flow:?}")
    };
    let [_, _, high, low] = address.octets();
    (u32::from(dst - 5000) << 16 | u32::from(high) << 8 | u32::from(low), *kind)
}

/// Has two senders make `FLOWS` flows each, one from the first number on and the other from the second on.
fn send_by_two(namespace: &Namespace, first: [u32; 2]) {
    thread::scope(|scope| {
        for first in first {
            scope.spawn(move || burst::create(namespace, first, FLOWS));
        }
    });
}

/// Fails unless the begins of each sender's flows come in the order in which it made them, and each end behind its begin.
fn assert_order(all: &[Vec<u8>]) {
    let (mut newest, mut live) = (HashMap::<bool, u32>::new(), HashMap::<u32, bool>::new());
    for message in all {
        let (number, kind) = event_of(message);
        match kind {
            EventKind::New => {
                let before = newest.insert(number >= 1 << 16, number);
                assert!(before.is_none_or(|before| before < number), "{number} after {before:?}");
                assert_eq!(live.insert(number, true), None, "{number} begins twice");
            }
            EventKind::Destroy => {
                let was = live.insert(number, false);
                assert_eq!(was, Some(true), "{number} ends before it begins, or twice");
            }
            EventKind::Update => panic!("nothing answers"),
        }
    }
}

#[test]
fn messages_by_the_ring_are_those_of_a_socket_byte_for_byte() {
    let namespace = Namespace::tracked("ring");
    let plain = open(&namespace);
    plain.join(Groups::all()).unwrap();
    let mut reader = reader(&namespace, DEFAULT_EVENT_RING_BYTES, LARGE_QUEUE);
    namespace.enter(|| {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let accepted = listener.accept().unwrap();
            drop((client, accepted));
            let datagram = UdpSocket::bind(address).unwrap();
            datagram.send_to(b"x", datagram.local_addr().unwrap()).unwrap();
        }
    });
    namespace.run("conntrack -I -s 198.18.0.1 -d 198.18.0.2 -p udp --sport 1 --dport 2 -t 60 -m 7 --zone 3");
    namespace.run("conntrack -F");
    let (ours, theirs) = (drain(&mut reader), drain_socket(&plain));
    assert!(theirs.len() > 15, "{theirs:?}");
    assert_eq!(ours, theirs);
    assert_eq!((reader.passed(), reader.take_disorder()), (0, false));
}

#[test]
fn what_finds_no_room_in_the_ring_comes_by_the_queue_and_in_order() {
    let namespace = burst_namespace();
    let mut reader = reader(&namespace, SMALL_RING, LARGE_QUEUE);
    // Nobody reads.
    send_by_two(&namespace, [0, 1 << 16]);
    let by_queue = reader.passed();
    let mut all = drain(&mut reader);
    assert!(by_queue > u64::from(FLOWS) && by_queue < u64::from(2 * FLOWS), "{by_queue}");
    assert_eq!(all.len(), 2 * FLOWS as usize);
    // Somebody reads whenever the ring was full: from the ring to the queue and back, again and again.
    let ((), turns) = companion::during(
        |stop: &AtomicBool| {
            let mut turns = 0;
            while !stop.load(Ordering::Relaxed) {
                let passed = reader.passed();
                while reader.passed() == passed && !stop.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_micros(200));
                }
                all.extend(drain(&mut reader));
                turns += 1;
            }
            turns
        },
        || {
            send_by_two(&namespace, [FLOWS, (1 << 16) + FLOWS]);
            namespace.run("conntrack -F");
        },
    );
    all.extend(drain(&mut reader));
    assert_eq!(all.len(), 8 * FLOWS as usize);
    assert_order(&all);
    assert!(turns > 1, "the queue was used {turns} times only");
    assert_eq!((reader.socket().drops().unwrap(), reader.take_disorder()), (0, false));
    // And the ring is in use again.
    let by_queue = reader.passed();
    burst::create(&namespace, 0, 100);
    assert_eq!((drain(&mut reader).len(), reader.passed()), (100, by_queue));
}

#[test]
fn what_the_queue_cannot_hold_either_is_counted_exactly() {
    let namespace = burst_namespace();
    // About 160 messages.
    let mut reader = reader(&namespace, SMALL_RING, 100_000);
    let mut all = Vec::new();
    for round in 0..4 {
        send_by_two(&namespace, [round * FLOWS / 2, (1 << 16) + round * FLOWS / 2]);
        all.extend(drain(&mut reader));
        namespace.run("conntrack -F");
        all.extend(drain(&mut reader));
        let lost = reader.socket().drops().unwrap();
        assert!(lost > 0);
        assert_eq!(all.len() + lost as usize, (round as usize + 1) * 4 * FLOWS as usize);
        // The queue is read, all that was dropped is accounted for, and the ring serves again.
        let passed = reader.passed();
        namespace
            .enter(|| UdpSocket::bind("127.0.0.1:4001").unwrap().send_to(b"x", "127.0.0.1:4002").unwrap());
        namespace.run("conntrack -F");
        assert_eq!((drain(&mut reader).len(), reader.passed()), (2, passed));
    }
    assert!(!reader.take_disorder());
}

#[test]
fn a_message_that_no_record_holds_comes_whole_by_the_queue() {
    let namespace = burst_namespace();
    let plain = open(&namespace);
    let mut reader = reader(&namespace, DEFAULT_EVENT_RING_BYTES, LARGE_QUEUE);
    for socket in [&plain, reader.socket()] {
        socket.join_rules().unwrap();
    }
    plain.join(Groups::all()).unwrap();
    for round in 0..3 {
        burst::create(&namespace, 10 * round, 10);
        let elements: Vec<_> = (0..200).map(|port| port.to_string()).collect();
        namespace.nft(&format!(
            "table inet large_{round} {{ set ports {{ type inet_service; elements = {{ {} }}; }}; }}",
            elements.join(", ")
        ));
        burst::create(&namespace, 1000 + 10 * round, 10);
    }
    let (ours, theirs) = (drain(&mut reader), drain_socket(&plain));
    assert!(theirs.iter().any(|message| message.len() > 768), "{:?}", theirs.iter().map(Vec::len));
    assert_eq!(ours, theirs);
    assert!(reader.passed() > 0 && !reader.take_disorder());
}

#[test]
fn messages_of_processes_are_told_from_those_of_the_kernel() {
    let namespace = burst_namespace();
    // Each of the two programs where the kernel takes it; one at least.
    let ways =
        [SenderBy::Type, SenderBy::Reading].map(|way| EventFilter::load_by(DEFAULT_EVENT_RING_BYTES, way));
    assert!(ways.iter().any(Result::is_ok), "{ways:?}");
    for (round, filter) in (0..).zip(ways.into_iter().flatten()) {
        let mut reader = reader_of(&namespace, &filter, LARGE_QUEUE);
        let stranger = open(&namespace);
        let header = [20, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        for (port, groups) in [(0, 1), (reader.socket().port().unwrap(), 0)] {
            sendto(&stranger, &header, SendFlags::empty(), &SocketAddrNetlink::new(port, groups)).unwrap();
        }
        let mut buffer = [0; 4096];
        for _ in 0..2 {
            assert_eq!(reader.receive(&mut buffer).unwrap(), Received::Foreign(20));
        }
        burst::create(&namespace, 10 * round, 3);
        assert_eq!((drain(&mut reader).len(), reader.passed(), reader.take_disorder()), (3, 0, false));
    }
}

#[test]
fn whoever_is_about_to_sleep_is_woken_by_the_next_message() {
    const TIMES: u32 = 2_000;
    let namespace = burst_namespace();
    let mut reader = reader(&namespace, DEFAULT_EVENT_RING_BYTES, LARGE_QUEUE);
    let sender = burst::Sender::open(&namespace);
    let (answers, received) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..TIMES {
                sender.create(number, 1);
                // The reader is drained, and goes to sleep, while the next one is sent.
                received.recv_timeout(DEADLINE).unwrap();
            }
        });
        let mut seen = 0;
        while seen < TIMES {
            for _ in drain(&mut reader) {
                seen += 1;
                answers.send(()).unwrap();
            }
            if reader.prepare_to_sleep() {
                let timeout = Timespec::try_from(DEADLINE).unwrap();
                let descriptors = reader.descriptors();
                let mut waiting = descriptors.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
                let ready = seen == TIMES || poll(&mut waiting, Some(&timeout)).unwrap() > 0;
                assert!(ready, "nobody is woken for message {seen}");
            }
        }
    });
    assert_eq!(reader.passed(), 0);
}

#[test]
fn messages_that_somebody_else_took_are_noticed_as_disorder() {
    let namespace = burst_namespace();
    let mut reader = reader(&namespace, SMALL_RING, LARGE_QUEUE);
    let other = Socket::from_fd(reader.socket().try_clone().unwrap()).unwrap();
    burst::create(&namespace, 0, 1_000);
    assert!(matches!(other.receive(&mut vec![0; 1 << 16]).unwrap(), Received::Datagram(_)));
    // Also while events go on coming.
    let mut sent = 1_000;
    let mut received = drain_now(&mut reader).len();
    let end = Instant::now() + DEADLINE;
    while !reader.take_disorder() {
        assert!(Instant::now() < end, "{sent} events, and none is missed");
        burst::create(&namespace, sent, 1);
        sent += 1;
        thread::sleep(Duration::from_millis(1));
        received += drain_now(&mut reader).len();
    }
    received += drain(&mut reader).len();
    assert_eq!(received, sent as usize - 1);
    let passed = reader.passed();
    burst::create(&namespace, sent, 100);
    assert_eq!((drain(&mut reader).len(), reader.passed(), reader.take_disorder()), (100, passed, false));
}

#[test]
fn messages_that_the_filter_never_saw_are_noticed_as_disorder() {
    let namespace = burst_namespace();
    let mut reader = reader(&namespace, DEFAULT_EVENT_RING_BYTES, LARGE_QUEUE);
    remove_filter(reader.socket().as_fd()).unwrap();
    burst::create(&namespace, 0, 10);
    assert_eq!(drain(&mut reader).len(), 10);
    assert!(reader.take_disorder() && !reader.take_disorder());
}

#[test]
fn a_socket_hears_again_when_its_reader_is_gone() {
    let namespace = burst_namespace();
    let reader = reader(&namespace, DEFAULT_EVENT_RING_BYTES, LARGE_QUEUE);
    let kept = Socket::from_fd(reader.socket().try_clone().unwrap()).unwrap();
    assert!(has_filter(kept.as_fd()).unwrap());
    drop(reader);
    assert!(!has_filter(kept.as_fd()).unwrap());
    burst::create(&namespace, 0, 3);
    assert_eq!(drain_socket(&kept).len(), 3);
}

#[test]
fn a_socket_that_may_have_messages_already_is_refused() {
    let namespace = Namespace::tracked("ring");
    let socket = open(&namespace);
    socket.join(Groups::NEW).unwrap();
    let kept = socket.try_clone().unwrap();
    let refused = EventReader::attach(socket, &EventFilter::load(SMALL_RING).unwrap());
    assert!(matches!(refused, Err(FilterError::Joined)));
    assert!(!has_filter(kept.as_fd()).unwrap());
}

//! The socket filter that puts events into a ring, with a socket's queue as its overflow: all of them, in order, byte for byte.

use std::collections::HashMap;
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ctnetlink::{EventKind, Groups, Layer4, Message, Received, Socket, messages};
use flowbus_attribution::events::{
    Counts, DEFAULT_EVENT_RING_BYTES, EventFilter, EventReader, Next, SenderBy, has_filter, remove_filter,
};
use flowbus_tests::process::DEADLINE;
use flowbus_tests::{EventRing, Namespace, burst, companion};
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
fn ring(namespace: &Namespace, ring_bytes: u32, queue_bytes: usize) -> EventRing {
    ring_of(namespace, &EventFilter::load(ring_bytes).unwrap(), queue_bytes)
}

fn ring_of(namespace: &Namespace, filter: &EventFilter, queue_bytes: usize) -> EventRing {
    let socket = open(namespace);
    socket.set_receive_buffer(queue_bytes).unwrap();
    let ring = EventRing::attach(socket, filter);
    ring.reader.socket().join(Groups::all()).unwrap();
    ring
}

/// Everything that there is, and what is on its way.
fn drain(ring: &mut EventRing) -> Vec<Vec<u8>> {
    let mut all = drain_now(ring);
    let end = Instant::now() + DEADLINE;
    while ring.reader.is_held_back() {
        assert!(Instant::now() < end, "a message is on its way for ever");
        thread::sleep(Duration::from_millis(1));
        all.extend(drain_now(ring));
    }
    all
}

/// Everything that there is.
fn drain_now(ring: &mut EventRing) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    ring.read(|message| all.push(message.to_vec()));
    all
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
    let mut ring = ring(&namespace, DEFAULT_EVENT_RING_BYTES, LARGE_QUEUE);
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
    let (ours, theirs) = (drain(&mut ring), drain_socket(&plain));
    assert!(theirs.len() > 15, "{theirs:?}");
    assert_eq!(ours, theirs);
    assert_eq!((ring.reader.passed(), ring.disorders), (0, 0));
}

#[test]
fn what_finds_no_room_in_the_ring_comes_by_the_queue_and_in_order() {
    let namespace = burst_namespace();
    let mut ring = ring(&namespace, SMALL_RING, LARGE_QUEUE);
    // Nobody reads.
    send_by_two(&namespace, [0, 1 << 16]);
    let by_queue = ring.reader.passed();
    let mut all = drain(&mut ring);
    assert!(by_queue > u64::from(FLOWS) && by_queue < u64::from(2 * FLOWS), "{by_queue}");
    assert_eq!(all.len(), 2 * FLOWS as usize);
    // Somebody reads whenever the ring was full: from the ring to the queue and back, again and again.
    let ((), turns) = companion::during(
        |stop: &AtomicBool| {
            let mut turns = 0;
            while !stop.load(Ordering::Relaxed) {
                let passed = ring.reader.passed();
                while ring.reader.passed() == passed && !stop.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_micros(200));
                }
                all.extend(drain(&mut ring));
                turns += 1;
            }
            turns
        },
        || {
            send_by_two(&namespace, [FLOWS, (1 << 16) + FLOWS]);
            namespace.run("conntrack -F");
        },
    );
    all.extend(drain(&mut ring));
    assert_eq!(all.len(), 8 * FLOWS as usize);
    assert_order(&all);
    assert!(turns > 1, "the queue was used {turns} times only");
    assert_eq!((ring.reader.socket().drops().unwrap(), ring.disorders), (0, 0));
    // And the ring is in use again.
    let by_queue = ring.reader.passed();
    burst::create(&namespace, 0, 100);
    assert_eq!((drain(&mut ring).len(), ring.reader.passed()), (100, by_queue));
}

#[test]
fn what_the_queue_cannot_hold_either_is_counted_exactly() {
    let namespace = burst_namespace();
    // About 160 messages.
    let mut ring = ring(&namespace, SMALL_RING, 100_000);
    let mut all = Vec::new();
    for round in 0..4 {
        send_by_two(&namespace, [round * FLOWS / 2, (1 << 16) + round * FLOWS / 2]);
        all.extend(drain(&mut ring));
        namespace.run("conntrack -F");
        all.extend(drain(&mut ring));
        let lost = ring.reader.socket().drops().unwrap();
        assert!(lost > 0);
        assert_eq!(all.len() + lost as usize, (round as usize + 1) * 4 * FLOWS as usize);
        // The queue is read, all that was dropped is accounted for, and the ring serves again.
        let passed = ring.reader.passed();
        namespace
            .enter(|| UdpSocket::bind("127.0.0.1:4001").unwrap().send_to(b"x", "127.0.0.1:4002").unwrap());
        namespace.run("conntrack -F");
        assert_eq!((drain(&mut ring).len(), ring.reader.passed()), (2, passed));
    }
    assert_eq!(ring.disorders, 0);
}

#[test]
fn a_message_that_no_record_holds_comes_whole_by_the_queue() {
    let namespace = burst_namespace();
    let plain = open(&namespace);
    let mut ring = ring(&namespace, DEFAULT_EVENT_RING_BYTES, LARGE_QUEUE);
    for socket in [&plain, ring.reader.socket()] {
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
    let (ours, theirs) = (drain(&mut ring), drain_socket(&plain));
    assert!(theirs.iter().any(|message| message.len() > 768), "{:?}", theirs.iter().map(Vec::len));
    assert_eq!(ours, theirs);
    assert!(ring.reader.passed() > 0 && ring.disorders == 0);
}

#[test]
fn messages_of_processes_are_told_from_those_of_the_kernel() {
    let namespace = burst_namespace();
    // Each of the two programs where the kernel takes it; one at least.
    let ways =
        [SenderBy::Type, SenderBy::Reading].map(|way| EventFilter::load_by(DEFAULT_EVENT_RING_BYTES, way));
    assert!(ways.iter().any(Result::is_ok), "{ways:?}");
    for (round, filter) in (0..).zip(ways.into_iter().flatten()) {
        let mut ring = ring_of(&namespace, &filter, LARGE_QUEUE);
        let stranger = open(&namespace);
        let header = [20, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        for (port, groups) in [(0, 1), (ring.reader.socket().port().unwrap(), 0)] {
            sendto(&stranger, &header, SendFlags::empty(), &SocketAddrNetlink::new(port, groups)).unwrap();
        }
        assert_eq!((drain(&mut ring).len(), ring.foreign), (0, 2));
        burst::create(&namespace, 10 * round, 3);
        assert_eq!((drain(&mut ring).len(), ring.reader.passed(), ring.disorders), (3, 0, 0));
    }
}

#[test]
fn whoever_is_about_to_sleep_is_woken_by_the_next_message() {
    const TIMES: u32 = 2_000;
    let namespace = burst_namespace();
    let mut ring = ring(&namespace, DEFAULT_EVENT_RING_BYTES, LARGE_QUEUE);
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
            for _ in drain(&mut ring) {
                seen += 1;
                answers.send(()).unwrap();
            }
            if ring.reader.prepare_to_sleep() {
                let timeout = Timespec::try_from(DEADLINE).unwrap();
                let descriptors = ring.reader.descriptors();
                let mut waiting = descriptors.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
                let ready = seen == TIMES || poll(&mut waiting, Some(&timeout)).unwrap() > 0;
                assert!(ready, "nobody is woken for message {seen}");
            }
        }
    });
    assert_eq!(ring.reader.passed(), 0);
}

#[test]
fn messages_that_somebody_else_took_are_noticed_as_disorder() {
    let namespace = burst_namespace();
    let mut ring = ring(&namespace, SMALL_RING, LARGE_QUEUE);
    let other = Socket::from_fd(ring.reader.socket().try_clone().unwrap()).unwrap();
    burst::create(&namespace, 0, 1_000);
    assert!(matches!(other.receive(&mut vec![0; 1 << 16]).unwrap(), Received::Datagram(_)));
    // Also while events go on coming.
    let mut sent = 1_000;
    let mut received = drain_now(&mut ring).len();
    let end = Instant::now() + DEADLINE;
    while ring.disorders == 0 {
        assert!(Instant::now() < end, "{sent} events, and none is missed");
        burst::create(&namespace, sent, 1);
        sent += 1;
        thread::sleep(Duration::from_millis(1));
        received += drain_now(&mut ring).len();
    }
    received += drain(&mut ring).len();
    assert_eq!(received, sent as usize - 1);
    let passed = ring.reader.passed();
    burst::create(&namespace, sent, 100);
    assert_eq!((drain(&mut ring).len(), ring.reader.passed(), ring.disorders), (100, passed, 1));
}

#[test]
fn messages_that_the_filter_never_saw_are_noticed_as_disorder() {
    let namespace = burst_namespace();
    let mut ring = ring(&namespace, DEFAULT_EVENT_RING_BYTES, LARGE_QUEUE);
    remove_filter(ring.reader.socket().as_fd()).unwrap();
    burst::create(&namespace, 0, 10);
    assert_eq!(drain(&mut ring).len(), 10);
    assert_eq!(ring.disorders, 1);
}

#[test]
fn a_socket_hears_again_when_its_reader_is_gone() {
    let namespace = burst_namespace();
    let ring = ring(&namespace, DEFAULT_EVENT_RING_BYTES, LARGE_QUEUE);
    let kept = Socket::from_fd(ring.reader.socket().try_clone().unwrap()).unwrap();
    assert!(has_filter(kept.as_fd()).unwrap());
    drop(ring);
    assert!(!has_filter(kept.as_fd()).unwrap());
    burst::create(&namespace, 0, 3);
    assert_eq!(drain_socket(&kept).len(), 3);
}

#[test]
fn a_filter_for_a_socket_that_is_in_use_takes_nothing_away() {
    let namespace = burst_namespace();
    for round in 0..4 {
        let socket = open(&namespace);
        socket.set_receive_buffer(LARGE_QUEUE).unwrap();
        socket.join(Groups::all()).unwrap();
        burst::create(&namespace, 4 * round * FLOWS, FLOWS);
        let filter = EventFilter::load(SMALL_RING).unwrap();
        // Two senders go on while it is attached, and the ring is in use before they have ended, or after.
        let (mut ring, mut all) = thread::scope(|scope| {
            let senders = [1, 2].map(|part| {
                let first = (4 * round + part) * FLOWS;
                let namespace = &namespace;
                scope.spawn(move || {
                    for piece in 0..50 {
                        burst::create(namespace, first + piece * FLOWS / 50, FLOWS / 50);
                        thread::sleep(Duration::from_micros(300));
                    }
                })
            });
            thread::sleep(Duration::from_millis(2));
            let (mut ring, mut all) = (EventRing::attach_under_load(socket, &filter), Vec::new());
            while !senders.iter().all(thread::ScopedJoinHandle::is_finished) {
                all.extend(drain(&mut ring));
                thread::sleep(Duration::from_micros(200));
            }
            (ring, all)
        });
        all.extend(drain(&mut ring));
        assert_eq!((all.len(), ring.disorders), (3 * FLOWS as usize, 0));
        assert!(ring.has_begun());
        let passed = ring.reader.passed();
        burst::create(&namespace, (4 * round + 3) * FLOWS, 100);
        all.extend(drain(&mut ring));
        assert_eq!(ring.reader.passed(), passed);
        namespace.run("conntrack -F");
        all.extend(drain(&mut ring));
        let ends = all.iter().filter(|message| event_of(message).1 == EventKind::Destroy).count();
        assert_eq!((all.len(), ends), (2 * ends, 3 * FLOWS as usize + 100));
    }
}

#[test]
fn the_next_reader_goes_on_where_the_last_one_was_killed() {
    let namespace = burst_namespace();
    let filter = EventFilter::load(SMALL_RING).unwrap();
    let socket = open(&namespace);
    socket.join(Groups::all()).unwrap();
    let again = || Socket::from_fd(socket.try_clone().unwrap()).unwrap();
    let mut first = EventRing::attach(again(), &filter);
    burst::create(&namespace, 0, 10);
    assert_eq!(first.reader.next(4), Next::Ring(4));
    let position = first.reader.position();
    assert_eq!((first.reader.next(64), first.reader.mark()), (Next::Ring(6), 1));
    // Killed, it would not detach the filter.
    std::mem::forget(first);
    burst::create(&namespace, 10, 5);
    let mut next = EventReader::open(again(), &filter).unwrap();
    assert_eq!(next.mark(), 1);
    // Where none of ours has been: inside of a record, behind all of them, before what the filter has room for again.
    for nowhere in [position + 4, position + 8, position + (1 << 20), position.wrapping_sub(1 << 20)] {
        assert!(!next.resume(nowhere, true), "{nowhere}");
    }
    assert!(next.resume(position, true));
    assert_eq!(next.next(64), Next::Ring(11));
    let numbers: Vec<_> = next.messages().map(|message| event_of(message).0).collect();
    assert_eq!(numbers, (4..15).collect::<Vec<_>>());
    assert_eq!((next.next(64), next.compare(0).unwrap()), (Next::Queue, Counts::Agree));
    // A reader that ends leaves unread messages in the ring, and later ones go to the queue.
    let position = next.position();
    burst::create(&namespace, 15, 3);
    drop(next);
    burst::create(&namespace, 18, 3);
    let mut last = EventReader::open(again(), &filter).unwrap();
    assert!(last.resume(position, true) && !has_filter(socket.as_fd()).unwrap());
    assert_eq!((last.next(64), last.next(64)), (Next::Ring(3), Next::Queue));
    assert_eq!(drain_socket(&socket).len(), 3);
}

use super::room::MAXIMUM;
use super::*;

/// A datagram from 198.18.0.1:5000, `now` (microseconds), and what it touches.
fn send(
    sockets: &mut Sockets,
    to: SocketAddr,
    cookie: u64,
    now: u64,
    counters: &mut Counters,
) -> Option<Touched> {
    let event = Event {
        kind: Kind::Send,
        monotonic_ns: 1_000 * now,
        cookie,
        network_namespace: 1,
        protocol: UDP,
        local: SocketAddr::from(([198, 18, 0, 1], 5000)),
        remote: to,
        process: None,
        opened: None,
        connect_usec: None,
    };
    sockets.apply(&event, OwnerNumber::default(), now, counters)
}

fn waiting(sockets: &Sockets) -> usize {
    sockets.ending.iter().map(VecDeque::len).sum()
}

#[test]
fn a_direction_waits_for_its_end_once_however_many_sockets_it_has() {
    let (mut sockets, mut counters) = (Sockets::default(), Counters::default());
    let server = SocketAddr::from(([198, 18, 0, 2], 53));
    // For a second, each millisecond, a datagram; every other one of another socket with the same ends.
    for now in (0..1_000_000).step_by(1_000) {
        send(&mut sockets, server, now / 2_000, now, &mut counters);
        sockets.expire(now, u64::MAX, &mut counters);
        assert_eq!((sockets.claims.len(), waiting(&sockets)), (1, 1));
        assert!(sockets.udp.len() <= 8, "those that there is no room for are forgotten");
    }
    for now in [SENT_USEC, 2 * SENT_USEC, 3 * SENT_USEC] {
        sockets.expire(now, u64::MAX, &mut counters);
    }
    assert_eq!((sockets.claims.len(), sockets.udp.len(), waiting(&sockets), sockets.pending()), (0, 0, 0, 0));
}

#[test]
fn of_more_workers_at_a_port_than_there_is_room_for_nothing_is_kept_however_often_they_are_found() {
    let (mut sockets, mut counters) = (Sockets::default(), Counters::default());
    for snapshot in 0..3 {
        for worker in 0..12 {
            let event = Event {
                kind: Kind::Snapshot,
                monotonic_ns: 1_000,
                cookie: 100 * snapshot + worker,
                network_namespace: 1,
                protocol: UDP,
                local: SocketAddr::from(([198, 18, 0, 1], 53)),
                remote: SocketAddr::from(([0, 0, 0, 0], 0)),
                process: None,
                opened: None,
                connect_usec: None,
            };
            sockets.apply(&event, OwnerNumber::default(), 1, &mut counters);
        }
    }
    let claims: Vec<u64> = sockets.claims.values().flat_map(Claims::iter).map(|claim| claim.cookie).collect();
    assert_eq!((claims.len(), sockets.udp.len(), sockets.pending()), (8, 8, 0));
    for cookie in claims {
        sockets.release(cookie, 2_000, 2);
    }
    sockets.expire(2 * SERVED_USEC, u64::MAX, &mut counters);
    assert_eq!((sockets.claims.len(), sockets.udp.len()), (0, 0));
}

#[test]
fn addresses_that_are_known_already_are_no_change() {
    let mut sockets = Sockets::default();
    let addresses = HashSet::from([IpAddr::from([198, 18, 0, 1])]);
    assert!(sockets.set_addresses(HashSet::new()), "it was not known that there are none");
    assert!(sockets.set_addresses(addresses.clone()));
    assert!(!sockets.set_addresses(addresses));
    assert!(sockets.set_addresses(HashSet::new()));
}

#[test]
fn what_there_is_no_room_for_is_neither_settled_nor_waited_for() {
    let (mut sockets, mut counters) = (Sockets::default(), Counters::default());
    for number in 0..2 * MAXIMUM as u64 {
        let server = SocketAddr::from((u32::try_from(number).unwrap().to_be_bytes(), 53));
        let touched = send(&mut sockets, server, number, 0, &mut counters);
        assert_eq!(touched.is_some(), number < MAXIMUM as u64);
    }
    assert_eq!((sockets.claims.len(), sockets.udp.len(), waiting(&sockets)), (MAXIMUM, MAXIMUM, MAXIMUM));
    assert_eq!(counters.owners_refused, MAXIMUM as u64);
}

#[test]
fn what_events_that_are_read_now_may_be_about_is_not_forgotten() {
    let (mut sockets, mut counters) = (Sockets::default(), Counters::default());
    send(&mut sockets, SocketAddr::from(([198, 18, 0, 2], 53)), 1, 0, &mut counters);
    sockets.expire(2 * SENT_USEC, 0, &mut counters);
    assert_eq!(sockets.claims.len(), 1);
    sockets.expire(4 * SENT_USEC, u64::MAX, &mut counters);
    assert_eq!(sockets.claims.len(), 0);
}

#[test]
fn a_namespace_has_at_most_as_much_room_as_it_leaves_to_others() {
    let (mut sockets, mut counters) = (Sockets::elsewhere(0), Counters::default());
    let mut fill = |namespace: u8| {
        let before = sockets.claims.len();
        for number in 0..MAXIMUM as u64 {
            let event = Event {
                kind: Kind::Send,
                monotonic_ns: 1_000,
                cookie: number,
                network_namespace: namespace.into(),
                protocol: UDP,
                local: SocketAddr::from(([198, 18, 0, namespace], 5000)),
                remote: SocketAddr::from((u32::try_from(number).unwrap().to_be_bytes(), 53)),
                process: None,
                opened: None,
                connect_usec: None,
            };
            sockets.apply(&event, OwnerNumber::default(), 0, &mut counters);
        }
        sockets.claims.len() - before
    };
    let filled = [1, 2, 3].map(&mut fill);
    assert_eq!(filled, [MAXIMUM / 2, MAXIMUM / 4, MAXIMUM / 8]);
    assert_eq!(counters.owners_refused, (3 * MAXIMUM - filled.iter().sum::<usize>()) as u64);
    sockets.expire(2 * SENT_USEC, u64::MAX, &mut counters);
    assert_eq!((sockets.claims.len(), sockets.shares.len()), (0, 0));
}

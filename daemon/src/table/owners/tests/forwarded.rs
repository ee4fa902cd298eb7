//! Sockets of other network namespaces.

use super::world::end;
use super::*;

const OTHER: u32 = 4_026_532_001;
const THIRD: u32 = 4_026_532_002;
const ROUTER: &str = "198.18.9.1";

fn in_namespace(network_namespace: u32, event: Event) -> Event {
    Event { network_namespace, ..event }
}

fn syn(namespace: u32, pid: u32) -> Event {
    in_namespace(namespace, socket(Kind::Syn, TCP, CLIENT, SERVER, process(pid, "client")))
}

fn ambiguous(world: &OwnersWorld) -> u64 {
    world.table.header().counters.owners_ambiguous
}

#[test]
fn a_flow_that_passes_through_has_the_process_of_the_only_namespace_with_its_ends() {
    let mut world = OwnersWorld::with_addresses(&[ROUTER]);
    world.report(&syn(OTHER, 7));
    world.born(&plain(TCP, CLIENT, SERVER));
    world.tell(&in_namespace(THIRD, socket(Kind::Accept, TCP, SERVER, CLIENT, process(8, "server"))));
    assert_eq!(world.owners(), [Some(7), Some(8)]);
    let flow = world.table.active_after(0).next().unwrap();
    assert_eq!(world.owner(flow.owners.initiator), Some((7, "forwarded")));
    let (text, confidence) = world.table.process_texts().owner(flow.owners.responder).unwrap();
    assert_eq!(text.owner(confidence, None).network_namespace, Some(THIRD));
}

#[test]
fn of_two_namespaces_with_its_ends_none_is_named() {
    let mut world = OwnersWorld::with_addresses(&[ROUTER]);
    world.report(&syn(OTHER, 7));
    world.report(&syn(THIRD, 8));
    world.born(&plain(TCP, CLIENT, SERVER));
    world.settle();
    assert_eq!(world.owners(), [None, None]);
    assert_eq!(ambiguous(&world), 1);
}

#[test]
fn a_socket_that_comes_when_its_flow_is_there_gives_neither_that_flow_nor_the_next_an_owner() {
    let mut world = OwnersWorld::with_addresses(&[ROUTER]);
    // What the namespace itself translates comes from no socket that is known, with ends that one gets afterwards.
    world.born(&plain(TCP, CLIENT, SERVER));
    world.settle();
    world.report(&syn(OTHER, 7));
    world.tell(&in_namespace(OTHER, socket(Kind::Connect, TCP, CLIENT, SERVER, process(7, "client"))));
    assert_eq!(world.owners(), [None, None]);
    // A flow of a zone is another one with the same ends: whose it is cannot be known.
    world.born(&in_zone(2, plain(TCP, CLIENT, SERVER)));
    world.settle();
    let owners: Vec<_> = world.table.active_after(0).map(|flow| world.owners_of(&flow)).collect();
    assert_eq!(owners, [[None, None]; 2]);
}

#[test]
fn a_twin_in_another_zone_is_not_taken_for_the_one_whose_flow_was_first() {
    let mut world = OwnersWorld::with_addresses(&[ROUTER]);
    world.report(&syn(OTHER, 7));
    world.born(&in_zone(1, plain(TCP, CLIENT, SERVER)));
    world.tell(&in_namespace(OTHER, socket(Kind::Connect, TCP, CLIENT, SERVER, process(7, "client"))));
    world.report(&syn(THIRD, 8));
    world.born(&in_zone(2, plain(TCP, CLIENT, SERVER)));
    world.tell(&in_namespace(THIRD, socket(Kind::Connect, TCP, CLIENT, SERVER, process(8, "client"))));
    let owners: Vec<_> = world.table.active_after(0).map(|flow| world.owners_of(&flow)).collect();
    assert_eq!(owners, [[Some(7), None], [None, None]]);
    assert_eq!(ambiguous(&world), 1);
}

#[test]
fn what_begins_at_an_address_of_ours_is_no_socket_of_another_namespace() {
    let mut world = OwnersWorld::with_addresses(&["198.18.0.1"]);
    world.report(&syn(OTHER, 7));
    world.born(&plain(TCP, CLIENT, SERVER));
    world.settle();
    assert_eq!(world.owners(), [None, None]);
    assert!(!OwnersWorld::new().table.attribution().unwrap().is_elsewhere(&tuple(TCP, CLIENT, SERVER)));
}

#[test]
fn a_datagram_is_its_sockets_until_another_namespace_sends_by_these_ends() {
    let mut world = OwnersWorld::with_addresses(&[ROUTER]);
    let send = |namespace, pid| {
        in_namespace(namespace, socket(Kind::Send, UDP, CLIENT, SERVER, process(pid, "client")))
    };
    world.report(&send(OTHER, 7));
    world.born(&plain(UDP, CLIENT, SERVER));
    world.settle();
    assert_eq!(world.owners(), [Some(7), None]);
    let gone = Event { local: end("0.0.0.0:0"), remote: end("0.0.0.0:0"), ..send(OTHER, 7) };
    world.tell(&Event { kind: Kind::Release, ..gone });
    world.tell(&send(THIRD, 8));
    assert_eq!(world.owners(), [Some(8), None], "a container was started anew");
    // The addresses of its namespace are not known.
    world.tell(&Event { local: end("0.0.0.0:40000"), ..send(OTHER, 9) });
    assert_eq!(world.owners(), [Some(8), None]);
}

/// A datagram of a socket from an end.
fn send(namespace: u32, pid: u32, local: &str, remote: &str) -> Event {
    in_namespace(namespace, socket(Kind::Send, UDP, local, remote, process(pid, "sender")))
}

#[test]
fn a_socket_whose_address_is_not_known_casts_doubt_on_those_of_other_namespaces() {
    let flow = plain(UDP, CLIENT, SERVER);
    for (namespace, local, owner, count) in [
        // It has another port.
        (THIRD, "0.0.0.0:40001", Some(7), 0),
        (THIRD, "0.0.0.0:40000", None, 1),
        // Another process of the namespace, which may have been the one that sent.
        (OTHER, "0.0.0.0:40000", None, 0),
    ] {
        let mut world = OwnersWorld::with_addresses(&[ROUTER]);
        world.report(&send(OTHER, 7, CLIENT, SERVER));
        world.report(&send(namespace, 8, local, SERVER));
        world.born(&flow);
        world.settle();
        assert_eq!(world.owners(), [owner, None], "{local}");
        assert_eq!(ambiguous(&world), count, "{local}");
    }
    // It is the same process.
    let mut world = OwnersWorld::with_addresses(&[ROUTER]);
    world.report(&send(OTHER, 7, CLIENT, SERVER));
    world.report(&send(OTHER, 7, "0.0.0.0:40000", SERVER));
    world.born(&flow);
    assert_eq!(world.owners(), [Some(7), None]);
}

#[test]
fn of_servers_in_two_namespaces_the_one_that_answers_is_named_where_the_other_may_have_the_address() {
    let bind = |namespace, pid, local| {
        in_namespace(namespace, socket(Kind::Bind, UDP, local, "0.0.0.0:0", process(pid, "server")))
    };
    for unaddressed in ["0.0.0.0:80", "[::]:80"] {
        let mut world = OwnersWorld::with_addresses(&[ROUTER]);
        world.tell(&bind(OTHER, 7, SERVER));
        world.tell(&bind(THIRD, 8, unaddressed));
        world.born(&plain(UDP, CLIENT, SERVER));
        world.settle();
        assert_eq!(world.owners(), [None, None], "{unaddressed}");
        world.report(&send(OTHER, 7, SERVER, CLIENT));
        world.apply(EventKind::Update, &answered(plain(UDP, CLIENT, SERVER)));
        assert_eq!(world.owners(), [None, Some(7)], "{unaddressed}");
        // It answered in the other zone alone.
        world.born(&in_zone(2, plain(UDP, CLIENT, SERVER)));
        let newest = world.table.active_after(0).last().unwrap();
        assert_eq!(world.owners_of(&newest), [None, None], "{unaddressed}");
    }
    // One at another port is not meant.
    let mut world = OwnersWorld::with_addresses(&[ROUTER]);
    world.tell(&bind(OTHER, 7, SERVER));
    world.tell(&bind(THIRD, 8, "0.0.0.0:81"));
    world.born(&plain(UDP, CLIENT, SERVER));
    assert_eq!(world.owners(), [None, Some(7)]);
}

#[test]
fn a_quiet_owner_gives_way_to_nobody_of_another_namespace_while_its_socket_is_not_seen_to_end() {
    // A claim lapses after 11 s and is forgotten after 20.
    for quiet in [0, 12, 30] {
        let mut world = OwnersWorld::with_addresses(&[ROUTER]);
        world.report(&send(OTHER, 7, CLIENT, SERVER));
        world.born(&plain(UDP, CLIENT, SERVER));
        world.settle();
        assert_eq!(world.owners(), [Some(7), None]);
        world.pass(quiet);
        world.tell(&send(OTHER, 9, CLIENT, SERVER));
        let known = if quiet > 0 { [Some(9), None] } else { world.owners() };
        assert_eq!(world.owners(), known, "another process of its namespace, after {quiet} s");
        world.pass(quiet);
        world.tell(&send(THIRD, 8, CLIENT, SERVER));
        assert_eq!(world.owners(), [None, None], "after {quiet} s");
        // Whose it is cannot be known any more, whoever is the only one that sends later.
        for (namespace, pid) in [(THIRD, 8), (OTHER, 7)] {
            world.pass(30);
            world.tell(&send(namespace, pid, CLIENT, SERVER));
            assert_eq!(world.owners(), [None, None], "after {quiet} s");
        }
        assert_eq!(ambiguous(&world), 1);
    }
}

#[test]
fn a_flow_without_an_owner_is_of_nobody_while_another_namespace_has_a_quiet_socket() {
    for local in [CLIENT, "0.0.0.0:40000"] {
        let mut world = OwnersWorld::with_addresses(&[ROUTER]);
        world.report(&send(OTHER, 7, local, SERVER));
        world.pass(12);
        // A dump finds it.
        world.table.begin_dump();
        world.table.apply_dump_entry(&plain(UDP, CLIENT, SERVER), world.now, &mut world.changes);
        world.table.end_dump(true, world.now, &mut world.changes);
        world.tell(&send(THIRD, 8, CLIENT, SERVER));
        assert_eq!(world.owners(), [None, None], "{local}");
        assert_eq!(ambiguous(&world), 1, "{local}");
    }
}

#[test]
fn a_doubt_at_the_birth_of_a_flow_does_not_lapse() {
    let mut world = OwnersWorld::with_addresses(&[ROUTER]);
    world.report(&send(OTHER, 7, "0.0.0.0:40000", SERVER));
    world.born(&plain(UDP, CLIENT, SERVER));
    for quiet in [0, 12, 30] {
        world.pass(quiet);
        world.tell(&send(THIRD, 8, CLIENT, SERVER));
        assert_eq!(world.owners(), [None, None], "after {quiet} s");
    }
}

#[test]
fn of_two_namespaces_with_its_ends_the_first_is_not_named_for_the_flow_of_a_connected_socket() {
    let mut world = OwnersWorld::with_addresses(&[ROUTER]);
    world.report(&send(OTHER, 7, CLIENT, SERVER));
    // The other one's packet begins it, and is reported after it has left.
    world.born(&plain(UDP, CLIENT, SERVER));
    world.tell(&send(THIRD, 8, CLIENT, SERVER));
    assert_eq!(world.owners(), [None, None]);
}

#[test]
fn the_ends_of_a_connection_that_is_over_give_its_flow_to_nobody_of_another_namespace() {
    let connect = |namespace, pid, kind| {
        in_namespace(namespace, socket(kind, TCP, CLIENT, SERVER, process(pid, "client")))
    };
    let accept = |namespace, pid, kind| {
        in_namespace(namespace, socket(kind, TCP, SERVER, CLIENT, process(pid, "server")))
    };
    for quiet in [0, 3, 30] {
        let mut world = OwnersWorld::with_addresses(&[ROUTER]);
        world.report(&connect(OTHER, 7, Kind::Syn));
        world.born(&plain(TCP, CLIENT, SERVER));
        world.tell(&connect(OTHER, 7, Kind::Connect));
        world.tell(&accept(OTHER, 17, Kind::Accept));
        assert_eq!(world.owners(), [Some(7), Some(17)]);
        world.tell(&connect(OTHER, 7, CLOSED));
        world.tell(&accept(OTHER, 17, CLOSED));
        world.pass(quiet);
        world.report(&connect(THIRD, 8, Kind::Syn));
        world.tell(&connect(THIRD, 8, Kind::Connect));
        world.tell(&accept(THIRD, 18, Kind::Incoming));
        world.tell(&accept(THIRD, 18, Kind::Accept));
        assert_eq!(world.owners(), [Some(7), Some(17)], "after {quiet} s");
    }
}

//! Sockets and flows in either order, through translations, zones and restarts.

mod forwarded;
mod given;
mod known;
mod reuse;
mod world;

use ctnetlink::{EventKind, Flow, ProtocolInfo, Status, TcpInfo};
use flowbus_attribution::{Confidence, Event, Kind, Process};

use crate::owners::ProgramKey;
use crate::state::State;
use world::{
    CLIENT, CLOSED, NAMESPACE, OwnersWorld, SERVER, TCP, UDP, answered, in_zone, plain, process, socket,
    translated, tuple,
};

#[test]
fn a_flow_is_born_with_the_owner_of_the_socket_that_was_told_before() {
    let mut world = OwnersWorld::new();
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl")));
    assert_eq!(world.table.attribution().unwrap().sockets.pending(), 1);
    world.born(&plain(TCP, CLIENT, SERVER));
    assert_eq!(world.owners(), [Some(7), None]);
    assert_eq!(world.kinds(), [EventKind::New]);
    assert_eq!(world.table.attribution().unwrap().sockets.pending(), 0);
}

#[test]
fn an_owner_that_comes_late_is_an_update_of_the_flow() {
    let mut world = OwnersWorld::new();
    world.born(&plain(TCP, CLIENT, SERVER));
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl")));
    world.tell(&socket(Kind::Connect, TCP, CLIENT, SERVER, process(7, "curl")));
    world.tell(&socket(Kind::Accept, TCP, SERVER, CLIENT, process(8, "nginx")));
    assert_eq!(world.owners(), [Some(7), Some(8)]);
    assert_eq!(world.kinds(), [EventKind::New, EventKind::Update, EventKind::Update]);
    let before = world.changes.iter().nth(1).unwrap().flow_before().unwrap();
    assert!(before.owners.is_empty(), "a filter can tell that the flow had no owner before");
    assert_eq!(world.table.attribution().unwrap().sockets.pending(), 0);
}

#[test]
fn translations_are_seen_through_in_either_order() {
    // The client's connection goes to another port of another server, from another address.
    let flow = || translated((CLIENT, SERVER), ("198.18.5.5:8080", "198.18.6.6:1024"));
    let client = socket(Kind::Connect, TCP, CLIENT, SERVER, process(7, "curl"));
    let server = socket(Kind::Accept, TCP, "198.18.5.5:8080", "198.18.6.6:1024", process(8, "nginx"));
    let mut early = OwnersWorld::new();
    early.tell(&client);
    early.tell(&server);
    early.born(&answered(flow()));
    assert_eq!(early.owners(), [Some(7), Some(8)]);
    let mut late = OwnersWorld::new();
    late.born(&flow());
    late.tell(&server);
    late.tell(&client);
    assert_eq!(late.owners(), [Some(7), Some(8)]);
    // And what the index of translated tuples had is gone with the flow.
    late.apply(EventKind::Destroy, &flow());
    assert_eq!(late.table.flow_with(&tuple(TCP, "198.18.5.5:8080", "198.18.6.6:1024"), u64::MAX), None);
    late.tell(&socket(Kind::Accept, TCP, "198.18.5.5:8080", "198.18.6.6:1024", process(9, "other")));
}

#[test]
fn the_reply_of_a_translated_flow_is_not_the_inverted_original() {
    let mut world = OwnersWorld::new();
    world.born(&translated((CLIENT, SERVER), ("198.18.5.5:8080", CLIENT)));
    world.tell(&socket(Kind::Accept, TCP, SERVER, CLIENT, process(8, "nginx")));
    assert_eq!(world.owners(), [None, None]);
}

#[test]
fn a_socket_owns_its_flows_in_every_zone() {
    for early in [true, false] {
        let mut world = OwnersWorld::new();
        let client = socket(Kind::Connect, TCP, CLIENT, SERVER, process(7, "curl"));
        let server = socket(Kind::Accept, TCP, SERVER, CLIENT, process(8, "nginx"));
        if early {
            world.tell(&client);
            world.tell(&server);
        }
        world.born(&answered(plain(TCP, CLIENT, SERVER)));
        world.born(&answered(in_zone(9, plain(TCP, CLIENT, SERVER))));
        if !early {
            world.tell(&client);
            world.tell(&server);
        }
        let owners: Vec<_> = world.table.active_after(0).map(|flow| world.owners_of(&flow)).collect();
        assert_eq!(owners, [[Some(7), Some(8)]; 2], "early: {early}");
    }
}

#[test]
fn a_server_without_an_address_of_its_own_has_the_flows_to_this_machine() {
    for (bound, nobody) in [("0.0.0.0:53", "0.0.0.0:0"), ("[::]:53", "[::]:0")] {
        let mut world = OwnersWorld::with_addresses(&["198.18.0.2"]);
        world.tell(&socket(Kind::Bind, UDP, bound, nobody, process(8, "dns")));
        world.born(&plain(UDP, "198.18.0.1:4000", "198.18.0.2:53"));
        assert_eq!(world.owners(), [None, Some(8)], "{bound}");
        // What only passes through has the same ports.
        world.born(&plain(UDP, "198.18.0.1:4000", "198.18.9.9:53"));
        world.born(&plain(UDP, "198.18.9.9:53", "198.18.0.1:4000"));
        let owned: Vec<_> = world.table.active_with_owner(0).collect();
        assert_eq!(owned.len(), 1, "{bound}");
        world.tell(&socket(Kind::Release, UDP, "0.0.0.0:53", "0.0.0.0:0", process(8, "dns")));
        world.pass(3);
        world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl")));
        world.born(&plain(UDP, "198.18.0.1:4001", "198.18.0.2:53"));
        assert_eq!(world.table.active_with_owner(0).count(), 1, "{bound}: the server is gone");
    }
}

#[test]
fn the_answer_of_a_server_names_it_where_the_addresses_are_not_known() {
    let mut world = OwnersWorld::new();
    let flow = plain(UDP, "198.18.0.1:4000", "198.18.0.2:53");
    world.tell(&socket(Kind::Bind, UDP, "0.0.0.0:53", "0.0.0.0:0", process(8, "dns")));
    world.born(&flow);
    assert_eq!(world.owners(), [None, None]);
    world.tell(&socket(Kind::Send, UDP, "[::]:53", "198.18.0.1:4000", process(9, "worker")));
    world.apply(EventKind::Update, &Flow { status: Some(Status::SEEN_REPLY), ..flow });
    assert_eq!(world.owners(), [None, Some(9)]);
    assert_eq!(world.kinds(), [EventKind::New, EventKind::Update]);
}

#[test]
fn a_datagram_has_its_sender() {
    let mut world = OwnersWorld::with_addresses(&["198.18.0.1"]);
    world.tell(&socket(Kind::Send, UDP, "0.0.0.0:4000", "198.18.0.2:53", process(7, "dig")));
    world.born(&plain(UDP, "198.18.7.7:4000", "198.18.0.2:53"));
    assert_eq!(world.owners(), [None, None], "another machine's, with the same ports");
    world.born(&plain(UDP, "198.18.0.1:4000", "198.18.0.2:53"));
    let owned: Vec<_> = world.table.active_with_owner(0).map(|flow| world.owners_of(&flow)).collect();
    assert_eq!(owned, [[Some(7), None]]);
}

#[test]
fn the_same_ends_in_another_namespace_are_another_socket() {
    let mut world = OwnersWorld::new();
    let mut event = socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl"));
    event.network_namespace = NAMESPACE + 1;
    world.tell(&event);
    world.born(&plain(TCP, CLIENT, SERVER));
    world.tell(&event);
    assert_eq!(world.owners(), [None, None]);
}

#[test]
fn a_number_used_again_by_another_process_is_another_owner() {
    let mut world = OwnersWorld::new();
    let first = process(7, "curl");
    let second = Process { start_boottime_ns: 2_000, uid: 0, ..process(7, "curl") };
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, first));
    world.born(&plain(TCP, CLIENT, SERVER));
    world.tell(&socket(Kind::Syn, TCP, "198.18.0.1:40001", SERVER, second));
    world.born(&plain(TCP, "198.18.0.1:40001", SERVER));
    let owners: Vec<_> = world.table.active_after(0).map(|flow| flow.owners.initiator).collect();
    assert_ne!(owners[0], owners[1]);
    let uids: Vec<_> = owners
        .into_iter()
        .map(|owner| world.table.process_texts().owner(owner).unwrap())
        .map(|(text, confidence)| text.owner(confidence, None).uid)
        .collect();
    assert_eq!(uids, [Some(1000), Some(0)]);
}

#[test]
fn the_newest_socket_of_a_tuple_owns_its_next_flow_and_the_flow_before_keeps_its_own() {
    let mut world = OwnersWorld::new();
    let flow = plain(TCP, CLIENT, SERVER);
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "first")));
    world.born(&flow);
    world.tell(&socket(CLOSED, TCP, CLIENT, SERVER, process(7, "first")));
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(8, "second")));
    assert_eq!(world.owners(), [Some(7), None]);
    // The late end of the first socket is not that of the second.
    world.tell(&socket(CLOSED, TCP, CLIENT, SERVER, process(7, "first")));
    world.pass(3);
    world.apply(EventKind::Destroy, &flow);
    world.born(&flow);
    assert_eq!(world.owners(), [Some(8), None]);
    let closed = world.table.flow(1, world.now).unwrap();
    assert_eq!(world.owners_of(&closed), [Some(7), None]);
}

#[test]
fn who_accepts_a_connection_takes_the_place_of_the_listeners_owner() {
    let mut world = OwnersWorld::new();
    world.born(&plain(TCP, CLIENT, SERVER));
    let parent = Process { confidence: Confidence::Inherited, ..process(8, "systemd") };
    let mut incoming = socket(Kind::Incoming, TCP, SERVER, CLIENT, parent);
    incoming.cookie = 5;
    let mut accept = socket(Kind::Accept, TCP, SERVER, CLIENT, process(9, "worker"));
    accept.cookie = 5;
    world.tell(&incoming);
    assert_eq!(world.owners(), [None, Some(8)]);
    world.tell(&accept);
    world.tell(&incoming);
    assert_eq!(world.owners(), [None, Some(9)]);
    // The flow is begun anew, by the same socket: the surer owner was kept.
    world.apply(EventKind::Destroy, &plain(TCP, CLIENT, SERVER));
    world.born(&answered(plain(TCP, CLIENT, SERVER)));
    assert_eq!(world.owners(), [None, Some(9)]);
}

#[test]
fn a_socket_that_ended_owns_the_flow_that_is_told_late_and_no_later_one() {
    let mut world = OwnersWorld::new();
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl")));
    world.tell(&socket(CLOSED, TCP, CLIENT, SERVER, process(7, "curl")));
    world.born(&plain(TCP, CLIENT, SERVER));
    assert_eq!(world.owners(), [Some(7), None]);
    world.apply(EventKind::Destroy, &plain(TCP, CLIENT, SERVER));
    world.pass(3);
    world.tell(&socket(Kind::Syn, TCP, "198.18.0.1:1", SERVER, process(9, "other")));
    world.born(&plain(TCP, CLIENT, SERVER));
    assert_eq!(world.owners(), [None, None]);
    let counters = world.table.header().counters;
    assert_eq!((counters.owners_expired, counters.owners_unmatched_sockets), (1, 0));
}

#[test]
fn sockets_and_flows_that_do_not_meet_are_counted() {
    let mut world = OwnersWorld::new();
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl")));
    world.tell(&socket(Kind::ConnectFailed { errno: 111 }, TCP, CLIENT, SERVER, process(7, "curl")));
    world.pass(3);
    world.tell(&socket(Kind::Syn, TCP, "198.18.0.1:1", SERVER, process(9, "other")));
    world.born(&plain(TCP, CLIENT, SERVER));
    world.apply(EventKind::Destroy, &plain(TCP, CLIENT, SERVER));
    let counters = world.table.header().counters;
    assert_eq!((counters.owners_unmatched_sockets, counters.owners_unmatched_flows), (1, 1));
    assert_eq!(world.table.attribution().unwrap().sockets.pending(), 1);
}

//! Ends that are used again before it is known who has them.

use super::*;

#[test]
fn where_two_processes_had_the_ends_meanwhile_nobody_owns_the_flow_until_it_is_known_who_has_it() {
    let mut world = OwnersWorld::new();
    let flow = plain(TCP, CLIENT, SERVER);
    let [first, second] = [process(7, "first"), process(8, "second")];
    // All of it is read before the events of the two flows.
    for kind in [Kind::Syn, Kind::Connect, CLOSED] {
        world.report(&socket(kind, TCP, CLIENT, SERVER, first));
    }
    world.report(&socket(Kind::Syn, TCP, CLIENT, SERVER, second));
    world.born(&flow);
    assert_eq!(world.owners(), [None, None]);
    world.apply(EventKind::Destroy, &flow);
    world.born(&flow);
    assert_eq!(world.owners(), [None, None]);
    world.settle();
    assert_eq!(
        world.owners(),
        [None, None],
        "the second has asked for a connection, and this may be the first's"
    );
    world.report(&socket(Kind::Connect, TCP, CLIENT, SERVER, second));
    world.report(&socket(Kind::Accept, TCP, SERVER, CLIENT, process(9, "server")));
    assert_eq!(world.owners(), [None, None], "events may say that the flow has ended since");
    world.settle();
    assert_eq!(world.owners(), [Some(8), Some(9)]);
    let closed = world.table.flow(1, world.now).unwrap();
    assert_eq!(world.owners_of(&closed), [None, None]);
}

#[test]
fn what_passed_in_a_flow_that_has_ended_gives_the_next_one_no_owner() {
    let mut world = OwnersWorld::new();
    let flow = plain(TCP, CLIENT, SERVER);
    world.born(&flow);
    world.report(&socket(Kind::Connect, TCP, CLIENT, SERVER, process(7, "first")));
    world.report(&socket(Kind::Accept, TCP, SERVER, CLIENT, process(8, "server")));
    world.report(&socket(CLOSED, TCP, CLIENT, SERVER, process(7, "first")));
    world.report(&socket(CLOSED, TCP, SERVER, CLIENT, process(8, "server")));
    world.apply(EventKind::Destroy, &flow);
    world.born(&flow);
    world.settle();
    assert_eq!(world.owners(), [None, None]);
}

/// A connection from end to end, as the programs report it; the sockets have these cookies.
fn connection(world: &mut OwnersWorld, [client, server]: [Process; 2], cookies: [u64; 2]) {
    let client = |kind| Event { cookie: cookies[0], ..socket(kind, TCP, CLIENT, SERVER, client) };
    let server = |kind| Event { cookie: cookies[1], ..socket(kind, TCP, SERVER, CLIENT, server) };
    for event in [client(Kind::Syn), client(Kind::Connect), server(Kind::Accept)] {
        world.report(&event);
    }
    for event in [server(CLOSED), client(CLOSED)] {
        world.report(&event);
    }
}

/// The owners of two flows with the same tuple, of which the first has ended, when all their events are read after all reports
/// of sockets.
fn owners_of_reused_ends(connections: &[[u32; 2]], state: u8) -> [[Option<u32>; 2]; 2] {
    let mut world = OwnersWorld::new();
    world.tick();
    world.settle();
    for (number, pids) in (1..).zip(connections) {
        connection(&mut world, pids.map(|pid| process(pid, "any")), [10 * number, 10 * number + 1]);
    }
    let flow = plain(TCP, CLIENT, SERVER);
    let finished = Flow {
        protocol_info: Some(ProtocolInfo::Tcp(TcpInfo {
            state,
            wscale_original: None,
            wscale_reply: None,
            flags_original: None,
            flags_reply: None,
        })),
        ..answered(flow.clone())
    };
    for kind in [EventKind::New, EventKind::Update, EventKind::Destroy, EventKind::New, EventKind::Update] {
        world.apply(kind, if kind == EventKind::Update { &finished } else { &flow });
    }
    world.settle();
    let ended = world.table.flow(1, world.now).unwrap();
    [world.owners_of(&ended), world.owners()]
}

#[test]
fn where_one_process_had_all_sockets_of_ends_that_were_used_again_it_owns_the_flows() {
    const TIME_WAIT: u8 = 7;
    const ESTABLISHED: u8 = 3;
    let both = [Some(7), Some(8)];
    assert_eq!(owners_of_reused_ends(&[[7, 8], [7, 8]], TIME_WAIT), [both, both]);
    // An end that one process had, beside one that two had.
    let [ended, active] = owners_of_reused_ends(&[[7, 8], [7, 9]], TIME_WAIT);
    assert_eq!([ended, active], [[Some(7), None]; 2]);
    assert_eq!(owners_of_reused_ends(&[[7, 8], [9, 10]], TIME_WAIT), [[None, None]; 2]);
    // The second flow is of a socket that was not reported.
    assert_eq!(owners_of_reused_ends(&[[7, 8]], TIME_WAIT)[1], [None, None]);
    // The server's second socket may be reported later, and be of another process.
    assert_eq!(owners_of_reused_ends(&[[7, 8], [7, 8]], ESTABLISHED)[1], [Some(7), None]);
}

#[test]
fn where_reports_of_sockets_were_lost_only_what_is_reported_since_gives_owners() {
    let mut world = OwnersWorld::new();
    world.report(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "known")));
    let (at, now) = (world.tick(), world.now.boottime_usec);
    world.table.attribution_mut().unwrap().sockets.note_loss(at, now);
    world.born(&plain(TCP, CLIENT, SERVER));
    world.settle();
    assert_eq!(world.owners(), [None, None], "another one may have had the ends since");
    world.tell(&socket(Kind::Connect, TCP, CLIENT, SERVER, process(8, "new")));
    assert_eq!(world.owners(), [Some(8), None]);
}

#[test]
fn a_connection_that_nobody_accepted_but_the_kernel_has_no_responder() {
    let mut world = OwnersWorld::new();
    world.born(&plain(TCP, CLIENT, SERVER));
    let parent = Process { confidence: Confidence::Inherited, ..process(8, "rpc.nfsd") };
    world.report(&Event { cookie: 5, ..socket(Kind::Incoming, TCP, SERVER, CLIENT, parent) });
    let accept = socket(Kind::Accept, TCP, SERVER, CLIENT, parent);
    world.tell(&Event { cookie: 5, process: None, ..accept });
    assert_eq!(world.owners(), [None, None]);
}

#[test]
fn a_connection_that_was_refused_has_no_responder_though_the_next_one_is_accepted_in_the_same_window() {
    let mut world = OwnersWorld::new();
    let flow = plain(TCP, CLIENT, SERVER);
    world.report(&Event { cookie: 1, ..socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "client")) });
    world.report(&Event { cookie: 2, ..socket(Kind::Connect, TCP, CLIENT, SERVER, process(7, "client")) });
    world.report(&socket(Kind::Accept, TCP, SERVER, CLIENT, process(8, "server")));
    // A firewall on the way may have refused it, so that the client's first socket is all there was.
    for kind in [EventKind::New, EventKind::Destroy, EventKind::New] {
        world.apply(kind, &flow);
    }
    let refused = world.table.flow(1, world.now).unwrap();
    assert_eq!(world.owners_of(&refused), [Some(7), None]);
    assert_eq!(world.owners(), [Some(7), None], "it may be refused, too");
    world.apply(EventKind::Update, &answered(flow));
    assert_eq!(world.owners(), [Some(7), Some(8)]);
    let told: Vec<_> = world.changes.iter().map(|change| world.owners_of(&change.flow)[1]).collect();
    assert_eq!(told, [None, None, None, Some(8)], "and nothing else was published");
}

#[test]
fn a_datagram_to_nobody_has_no_responder_though_a_server_begins_in_the_same_window() {
    let mut world = OwnersWorld::new();
    let flow = plain(UDP, CLIENT, SERVER);
    world.report(&socket(Kind::Bind, UDP, SERVER, "0.0.0.0:0", process(8, "server")));
    world.report(&socket(Kind::Send, UDP, SERVER, CLIENT, process(8, "server")));
    for kind in [EventKind::New, EventKind::Destroy, EventKind::New] {
        world.apply(kind, &flow);
    }
    let unanswered = world.table.flow(1, world.now).unwrap();
    assert_eq!(world.owners_of(&unanswered), [None, None]);
    assert_eq!(world.owners(), [None, None], "the server may have begun later");
    world.apply(EventKind::Update, &answered(flow));
    assert_eq!(world.owners(), [None, Some(8)]);
}

#[test]
fn a_server_that_began_in_the_window_of_a_flow_and_never_answers_has_it_once_all_events_are_applied() {
    let mut world = OwnersWorld::new();
    world.report(&socket(Kind::Bind, UDP, SERVER, "0.0.0.0:0", process(8, "server")));
    world.born(&plain(UDP, CLIENT, SERVER));
    assert_eq!(world.owners(), [None, None]);
    world.settle();
    assert_eq!(world.owners(), [None, Some(8)]);
    // A socket that was there before has what comes.
    world.tick();
    world.born(&plain(UDP, "198.18.0.1:40001", SERVER));
    let newest = world.table.active_after(1).next().unwrap();
    assert_eq!(world.owners_of(&newest), [None, Some(8)]);
}

#[test]
fn a_flow_that_is_older_than_its_first_event_is_not_of_a_socket_of_that_time() {
    let mut world = OwnersWorld::new();
    let flow = answered(plain(TCP, CLIENT, SERVER));
    // The flow is of a connection before, and ends just now.
    for kind in [Kind::Syn, Kind::Connect] {
        world.report(&socket(kind, TCP, CLIENT, SERVER, process(7, "next")));
    }
    world.apply(EventKind::Update, &flow);
    assert_eq!(world.owners(), [None, None]);
    world.apply(EventKind::Destroy, &flow);
    let ended = world.table.flow(1, world.now).unwrap();
    assert_eq!(world.owners_of(&ended), [None, None]);
    // A flow that is there when all events have been applied has the socket that is there.
    world.apply(EventKind::Update, &Flow { id: Some(2), ..flow });
    world.settle();
    assert_eq!(world.owners(), [Some(7), None]);
}

#[test]
fn where_events_were_lost_a_flow_keeps_the_owners_whose_sockets_were_there_all_the_time() {
    // A dump, an update or the end is the first message after the loss.
    for message in ["dump", "update", "destroy"] {
        let mut world = OwnersWorld::new();
        let flow = plain(TCP, CLIENT, SERVER);
        for kind in [Kind::Syn, Kind::Connect] {
            world.report(&socket(kind, TCP, CLIENT, SERVER, process(7, "first")));
        }
        world.tell(&socket(Kind::Accept, TCP, SERVER, CLIENT, process(8, "server")));
        world.born(&answered(flow.clone()));
        assert_eq!(world.owners(), [Some(7), Some(8)]);
        // The client's end goes to another process, which ends its connection, too.
        world.report(&socket(CLOSED, TCP, CLIENT, SERVER, process(7, "first")));
        world.report(&socket(CLOSED, TCP, CLIENT, SERVER, process(9, "second")));
        world.table.note_loss();
        world.table.attribution_mut().unwrap().sockets.note_lost_flows(world.at + 1);
        world.tick();
        match message {
            "dump" => {
                world.table.begin_dump();
                world.table.apply_dump_entry(&flow, world.now, &mut world.changes);
                world.table.end_dump(true, world.now, &mut world.changes);
            }
            "update" => world.apply(EventKind::Update, &Flow { mark: Some(5), ..flow }),
            _ => world.apply(EventKind::Destroy, &flow),
        }
        world.settle();
        let flow = world.table.flow(1, world.now).unwrap();
        assert_eq!(world.owners_of(&flow), [None, Some(8)], "{message}");
    }
}

#[test]
fn where_events_were_lost_a_flow_with_the_start_that_the_kernel_gave_it_keeps_its_owners() {
    let mut world = OwnersWorld::new();
    let flow = Flow { start_nsec: Some(1_000_000_000), ..plain(TCP, CLIENT, SERVER) };
    world.report(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "client")));
    world.born(&flow);
    world.report(&socket(CLOSED, TCP, CLIENT, SERVER, process(7, "client")));
    world.table.begin_dump();
    world.table.apply_dump_entry(&flow, world.now, &mut world.changes);
    world.table.end_dump(true, world.now, &mut world.changes);
    for (start, initiator) in [(1_000_000_000, Some(7)), (2_000_000_000, None)] {
        world.table.note_loss();
        world.table.begin_dump();
        let entry = Flow { start_nsec: Some(start), ..flow.clone() };
        world.table.apply_dump_entry(&entry, world.now, &mut world.changes);
        world.table.end_dump(true, world.now, &mut world.changes);
        assert_eq!(world.owners(), [initiator, None]);
    }
}

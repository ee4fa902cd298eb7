//! What was open before, what the next life finds, and what is forgotten.

use super::*;

#[test]
fn what_was_open_before_is_found_for_flows_that_are_known_already() {
    let mut world = OwnersWorld::with_addresses(&["198.18.0.1"]);
    let live = Process { confidence: Confidence::Snapshot, ..process(7, "old") };
    world.born(&plain(TCP, CLIENT, SERVER));
    world.born(&plain(UDP, "198.18.0.1:4000", "198.18.0.2:53"));
    world.tell(&socket(Kind::Snapshot, TCP, CLIENT, SERVER, live));
    world.tell(&socket(Kind::Snapshot, UDP, "0.0.0.0:4000", "0.0.0.0:0", live));
    world.tell(&socket(Kind::Snapshot, TCP, "0.0.0.0:80", "0.0.0.0:0", live));
    world.table.attribution_mut().unwrap().look_at_all = Some(0);
    world.settle();
    let owners: Vec<_> = world.table.active_after(0).map(|flow| world.owner(flow.owners.initiator)).collect();
    assert_eq!(owners, [Some((7, "snapshot")); 2]);
    // A snapshot is older than what the events report.
    world.tell(&socket(Kind::Syn, TCP, "198.18.0.1:9", SERVER, process(8, "new")));
    let mut old = socket(Kind::Snapshot, TCP, "198.18.0.1:9", SERVER, live);
    old.cookie = 99;
    world.tell(&old);
    world.born(&plain(TCP, "198.18.0.1:9", SERVER));
    let newest = world.table.active_after(2).next().unwrap();
    assert_eq!(world.owner(newest.owners.initiator), Some((8, "exact")));
}

#[test]
fn after_a_dump_the_flows_that_it_added_are_looked_at_and_no_others() {
    for ends_well in [true, false] {
        let mut world = OwnersWorld::new();
        let old = Process { confidence: Confidence::Snapshot, ..process(7, "old") };
        let known = plain(TCP, CLIENT, SERVER);
        world.born(&known);
        world.report(&socket(Kind::Snapshot, TCP, CLIENT, SERVER, old));
        world.report(&socket(Kind::Snapshot, TCP, "198.18.0.1:9", SERVER, old));
        // More reports may come: nobody is known to be the owner yet.
        let at = world.at;
        world.table.attribution_mut().unwrap().sockets.note_held_back(at);
        world.table.begin_dump();
        world.table.apply_dump_entry(&known, world.now, &mut world.changes);
        world.table.apply_dump_entry(&plain(TCP, "198.18.0.1:9", SERVER), world.now, &mut world.changes);
        if ends_well {
            world.table.end_dump(true, world.now, &mut world.changes);
        } else {
            world.table.abandon_dump();
        }
        world.settle();
        assert!(world.table.is_unsettled(), "reports are late");
        world.tick();
        world.settle();
        let owners: Vec<_> = world.table.active_after(0).map(|flow| world.owners_of(&flow)[0]).collect();
        assert_eq!(owners, [None, Some(7)]);
        assert!(!world.table.is_unsettled());
    }
}

#[test]
fn servers_that_change_at_many_ports_at_once_have_the_flows_at_theirs() {
    let mut world = OwnersWorld::new();
    let server = |port: u16| format!("198.18.0.2:{port}");
    let bind = |kind, port, process| socket(kind, UDP, &server(port), "0.0.0.0:0", process);
    let pid = |port: u16| u32::from(port);
    let ports = 5300..5310;
    for port in ports.clone() {
        world.tell(&bind(Kind::Bind, port, process(pid(port), "old")));
        world.born(&plain(UDP, CLIENT, &server(port)));
        // Of this flow only the reply has the port.
        let original = tuple(UDP, CLIENT, &format!("198.18.9.9:{}", port - 1000));
        world.born(&Flow { id: Some(1), ..Flow::new(original, tuple(UDP, &server(port), CLIENT)) });
        // And of this one another protocol.
        world.born(&plain(TCP, CLIENT, &server(port)));
    }
    // The last one stays.
    let changed = 5300..5309;
    world.changes.clear();
    for port in changed.clone() {
        world.report(&bind(Kind::Release, port, process(pid(port), "old")));
        world.report(&bind(Kind::Bind, port, process(10_000 + pid(port), "new")));
    }
    world.settle();
    assert_eq!(world.changes.len(), 2 * changed.len(), "each flow at a port is looked at once");
    let owners: Vec<_> = world.table.active_after(0).map(|flow| world.owners_of(&flow)).collect();
    let expected = ports.flat_map(|port| {
        let pid = if changed.contains(&port) { 10_000 + pid(port) } else { pid(port) };
        [[None, Some(pid)], [None, Some(pid)], [None, None]]
    });
    assert_eq!(owners, expected.collect::<Vec<_>>());
}

#[test]
fn owners_are_found_by_the_next_life() {
    let mut world = OwnersWorld::new();
    world.table.attribution_mut().unwrap().set_path(77, "/system.slice/a.service");
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl")));
    world.born(&plain(TCP, CLIENT, SERVER));
    world.tell(&socket(Kind::Syn, TCP, "198.18.0.1:1", SERVER, process(8, "wget")));
    world.born(&plain(TCP, "198.18.0.1:1", SERVER));
    world.apply(EventKind::Destroy, &plain(TCP, "198.18.0.1:1", SERVER));
    let memfd = world.table.state().memfd().try_clone_to_owned().unwrap();
    drop(world);
    let (state, refused) = State::open(memfd).unwrap();
    assert!(refused.is_none());
    let mut world = OwnersWorld::over(state, 1000);
    assert_eq!(world.owners(), [Some(7), None]);
    let closed = world.table.flow(2, world.now).unwrap();
    assert_eq!(world.owners_of(&closed), [Some(8), None]);
    let texts = world.table.process_texts();
    let (text, confidence) = texts.owner(closed.owners.initiator).unwrap();
    let owner = text.owner(confidence, None);
    assert_eq!((owner.unit, owner.cgroup), (Some("a.service"), Some("/system.slice/a.service")));
    // The same process is the same owner in the new life.
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl")));
    assert_eq!(world.table.header().processes, 2);
}

#[test]
fn a_path_that_comes_late_is_shown_from_then_on() {
    let mut world = OwnersWorld::new();
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl")));
    world.born(&plain(TCP, CLIENT, SERVER));
    world.table.attribution_mut().unwrap().set_path(77, "/user.slice/b.scope");
    world.tell(&socket(Kind::Connect, TCP, CLIENT, SERVER, process(7, "curl")));
    let flow = world.table.active_after(0).next().unwrap();
    let (text, confidence) = world.table.process_texts().owner(flow.owners.initiator).unwrap();
    assert_eq!(text.owner(confidence, None).unit, Some("b.scope"));
}

#[test]
fn a_process_that_runs_another_program_is_another_owner() {
    let mut world = OwnersWorld::new();
    let first = Process { execs: 1, ..process(7, "same") };
    let second = Process { execs: 2, ..first };
    world.table.attribution_mut().unwrap().set_program(ProgramKey::of(&first), "/usr/bin/first");
    for (from, process) in [(CLIENT, first), ("198.18.0.1:1", second)] {
        world.tell(&socket(Kind::Syn, TCP, from, SERVER, process));
        world.born(&plain(TCP, from, SERVER));
    }
    let texts = world.table.process_texts();
    let exes = world.table.active_after(0).map(|flow| {
        let (text, confidence) = texts.owner(flow.owners.initiator).unwrap();
        let owner = text.owner(confidence, None);
        (owner.pid, owner.exe.map(str::to_owned))
    });
    let expected = [(Some(7), Some("/usr/bin/first".to_owned())), (Some(7), None)];
    assert_eq!(exes.collect::<Vec<_>>(), expected);
}

#[test]
fn processes_that_nobody_refers_to_make_room_and_are_never_taken_for_others() {
    let mut world = OwnersWorld::over(State::create().unwrap(), 10);
    let mut first = None;
    for pid in 1..=30_000 {
        world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(pid, "one-shot")));
        world.born(&plain(TCP, CLIENT, SERVER));
        let flow = world.table.active_after(0).next().unwrap();
        assert_eq!(world.owners_of(&flow), [Some(pid), None]);
        first.get_or_insert(flow);
        world.tell(&socket(CLOSED, TCP, CLIENT, SERVER, process(pid, "one-shot")));
        world.apply(EventKind::Destroy, &plain(TCP, CLIENT, SERVER));
        world.tick();
        world.settle();
        world.changes.clear();
        // Not more often than once a second.
        world.now.boottime_usec += 1_000;
    }
    assert!(world.table.header().processes < 6_000, "{}", world.table.header().processes);
    assert_eq!(world.owners_of(&first.unwrap()), [None, None], "its process's place was used again");
    let closed: Vec<_> = world.table.closed_before(u64::MAX, world.now).collect();
    let pids: Vec<_> = closed.iter().map(|flow| world.owners_of(flow)[0]).collect();
    assert_eq!(pids, (29_991..=30_000).rev().map(Some).collect::<Vec<_>>());
    assert_eq!(world.table.header().counters.owners_refused, 0);
}

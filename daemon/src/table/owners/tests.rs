//! Sockets and flows in either order, through translations, zones and restarts.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ctnetlink::{EventKind, Flow, Layer4, ProtocolInfo, Status, TcpInfo, Tuple};
use flowbus_attribution::{Confidence, Event, Kind, Process};

use super::super::Table;
use crate::change::Change;
use crate::clock::Now;
use crate::flow::ClosedLimits;
use crate::flow::{OwnerNumber, Snapshot, inverted};
use crate::owners::{Attribution, Sockets};
use crate::state::State;

const NAMESPACE: u32 = 4_026_531_840;
const CLIENT: &str = "198.18.0.1:40000";
const SERVER: &str = "198.18.0.2:80";
const TCP: u8 = 6;
const UDP: u8 = 17;
const CLOSED: Kind = Kind::Close { reset: false, sent: 1, received: 2 };

fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn process(pid: u32, name: &str) -> Process {
    let mut comm = [0; 16];
    comm[..name.len()].copy_from_slice(name.as_bytes());
    Process {
        pid,
        tid: pid,
        start_boottime_ns: 1_000,
        uid: 1000,
        comm,
        leader_comm: comm,
        cgroup: 77,
        confidence: Confidence::Exact,
    }
}

/// The event of a socket whose cookie is its process's number.
fn socket(kind: Kind, protocol: u8, local: &str, remote: &str, process: Process) -> Event {
    Event {
        kind,
        monotonic_ns: 0,
        cookie: process.pid.into(),
        network_namespace: NAMESPACE,
        protocol,
        local: end(local),
        remote: end(remote),
        process: Some(process),
    }
}

fn tuple(protocol: u8, from: &str, to: &str) -> Tuple {
    let (from, to) = (end(from), end(to));
    let layer4 = Layer4::Ports { src: from.port(), dst: to.port() };
    Tuple { src: from.ip(), dst: to.ip(), protocol, layer4, zone: 0 }
}

fn plain(protocol: u8, from: &str, to: &str) -> Flow<'static> {
    let original = tuple(protocol, from, to);
    Flow { id: Some(1), ..Flow::new(original, inverted(&original, 0)) }
}

fn translated(original: (&str, &str), reply: (&str, &str)) -> Flow<'static> {
    Flow { id: Some(1), ..Flow::new(tuple(TCP, original.0, original.1), tuple(TCP, reply.0, reply.1)) }
}

fn in_zone(zone: u16, mut flow: Flow<'static>) -> Flow<'static> {
    (flow.original.zone, flow.reply.zone) = (zone, zone);
    flow
}

/// A table that is told of sockets, at a time that a test can move.
struct World {
    table: Table,
    changes: Vec<Change>,
    now: Now,
    /// CLOCK_MONOTONIC nanoseconds.
    at: u64,
}

impl World {
    fn new() -> Self {
        Self::over(State::create().unwrap(), 1000)
    }

    fn over(state: State, capacity: u32) -> Self {
        let limits = ClosedLimits { capacity, maximum_age: Duration::from_secs(86_400) };
        let mut table = Table::new(state, limits);
        let mut attribution = Attribution::new(NAMESPACE);
        (attribution.sockets, attribution.look_at_all) = (Sockets::new(0), None);
        attribution.window.from = 0;
        table.attribute(attribution);
        let now = Now { realtime_usec: 1_000_000_000, boottime_usec: 5_000_000 };
        Self { table, changes: Vec::new(), now, at: 0 }
    }

    fn with_addresses(addresses: &[&str]) -> Self {
        let mut world = Self::new();
        let addresses = addresses.iter().map(|text| text.parse::<IpAddr>().unwrap()).collect();
        world.table.attribution_mut().unwrap().sockets.set_addresses(addresses);
        world
    }

    /// A socket's event is read, before those of flows that came meanwhile.
    fn report(&mut self, event: &Event) {
        let event = Event { monotonic_ns: self.tick(), ..*event };
        self.table.apply_socket(&event, self.now);
        self.table.commit();
    }

    /// All events have been applied that were sent until now.
    fn settle(&mut self) {
        self.table.settle(self.at, &mut self.changes);
    }

    /// A socket's event is read where all others have been.
    fn tell(&mut self, event: &Event) {
        self.report(event);
        self.settle();
    }

    /// Time passes, to `at`.
    fn tick(&mut self) -> u64 {
        self.at += 1_000;
        self.table.attribution_mut().unwrap().window.to = self.at;
        self.at
    }

    fn apply(&mut self, kind: EventKind, flow: &Flow<'_>) {
        self.tick();
        self.table.apply(kind, flow, self.now, &mut self.changes);
        self.table.commit();
    }

    fn born(&mut self, flow: &Flow<'_>) {
        self.apply(EventKind::New, flow);
    }

    /// The process number of an owner and how sure it is.
    fn owner(&self, owner: OwnerNumber) -> Option<(u32, &'static str)> {
        let (text, confidence) = self.table.process_texts().owner(owner)?;
        let owner = text.owner(confidence);
        Some((owner.pid?, owner.confidence?))
    }

    fn owners_of(&self, flow: &Snapshot) -> [Option<u32>; 2] {
        [flow.owners.initiator, flow.owners.responder].map(|owner| Some(self.owner(owner)?.0))
    }

    /// The owners of the only flow.
    fn owners(&self) -> [Option<u32>; 2] {
        let flows: Vec<_> = self.table.active_after(0).collect();
        assert_eq!(flows.len(), 1);
        self.owners_of(&flows[0])
    }

    fn kinds(&self) -> Vec<EventKind> {
        self.changes.iter().map(|change| change.kind).collect()
    }

    fn pass(&mut self, seconds: u64) {
        self.now.boottime_usec += seconds * 1_000_000;
        self.at += seconds * 1_000_000_000;
        self.settle();
    }
}

#[test]
fn a_flow_is_born_with_the_owner_of_the_socket_that_was_told_before() {
    let mut world = World::new();
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl")));
    assert_eq!(world.table.attribution().unwrap().sockets.pending(), 1);
    world.born(&plain(TCP, CLIENT, SERVER));
    assert_eq!(world.owners(), [Some(7), None]);
    assert_eq!(world.kinds(), [EventKind::New]);
    assert_eq!(world.table.attribution().unwrap().sockets.pending(), 0);
}

#[test]
fn an_owner_that_comes_late_is_an_update_of_the_flow() {
    let mut world = World::new();
    world.born(&plain(TCP, CLIENT, SERVER));
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl")));
    world.tell(&socket(Kind::Connect, TCP, CLIENT, SERVER, process(7, "curl")));
    world.tell(&socket(Kind::Accept, TCP, SERVER, CLIENT, process(8, "nginx")));
    assert_eq!(world.owners(), [Some(7), Some(8)]);
    assert_eq!(world.kinds(), [EventKind::New, EventKind::Update, EventKind::Update]);
    let before = world.changes[1].flow_before().unwrap();
    assert!(before.owners.is_empty(), "a filter can tell that the flow had no owner before");
    assert_eq!(world.table.attribution().unwrap().sockets.pending(), 0);
}

#[test]
fn translations_are_seen_through_in_either_order() {
    // The client's connection goes to another port of another server, from another address.
    let flow = || translated((CLIENT, SERVER), ("198.18.5.5:8080", "198.18.6.6:1024"));
    let client = socket(Kind::Connect, TCP, CLIENT, SERVER, process(7, "curl"));
    let server = socket(Kind::Accept, TCP, "198.18.5.5:8080", "198.18.6.6:1024", process(8, "nginx"));
    let mut early = World::new();
    early.tell(&client);
    early.tell(&server);
    early.born(&flow());
    assert_eq!(early.owners(), [Some(7), Some(8)]);
    let mut late = World::new();
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
    let mut world = World::new();
    world.born(&translated((CLIENT, SERVER), ("198.18.5.5:8080", CLIENT)));
    world.tell(&socket(Kind::Accept, TCP, SERVER, CLIENT, process(8, "nginx")));
    assert_eq!(world.owners(), [None, None]);
}

#[test]
fn a_socket_owns_its_flows_in_every_zone() {
    for early in [true, false] {
        let mut world = World::new();
        let client = socket(Kind::Connect, TCP, CLIENT, SERVER, process(7, "curl"));
        let server = socket(Kind::Accept, TCP, SERVER, CLIENT, process(8, "nginx"));
        if early {
            world.tell(&client);
            world.tell(&server);
        }
        world.born(&plain(TCP, CLIENT, SERVER));
        world.born(&in_zone(9, plain(TCP, CLIENT, SERVER)));
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
        let mut world = World::with_addresses(&["198.18.0.2"]);
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
    let mut world = World::new();
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
    let mut world = World::with_addresses(&["198.18.0.1"]);
    world.tell(&socket(Kind::Send, UDP, "0.0.0.0:4000", "198.18.0.2:53", process(7, "dig")));
    world.born(&plain(UDP, "198.18.7.7:4000", "198.18.0.2:53"));
    assert_eq!(world.owners(), [None, None], "another machine's, with the same ports");
    world.born(&plain(UDP, "198.18.0.1:4000", "198.18.0.2:53"));
    let owned: Vec<_> = world.table.active_with_owner(0).map(|flow| world.owners_of(&flow)).collect();
    assert_eq!(owned, [[Some(7), None]]);
}

#[test]
fn the_same_ends_in_another_namespace_are_another_socket() {
    let mut world = World::new();
    let mut event = socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl"));
    event.network_namespace = NAMESPACE + 1;
    world.tell(&event);
    world.born(&plain(TCP, CLIENT, SERVER));
    world.tell(&event);
    assert_eq!(world.owners(), [None, None]);
}

#[test]
fn a_number_used_again_by_another_process_is_another_owner() {
    let mut world = World::new();
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
        .map(|(text, confidence)| text.owner(confidence).uid)
        .collect();
    assert_eq!(uids, [Some(1000), Some(0)]);
}

#[test]
fn the_newest_socket_of_a_tuple_owns_its_next_flow_and_the_flow_before_keeps_its_own() {
    let mut world = World::new();
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
    let mut world = World::new();
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
    world.born(&plain(TCP, CLIENT, SERVER));
    assert_eq!(world.owners(), [None, Some(9)]);
}

#[test]
fn a_socket_that_ended_owns_the_flow_that_is_told_late_and_no_later_one() {
    let mut world = World::new();
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
    let mut world = World::new();
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

#[test]
fn what_was_open_before_is_found_for_flows_that_are_known_already() {
    let mut world = World::with_addresses(&["198.18.0.1"]);
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
    // A snapshot is older than what the events tell.
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
        let mut world = World::new();
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
    let mut world = World::new();
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
    let mut world = World::new();
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
    let mut world = World::over(state, 1000);
    assert_eq!(world.owners(), [Some(7), None]);
    let closed = world.table.flow(2, world.now).unwrap();
    assert_eq!(world.owners_of(&closed), [Some(8), None]);
    let texts = world.table.process_texts();
    let (text, confidence) = texts.owner(closed.owners.initiator).unwrap();
    let owner = text.owner(confidence);
    assert_eq!((owner.unit, owner.cgroup), (Some("a.service"), Some("/system.slice/a.service")));
    // The same process is the same owner in the new life.
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl")));
    assert_eq!(world.table.header().processes, 2);
}

#[test]
fn a_path_that_comes_late_is_shown_from_then_on() {
    let mut world = World::new();
    world.tell(&socket(Kind::Syn, TCP, CLIENT, SERVER, process(7, "curl")));
    world.born(&plain(TCP, CLIENT, SERVER));
    world.table.attribution_mut().unwrap().set_path(77, "/user.slice/b.scope");
    world.tell(&socket(Kind::Connect, TCP, CLIENT, SERVER, process(7, "curl")));
    let flow = world.table.active_after(0).next().unwrap();
    let (text, confidence) = world.table.process_texts().owner(flow.owners.initiator).unwrap();
    assert_eq!(text.owner(confidence).unit, Some("b.scope"));
}

#[test]
fn processes_that_nobody_refers_to_make_room_and_are_never_taken_for_others() {
    let mut world = World::over(State::create().unwrap(), 10);
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

#[test]
fn where_two_processes_had_the_ends_meanwhile_nobody_owns_the_flow_until_it_is_known_who_has_it() {
    let mut world = World::new();
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
    let mut world = World::new();
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
fn connection(world: &mut World, [client, server]: [Process; 2], cookies: [u64; 2]) {
    let client = |kind| Event { cookie: cookies[0], ..socket(kind, TCP, CLIENT, SERVER, client) };
    let server = |kind| Event { cookie: cookies[1], ..socket(kind, TCP, SERVER, CLIENT, server) };
    for event in [client(Kind::Syn), client(Kind::Connect), server(Kind::Accept)] {
        world.report(&event);
    }
    for event in [server(CLOSED), client(CLOSED)] {
        world.report(&event);
    }
}

/// The same flow twice, all events of which are read after all reports of sockets, which gives these owners to the flow
/// that has ended and to the one that is there.
fn owners_of_reused_ends(connections: &[[u32; 2]], state: u8) -> [[Option<u32>; 2]; 2] {
    let mut world = World::new();
    world.tick();
    world.settle();
    for (number, pids) in (1..).zip(connections) {
        connection(&mut world, pids.map(|pid| process(pid, "any")), [10 * number, 10 * number + 1]);
    }
    let flow = plain(TCP, CLIENT, SERVER);
    let finished = Flow {
        status: Some(Status::SEEN_REPLY | Status::ASSURED),
        protocol_info: Some(ProtocolInfo::Tcp(TcpInfo {
            state,
            wscale_original: None,
            wscale_reply: None,
            flags_original: None,
            flags_reply: None,
        })),
        ..flow.clone()
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
    let mut world = World::new();
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
    let mut world = World::new();
    world.born(&plain(TCP, CLIENT, SERVER));
    let parent = Process { confidence: Confidence::Inherited, ..process(8, "rpc.nfsd") };
    world.report(&Event { cookie: 5, ..socket(Kind::Incoming, TCP, SERVER, CLIENT, parent) });
    let accept = socket(Kind::Accept, TCP, SERVER, CLIENT, parent);
    world.tell(&Event { cookie: 5, process: None, ..accept });
    assert_eq!(world.owners(), [None, None]);
}

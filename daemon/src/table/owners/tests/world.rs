//! A table that receives events of sockets and flows, at times that a test chooses.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ctnetlink::{EventKind, Flow, Layer4, Status, Tuple};
use flowbus_attribution::{Confidence, Event, Kind, Process};

use crate::change::Changes;
use crate::clock::Now;
use crate::flow::{ClosedLimits, OwnerNumber, Snapshot, inverted};
use crate::owners::{Attribution, Sockets};
use crate::state::State;
use crate::table::Table;

pub(super) const NAMESPACE: u32 = 4_026_531_840;
pub(super) const CLIENT: &str = "198.18.0.1:40000";
pub(super) const SERVER: &str = "198.18.0.2:80";
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const CLOSED: Kind =
    Kind::Close { reset: false, sent: 1, received: 2, rtt_usec: None, retransmissions: 0 };

pub(super) fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(super) fn process(pid: u32, name: &str) -> Process {
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
        execs: 0,
        confidence: Confidence::Exact,
    }
}

/// The event of a socket whose cookie is its process's number.
pub(super) fn socket(kind: Kind, protocol: u8, local: &str, remote: &str, process: Process) -> Event {
    Event {
        kind,
        monotonic_ns: 0,
        cookie: process.pid.into(),
        network_namespace: NAMESPACE,
        protocol,
        local: end(local),
        remote: end(remote),
        process: Some(process),
        opened: match kind {
            Kind::Syn | Kind::Connect => Some(true),
            Kind::Incoming | Kind::Accept => Some(false),
            _ => None,
        },
        connect_usec: None,
    }
}

pub(super) fn tuple(protocol: u8, from: &str, to: &str) -> Tuple {
    let (from, to) = (end(from), end(to));
    let layer4 = Layer4::Ports { src: from.port(), dst: to.port() };
    Tuple { src: from.ip(), dst: to.ip(), protocol, layer4, zone: 0 }
}

pub(super) fn plain(protocol: u8, from: &str, to: &str) -> Flow<'static> {
    let original = tuple(protocol, from, to);
    Flow { id: Some(1), ..Flow::new(original, inverted(&original, 0)) }
}

pub(super) fn answered(flow: Flow<'static>) -> Flow<'static> {
    Flow { status: Some(Status::SEEN_REPLY | Status::ASSURED), ..flow }
}

pub(super) fn translated(original: (&str, &str), reply: (&str, &str)) -> Flow<'static> {
    Flow { id: Some(1), ..Flow::new(tuple(TCP, original.0, original.1), tuple(TCP, reply.0, reply.1)) }
}

pub(super) fn in_zone(zone: u16, mut flow: Flow<'static>) -> Flow<'static> {
    (flow.original.zone, flow.reply.zone) = (zone, zone);
    flow
}

/// A table that receives events of sockets and flows, on a clock that the test advances.
pub(super) struct OwnersWorld {
    pub(super) table: Table,
    pub(super) changes: Changes,
    pub(super) now: Now,
    /// CLOCK_MONOTONIC nanoseconds.
    pub(super) at: u64,
}

impl OwnersWorld {
    pub(super) fn new() -> Self {
        Self::over(State::create().unwrap(), 1000)
    }

    pub(super) fn over(state: State, capacity: u32) -> Self {
        let limits = ClosedLimits { capacity, maximum_age: Duration::from_secs(86_400) };
        let mut table = Table::new(state, limits);
        let mut attribution = Attribution::new(NAMESPACE);
        (attribution.sockets, attribution.look_at_all) = (Sockets::new(0), None);
        attribution.elsewhere = Sockets::elsewhere(0);
        attribution.window.from = 0;
        table.attribute(attribution);
        let now = Now { realtime_usec: 1_000_000_000, boottime_usec: 5_000_000 };
        Self { table, changes: Changes::default(), now, at: 0 }
    }

    pub(super) fn with_addresses(addresses: &[&str]) -> Self {
        let mut world = Self::new();
        let addresses = addresses.iter().map(|text| text.parse::<IpAddr>().unwrap()).collect();
        world.table.attribution_mut().unwrap().sockets.set_addresses(addresses);
        world
    }

    /// A socket's event is read, before those of flows that came meanwhile.
    pub(super) fn report(&mut self, event: &Event) {
        let event = Event { monotonic_ns: self.tick(), ..*event };
        self.table.apply_socket(&event, self.now);
        self.table.change().commit();
    }

    /// All events have been applied that were sent until now.
    pub(super) fn settle(&mut self) {
        self.table.settle(self.at, &mut self.changes);
    }

    /// A socket's event is read where all others have been.
    pub(super) fn tell(&mut self, event: &Event) {
        self.report(event);
        self.settle();
    }

    /// Time passes, to `at`.
    pub(super) fn tick(&mut self) -> u64 {
        self.at += 1_000;
        self.table.attribution_mut().unwrap().window.to = self.at;
        self.at
    }

    pub(super) fn apply(&mut self, kind: EventKind, flow: &Flow<'_>) {
        self.tick();
        self.table.apply(kind, flow, self.now, &mut self.changes);
        self.table.change().commit();
    }

    pub(super) fn born(&mut self, flow: &Flow<'_>) {
        self.apply(EventKind::New, flow);
    }

    /// The process number of an owner and how sure it is.
    pub(super) fn owner(&self, owner: OwnerNumber) -> Option<(u32, &'static str)> {
        let (text, confidence) = self.table.process_texts().owner(owner)?;
        let owner = text.owner(confidence, None);
        Some((owner.pid?, owner.confidence?))
    }

    pub(super) fn owners_of(&self, flow: &Snapshot) -> [Option<u32>; 2] {
        [flow.owners.initiator, flow.owners.responder].map(|owner| Some(self.owner(owner)?.0))
    }

    /// The owners of the only flow.
    pub(super) fn owners(&self) -> [Option<u32>; 2] {
        let flows: Vec<_> = self.table.active_after(0).collect();
        assert_eq!(flows.len(), 1);
        self.owners_of(&flows[0])
    }

    pub(super) fn kinds(&self) -> Vec<EventKind> {
        self.changes.iter().map(|change| change.kind).collect()
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.now.boottime_usec += seconds * 1_000_000;
        self.at += seconds * 1_000_000_000;
        self.settle();
    }
}

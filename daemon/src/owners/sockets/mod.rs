//! The sockets that are known, by the ends that they have: whose they are.

mod directions;
mod ending;
mod lookup;
mod place;
mod room;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ctnetlink::{Layer4, Tuple};
use flowbus_attribution::{Confidence, Event, Kind};
use foldhash::fast::RandomState;

use super::claims::{Claim, Claims, ProcessId};
use super::window::Window;
use crate::counters::Counters;
use crate::flow::{Key, OwnerNumber, TCP, UDP};
use directions::Directions;
use place::key;
pub(crate) use place::{Place, direction, unspecified};
use room::Put;

/// How long a closed socket is kept, because netlink may report its flow later.
const ENDED_USEC: u64 = 2_000_000;
/// How long a datagram that was sent may belong to a flow that comes.
const SENT_USEC: u64 = 20_000_000;
/// How long a server that has ended is kept where it had flows: they go to the one that binds its port next.
const SERVED_USEC: u64 = 600_000_000;
/// How long after a datagram was reported others of the same process to the same end are not (`bpf/udp.h`: 10 s).
const REPEAT_NSEC: u64 = 11_000_000_000;

/// The sockets of the network namespace whose flows are tracked, or those of all others.
///
/// Each direction, from a socket's own end to the other, has the [`Claims`] of the sockets that had it, one after the other. The
/// first report of a socket adds a claim (`put`, `put_udp`, `put_open`), later ones change it. The end of the socket (`close` by its
/// ends, `release` by its cookie) takes nothing away, because netlink may report the socket's flow later. It sets two times:
/// `until`, by which look-ups decide whether a flow can be the socket's, and `forget`, after which `expire` removes the claim.
///
/// `expire` looks at directions and not at claims: `note_ending` puts a direction into one of the queues of `ending` when the first
/// of its claims gets a `forget`, and `expire` puts it back while there are others. The queues are in the order of time but for
/// what is put back, and a direction stands in one at a time, so a claim may stay longer than `forget` says, which costs memory
/// alone. `expire` removes none sooner, nor before all events have been applied that the kernel sent while the claim lasted; only
/// a claim for which there is no room goes at once (`Claims::push`).
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    claims: Directions,
    /// The UDP sockets that have claims, by cookie: their end is reported by cookie alone.
    udp: HashMap<u64, UdpSocket, RandomState>,
    /// The directions with claims that are to be forgotten, each with the time of its next look: a queue for each span for which
    /// claims are kept.
    ending: [VecDeque<(u64, Key)>; 3],
    /// The addresses of this namespace; `None` while they are not known.
    addresses: Option<HashSet<IpAddr, RandomState>>,
    /// How many directions each of the other namespaces has brought.
    shares: HashMap<u32, usize, RandomState>,
    /// Connections and datagrams whose flow is not known yet.
    pending: u64,
    /// Lookups that found sockets of several namespaces.
    ambiguous: u64,
    /// Whether these are the sockets of other namespaces than the tracked one.
    elsewhere: bool,
    /// The time (CLOCK_MONOTONIC nanoseconds) until which ends of flows may have been lost.
    floor: u64,
    /// Sockets that were there before this time may be unknown.
    doubt: u64,
    /// The time up to which sockets may still be reported.
    held_back: u64,
}

#[derive(Clone, Copy, Debug)]
struct UdpSocket {
    /// Where the socket's end is to be noted: at its port, or where it was when it was found open.
    bound: Option<Key>,
    released: u64,
    claims: u32,
}

/// What the report of a socket may mean for flows that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touched {
    /// Packets pass in this direction.
    Direction(Tuple),
    /// UDP: the server at this port is another one.
    Port(u16),
}

/// The end of the flow at which a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Initiator,
    Responder,
}

/// The process that sends in a direction by now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Current {
    pub(crate) owner: OwnerNumber,
    /// Whether the process has sent; else it waits for packets.
    pub(crate) sent: bool,
    /// Whether the process made the call itself, whatever its owner's confidence says.
    pub(crate) exact: bool,
    /// Whether the flow was there before the socket: it is of a socket that had these ends before, if it is of one at all.
    pub(crate) late: bool,
}

impl Sockets {
    /// No sockets yet; those that were there before `doubt` (CLOCK_MONOTONIC nanoseconds) stay unknown.
    pub(crate) fn new(doubt: u64) -> Self {
        Self { doubt, ..Self::default() }
    }

    /// The sockets of other namespaces. The set of addresses is empty: a datagram of a socket without an address of its own is
    /// reported from each address that its namespace has, and where these are not known the socket matches no flow, but casts
    /// doubt on others ([`Sockets::add_doubts`]).
    pub(crate) fn elsewhere(doubt: u64) -> Self {
        Self { elsewhere: true, addresses: Some(HashSet::default()), ..Self::new(doubt) }
    }

    /// Forgets that flows were given owners when they began, so that all that was reported is settled.
    #[cfg(test)]
    pub(crate) fn forget_given(&mut self) {
        self.claims.iter_mut().for_each(|(_, claims)| claims.forget_given());
    }

    /// Whether no socket is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Brings what is known of the sockets of these directions into the processor's cache.
    pub(crate) fn prefetch<'a>(&self, directions: impl Iterator<Item = &'a Tuple>) {
        if !self.is_empty() {
            self.claims.prefetch(directions.map(|direction| Key::new(&Tuple { zone: 0, ..*direction })));
        }
    }

    /// Notes what an event reports of its socket, whose owner is `owner`, at `now` (CLOCK_BOOTTIME microseconds).
    pub(crate) fn apply(
        &mut self,
        event: &Event,
        owner: OwnerNumber,
        now: u64,
        counters: &mut Counters,
    ) -> Option<Touched> {
        let (at, is_tcp) = (event.monotonic_ns, event.protocol == TCP);
        let sent = direction(event.protocol, event.local, event.remote);
        let key = Key::new(&sent);
        let is_anywhere = self.elsewhere && sent.src.is_unspecified();
        let claim = Claim {
            cookie: event.cookie,
            owner,
            process: event.process.as_ref().map(ProcessId::from).unwrap_or_default(),
            since: at,
            sure: at,
            until: u64::MAX,
            forget: u64::MAX,
            pending: !is_anywhere,
            used: false,
            late: false,
            namespace: if self.elsewhere { event.network_namespace } else { 0 },
            elsewhere: self.elsewhere,
        };
        match event.kind {
            // A listener has no flow of its own, and neither has a connection without another end.
            Kind::Listen => None,
            Kind::Release if is_tcp => None,
            _ if is_tcp && event.remote.port() == 0 => None,
            // No packet has left.
            Kind::ConnectFailed { .. } if !is_tcp || event.local.port() == 0 => None,
            Kind::Syn => {
                self.put(key, Claim { sure: u64::MAX, ..claim }, event.kind, now, counters);
                None
            }
            Kind::Connect | Kind::Incoming | Kind::Accept => {
                let put = self.put(key, claim, event.kind, now, counters);
                (put != Put::Refused).then_some(Touched::Direction(sent))
            }
            // Found in /proc by somebody who looked just then.
            Kind::Send if is_tcp => {
                let claim = Claim { until: at, forget: now + SENT_USEC, ..claim };
                let put = self.put(key, claim, event.kind, now, counters);
                (put != Put::Refused).then_some(Touched::Direction(sent))
            }
            Kind::Send => {
                let until = at.saturating_add(REPEAT_NSEC);
                let claim = Claim { until, forget: now + SENT_USEC, ..claim };
                let put = self.put_udp(key, claim, None, now, counters);
                (put != Put::Refused && !is_anywhere).then_some(Touched::Direction(sent))
            }
            Kind::Bind => {
                // Another process than the one that binds may read: it is known when it answers.
                let owner = owner.with(Confidence::Inherited);
                self.put_udp(key, Claim { owner, pending: false, ..claim }, Some(key), now, counters);
                self.has_changed_hands(&sent).then_some(Touched::Port(event.local.port()))
            }
            Kind::Snapshot => {
                self.put_open(key, Claim { since: 0, pending: false, ..claim }, event, now, counters);
                None
            }
            Kind::ConnectFailed { .. } | Kind::Close { .. } => {
                let claim = Claim { since: 0, until: at, forget: now + ENDED_USEC, ..claim };
                self.close(key, claim, now, counters).then_some(Touched::Direction(sent))
            }
            Kind::Release => self.release(event.cookie, at, now),
        }
    }

    /// Adds a claim of a TCP socket, or what is new of one.
    fn put(&mut self, key: Key, claim: Claim, kind: Kind, now: u64, counters: &mut Counters) -> Put {
        // A socket can connect anew after its connection has ended.
        let is_it = |known: &Claim| kind != Kind::Syn || known.until == u64::MAX;
        self.put_or(key, claim, now, counters, is_it, |known| {
            // What is reported of a socket later is reported of the one that has it by then, or of a surer one.
            let surer = match (known.owner.get(), claim.owner.get()) {
                (Some((_, known)), Some((_, offered))) => offered <= known,
                (known, _) => kind == Kind::Accept || known.is_none(),
            };
            if surer {
                (known.owner, known.process) = (claim.owner, claim.process);
            }
            if known.namespace == 0 {
                known.namespace = claim.namespace;
            }
            known.sure = known.sure.min(claim.sure);
            (known.until, known.forget) = (claim.until, claim.forget);
        })
    }

    /// Adds a claim of a process to a UDP socket, or makes it last.
    fn put_udp(
        &mut self,
        key: Key,
        claim: Claim,
        bound: Option<Key>,
        now: u64,
        counters: &mut Counters,
    ) -> Put {
        let is_it = |known: &Claim| known.process == claim.process;
        let put = self.put_or(key, claim, now, counters, is_it, |known| {
            known.owner = claim.owner;
            (known.sure, known.until, known.forget) = (claim.sure, claim.until, claim.forget);
        });
        if put == Put::Added {
            let socket = self.udp.entry(claim.cookie);
            let socket = socket.or_insert(UdpSocket { bound, released: u64::MAX, claims: 0 });
            socket.claims += 1;
            socket.bound = socket.bound.or(bound);
        }
        put
    }

    /// Adds a socket that was open before: what is known by events is newer.
    fn put_open(&mut self, key: Key, claim: Claim, event: &Event, now: u64, counters: &mut Counters) {
        let is_tcp = event.protocol == TCP;
        if let Some(claims) = self.claims.get(&key) {
            let is_newer = |known: &Claim| {
                let by_event = known.owner.get().is_none_or(|(_, sure)| sure != Confidence::Snapshot);
                by_event && (is_tcp || known.cookie == claim.cookie)
            };
            if claims.iter().any(is_newer) {
                return;
            }
        }
        if is_tcp {
            // Several processes can have a connection.
            self.put_or(key, claim, now, counters, |known| known.process == claim.process, |_| {});
        } else {
            self.put_udp(key, claim, Some(key), now, counters);
        }
    }

    /// Notes that a connection has ended; true where it was not known before.
    fn close(&mut self, key: Key, claim: Claim, now: u64, counters: &mut Counters) -> bool {
        let put = self.put_or(
            key,
            claim,
            now,
            counters,
            |_| true,
            |known| {
                known.sure = known.sure.min(claim.sure);
                (known.until, known.forget) = (claim.until, claim.forget);
            },
        );
        put == Put::Added
    }

    /// Whether somebody else has had flows at the place where a server waits now.
    fn has_changed_hands(&self, bound: &Tuple) -> bool {
        let Layer4::Ports { src: port, .. } = bound.layer4 else { return false };
        let places = [bound.src, unspecified(bound.src), Ipv6Addr::UNSPECIFIED.into()];
        places.into_iter().any(|ip| {
            let place = key(UDP, SocketAddr::new(ip, port), SocketAddr::new(unspecified(ip), 0));
            let gone = |claim: &Claim| claim.used && claim.until != u64::MAX;
            self.claims.get(&place).is_some_and(|claims| claims.iter().any(gone))
        })
    }

    /// Notes that sockets that were there before `at` (CLOCK_MONOTONIC nanoseconds) may be reported later.
    pub(crate) fn note_held_back(&mut self, at: u64) {
        self.held_back = at;
    }

    /// Whether all sockets are known that were there within `window`.
    pub(crate) fn knows_all(&self, window: Window) -> bool {
        self.knows_since(window.from) && !self.is_held_back(window)
    }

    /// Whether all sockets that were there since a time are known, or will be reported.
    pub(crate) fn knows_since(&self, from: u64) -> bool {
        from >= self.doubt
    }

    /// Whether sockets that were there within `window` may still be reported.
    pub(crate) fn is_held_back(&self, window: Window) -> bool {
        window.to == self.held_back
    }

    /// Notes that events of flows were lost until `now` (CLOCK_MONOTONIC nanoseconds).
    pub(crate) fn note_lost_flows(&mut self, now: u64) {
        self.floor = now;
    }

    /// Notes that a flow of this direction has ended within the window; `is_young` where it may have begun within it, too.
    pub(crate) fn flow_ended(&mut self, direction: &Tuple, window: Window, is_young: bool) {
        if let Some(place) = Place::of(direction) {
            for key in [Some(place.exact()), place.sent_without_address()].into_iter().flatten() {
                if let Some(claims) = self.claims.get_mut(&key) {
                    claims.flow_ended(window, is_young);
                }
            }
        }
    }

    /// Whether an address is known to be one of this namespace.
    pub(crate) fn is_ours(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.as_ref().is_some_and(|addresses| addresses.contains(&address))
    }

    /// Notes the addresses of this namespace; true when they were not known to be these.
    pub(crate) fn set_addresses(&mut self, addresses: HashSet<IpAddr>) -> bool {
        let addresses = Some(addresses.into_iter().collect());
        let changed = self.addresses != addresses;
        self.addresses = addresses;
        changed
    }

    /// How many connections and datagrams have no flow yet.
    pub(crate) fn pending(&self) -> u64 {
        self.pending
    }

    /// How many lookups found sockets of several namespaces since this was asked last.
    pub(crate) fn take_ambiguous(&mut self) -> u64 {
        std::mem::take(&mut self.ambiguous)
    }

    /// Whether a socket of these, or none at all, sends in a direction: one begins at an address of this namespace, or a
    /// socket has its ends nevertheless. While the addresses are not known each can.
    pub(crate) fn can_have(&self, direction: &Tuple) -> bool {
        self.addresses.is_none()
            || self.is_ours(direction.src)
            || Place::of(direction).is_none_or(|place| self.claims.contains(&place.exact()))
    }

    /// Notes that a flow with the ends of a TCP socket was there before its SYN.
    pub(crate) fn note_late(&mut self, direction: &Tuple, cookie: u64) {
        let key = Key::new(&Tuple { zone: 0, ..*direction });
        if let Some(claim) = self.claims.get_mut(&key).and_then(|claims| claims.of(cookie, |_| true)) {
            claim.late = true;
        }
    }

    /// The owners of all sockets.
    pub(crate) fn owners(&self) -> impl Iterator<Item = OwnerNumber> + '_ {
        self.claims.values().flat_map(Claims::iter).map(|claim| claim.owner)
    }
}

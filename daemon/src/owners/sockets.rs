//! The sockets that are known, by the ends that they have: whose they are.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ctnetlink::{Layer4, Tuple};
use flowbus_attribution::{Confidence, Event, Kind};
use foldhash::fast::RandomState;

use super::begins::Begin;
use super::claims::{Candidates, Claim, Claims, Identity, Window};
use super::{TCP, UDP, unspecified};
use crate::counters::Counters;
use crate::flow::{Key, OwnerNumber};

/// At most this many directions are kept.
const MAXIMUM: usize = 1 << 17;
/// A socket that has ended may belong to a flow that netlink has not reported yet, for this long.
const ENDED_USEC: u64 = 2_000_000;
/// A datagram that was sent may belong to a flow that comes, for this long.
const SENT_USEC: u64 = 20_000_000;
/// A server that has ended is known for this long where it had flows: they go to the one that binds its port next.
const SERVED_USEC: u64 = 600_000_000;
/// For this long after a datagram was reported, others of the same process to the same end are not (`bpf/udp.h`: 10 s).
const REPEAT_NSEC: u64 = 11_000_000_000;
/// At most this many addresses are tried for a socket that has none of its own.
const ADDRESSES_TRIED: usize = 64;

/// The sockets of the network namespace whose flows are tracked.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    claims: HashMap<Key, Claims, RandomState>,
    /// The UDP sockets that have claims, by cookie: their end is reported by cookie alone.
    udp: HashMap<u64, UdpSocket, RandomState>,
    /// The directions of which claims are forgotten at a time, soonest first, by how long claims are kept. A direction
    /// stands there once.
    ending: [VecDeque<(u64, Key)>; 3],
    /// The addresses of this namespace; `None` while they are not known.
    addresses: Option<HashSet<IpAddr>>,
    /// Connections and datagrams whose flow is not known yet.
    pending: u64,
    /// Ends of flows may have been lost until here.
    floor: u64,
    /// Sockets may be unknown that were there before.
    doubt: u64,
    /// Up to this time sockets may still be reported.
    held_back: u64,
}

#[derive(Clone, Copy, Debug)]
struct UdpSocket {
    /// Where its end is to be noted: at its port, or where it was when it was found open.
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

/// Who sends in a direction by now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Current {
    pub(crate) owner: OwnerNumber,
    /// It has sent; else it waits for packets.
    pub(crate) sent: bool,
}

impl Sockets {
    /// Sockets of which none is known that was there before `doubt`.
    pub(crate) fn new(doubt: u64) -> Self {
        Self { doubt, ..Self::default() }
    }

    /// Notes what an event tells of its socket, whose owner is `owner`, at `now` (CLOCK_BOOTTIME microseconds).
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
        let claim = Claim {
            cookie: event.cookie,
            owner,
            process: event.process.as_ref().map(Identity::from).unwrap_or_default(),
            since: at,
            sure: at,
            until: u64::MAX,
            forget: u64::MAX,
            pending: true,
            used: false,
        };
        match event.kind {
            // A listener has no flow of its own, and neither has a connection without another end.
            Kind::Listen => None,
            Kind::Release if is_tcp => None,
            _ if is_tcp && event.remote.port() == 0 => None,
            Kind::Syn => {
                self.put(key, Claim { sure: u64::MAX, ..claim }, event.kind, now, counters);
                None
            }
            Kind::Connect | Kind::Incoming | Kind::Accept => {
                self.put(key, claim, event.kind, now, counters);
                Some(Touched::Direction(sent))
            }
            // Seen by somebody who looked just then.
            Kind::Send if is_tcp => {
                let claim = Claim { until: at, forget: now + SENT_USEC, ..claim };
                self.put(key, claim, event.kind, now, counters);
                Some(Touched::Direction(sent))
            }
            Kind::Send => {
                let until = at.saturating_add(REPEAT_NSEC);
                let claim = Claim { until, forget: now + SENT_USEC, ..claim };
                self.put_udp(key, claim, None, now, counters);
                Some(Touched::Direction(sent))
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
    fn put(&mut self, key: Key, claim: Claim, kind: Kind, now: u64, counters: &mut Counters) {
        // A socket can connect anew after its connection has ended.
        let is_it = |known: &Claim| kind != Kind::Syn || known.until == u64::MAX;
        self.put_or(key, claim, counters, is_it, |known| {
            // What is reported of a socket later is reported of the one that has it by then, or of a surer one.
            let surer = match (known.owner.get(), claim.owner.get()) {
                (Some((_, known)), Some((_, offered))) => offered <= known,
                (known, _) => kind == Kind::Accept || known.is_none(),
            };
            if surer {
                (known.owner, known.process) = (claim.owner, claim.process);
            }
            known.sure = known.sure.min(claim.sure);
            (known.until, known.forget) = (claim.until, claim.forget);
        });
        self.note_ending(key, claim.forget, now);
    }

    /// Adds a claim of a process to a UDP socket, or makes it last.
    fn put_udp(&mut self, key: Key, claim: Claim, bound: Option<Key>, now: u64, counters: &mut Counters) {
        let is_it = |known: &Claim| known.process == claim.process;
        let is_new = self.put_or(key, claim, counters, is_it, |known| {
            known.owner = claim.owner;
            (known.sure, known.until, known.forget) = (claim.sure, claim.until, claim.forget);
        });
        if is_new {
            let socket = self.udp.entry(claim.cookie);
            let socket = socket.or_insert(UdpSocket { bound, released: u64::MAX, claims: 0 });
            socket.claims += 1;
            socket.bound = socket.bound.or(bound);
        }
        self.note_ending(key, claim.forget, now);
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
            self.put_or(key, claim, counters, |known| known.process == claim.process, |_| {});
        } else {
            self.put_udp(key, claim, Some(key), now, counters);
        }
    }

    /// Adds a claim, unless one of its socket is there that `is_it` and `known` is called for; true when it was added.
    fn put_or(
        &mut self,
        key: Key,
        claim: Claim,
        counters: &mut Counters,
        is_it: impl Fn(&Claim) -> bool,
        known: impl FnOnce(&mut Claim),
    ) -> bool {
        let room = self.claims.len() < MAXIMUM;
        let dropped = match self.claims.get_mut(&key) {
            Some(claims) => {
                if let Some(claim) = claims.of(claim.cookie, is_it) {
                    known(claim);
                    return false;
                }
                if claim.since > 0 {
                    claims.push(claim)
                } else if claims.push_oldest(claim) {
                    None
                } else {
                    counters.owners_unmatched_sockets += u64::from(claim.pending);
                    return false;
                }
            }
            None if room => {
                self.claims.insert(key, Claims::new(claim));
                None
            }
            None => {
                counters.owners_refused += 1;
                return false;
            }
        };
        self.pending += u64::from(claim.pending);
        if let Some(dropped) = dropped {
            counters.owners_unmatched_sockets += u64::from(dropped.pending);
            self.pending -= u64::from(dropped.pending);
            forget_udp(&mut self.udp, dropped.cookie);
        }
        true
    }

    /// A connection has ended. True where it was not known: then this is the first that is known of it.
    fn close(&mut self, key: Key, claim: Claim, now: u64, counters: &mut Counters) -> bool {
        let is_new = self.put_or(
            key,
            claim,
            counters,
            |_| true,
            |known| {
                known.sure = known.sure.min(claim.sure);
                (known.until, known.forget) = (claim.until, claim.forget);
            },
        );
        self.note_ending(key, claim.forget, now);
        is_new
    }

    /// A UDP socket has ended.
    fn release(&mut self, cookie: u64, at: u64, now: u64) -> Option<Touched> {
        let socket = self.udp.get_mut(&cookie)?;
        socket.released = at;
        let key = socket.bound?;
        let claims = self.claims.get_mut(&key)?;
        let (mut used, mut living) = (false, false);
        for claim in claims.iter_mut() {
            if claim.cookie == cookie {
                claim.until = at;
                claim.forget = now + if claim.used { SERVED_USEC } else { ENDED_USEC };
                used |= claim.used;
            } else {
                living |= claim.until == u64::MAX;
            }
        }
        self.note_ending(key, now + if used { SERVED_USEC } else { ENDED_USEC }, now);
        let Layer4::Ports { src: port, .. } = key.original().layer4 else { return None };
        (used && living).then_some(Touched::Port(port))
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

    fn note_ending(&mut self, key: Key, forget: u64, now: u64) {
        if forget != u64::MAX
            && let Some(claims) = self.claims.get_mut(&key)
            && !std::mem::replace(&mut claims.ending, true)
        {
            self.ending[kept_for(forget - now)].push_back((forget, key));
        }
    }

    /// Forgets what has ended, but for what lasted until `useful_from` (CLOCK_MONOTONIC nanoseconds).
    pub(crate) fn expire(&mut self, now: u64, useful_from: u64, counters: &mut Counters) {
        for which in 0..self.ending.len() {
            while let Some(&(forget, key)) = self.ending[which].front()
                && forget <= now
            {
                self.ending[which].pop_front();
                let Self { claims, udp, pending, .. } = self;
                let Some(entry) = claims.get_mut(&key) else { continue };
                let wanted = |claim: &Claim| claim.forget > now || claim.until >= useful_from;
                let is_empty = entry.retain(wanted, |claim| {
                    counters.owners_expired += 1;
                    counters.owners_unmatched_sockets += u64::from(claim.pending);
                    *pending -= u64::from(claim.pending);
                    forget_udp(udp, claim.cookie);
                });
                let next = entry.iter().map(|claim| claim.forget.max(now + 1)).min();
                match next {
                    _ if is_empty => drop(claims.remove(&key)),
                    None | Some(u64::MAX) => entry.ending = false,
                    Some(next) => self.ending[kept_for(next - now)].push_back((next, key)),
                }
            }
            if self.ending[which].is_empty() {
                self.ending[which] = VecDeque::new(); // A burst's memory.
            }
        }
        if self.claims.capacity() > 4 * self.claims.len().max(1024) {
            self.claims.shrink_to(2 * self.claims.len());
        }
        if self.udp.capacity() > 4 * self.udp.len().max(1024) {
            self.udp.shrink_to(2 * self.udp.len());
        }
    }

    /// Records of sockets were lost until `at` (CLOCK_MONOTONIC nanoseconds): what was open may have ended, unseen. Servers
    /// are kept, of whom nothing is exact.
    pub(crate) fn note_loss(&mut self, at: u64, now: u64) {
        self.doubt = at;
        let Self { claims, udp, ending, .. } = self;
        for (key, entry) in claims {
            let is_server =
                |claim: &Claim| udp.get(&claim.cookie).is_some_and(|socket| socket.bound == Some(*key));
            let mut is_cut = false;
            for claim in entry.iter_mut().filter(|claim| claim.until > at && !is_server(claim)) {
                (claim.until, claim.forget) = (at, now + ENDED_USEC);
                is_cut = true;
            }
            if is_cut && !std::mem::replace(&mut entry.ending, true) {
                ending[0].push_back((now + ENDED_USEC, *key));
            }
        }
    }

    /// Sockets that were there before `at` (CLOCK_MONOTONIC nanoseconds) may be reported later.
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

    /// Events of flows were lost until `now` (CLOCK_MONOTONIC nanoseconds).
    pub(crate) fn note_lost_flows(&mut self, now: u64) {
        self.floor = now;
    }

    /// A flow of this direction has ended within the window; `is_young` where it may have begun within it, too.
    pub(crate) fn flow_ended(&mut self, direction: &Tuple, window: Window, is_young: bool) {
        if let Some(place) = Place::of(direction) {
            for key in [Some(place.exact()), place.sent_without_address()].into_iter().flatten() {
                if let Some(claims) = self.claims.get_mut(&key) {
                    claims.flow_ended(window, is_young);
                }
            }
        }
    }

    /// Whether what passed in this direction at a time was of the flow that is there now.
    pub(crate) fn is_of_this_flow(&self, direction: &Tuple, at: u64) -> bool {
        let floor =
            self.claims.get(&Key::new(&Tuple { zone: 0, ..*direction })).map_or(0, |claims| claims.floor);
        at > floor
    }

    /// The owner of the socket that sends the packets of this direction, of a flow that began within `window`. The zone
    /// plays no part: a packet is tracked in the zone that rules give it, and keeps its socket.
    pub(crate) fn beginner(&mut self, direction: &Tuple, role: Role, window: Window) -> OwnerNumber {
        let Some(place) = Place::of(direction) else { return OwnerNumber::default() };
        if !self.knows_all(window) {
            return OwnerNumber::default();
        }
        if place.protocol == TCP {
            let mut candidates = Candidates::default();
            // What was established before the window has sent its SYN then.
            self.add_beginners(&place.exact(), window, window.from, &mut candidates);
            // A SYN is reported before it leaves: the socket of the flow is among these.
            if role == Role::Initiator
                && self.floor < window.from
                && let Some(claims) = self.claims.get(&place.exact())
            {
                candidates.count_beginners(claims, window);
            }
            return candidates.owner(false);
        }
        let mut sent = Candidates::default();
        let [exact, any] = self.sending_places(&place);
        for key in [exact, any].into_iter().flatten() {
            self.add_beginners(&key, window, 0, &mut sent);
        }
        if role == Role::Initiator {
            return sent.owner(true);
        }
        // Who has answered another flow with these ends answers this one, unless others wait at the same place.
        for key in self.waiting_places(&place).into_iter().flatten() {
            let mut waits = Candidates::default();
            self.add_beginners(&key, window, 0, &mut waits);
            if !waits.is_empty() {
                let answers = sent.only_process();
                let same = answers.is_some() && answers == waits.only_process();
                return if same { sent.owner(true) } else { waits.owner(true) };
            }
        }
        sent.owner(true)
    }

    /// Who sends in this direction at a time when the flow is known to be there; `None` where that is not known.
    pub(crate) fn current(&mut self, direction: &Tuple, role: Role, at: u64) -> Option<Current> {
        let place = Place::of(direction)?;
        if place.protocol == TCP {
            return self.current_connection(&place.exact(), at);
        }
        let mut sent = Candidates::default();
        for key in self.sending_places(&place).into_iter().flatten() {
            self.add_living(&key, at, &mut sent);
        }
        if !sent.is_empty() {
            return Some(Current { owner: sent.owner(true), sent: true });
        }
        for key in self.waiting_places(&place).into_iter().flatten() {
            let mut waits = Candidates::default();
            self.add_living(&key, at, &mut waits);
            let owner = waits.owner(true);
            // Who sends is reported; of older sockets that is not known.
            let is_old = owner.get().is_some_and(|(_, sure)| sure == Confidence::Snapshot);
            if !waits.is_empty() && (role == Role::Responder || is_old) {
                return Some(Current { owner, sent: false });
            }
        }
        // Who sent in the time of this flow and has ended since.
        let mut sent = Candidates::default();
        for key in self.sending_places(&place).into_iter().flatten() {
            let floor = self.floor;
            if let Some(claims) = self.claims.get(&key) {
                let is_of_flow = |claim: &&Claim| claim.sure <= at && claim.sure > claims.floor.max(floor);
                claims.iter().filter(is_of_flow).for_each(|claim| sent.add_holder(claim));
            }
        }
        let owner = sent.newest_owner();
        (!owner.is_none()).then_some(Current { owner, sent: true })
    }

    /// A direction has one TCP socket at a time: the newest, once it is established.
    fn current_connection(&mut self, key: &Key, at: u64) -> Option<Current> {
        let global = self.floor;
        let claims = self.claims.get_mut(key)?;
        let newest = *claims.newest();
        let is_over = newest.until <= at;
        if newest.sure > at || is_over && newest.sure <= claims.floor.max(global) {
            return None;
        }
        let mut holders = Candidates::default();
        self.pending -= take_pending(claims);
        for claim in claims.iter().filter(|claim| claim.cookie == newest.cookie) {
            holders.add_holder(claim);
        }
        Some(Current { owner: holders.owner(false), sent: true })
    }

    /// The owner of the socket that sent in this direction of a connection that was finished by `to`. All
    /// sockets that can be meant have been reported, and in which order they had the direction is of no account where one
    /// process had them all.
    pub(crate) fn finished(&self, direction: &Tuple, begin: Begin, to: u64) -> OwnerNumber {
        let Some(claims) =
            self.connections(direction).filter(|_| self.knows_all(Window { from: begin.from, to }))
        else {
            return OwnerNumber::default();
        };
        let mut connections = Candidates::default();
        connections.add_finished(claims, begin, to, claims.floor.max(self.floor));
        connections.owner(false)
    }

    /// How many flows of this direction have begun and ended within a window; `None` where none may have ended within it.
    pub(crate) fn ended_within(&self, direction: &Tuple, window: Window) -> Option<u8> {
        let claims = self.connections(direction)?;
        (claims.floor > 0 && claims.floor >= window.from).then(|| claims.ended(window.from))
    }

    fn connections(&self, direction: &Tuple) -> Option<&Claims> {
        let place = Place::of(direction).filter(|place| place.protocol == TCP)?;
        self.claims.get(&place.exact())
    }

    /// Whether a process is known to have had a socket of this direction that has ended.
    pub(crate) fn has_ended(&self, direction: &Tuple, pid: u32) -> bool {
        let Some(place) = Place::of(direction) else { return false };
        let places = self.sending_places(&place).into_iter().chain(self.waiting_places(&place)).flatten();
        let mut ended = false;
        for claim in places.filter_map(|key| self.claims.get(&key)).flat_map(Claims::iter) {
            if claim.process.pid == pid {
                if end_of(&self.udp, claim) == u64::MAX {
                    return false;
                }
                ended = true;
            }
        }
        ended
    }

    fn add_beginners(&mut self, key: &Key, window: Window, syn_from: u64, candidates: &mut Candidates) {
        let Self { claims, udp, pending, floor, .. } = self;
        if let Some(claims) = claims.get_mut(key) {
            let before = count_pending(claims);
            let floor = claims.floor.max(*floor).max(syn_from);
            candidates.add_beginners(claims, window, floor, |claim| end_of(udp, claim));
            *pending -= before - count_pending(claims);
        }
    }

    fn add_living(&mut self, key: &Key, at: u64, candidates: &mut Candidates) {
        let Self { claims, udp, pending, .. } = self;
        if let Some(claims) = claims.get_mut(key) {
            let before = count_pending(claims);
            candidates.add_living(claims, at, |claim| end_of(udp, claim));
            *pending -= before - count_pending(claims);
        }
    }

    /// Where those that send UDP in a direction are known: by both ends, and without an address of their own. What only
    /// passes through has the ports of the latter, so the address has to be one of ours.
    fn sending_places(&self, place: &Place) -> [Option<Key>; 2] {
        let can_be_ours = self.addresses.is_none() || self.is_ours(place.local.ip());
        [Some(place.exact()), place.sent_without_address().filter(|_| can_be_ours)]
    }

    /// Where those that wait for UDP are known, the nearest first.
    fn waiting_places(&self, place: &Place) -> [Option<Key>; 3] {
        let nobody = SocketAddr::new(unspecified(place.remote.ip()), 0);
        let own = key(UDP, place.local, nobody);
        let any = |ip: IpAddr| key(UDP, SocketAddr::new(ip, place.local.port()), SocketAddr::new(ip, 0));
        if !self.is_ours(place.local.ip()) {
            return [Some(own), None, None];
        }
        let family = unspecified(place.remote.ip());
        let both = family.is_ipv4().then(|| any(Ipv6Addr::UNSPECIFIED.into()));
        [Some(own), Some(any(family)), both]
    }

    /// The directions that a datagram to an end can have, whose sender has no address of its own.
    pub(crate) fn directions(&self, sent: &Tuple) -> Vec<Tuple> {
        if !sent.src.is_unspecified() {
            return vec![*sent];
        }
        let ours = self.addresses.iter().flatten().copied();
        let ours = ours.filter(|address| address.is_ipv4() == sent.dst.is_ipv4()).take(ADDRESSES_TRIED);
        let loopback = sent.dst.is_loopback().then_some(sent.dst);
        ours.filter(|address| Some(*address) != loopback)
            .chain(loopback)
            .map(|src| Tuple { src, ..*sent })
            .collect()
    }

    /// Whether an address is known to be one of this namespace.
    pub(crate) fn is_ours(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.as_ref().is_some_and(|addresses| addresses.contains(&address))
    }

    /// Notes the addresses of this namespace; true when they were not known to be these.
    pub(crate) fn set_addresses(&mut self, addresses: HashSet<IpAddr>) -> bool {
        let addresses = Some(addresses);
        let changed = self.addresses != addresses;
        self.addresses = addresses;
        changed
    }

    /// Connections and datagrams whose flow has not been seen yet.
    pub(crate) fn pending(&self) -> u64 {
        self.pending
    }

    /// Who owns a socket.
    pub(crate) fn owners(&self) -> impl Iterator<Item = OwnerNumber> + '_ {
        self.claims.values().flat_map(Claims::iter).map(|claim| claim.owner)
    }
}

/// The ends of a direction, seen from the socket that sends.
struct Place {
    protocol: u8,
    local: SocketAddr,
    remote: SocketAddr,
}

impl Place {
    /// `None` of a protocol whose sockets are not known.
    fn of(direction: &Tuple) -> Option<Self> {
        let Layer4::Ports { src, dst } = direction.layer4 else { return None };
        matches!(direction.protocol, TCP | UDP).then(|| Self {
            protocol: direction.protocol,
            local: SocketAddr::new(direction.src, src),
            remote: SocketAddr::new(direction.dst, dst),
        })
    }

    fn exact(&self) -> Key {
        key(self.protocol, self.local, self.remote)
    }

    fn sent_without_address(&self) -> Option<Key> {
        let any = SocketAddr::new(unspecified(self.remote.ip()), self.local.port());
        (self.protocol == UDP).then(|| key(UDP, any, self.remote))
    }
}

/// Which of [`Sockets::ending`] has the claims that are kept for about this long.
fn kept_for(usec: u64) -> usize {
    usize::from(usec > ENDED_USEC) + usize::from(usec > SENT_USEC)
}

/// When the socket of a claim ended, or the claim itself did.
fn end_of(udp: &HashMap<u64, UdpSocket, RandomState>, claim: &Claim) -> u64 {
    claim.until.min(udp.get(&claim.cookie).map_or(u64::MAX, |socket| socket.released))
}

fn forget_udp(udp: &mut HashMap<u64, UdpSocket, RandomState>, cookie: u64) {
    if let Some(socket) = udp.get_mut(&cookie) {
        socket.claims -= 1;
        if socket.claims == 0 {
            udp.remove(&cookie);
        }
    }
}

fn count_pending(claims: &Claims) -> u64 {
    claims.iter().map(|claim| u64::from(claim.pending)).sum()
}

fn take_pending(claims: &mut Claims) -> u64 {
    claims.iter_mut().map(|claim| u64::from(std::mem::take(&mut claim.pending))).sum()
}

/// The direction from one end to another.
pub(crate) fn direction(protocol: u8, from: SocketAddr, to: SocketAddr) -> Tuple {
    let src = match (from.ip(), to.ip()) {
        // A socket of both families that speaks IPv4.
        (IpAddr::V6(from), to @ IpAddr::V4(_)) if from.is_unspecified() => unspecified(to),
        (from, _) => from,
    };
    let layer4 = Layer4::Ports { src: from.port(), dst: to.port() };
    Tuple { src, dst: to.ip(), protocol, layer4, zone: 0 }
}

fn key(protocol: u8, local: SocketAddr, remote: SocketAddr) -> Key {
    Key::new(&direction(protocol, local, remote))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A datagram from 198.18.0.1:5000, `now` (microseconds).
    fn send(sockets: &mut Sockets, to: SocketAddr, cookie: u64, now: u64, counters: &mut Counters) {
        let event = Event {
            kind: Kind::Send,
            monotonic_ns: 1_000 * now,
            cookie,
            network_namespace: 1,
            protocol: UDP,
            local: SocketAddr::from(([198, 18, 0, 1], 5000)),
            remote: to,
            process: None,
        };
        sockets.apply(&event, OwnerNumber::default(), now, counters);
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
        assert_eq!(
            (sockets.claims.len(), sockets.udp.len(), waiting(&sockets), sockets.pending()),
            (0, 0, 0, 0)
        );
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
                };
                sockets.apply(&event, OwnerNumber::default(), 1, &mut counters);
            }
        }
        let claims: Vec<u64> =
            sockets.claims.values().flat_map(Claims::iter).map(|claim| claim.cookie).collect();
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
    fn what_there_is_no_room_for_is_not_waited_for() {
        let (mut sockets, mut counters) = (Sockets::default(), Counters::default());
        for number in 0..2 * MAXIMUM as u64 {
            let server = SocketAddr::from((u32::try_from(number).unwrap().to_be_bytes(), 53));
            send(&mut sockets, server, number, 0, &mut counters);
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
}

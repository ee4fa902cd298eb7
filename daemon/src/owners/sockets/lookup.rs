//! Whose socket sends in a direction: when a flow begins, while it is there, and once it has ended.

use std::collections::HashMap;
use std::net::SocketAddr;

use ctnetlink::Tuple;
use flowbus_attribution::Confidence;
use foldhash::fast::RandomState;

use super::place::{Place, key, unspecified};
use super::{Current, Role, Sockets, UdpSocket};
use crate::flow::{Key, OwnerNumber, TCP, UDP};
use crate::owners::candidates::Candidates;
use crate::owners::claims::{Claim, Claims};
use crate::owners::window::{Begin, Window};

/// At most this many addresses are tried for a socket that has none of its own.
const ADDRESSES_TRIED: usize = 64;

impl Sockets {
    /// Whether what passed in this direction at a time was of the flow that is there now.
    pub(crate) fn is_of_this_flow(&self, direction: &Tuple, at: u64) -> bool {
        let floor =
            self.claims.get(&Key::new(&Tuple { zone: 0, ..*direction })).map_or(0, |claims| claims.floor);
        at > floor
    }

    /// The owner of the socket that sends the packets of the original direction of a flow that began within `window`. The
    /// zone plays no part: a packet is tracked in the zone that rules give it, and keeps its socket.
    pub(crate) fn initiator(&mut self, direction: &Tuple, window: Window) -> OwnerNumber {
        let Some(place) = Place::of(direction).filter(|_| self.knows_all(window)) else {
            return OwnerNumber::default();
        };
        if place.protocol != TCP {
            let senders = self.senders(&place, window);
            self.count(&senders);
            let owner = senders.sender(true);
            if let Some(claims) = self.claims.get_mut(&place.exact()) {
                claims.note_given(owner);
            }
            return owner;
        }
        let mut candidates = self.established(&place, window);
        // A SYN is reported before it leaves: the socket of the flow is among these.
        if self.floor < window.from
            && let Some(claims) = self.claims.get(&place.exact())
        {
            candidates.count_beginners(claims, window);
        }
        self.count(&candidates);
        candidates.sender(false)
    }

    /// Whether the flow that began in this direction of UDP, and is there, has the owner that [`Sockets::current`] finds at a
    /// time: the direction has had one socket, reported before the flow began and open still.
    pub(crate) fn has_given(&self, direction: &Tuple, at: u64) -> bool {
        // A socket without an address of its own sends in several directions.
        !direction.src.is_unspecified()
            && self
                .claims
                .get(&Key::new(direction))
                .and_then(Claims::given)
                .is_some_and(|claim| end_of(&self.udp, claim) >= at)
    }

    /// The owner of the socket that sends the packets of the reply direction of a flow that was answered within `window`.
    pub(crate) fn responder(&mut self, direction: &Tuple, window: Window) -> OwnerNumber {
        let Some(place) = Place::of(direction).filter(|_| self.knows_all(window)) else {
            return OwnerNumber::default();
        };
        if place.protocol == TCP {
            let established = self.established(&place, window);
            self.count(&established);
            return established.sender(false);
        }
        let sent = self.senders(&place, window);
        if sent.are_contested() {
            self.count(&sent);
            return OwnerNumber::CONTESTED;
        }
        let candidates = match self.waiting(&place, window) {
            Some(waits) => sent.of_process_of(&waits).unwrap_or(waits),
            None => sent,
        };
        self.count(&candidates);
        candidates.owner(true)
    }

    /// Counts where the owner is not known because several namespaces may have it.
    fn count(&mut self, candidates: &Candidates) {
        self.ambiguous += u64::from(!candidates.is_empty() && candidates.are_contested());
    }

    /// The owner of the socket that receives the packets of an unanswered flow that began within `window`.
    /// Such a flow need not have one: a socket that was not there throughout may be that of the next flow with these ends.
    /// `None` where it is known only once all events of the window have been applied.
    pub(crate) fn waits_for(&mut self, direction: &Tuple, window: Window) -> Option<OwnerNumber> {
        let Some(place) = Place::of(direction).filter(|place| place.protocol != TCP) else {
            return Some(OwnerNumber::default());
        };
        let Some(waits) = self.waiting(&place, window) else { return Some(OwnerNumber::default()) };
        if !self.knows_all(window) || !waits.is_one_throughout() {
            return None;
        }
        let sent = self.senders(&place, window);
        // An answer in another flow says nothing of who else may wait here.
        let candidates =
            if waits.are_doubted() { waits } else { sent.of_process_of(&waits).unwrap_or(waits) };
        self.count(&candidates);
        Some(candidates.owner(true))
    }

    /// Processes whose TCP socket may be that of a flow that began or was established within the window.
    fn established(&mut self, place: &Place, window: Window) -> Candidates {
        let mut candidates = Candidates::default();
        // What was established before the window has sent its SYN then.
        self.add_beginners(&place.exact(), window, window.from, &mut candidates);
        candidates
    }

    /// Processes that sent UDP in a direction within the window.
    fn senders(&mut self, place: &Place, window: Window) -> Candidates {
        let mut sent = Candidates::default();
        for key in self.sending_places(place).into_iter().flatten() {
            self.add_beginners(&key, window, 0, &mut sent);
        }
        self.add_doubts(place.sent_without_address(), window, &mut sent);
        sent
    }

    /// Processes that wait for UDP at the nearest place where there are any within the window.
    fn waiting(&mut self, place: &Place, window: Window) -> Option<Candidates> {
        self.waiting_places(place).into_iter().flatten().find_map(|key| {
            let mut waits = Candidates::default();
            self.add_beginners(&key, window, 0, &mut waits);
            self.add_doubts(place.waiting_without_address(), window, &mut waits);
            (!waits.is_empty()).then_some(waits)
        })
    }

    /// The process that sends in this direction at a time when the flow is known to be there; `None` where it is not known.
    pub(crate) fn current(&mut self, direction: &Tuple, role: Role, at: u64) -> Option<Current> {
        let place = Place::of(direction)?;
        if place.protocol == TCP {
            return self.current_connection(&place.exact(), at);
        }
        let mut sent = Candidates::default();
        for key in self.sending_places(&place).into_iter().flatten() {
            self.add_living(&key, at, &mut sent);
        }
        let window = Window { from: at, to: at };
        if !sent.is_empty() {
            self.add_doubts(place.sent_without_address(), window, &mut sent);
            self.add_quiet(&place, at, &mut sent);
            // That a socket may have the same ends gives nobody's flow away.
            let is_known = !sent.are_contested() || sent.are_of_several_namespaces();
            return Some(Current { owner: sent.sender(true), sent: is_known, exact: false, late: false });
        }
        for key in self.waiting_places(&place).into_iter().flatten() {
            let mut waits = Candidates::default();
            self.add_living(&key, at, &mut waits);
            self.add_doubts(place.waiting_without_address(), window, &mut waits);
            let owner = waits.owner(true);
            // A sender is reported as one; whether an older socket has sent is not known.
            let is_old = owner.get().is_some_and(|(_, sure)| sure == Confidence::Snapshot);
            if !waits.is_empty() && (role == Role::Responder || is_old) {
                return Some(Current { owner, sent: false, exact: false, late: false });
            }
        }
        // The processes that sent in the time of this flow and whose sockets have ended since.
        let mut sent = Candidates::default();
        for key in self.sending_places(&place).into_iter().flatten() {
            let floor = self.floor;
            if let Some(claims) = self.claims.get(&key) {
                let is_of_flow = |claim: &&Claim| claim.sure <= at && claim.sure > claims.floor.max(floor);
                claims.iter().filter(is_of_flow).for_each(|claim| sent.add_holder(claim));
            }
        }
        self.add_doubts(place.sent_without_address(), Window { from: 0, to: at }, &mut sent);
        let owner = sent.newest_owner();
        (!owner.is_none()).then_some(Current { owner, sent: true, exact: false, late: false })
    }

    /// The process of a direction's TCP socket. A direction has one at a time: the newest, once it is established.
    fn current_connection(&mut self, key: &Key, at: u64) -> Option<Current> {
        let global = self.floor;
        let claims = self.claims.get_mut(key)?;
        let newest = *claims.newest();
        let is_over = newest.until <= at;
        if newest.sure > at || is_over && newest.sure <= claims.floor.max(global) {
            return None;
        }
        // Another namespace can have a socket with the same ends, whose flow may be there still.
        let floor = claims.floor.max(global);
        if claims.iter().any(|claim| claim.namespace != newest.namespace && claim.until > floor) {
            return None;
        }
        let late = !claims.can_be_of(&newest);
        let mut holders = Candidates::default();
        self.pending -= take_pending(claims);
        for claim in claims.iter().filter(|claim| claim.cookie == newest.cookie) {
            holders.add_holder(claim);
        }
        let exact = newest.owner.get().is_some_and(|(_, sure)| sure == Confidence::Exact);
        Some(Current { owner: holders.owner(false), sent: true, exact, late })
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

    /// Whether a process is known to have had sockets of this direction, all of which were seen to end.
    pub(crate) fn has_ended(&self, direction: &Tuple, pid: u32) -> bool {
        let Some(place) = Place::of(direction) else { return false };
        let places = self.sending_places(&place).into_iter().chain(self.waiting_places(&place)).flatten();
        let mut ended = false;
        for claim in places.filter_map(|key| self.claims.get(&key)).flat_map(Claims::iter) {
            if claim.process.pid == pid {
                if is_open(&self.udp, claim) {
                    return false;
                }
                ended = true;
            }
        }
        ended
    }

    /// Whether a process has had a socket of this direction since before events of flows were lost.
    pub(crate) fn has_lasted(&self, direction: &Tuple, pid: u32) -> bool {
        let Some(place) = Place::of(direction) else { return false };
        let places = self.sending_places(&place).into_iter().chain(self.waiting_places(&place)).flatten();
        places
            .filter_map(|key| self.claims.get(&key))
            .flat_map(Claims::iter)
            .any(|claim| claim.process.pid == pid && claim.since < self.floor && is_open(&self.udp, claim))
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

    /// Adds what stands at these places of other namespaces than the tracked one, whose addresses are not known: each of the
    /// sockets may have been the one that is meant.
    fn add_doubts(&self, places: impl IntoIterator<Item = Key>, window: Window, candidates: &mut Candidates) {
        if self.elsewhere {
            for claims in places.into_iter().filter_map(|key| self.claims.get(&key)) {
                candidates.doubt_dropped(claims, window);
                claims
                    .iter()
                    .filter(|claim| claim.since <= window.to && end_of(&self.udp, claim) >= window.from)
                    .for_each(|claim| candidates.doubt(claim));
            }
        }
    }

    /// Adds the sockets of other namespaces than the tracked one that sent, or may have sent, in a direction at any time before
    /// `at`, and have not been seen to end.
    fn add_quiet(&self, place: &Place, at: u64, candidates: &mut Candidates) {
        let quiet = |key| {
            let claims = self.claims.get(&key).filter(|_| self.elsewhere).into_iter().flat_map(Claims::iter);
            claims.filter(|claim| claim.since <= at && is_open(&self.udp, claim))
        };
        quiet(place.exact()).for_each(|claim| candidates.note_quiet(claim));
        place.sent_without_address().into_iter().flat_map(quiet).for_each(|claim| candidates.doubt(claim));
    }

    /// The keys of sockets that send UDP in a direction: with both ends, and without an address of their own. Traffic that is only
    /// forwarded has the ports of the latter, so the address has to be one of ours.
    fn sending_places(&self, place: &Place) -> [Option<Key>; 2] {
        let can_be_ours = self.addresses.is_none() || self.is_ours(place.local.ip());
        [Some(place.exact()), place.sent_without_address().filter(|_| can_be_ours)]
    }

    /// The keys of sockets that wait for UDP in a direction, the nearest first.
    fn waiting_places(&self, place: &Place) -> [Option<Key>; 3] {
        let nobody = SocketAddr::new(unspecified(place.remote.ip()), 0);
        let own = key(UDP, place.local, nobody);
        if !self.is_ours(place.local.ip()) {
            return [Some(own), None, None];
        }
        let mut any = place.waiting_without_address();
        [Some(own), any.next(), any.next()]
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
}

/// When the socket of a claim ended, or the claim itself did.
fn end_of(udp: &HashMap<u64, UdpSocket, RandomState>, claim: &Claim) -> u64 {
    claim.until.min(udp.get(&claim.cookie).map_or(u64::MAX, |socket| socket.released))
}

/// Whether the socket of a claim is open, as far as reports say, however long it is quiet.
fn is_open(udp: &HashMap<u64, UdpSocket, RandomState>, claim: &Claim) -> bool {
    udp.get(&claim.cookie).map_or(claim.until, |socket| socket.released) == u64::MAX
}

fn count_pending(claims: &Claims) -> u64 {
    claims.iter().map(|claim| u64::from(claim.pending)).sum()
}

fn take_pending(claims: &mut Claims) -> u64 {
    claims.iter_mut().map(|claim| u64::from(std::mem::take(&mut claim.pending))).sum()
}

//! The sockets that have had one direction, in the order of time, and which of them a flow can belong to.
//!
//! All times are nanoseconds on CLOCK_MONOTONIC, which the BPF programs stamp their records with. When the kernel sent
//! an event is only known within bounds, a [`Window`]; so a flow can belong to every socket whose time meets them.

use flowbus_attribution::{Confidence, Process};

use super::window::{Begin, Window};
use crate::flow::OwnerNumber;

/// At most this many claims of a direction are kept besides the newest.
const MAXIMUM_OLDER: usize = 7;

/// Identifies a process, whose number alone is used again after it has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, packed(4))] // Without a hole, so that a claim takes 64 bytes.
pub(super) struct ProcessId {
    /// 0 where nobody is known to be the owner.
    pub(super) pid: u32,
    start_boottime_ns: u64,
}

impl From<&Process> for ProcessId {
    fn from(process: &Process) -> Self {
        Self { pid: process.pid, start_boottime_ns: process.start_boottime_ns }
    }
}

/// A process that sends, or may send, in a direction by one socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) cookie: u64,
    pub(super) owner: OwnerNumber,
    /// The owner's process.
    pub(super) process: ProcessId,
    /// A flow that began before this time is not the socket's, unless the socket was accepted from it.
    pub(super) since: u64,
    /// The time by which a packet of the socket had passed; `u64::MAX` while that is not known.
    pub(super) sure: u64,
    /// When the socket ended, or when the next datagram of the process would be reported; `u64::MAX` while it is open.
    pub(super) until: u64,
    /// CLOCK_BOOTTIME microseconds when it is forgotten; `u64::MAX` while it is open.
    pub(super) forget: u64,
    /// Whether no flow has matched the claim yet.
    pub(super) pending: bool,
    /// Whether a flow had its owner from a bound socket.
    pub(super) used: bool,
    /// Whether a flow with the ends of this TCP socket was there before its SYN, so that the flow is not its own.
    pub(super) late: bool,
    /// Inode of the network namespace; 0 where it is the tracked one, or not known.
    pub(super) namespace: u32,
    /// Whether the socket is in another namespace than the tracked one.
    pub(super) elsewhere: bool,
}

impl Claim {
    /// The owner as flows have it.
    fn told_owner(&self) -> OwnerNumber {
        if self.elsewhere { self.owner.with(Confidence::Forwarded) } else { self.owner }
    }

    fn sureness(&self) -> Option<Confidence> {
        self.owner.get().map(|(_, confidence)| confidence)
    }

    fn last_seen(&self) -> u64 {
        if self.sure == u64::MAX { self.since } else { self.sure }
    }
}

/// The claims of a direction. Most have one alone, and there can be very many directions: what few of them have stands apart.
#[derive(Debug)]
pub(super) struct Claims {
    newest: Claim,
    past: Option<Box<Past>>,
    /// When a flow of this direction last ended, at the latest. What passed before is not of the flow that is there now.
    pub(super) floor: u64,
    /// How many flows of this direction have begun and ended within the window that began at `ended_from`.
    ended: u8,
    ended_from: u64,
    /// The namespace of the first claim.
    pub(super) brought_by: u32,
    /// Whether the direction stands in a queue of `Sockets::ending`.
    pub(super) ending: bool,
    /// Whether the flow of this direction began after the last report, and has the owner of the only claim.
    given: bool,
}

/// What was before the newest claim.
#[derive(Debug, Default)]
struct Past {
    /// Oldest first.
    claims: Vec<Claim>,
    /// Claims that lasted until here were dropped, because there were too many.
    dropped: u64,
}

impl Claims {
    /// Whether a claim that lasted until this time or longer was dropped.
    fn have_dropped_since(&self, from: u64) -> bool {
        self.past.as_ref().is_some_and(|past| past.dropped > 0 && past.dropped >= from)
    }

    pub(super) fn new(claim: Claim) -> Self {
        let brought_by = claim.namespace;
        Self {
            newest: claim,
            past: None,
            floor: 0,
            ended: 0,
            ended_from: 0,
            brought_by,
            ending: false,
            given: false,
        }
    }

    /// The claims, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Claim> {
        self.older().iter().chain([&self.newest])
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Claim> {
        let Self { newest, past, .. } = self;
        past.iter_mut().flat_map(|past| &mut past.claims).chain([newest])
    }

    /// The claims before the newest, oldest first.
    fn older(&self) -> &[Claim] {
        self.past.as_ref().map_or(&[], |past| &past.claims)
    }

    pub(super) fn newest(&self) -> &Claim {
        &self.newest
    }

    /// The newest claim of a socket.
    pub(super) fn of(&mut self, cookie: u64, is_it: impl Fn(&Claim) -> bool) -> Option<&mut Claim> {
        let Self { newest, past, .. } = self;
        let older = past.iter_mut().flat_map(|past| past.claims.iter_mut().rev());
        let mut newest_first = std::iter::once(newest).chain(older);
        newest_first.find(|claim| claim.cookie == cookie && is_it(claim))
    }

    /// Notes which owner a flow has that has begun in this direction.
    pub(super) fn note_given(&mut self, owner: OwnerNumber) {
        let newest = &self.newest;
        self.given =
            !owner.is_none() && self.older().is_empty() && !newest.pending && newest.told_owner() == owner;
    }

    /// Forgets which owner a flow was given: a socket of this direction has been reported since, or reports may be missing.
    pub(super) fn forget_given(&mut self) {
        self.given = false;
    }

    /// The only claim, where the flow that is there has its owner and nothing has been reported since.
    pub(super) fn given(&self) -> Option<&Claim> {
        self.given.then_some(&self.newest)
    }

    /// Adds a claim that is newer than all others; returns one that there is no room for any more.
    pub(super) fn push(&mut self, claim: Claim) -> Option<Claim> {
        let before = std::mem::replace(&mut self.newest, claim);
        let past = self.past.get_or_insert_default();
        past.claims.push(before);
        if past.claims.len() <= MAXIMUM_OLDER {
            return None;
        }
        let dropped = past.claims.remove(0);
        past.dropped = past.dropped.max(dropped.until);
        Some(dropped)
    }

    /// Adds a claim that is older than all others; false when there is no room for it.
    pub(super) fn push_oldest(&mut self, claim: Claim) -> bool {
        let past = self.past.get_or_insert_default();
        let room = past.claims.len() < MAXIMUM_OLDER;
        if room {
            past.claims.insert(0, claim);
        } else {
            past.dropped = past.dropped.max(claim.until);
        }
        room
    }

    /// Notes that a flow of this direction has ended within the window; `is_young` where it may have begun within it, too.
    pub(super) fn flow_ended(&mut self, window: Window, is_young: bool) {
        self.given = false;
        self.floor = window.to;
        self.ended = self.ended(window.from).saturating_add(is_young.into());
        self.ended_from = window.from;
    }

    /// Whether the flow of this direction that is there may be a claim's.
    pub(super) fn can_be_of(&self, claim: &Claim) -> bool {
        !claim.late || claim.since < self.floor
    }

    /// How many flows of this direction have begun and ended within the window that began at this time.
    pub(super) fn ended(&self, from: u64) -> u8 {
        if self.ended_from == from { self.ended } else { 0 }
    }

    /// Whether more sockets were established in this direction since a time than flows of it, each of which had one. The SYN
    /// is reported before its flow begins, so it may be older.
    fn are_more_since(&self, from: u64, flows: u8) -> bool {
        let mut cookies = [0; MAXIMUM_OLDER + 1];
        let mut count = 0;
        for claim in self.iter().filter(|claim| claim.sure >= from) {
            if !cookies[..count].contains(&claim.cookie) {
                cookies[count] = claim.cookie;
                count += 1;
            }
        }
        count > flows.into()
    }

    /// Removes the claims that are not wanted, calling `each` for them; true when none is left.
    pub(super) fn retain(&mut self, wanted: impl Fn(&Claim) -> bool, mut each: impl FnMut(&Claim)) -> bool {
        if let Some(past) = &mut self.past {
            past.claims.retain(|claim| {
                let is_wanted = wanted(claim);
                if !is_wanted {
                    each(claim);
                }
                is_wanted
            });
        }
        if wanted(&self.newest) {
            return false;
        }
        each(&self.newest);
        match self.past.as_mut().and_then(|past| past.claims.pop()) {
            Some(claim) => self.newest = claim,
            None => return true,
        }
        false
    }
}

/// The claims among which a flow's owner is.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    newest: Option<Claim>,
    several_processes: bool,
    several_sockets: bool,
    several_namespaces: bool,
    /// A socket of another namespace may have the same ends: its address is not known.
    one_elsewhere: bool,
    /// Whether a candidate came when a flow with these ends was there: that flow can be meant, or another.
    one_late: bool,
    one_ended: bool,
    one_throughout: bool,
    one_unspent: bool,
    one_unknown: bool,
}

impl Candidates {
    /// Adds the claims by which a flow that began within `window` can have begun. `end_of` tells when a claim ended.
    pub(super) fn add_beginners(
        &mut self,
        claims: &mut Claims,
        window: Window,
        floor: u64,
        end_of: impl Fn(&Claim) -> u64,
    ) {
        self.one_unknown |= claims.have_dropped_since(window.from);
        let last_end = claims.floor;
        for claim in claims.iter_mut() {
            let end = end_of(claim);
            if claim.since <= window.to && end >= window.from {
                claim.pending = false;
                claim.used = true;
                // A socket that is over, and so is the flow of its packets: it began no other that is known of.
                let is_spent = end <= window.to && claim.sure < floor;
                self.add(claim, end <= window.to);
                self.one_late |= claim.late && claim.since >= last_end;
                self.one_throughout |= claim.since <= window.from && end > window.to;
                self.one_unspent |= !is_spent;
            }
        }
    }

    /// Notes that the flow, which began within the window, is of one of these sockets, if more of them were established
    /// since the window began than flows have begun and ended.
    pub(super) fn count_beginners(&mut self, claims: &Claims, window: Window) {
        self.one_unspent |= claims.are_more_since(window.from, claims.ended(window.from));
    }

    /// Adds the claims that are there at a time.
    pub(super) fn add_living(&mut self, claims: &mut Claims, at: u64, end_of: impl Fn(&Claim) -> u64) {
        for claim in claims.iter_mut() {
            if claim.since <= at && end_of(claim) >= at {
                claim.pending = false;
                claim.used = true;
                self.add_holder(claim);
            }
        }
    }

    /// Adds the connections that a finished flow can have been, which began as `begin` says; the surest comes last. What
    /// passed until `floor` may have been of a flow before it.
    pub(super) fn add_finished(&mut self, claims: &Claims, begin: Begin, to: u64, floor: u64) {
        self.one_unknown |= claims.have_dropped_since(begin.from);
        let mut is_spent = !claims.are_more_since(begin.from, begin.before);
        for claim in claims.iter().filter(|claim| claim.sure <= to && claim.until >= begin.from) {
            self.one_late |= !claims.can_be_of(claim);
            let surest = self.newest.filter(|newest| newest.sureness() < claim.sureness());
            // Which thread it was is not known.
            self.one_unknown |= surest.is_none()
                && self.newest.is_some_and(|newest| {
                    newest.sureness() == claim.sureness() && newest.owner != claim.owner
                });
            self.add_holder(claim);
            self.newest = surest.or(self.newest);
            is_spent &= claim.sure <= floor;
        }
        self.one_unspent &= !is_spent;
    }

    /// Adds a process that has the socket.
    pub(super) fn add_holder(&mut self, claim: &Claim) {
        self.add(claim, false);
        self.one_unspent = true;
    }

    fn add(&mut self, claim: &Claim, has_ended: bool) {
        if let Some(other) = &self.newest {
            self.several_processes |= other.process != claim.process;
            self.several_sockets |= other.cookie != claim.cookie;
            self.several_namespaces |= other.namespace != claim.namespace;
        }
        self.one_ended |= has_ended;
        if self.newest.is_none_or(|newest| newest.last_seen() <= claim.last_seen()) {
            self.newest = Some(*claim);
        }
    }

    /// Notes a socket of another namespace than the tracked one without an address of its own: it may have been the one that is
    /// meant, unless the same process of its namespace is anyway.
    pub(super) fn doubt(&mut self, other: &Claim) {
        self.one_elsewhere |= self.newest.is_none_or(|newest| newest.namespace != other.namespace);
        self.one_unknown |= self.newest.is_some_and(|newest| newest.process != other.process);
    }

    /// Notes a socket with these ends that is open, as far as reports say, and quiet.
    pub(super) fn note_quiet(&mut self, quiet: &Claim) {
        self.several_namespaces |= self.newest.is_some_and(|newest| newest.namespace != quiet.namespace);
    }

    /// Notes the sockets without an address for which there was no room: one may have been the one that is meant.
    pub(super) fn doubt_dropped(&mut self, claims: &Claims, window: Window) {
        self.one_unknown |= self.newest.is_some() && claims.have_dropped_since(window.from);
    }

    /// Whether a socket that is not among the candidates may be the one that is meant.
    pub(super) fn are_doubted(&self) -> bool {
        self.one_unknown || self.several_namespaces || self.one_elsewhere
    }

    /// The owner of the last that is known to have sent.
    pub(super) fn newest_owner(&self) -> OwnerNumber {
        let newest = self.newest.filter(|_| !self.are_contested());
        newest.map_or_else(OwnerNumber::default, |claim| claim.told_owner())
    }

    /// Whether sockets with these ends are known in several namespaces, of which one alone can be meant.
    pub(super) fn are_of_several_namespaces(&self) -> bool {
        self.several_namespaces
    }

    /// Whether a socket of another namespace than that of the others may be meant.
    pub(super) fn are_contested(&self) -> bool {
        self.several_namespaces || self.one_elsewhere
    }

    pub(super) fn is_empty(&self) -> bool {
        self.newest.is_none()
    }

    /// Whether a candidate was there from the begin of the window to its end.
    pub(super) fn is_one_throughout(&self) -> bool {
        self.one_throughout
    }

    /// The candidates, where all are of the one process that `waits` are of: a process that has answered another flow with these
    /// ends answers this one, unless others wait at the same place.
    pub(super) fn of_process_of(self, waits: &Self) -> Option<Self> {
        let process = self.only_process()?;
        (Some(process) == waits.only_process()).then_some(self)
    }

    /// The process, where it can be one alone.
    fn only_process(&self) -> Option<u32> {
        self.newest.filter(|_| !self.several_processes).map(|claim| claim.process.pid)
    }

    /// The owner of those that have sent: none for good where they are of several namespaces.
    pub(super) fn sender(&self, can_share: bool) -> OwnerNumber {
        if self.are_contested() { OwnerNumber::CONTESTED } else { self.owner(can_share) }
    }

    /// The owner: nobody where it is not known which of several processes it is; shared where all of them may be meant,
    /// because they have a socket together or, if `can_share`, sockets with the same ends.
    pub(super) fn owner(&self, can_share: bool) -> OwnerNumber {
        let is_known = self.one_unspent && !self.are_doubted() && !self.one_late;
        let Some(newest) = self.newest.filter(|_| is_known) else {
            return OwnerNumber::default();
        };
        if !self.several_processes {
            return newest.told_owner();
        }
        if self.several_sockets && (!can_share || self.one_ended) {
            return OwnerNumber::default();
        }
        newest.owner.with(Confidence::Shared)
    }
}

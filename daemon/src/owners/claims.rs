//! The sockets that have had one direction, in the order of time.
//!
//! All times are nanoseconds on CLOCK_MONOTONIC, which the BPF programs stamp their records with. When the kernel sent
//! an event is only known within bounds, a [`Window`]; so a flow can belong to every socket whose time meets them.

use flowbus_attribution::{Confidence, Process};

use super::window::Window;
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
    pub(super) fn told_owner(&self) -> OwnerNumber {
        if self.elsewhere { self.owner.with(Confidence::Forwarded) } else { self.owner }
    }

    pub(super) fn sureness(&self) -> Option<Confidence> {
        self.owner.get().map(|(_, confidence)| confidence)
    }

    pub(super) fn last_seen(&self) -> u64 {
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
    pub(super) fn have_dropped_since(&self, from: u64) -> bool {
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
    pub(super) fn are_more_since(&self, from: u64, flows: u8) -> bool {
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

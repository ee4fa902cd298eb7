//! The sockets that a flow can belong to, and the owner that this gives it.

use flowbus_attribution::Confidence;

use super::claims::{Claim, Claims};
use super::window::{Begin, Window};
use crate::flow::OwnerNumber;

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

//! What others ask: the active flows by id, the closed ones by their end, and one of either.

use super::{Table, closed};
use crate::clock::Now;
use crate::flow::{Ends, NO_EXTRA, Snapshot};

impl Table {
    /// The active flows with an id above `after`, ascending.
    pub(crate) fn active_after(&self, after: u64) -> impl Iterator<Item = Snapshot> + '_ {
        self.slots_after(after).map(|slot| self.snapshot(slot))
    }

    /// The active flows that have this port at one of their ends. A look at every record takes a few nanoseconds, so an
    /// index would cost more memory than it saves time.
    pub(crate) fn active_with_port(&self, after: u64, port: u16) -> impl Iterator<Item = Snapshot> + '_ {
        let slots = self.slots_after(after).filter(move |slot| self.has_port_that(*slot, |has| has == port));
        slots.map(|slot| self.snapshot(slot))
    }

    pub(super) fn has_port_that(&self, slot: u32, is_wanted: impl Fn(u16) -> bool) -> bool {
        let record = self.state.record(slot);
        let is_wanted = |port: &u16| is_wanted(*port);
        record.ports().iter().any(is_wanted)
            || record.extra != NO_EXTRA && self.state.extra(record.extra).ports().iter().any(is_wanted)
    }

    /// The active flows of which an end has an owner.
    pub(crate) fn active_with_owner(&self, after: u64) -> impl Iterator<Item = Snapshot> + '_ {
        let is_owned = |slot: &u32| self.state.record(*slot).is_owned();
        self.slots_after(after).filter(is_owned).map(|slot| self.snapshot(slot))
    }

    /// The active flows that have one of these ids.
    pub(crate) fn active_of(&self, after: u64, ids: &[u64]) -> impl Iterator<Item = Snapshot> + '_ {
        let mut ids: Vec<u64> = ids.iter().copied().filter(|id| *id > after).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().filter_map(|id| self.slot(id)).map(|slot| self.snapshot(slot))
    }

    /// The closed flows that ended before the change numbered `before`, newest first.
    pub(crate) fn closed_before(&mut self, before: u64, now: Now) -> impl Iterator<Item = Snapshot> + '_ {
        self.expire_closed(now);
        closed::before(&self.state, before)
    }

    /// The closed flows that ended with the change numbered `first` or later, oldest first.
    pub(crate) fn closed_from(&mut self, first: u64, now: Now) -> impl Iterator<Item = Snapshot> + '_ {
        self.expire_closed(now);
        closed::from(&self.state, first)
    }

    /// What is forgotten of the ends among the changes from `first` to `last`.
    pub(crate) fn forgotten(&mut self, first: u64, last: u64, now: Now) -> Option<Ends> {
        self.expire_closed(now);
        closed::forgotten(&self.state, first, last)
    }

    /// A flow by id, active or closed.
    pub(crate) fn flow(&mut self, id: u64, now: Now) -> Option<Snapshot> {
        self.expire_closed(now);
        match self.slot(id) {
            Some(slot) => Some(self.snapshot(slot)),
            None if id > self.state.header.last_id => None,
            None => self.closed.get(&self.state, id),
        }
    }

    fn slots_after(&self, after: u64) -> impl Iterator<Item = u32> + '_ {
        self.order.from(after.saturating_add(1), |slot| self.state.record(slot).id)
    }
}

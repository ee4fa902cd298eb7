//! The connection tracking table in memory: active flows by key and by id, closed flows by their end.
//!
//! Only the tracker touches it. `apply.rs` holds the rules by which messages change it.

mod apply;
mod closed;
mod order;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::hash::BuildHasher;

use ctnetlink::EventKind;
use flowbus_interfaces::{EndReason, TimeSource};
use foldhash::fast::RandomState;
use hashbrown::HashTable;

pub(crate) use apply::Outcome;
pub(crate) use closed::ClosedLimits;

use crate::clock::Now;
use crate::event::Change;
use crate::flow::{End, Extra, Key, NO_EXTRA, Record, Snapshot, inverted};
use crate::names::{NameStrings, Names};
use closed::Closed;
use order::Order;
use slots::Slots;

/// The table.
#[derive(Debug)]
pub(crate) struct Table {
    records: Slots<Record>,
    extras: Slots<Extra>,
    /// Key to record. Keys come from the network, so the hash is seeded.
    index: HashTable<u32>,
    hasher: RandomState,
    order: Order,
    closed: Closed,
    names: Names,
    last_id: u64,
    sequence: u64,
    /// Grows when a dump begins and when a loss is found. A record's `seen` is the stamp at its last message, so
    /// that one comparison tells whether it was seen since.
    stamp: u32,
    /// The stamp of the last loss.
    loss_stamp: u32,
    dump: Option<Dump>,
    active: u32,
}

/// A dump that is being merged.
#[derive(Debug)]
struct Dump {
    /// Flows seen before this stamp and not since are gone when the dump ends.
    stamp: u32,
    /// Hashes of key and `CTA_ID` of the flows destroyed since the dump began: the dump may still show them.
    tombstones: HashSet<u64, RandomState>,
    added: u32,
}

/// What merging a dump did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Merged {
    pub(crate) added: u32,
    pub(crate) closed: u32,
}

impl Table {
    pub(crate) fn new(limits: ClosedLimits) -> Self {
        Self {
            records: Slots::default(),
            extras: Slots::default(),
            index: HashTable::new(),
            hasher: RandomState::default(),
            order: Order::default(),
            closed: Closed::new(limits),
            names: Names::default(),
            last_id: 0,
            sequence: 0,
            stamp: 1,
            loss_stamp: 0,
            dump: None,
            active: 0,
        }
    }

    pub(crate) fn set_closed_limits(&mut self, limits: ClosedLimits, now: Now) {
        self.closed.set_limits(limits);
        self.closed.expire(now);
    }

    /// Notes that events were lost: what was live before may have ended unseen.
    pub(crate) fn note_loss(&mut self) {
        self.stamp += 1;
        self.loss_stamp = self.stamp;
    }

    /// From here on every flow that is seen counts as alive, until [`Table::end_dump`].
    pub(crate) fn begin_dump(&mut self) {
        self.stamp += 1;
        self.dump =
            Some(Dump { stamp: self.stamp, tombstones: HashSet::with_hasher(self.hasher.clone()), added: 0 });
    }

    /// Gives a dump up that did not end: nothing is closed by it.
    pub(crate) fn abandon_dump(&mut self) {
        self.dump = None;
    }

    /// Ends the merge. A complete dump closes the flows that neither it nor an event since its begin has shown.
    pub(crate) fn end_dump(&mut self, complete: bool, now: Now, changes: &mut Vec<Change>) -> Merged {
        let Some(dump) = self.dump.take() else { return Merged::default() };
        let unseen: Vec<u32> =
            self.order.after(0).filter(|slot| complete && self.records[*slot].seen < dump.stamp).collect();
        let closed = u32::try_from(unseen.len()).unwrap_or(u32::MAX);
        for slot in unseen {
            self.close(slot, now.realtime_usec, TimeSource::Estimated, EndReason::Resync, now, changes);
        }
        Merged { added: dump.added, closed }
    }

    /// The number of the newest change.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(crate) fn active_count(&self) -> u32 {
        self.active
    }

    pub(crate) fn closed_count(&self) -> u32 {
        u32::try_from(self.closed.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn closed_capacity(&self) -> u32 {
        self.closed.capacity()
    }

    pub(crate) fn closed_evicted(&self) -> u64 {
        self.closed.evicted()
    }

    /// Strings that were not kept because there are too many.
    pub(crate) fn names_refused(&self) -> u64 {
        self.names.refused
    }

    pub(crate) fn name_strings(&self) -> NameStrings {
        self.names.strings()
    }

    /// The active flows with an id above `after`, ascending.
    pub(crate) fn active_after(&self, after: u64) -> impl Iterator<Item = Snapshot> + '_ {
        self.order.after(after).map(|slot| self.snapshot(slot))
    }

    /// The closed flows that ended before the change numbered `before`, newest first.
    pub(crate) fn closed_before(&mut self, before: u64, now: Now) -> impl Iterator<Item = &Snapshot> {
        self.closed.expire(now);
        self.closed.before(before)
    }

    /// A flow by id, active or closed.
    pub(crate) fn flow(&mut self, id: u64, now: Now) -> Option<Snapshot> {
        self.closed.expire(now);
        match self.order.slot(id) {
            Some(slot) => Some(self.snapshot(slot)),
            None => self.closed.get(id).copied(),
        }
    }

    fn find(&self, key: &Key) -> Option<u32> {
        self.index.find(self.hasher.hash_one(key), |slot| self.records[*slot].key == *key).copied()
    }

    fn snapshot(&self, slot: u32) -> Snapshot {
        let record = self.records[slot];
        let extra = if record.extra == NO_EXTRA {
            Extra::new(&inverted(&record.key.original(), record.reply_zone))
        } else {
            self.extras[record.extra]
        };
        Snapshot { record, extra, end: None }
    }

    /// A record for a flow that the table does not hold, with a new id; it is not in the table yet.
    fn new_record(
        &mut self,
        flow: &ctnetlink::Flow<'_>,
        start_usec: u64,
        source: TimeSource,
    ) -> (Record, Option<Extra>) {
        self.last_id += 1;
        let mut record = Record::new(self.last_id, flow, start_usec, source);
        record.seen = self.stamp;
        let plain = flow.reply == inverted(&flow.original, flow.reply.zone);
        let extra = self.merged_extra((!plain).then(|| Extra::new(&flow.reply)), flow);
        (record, extra)
    }

    /// What `flow` adds to an extra part; `None` while there is nothing to keep.
    fn merged_extra(&mut self, extra: Option<Extra>, flow: &ctnetlink::Flow<'_>) -> Option<Extra> {
        if flow.labels.is_none() && flow.helper.is_none() && flow.security_context.is_none() {
            return extra;
        }
        let mut extra = extra.unwrap_or_else(|| Extra::new(&flow.reply));
        if let Some(labels) = flow.labels {
            extra.set_labels(labels);
        }
        if let Some(helper) = flow.helper {
            extra.helper = self.names.intern(helper);
        }
        if let Some(context) = flow.security_context {
            extra.security_context = self.names.intern(context);
        }
        Some(extra)
    }

    fn insert(&mut self, mut record: Record, extra: Option<Extra>, changes: &mut Vec<Change>) {
        if let Some(extra) = extra {
            record.extra = self.extras.insert(extra);
        }
        let id = record.id;
        let hash = self.hasher.hash_one(record.key);
        let slot = self.records.insert(record);
        let (records, hasher) = (&self.records, &self.hasher);
        self.index.insert_unique(hash, slot, |slot| hasher.hash_one(records[*slot].key));
        self.order.push(id, slot);
        self.active += 1;
        self.push_change(EventKind::New, self.snapshot(slot), changes);
    }

    /// Takes an active flow out and puts it among the closed ones.
    fn close(
        &mut self,
        slot: u32,
        usec: u64,
        source: TimeSource,
        reason: EndReason,
        now: Now,
        changes: &mut Vec<Change>,
    ) {
        let flow = self.snapshot(slot);
        let record = self.records.remove(slot);
        if let Ok(entry) = self.index.find_entry(self.hasher.hash_one(record.key), |other| *other == slot) {
            entry.remove();
        }
        if record.extra != NO_EXTRA {
            self.extras.remove(record.extra);
        }
        self.order.remove(record.id);
        self.active -= 1;
        self.push_closed(flow, usec, source, reason, now, changes);
    }

    fn push_closed(
        &mut self,
        mut flow: Snapshot,
        usec: u64,
        source: TimeSource,
        reason: EndReason,
        now: Now,
        changes: &mut Vec<Change>,
    ) {
        flow.end = Some(End { usec, source, reason, sequence: self.sequence + 1 });
        self.push_change(EventKind::Destroy, flow, changes);
        self.closed.expire(now);
        self.closed.push(flow, now);
    }

    fn push_change(&mut self, kind: EventKind, flow: Snapshot, changes: &mut Vec<Change>) {
        self.sequence += 1;
        changes.push(Change { sequence: self.sequence, kind, flow });
    }
}

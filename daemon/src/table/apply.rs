//! The rules by which messages of the kernel change the table.
//!
//! Events repeat and come late (another listener's broadcast errors make the kernel send them again), and a
//! recreated tuple usually has its old `CTA_ID`; so every rule asks first which incarnation a message is about.

use ctnetlink::{EventKind, Flow, Status};
use flowbus_interfaces::{EndReason, TimeSource};

use super::Table;
use crate::clock::Now;
use crate::event::Change;
use crate::flow::{Extra, Key, NO_EXTRA, Snapshot};

/// What a message did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It told something new.
    Applied,
    /// It repeated what was known, or told of a flow that has ended.
    Repeated,
}

impl Table {
    /// Applies an event.
    pub(crate) fn apply(
        &mut self,
        kind: EventKind,
        flow: &Flow<'_>,
        now: Now,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        let live = self.find(&Key::new(&flow.original));
        match kind {
            EventKind::New => self.apply_new(live, flow, now, changes),
            EventKind::Update => self.apply_update(live, flow, now, changes),
            EventKind::Destroy => self.apply_destroy(live, flow, now, changes),
        }
    }

    fn apply_new(
        &mut self,
        live: Option<u32>,
        flow: &Flow<'_>,
        now: Now,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        if let Some(slot) = live {
            // Events were lost since this flow was last seen: its end may be among them. While a dump is merged
            // the flow may be one that the dump showed before its NEW was read.
            let may_have_ended = self.records[slot].seen < self.loss_stamp && self.dump.is_none();
            if !may_have_ended && self.is_about(slot, flow) {
                return self.update(slot, flow, changes);
            }
            self.replace(slot, now, changes);
        }
        let (start_usec, source) = event_time(flow, now);
        let (record, extra) = self.new_record(flow, start_usec, source);
        self.insert(record, extra, changes);
        Outcome::Applied
    }

    fn apply_update(
        &mut self,
        live: Option<u32>,
        flow: &Flow<'_>,
        now: Now,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        if let Some(slot) = live
            && self.is_about(slot, flow)
        {
            return self.update(slot, flow, changes);
        }
        // A late word of a flow that has ended. Should it be a recreated one whose NEW was lost, the loss is counted
        // and a dump brings it.
        if self.closed.contains(&Key::new(&flow.original), flow.id) {
            return Outcome::Repeated;
        }
        if let Some(slot) = live {
            self.replace(slot, now, changes);
        }
        self.observe(flow, now, changes);
        Outcome::Applied
    }

    fn apply_destroy(
        &mut self,
        live: Option<u32>,
        flow: &Flow<'_>,
        now: Now,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        let (usec, source) = match flow.stop_nsec {
            Some(stop) => (stop / 1_000, TimeSource::Kernel),
            None => event_time(flow, now),
        };
        let key = Key::new(&flow.original);
        self.bury(&key, flow.id);
        if let Some(slot) = live
            && self.is_about(slot, flow)
        {
            let record = &mut self.records[slot];
            record.merge(flow);
            record.merge_counters(flow);
            self.close(slot, usec, source, EndReason::Destroyed, now, changes);
            return Outcome::Applied;
        }
        if self.closed.contains(&key, flow.id) {
            return Outcome::Repeated;
        }
        // Born and ended where we did not see it: it is told once, with what is known.
        let (record, extra) = self.new_record(flow, usec, TimeSource::Estimated);
        let extra = extra.unwrap_or_else(|| Extra::new(&flow.reply));
        self.push_closed(
            Snapshot { record, extra, end: None },
            usec,
            source,
            EndReason::Destroyed,
            now,
            changes,
        );
        Outcome::Applied
    }

    /// Merges one entry of the dump that was begun with [`Table::begin_dump`].
    pub(crate) fn apply_dump_entry(&mut self, flow: &Flow<'_>, now: Now, changes: &mut Vec<Change>) {
        let key = Key::new(&flow.original);
        let tombstone = self.tombstone(&key, flow.id);
        let live = self.find(&key);
        if let Some(slot) = live
            && self.is_about(slot, flow)
        {
            self.refresh(slot, flow, changes);
            return;
        }
        if self.dump.as_ref().is_some_and(|dump| dump.tombstones.contains(&tombstone)) {
            return;
        }
        if let Some(slot) = live {
            self.replace(slot, now, changes);
        }
        self.observe(flow, now, changes);
        if let Some(dump) = &mut self.dump {
            dump.added += 1;
        }
    }

    /// True when a message is about this incarnation of its tuple. The reply tuple does not change in a flow's
    /// life, so another one tells a recreated flow even where it got the old `CTA_ID`.
    fn is_about(&self, slot: u32, flow: &Flow<'_>) -> bool {
        self.records[slot].conntrack_id() == flow.id && self.snapshot(slot).reply() == flow.reply
    }

    /// Merges an event into a live flow.
    fn update(&mut self, slot: u32, flow: &Flow<'_>, changes: &mut Vec<Change>) -> Outcome {
        let extra_changed = self.merge_extra(slot, flow);
        let record = &mut self.records[slot];
        record.seen = self.stamp;
        if record.merge(flow) || extra_changed {
            self.push_change(EventKind::Update, self.snapshot(slot), changes);
            return Outcome::Applied;
        }
        Outcome::Repeated
    }

    /// Merges a dump's entry into a live flow: new counters and timeouts alone are not a change.
    fn refresh(&mut self, slot: u32, flow: &Flow<'_>, changes: &mut Vec<Change>) {
        let record = &mut self.records[slot];
        if self.dump.as_ref().is_some_and(|dump| record.seen >= dump.stamp) {
            // An event has told of this flow since the dump began. The entry may be older than that event; should it
            // be newer, its own event is on the way.
            record.merge_counters(flow);
            return;
        }
        let extra_changed = self.merge_extra(slot, flow);
        let record = &mut self.records[slot];
        record.seen = self.stamp;
        if flow.timeout.is_none() && flow.status.is_some_and(|status| status.contains(Status::OFFLOAD)) {
            record.clear_timeout(); // In a flow table it has none.
        }
        let changed = record.merge_dumped(flow);
        if changed || extra_changed {
            self.push_change(EventKind::Update, self.snapshot(slot), changes);
        }
    }

    /// Labels, helper and security context of a live flow; true when one of them changed.
    fn merge_extra(&mut self, slot: u32, flow: &Flow<'_>) -> bool {
        let number = self.records[slot].extra;
        let before = (number != NO_EXTRA).then(|| self.extras[number]);
        let after = self.merged_extra(before, flow);
        if after == before {
            return false;
        }
        if let Some(extra) = after {
            if number == NO_EXTRA {
                self.records[slot].extra = self.extras.insert(extra);
            } else {
                self.extras[number] = extra;
            }
        }
        true
    }

    /// Adds a flow that began before it was seen.
    fn observe(&mut self, flow: &Flow<'_>, now: Now, changes: &mut Vec<Change>) {
        let (record, extra) = self.new_record(flow, now.realtime_usec, TimeSource::Observed);
        self.insert(record, extra, changes);
    }

    /// Ends a flow whose tuple another one has taken over, unseen.
    fn replace(&mut self, slot: u32, now: Now, changes: &mut Vec<Change>) {
        self.close(slot, now.realtime_usec, TimeSource::Estimated, EndReason::Replaced, now, changes);
    }

    /// Remembers a destroyed flow while a dump runs that may still show it.
    fn bury(&mut self, key: &Key, conntrack_id: Option<u32>) {
        let tombstone = self.tombstone(key, conntrack_id);
        if let Some(dump) = &mut self.dump {
            dump.tombstones.insert(tombstone);
        }
    }

    fn tombstone(&self, key: &Key, conntrack_id: Option<u32>) -> u64 {
        use std::hash::BuildHasher;
        self.hasher.hash_one((key, conntrack_id))
    }
}

/// When an event happened: the kernel's word where it gives one, else now.
fn event_time(flow: &Flow<'_>, now: Now) -> (u64, TimeSource) {
    let usec = flow.event_nsec.map_or(now.realtime_usec, |nsec| nsec / 1_000);
    (usec, TimeSource::Event)
}

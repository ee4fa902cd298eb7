//! The rules by which messages of the kernel change the table.
//!
//! Events repeat and come late (another listener's broadcast errors make the kernel send them again), and a
//! recreated tuple usually has its old `CTA_ID`; so every rule asks first which incarnation a message is about.

use ctnetlink::{EventKind, Flow, Status};
use flowbus_interfaces::{EndReason, TimeSource};

use super::{Table, adds_extra};
use crate::change::Changes;
use crate::clock::Now;
use crate::flow::{Key, NO_EXTRA, Record, Silence, Start, inverted};

/// What a message did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The message said something new.
    Applied,
    /// The message repeated what was known, or was about a flow that has ended.
    Repeated,
}

impl Table {
    /// Applies an event.
    pub(super) fn apply(
        &mut self,
        kind: EventKind,
        flow: &Flow<'_>,
        now: Now,
        changes: &mut Changes,
    ) -> Outcome {
        let stamp = flow.event_nsec.or(match kind {
            EventKind::New => flow.start_nsec,
            EventKind::Update => None,
            EventKind::Destroy => flow.stop_nsec,
        });
        self.change_usec = stamp.map_or(now.realtime_usec, |nsec| nsec / 1_000);
        let live = self.find(&Key::new(&flow.original));
        match kind {
            EventKind::New => self.apply_new(live, flow, now, changes),
            EventKind::Update => self.apply_update(live, flow, now, changes),
            EventKind::Destroy => self.apply_destroy(live, flow, now, changes),
        }
    }

    fn apply_new(&mut self, live: Option<u32>, flow: &Flow<'_>, now: Now, changes: &mut Changes) -> Outcome {
        if let Some(slot) = live {
            // Events were lost since this flow was last seen: its end may be among them. While a dump is merged
            // the flow may be one that the dump showed before its NEW was read.
            let may_have_ended =
                self.state.record(slot).seen < self.state.header.loss_stamp && self.dump.is_none();
            if !may_have_ended && self.is_about(slot, flow) {
                return self.update(slot, flow, changes);
            }
            self.replace(slot, now, changes);
        }
        let mut begun = self.new_flow(flow, event_time(flow, now));
        self.insert(&mut begun, changes);
        Outcome::Applied
    }

    fn apply_update(
        &mut self,
        live: Option<u32>,
        flow: &Flow<'_>,
        now: Now,
        changes: &mut Changes,
    ) -> Outcome {
        if let Some(slot) = live
            && self.is_about(slot, flow)
        {
            return self.update(slot, flow, changes);
        }
        // A late message about a flow that has ended; or, where events were lost since it ended, of one that was recreated
        // unseen with the same id.
        let ended = self.closed.seen(&self.state, &Key::new(&flow.original), flow.id);
        if ended.is_some_and(|seen| seen >= self.state.header.loss_stamp) {
            return Outcome::Repeated;
        }
        if let Some(slot) = live {
            self.replace(slot, now, changes);
        }
        self.note_unannounced();
        self.observe(flow, None, now, changes);
        Outcome::Applied
    }

    fn apply_destroy(
        &mut self,
        live: Option<u32>,
        flow: &Flow<'_>,
        now: Now,
        changes: &mut Changes,
    ) -> Outcome {
        let (usec, source) = match flow.stop_nsec {
            Some(stop) => (stop / 1_000, TimeSource::Kernel),
            None => (event_time(flow, now).usec, TimeSource::Event),
        };
        let key = Key::new(&flow.original);
        self.add_tombstone(&key, flow.id);
        if let Some(slot) = live
            && self.is_about(slot, flow)
        {
            self.doubt_owners(slot, flow);
            let mut ended = self.remove(slot);
            let told = ended.record.progress();
            ended.record.merge(flow);
            self.left_out += u64::from(!ended.record.is_silent() && ended.record.progress() != told);
            ended.record.merge_counters(flow);
            ended.record.seen = self.state.header.stamp;
            self.push_closed(&ended, usec, source, EndReason::Destroyed, now, changes);
            return Outcome::Applied;
        }
        if self.closed.seen(&self.state, &key, flow.id).is_some() {
            return Outcome::Repeated;
        }
        // Born and ended where we did not see it: it is published once, with what is known.
        self.note_unannounced();
        let start = Start { usec, boottime_usec: now.boottime_usec_at(usec), source: TimeSource::Estimated };
        let ended = self.new_flow(flow, start);
        self.note_end(&ended, true);
        self.push_closed(&ended, usec, source, EndReason::Destroyed, now, changes);
        Outcome::Applied
    }

    /// Merges one entry of the dump that was begun with [`Table::begin_dump`].
    pub(super) fn apply_dump_entry(&mut self, flow: &Flow<'_>, now: Now, changes: &mut Changes) {
        self.change_usec = now.realtime_usec;
        let key = Key::new(&flow.original);
        let tombstone = self.tombstone(&key, flow.id);
        let live = self.find(&key);
        if let Some(slot) = live
            && self.is_about(slot, flow)
        {
            self.refresh(slot, flow, tombstone, changes);
            return;
        }
        if self.dump.as_ref().is_some_and(|dump| dump.tombstones.contains(&tombstone)) {
            return;
        }
        if let Some(slot) = live {
            self.replace(slot, now, changes);
        }
        self.observe(flow, Some(Silence::Unheard), now, changes);
        if let Some(dump) = &mut self.dump {
            dump.added += 1;
        }
    }

    /// True when a message is about this incarnation of its tuple, which is that of the flow in `slot`. The reply tuple
    /// does not change in a flow's life, so another one shows a recreated flow even where it got the old `CTA_ID`.
    fn is_about(&self, slot: u32, flow: &Flow<'_>) -> bool {
        let record = self.state.record(slot);
        record.conntrack_id() == flow.id
            && match self.extra(record) {
                Some(extra) => extra.reply(flow.original.protocol, record.reply_zone) == flow.reply,
                None => inverted(&flow.original, record.reply_zone) == flow.reply,
            }
    }

    /// Merges an event into a live flow.
    fn update(&mut self, slot: u32, flow: &Flow<'_>, changes: &mut Changes) -> Outcome {
        let before = self.prior(slot);
        let doubted = self.doubt_owners(slot, flow);
        let mut record = *self.state.record(slot);
        let was_answered = record.is_answered();
        record.seen = self.state.header.stamp;
        self.silent -= u32::from(record.is_silent());
        record.hear();
        self.silent += u32::from(record.is_silent());
        let extra_changed = self.merge_extra(&mut record, flow);
        let before_status = record.status();
        let changed = record.merge(flow) || extra_changed;
        // A flow is answered before it is assured.
        let is_left_out =
            record.status().contains(Status::ASSURED) && !before_status.contains(Status::SEEN_REPLY);
        self.left_out += u64::from(is_left_out);
        self.state.put_record(slot, &record);
        let owned = !was_answered && record.is_answered() && self.attribute_answered(slot);
        if !changed && !owned && !doubted {
            return Outcome::Repeated;
        }
        self.push_update(slot, before, changes);
        Outcome::Applied
    }

    /// Merges a dump's entry into the live flow that it is about.
    ///
    /// Nothing says when the kernel wrote the entry, so it matters whether a message about the flow has come since the dump began.
    /// If one has, the entry may be older than that message, and only its counters are taken, which updates do not carry; should
    /// the entry be newer, its own event is on the way. With a tombstone it may even be about an earlier flow with this tuple and
    /// id, and says nothing.
    ///
    /// If none has, the entry is the newest there is and is merged whole. What it changes then was not reported by an event, unless
    /// the event is late: the flow is missed, which makes it silent, so that sweeps look at it more often ([`Record::miss`]). Counters,
    /// timeout and start are no change, and flow tables send no events for what they do, so neither makes a flow silent.
    fn refresh(&mut self, slot: u32, flow: &Flow<'_>, tombstone: u64, changes: &mut Changes) {
        let mut record = *self.state.record(slot);
        if let Some(dump) = &self.dump
            && record.seen >= dump.stamp
        {
            if dump.tombstones.contains(&tombstone) {
                return;
            }
            record.merge_counters(flow);
            self.state.put_record(slot, &record);
            return;
        }
        let before = self.prior(slot);
        let doubted = self.doubt_owners(slot, flow);
        record = *self.state.record(slot);
        let before_status = record.status();
        record.seen = self.state.header.stamp;
        if flow.timeout.is_none() && flow.status.is_some_and(|status| status.contains(Status::OFFLOAD)) {
            record.clear_timeout(); // In a flow table it has none.
        }
        let extra_changed = self.merge_extra(&mut record, flow);
        let changed = record.merge_dumped(flow) || extra_changed;
        // No event reports that a flow enters a flow table, or leaves it.
        const UNREPORTED: Status = Status::OFFLOAD.union(Status::HW_OFFLOAD);
        let told = record.status() ^ before_status;
        if changed && (told.is_empty() || !UNREPORTED.contains(told)) {
            self.silent -= u32::from(record.is_silent());
            record.miss();
            self.silent += 1;
            if let Some(dump) = &mut self.dump {
                dump.changed += 1;
            }
        }
        self.state.put_record(slot, &record);
        if changed || doubted {
            self.push_update(slot, before, changes);
        }
    }

    /// Merges labels, helper and security context into a live flow; true when one of them changed.
    fn merge_extra(&mut self, record: &mut Record, flow: &Flow<'_>) -> bool {
        if !adds_extra(flow) {
            return false;
        }
        let before = self.extra(record).copied();
        let after = self.merged_extra(before, flow);
        if after == before {
            return false;
        }
        if let Some(extra) = after {
            if record.extra == NO_EXTRA {
                record.extra = self.insert_extra(&extra);
            } else {
                self.state.put_extra(record.extra, &extra);
            }
        }
        true
    }

    /// Adds a flow that began before it was seen: an update or a dump's entry is the first message about it.
    fn observe(&mut self, flow: &Flow<'_>, silence: Option<Silence>, now: Now, changes: &mut Changes) {
        let start =
            Start { usec: now.realtime_usec, boottime_usec: now.boottime_usec, source: TimeSource::Observed };
        let mut observed = self.new_flow(flow, start);
        if let Some(silence) = silence.filter(|_| !observed.record.is_silent()) {
            observed.record.set_silence(silence);
        }
        self.insert(&mut observed, changes);
    }

    /// Notes an event of a flow whose birth was not reported, which is to be expected before the first dump and after a loss.
    fn note_unannounced(&mut self) {
        if self.state.header.resync == 0 {
            self.unannounced += 1;
        }
    }

    /// Ends a flow whose tuple another one has taken over, unseen.
    fn replace(&mut self, slot: u32, now: Now, changes: &mut Changes) {
        self.close_unseen(slot, EndReason::Replaced, now, changes);
    }
}

/// When an event happened: the kernel's time where it gives one, else now.
fn event_time(flow: &Flow<'_>, now: Now) -> Start {
    let usec = flow.event_nsec.map_or(now.realtime_usec, |nsec| nsec / 1_000);
    Start { usec, boottime_usec: now.boottime_usec_at(usec), source: TimeSource::Event }
}

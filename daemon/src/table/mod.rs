//! The connection tracking table in memory: active flows by key and by id, closed flows by their end.
//!
//! Only the tracker touches it. The flows lie in the [`State`]; here are the indexes to them, and in `apply.rs` the
//! rules by which messages change them. What others can call here is whole for the next life when it returns; what is not
//! is called on a [`Transaction`].

mod apply;
mod closed;
mod dump;
mod order;
mod owners;
mod ports;
mod questions;
#[cfg(test)]
mod tests;
mod transaction;

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::hint::black_box;
use std::ops::RangeInclusive;

use ctnetlink::EventKind;
use flowbus_interfaces::{EndReason, TimeSource};
use foldhash::fast::RandomState;

pub(crate) use apply::Outcome;
pub(crate) use dump::Merged;
pub(crate) use transaction::Transaction;

use crate::change::{Changes, What};
use crate::clock::{Now, monotonic_nsec};
use crate::flow::{
    ClosedLimits, End, Extra, Key, NO_EXTRA, Owners, Prior, PriorExtra, ProcessTexts, Record, Silence,
    Snapshot, Start, inverted,
};
use crate::index::Index;
use crate::names::{NameStrings, Names};
use crate::owners::{Attribution, Processes};
use crate::state::{Header, MAXIMUM_FLOWS, State};
use closed::Closed;
use dump::Dump;
use order::Order;
use owners::OtherTuples;

/// The connection tracking table, as the tracker keeps it.
#[derive(Debug)]
pub(crate) struct Table {
    state: State,
    free_records: Vec<u32>,
    /// Slots that are free with the next commit: until then a kill may bring their flows back.
    released_records: Vec<u32>,
    free_extras: Vec<u32>,
    /// Key to record. Keys come from the network, so the hash is seeded.
    index: Index,
    hasher: RandomState,
    order: Order,
    closed: Closed,
    names: Names,
    dump: Option<Dump>,
    /// When what is being applied happened, CLOCK_REALTIME microseconds.
    change_usec: u64,
    /// Active flows that may not send all their events.
    silent: u32,
    /// Whether rules set event masks: then no flow is known to send all its events.
    masked: bool,
    /// Events of flows whose birth was not reported, though no loss was known.
    unannounced: u64,
    /// Events that show a step of their flow that an event before them should have reported.
    left_out: u64,
    processes: Processes,
    /// What is known of sockets, while they are reported.
    attribution: Option<Attribution>,
    /// The directions that `index` does not find, kept while there is attribution.
    other_tuples: OtherTuples,
}

impl Table {
    /// The table over what the state holds.
    pub(crate) fn new(mut state: State, limits: ClosedLimits) -> Self {
        let closed = Closed::new(&mut state, limits);
        let names = Names::new(&state);
        let processes = Processes::new(&state);
        let mut table = Self {
            state,
            free_records: Vec::new(),
            released_records: Vec::new(),
            free_extras: Vec::new(),
            index: Index::default(),
            hasher: RandomState::default(),
            order: Order::default(),
            closed,
            names,
            dump: None,
            change_usec: 0,
            silent: 0,
            masked: false,
            unannounced: 0,
            left_out: 0,
            processes,
            attribution: None,
            other_tuples: OtherTuples::default(),
        };
        table.build_indexes();
        table.change().commit();
        table
    }

    fn build_indexes(&mut self) {
        let mut extras: HashSet<u32> = (0..self.state.header.extras).collect();
        let mut ids = Vec::with_capacity(self.state.header.active as usize);
        for slot in 0..self.state.header.records {
            let record = *self.state.record(slot);
            if record.id == 0 {
                self.free_records.push(slot);
                continue;
            }
            extras.remove(&record.extra);
            ids.push((record.id, slot));
            self.silent += u32::from(record.is_silent());
            self.index.insert(self.hash(&record.key), slot);
        }
        self.free_extras = extras.into_iter().collect();
        ids.sort_unstable();
        for (_, slot) in ids {
            self.order.push(slot);
        }
    }

    /// The state behind the table.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The header of the state: everything that is not a flow.
    pub(crate) fn header(&self) -> &Header {
        &self.state.header
    }

    pub(crate) fn set_closed_limits(&mut self, limits: ClosedLimits, now: Now) {
        self.closed.set_limits(&mut self.state, limits);
        self.expire_closed(now);
    }

    /// Notes that events were lost: what was live before may have ended unseen.
    fn note_loss(&mut self) {
        self.state.header.stamp += 1;
        self.state.header.loss_stamp = self.state.header.stamp;
        if let Some(attribution) = &mut self.attribution {
            let now = monotonic_nsec();
            for sockets in attribution.all_sockets() {
                sockets.note_lost_flows(now);
            }
            attribution.begins.clear();
        }
    }

    /// Active flows that may not send all their events: those older than the first listener send none, others are masked.
    pub(crate) fn silent_count(&self) -> u32 {
        self.silent
    }

    /// How many events came of flows whose birth was not reported.
    pub(crate) fn unannounced(&self) -> u64 {
        self.unannounced
    }

    /// How many events showed a step of their flow that an event before them should have reported.
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Whether one of these flows, as far as its events show, waits for an answer.
    pub(crate) fn has_waiting(&self, ids: RangeInclusive<u64>) -> bool {
        self.order
            .from(*ids.start(), |slot| self.state.record(slot).id)
            .map(|slot| self.state.record(slot))
            .take_while(|record| record.id <= *ids.end())
            .any(|record| !record.is_silent() && record.is_waiting())
    }

    /// Notes whether rules set event masks. A mask stays with its flow when the rule goes, and a rule can give one to
    /// flows that are older than it.
    pub(crate) fn set_masked(&mut self, masked: bool) {
        if masked && !self.masked {
            let telling = |slot: &u32| !self.state.record(*slot).is_silent();
            for slot in self.order.all().filter(telling).collect::<Vec<_>>() {
                let mut change = self.change();
                let table = change.table();
                let mut record = *table.state.record(slot);
                record.set_silence(Silence::Masked);
                table.state.put_record(slot, &record);
                table.silent += 1;
            }
        }
        self.masked = masked;
    }

    pub(crate) fn name_strings(&self) -> NameStrings {
        self.names.strings()
    }

    /// The processes behind the flows' owners.
    pub(crate) fn process_texts(&self) -> ProcessTexts {
        self.processes.texts()
    }

    /// Forgets the closed flows that are too old.
    pub(crate) fn expire_closed(&mut self, now: Now) {
        let mut change = self.change();
        let table = change.table();
        table.closed.expire(&mut table.state, now);
    }

    /// Brings what the messages of a batch are about into the processor's cache before the first is applied.
    ///
    /// A message needs the index, then the record that the index names, and where it stands in the order; where flows get owners,
    /// then the claims of their two directions. Applied alone it would wait for memory each time. Here each step is done for all
    /// messages. Within a step the look-ups do not depend on each other, so the processor waits for many at once. What they find is
    /// dropped: each message looks again when it is applied, because an earlier one of the batch may have changed the answer. So any
    /// flow with the hash will do, and a wrong one costs time alone.
    pub(crate) fn prefetch<'a>(
        &self,
        events: impl Iterator<Item = (EventKind, &'a ctnetlink::Flow<'a>)> + Clone,
    ) {
        let hashes: Vec<u64> = events.clone().map(|(_, flow)| self.hash(&Key::new(&flow.original))).collect();
        let slots: Vec<u32> = hashes.iter().filter_map(|hash| self.index.find(*hash, |_| true)).collect();
        for slot in slots {
            self.state.record(slot).prefetch();
            black_box(self.order.position(slot));
        }
        if let Some(attribution) = &self.attribution {
            let directions = events.clone().flat_map(|(_, flow)| [&flow.original, &flow.reply]);
            attribution.sockets.prefetch(directions.clone());
            attribution.elsewhere.prefetch(directions);
        }
        self.closed.prefetch(events.filter(|(kind, _)| *kind == EventKind::Destroy).count());
    }

    /// The slot of the active flow with this id.
    fn slot(&self, id: u64) -> Option<u32> {
        self.order.slot(id, |slot| self.state.record(slot).id)
    }

    fn hash(&self, key: &Key) -> u64 {
        self.hasher.hash_one(key)
    }

    fn find(&self, key: &Key) -> Option<u32> {
        self.index.find(self.hash(key), |slot| self.state.record(slot).key == *key)
    }

    fn snapshot(&self, slot: u32) -> Snapshot {
        let record = self.state.record(slot);
        let owners = self.owners(slot, record);
        Snapshot { record: *record, extra: self.extra(record).copied(), owners, end: None }
    }

    /// What an update may change of the flow in this slot.
    fn prior(&self, slot: u32) -> (Prior, PriorExtra) {
        let record = self.state.record(slot);
        let extra = self.extra(record).map_or(PriorExtra::EMPTY, PriorExtra::new);
        (Prior::new(record, self.owners(slot, record)), extra)
    }

    fn owners(&self, slot: u32, record: &Record) -> Owners {
        if record.is_owned() { self.state.owners(slot) } else { Owners::default() }
    }

    fn extra(&self, record: &Record) -> Option<&Extra> {
        (record.extra != NO_EXTRA).then(|| self.state.extra(record.extra))
    }

    /// A flow that the table does not hold yet, with a new id and nobody as its owners.
    fn new_flow(&mut self, flow: &ctnetlink::Flow<'_>, start: Start) -> Snapshot {
        self.state.header.last_id += 1;
        let mut record = Record::new(self.state.header.last_id, flow, start);
        record.seen = self.state.header.stamp;
        if self.masked {
            record.set_silence(Silence::Masked);
        }
        let plain = flow.reply == inverted(&flow.original, flow.reply.zone);
        let extra = self.merged_extra((!plain).then(|| Extra::new(&flow.reply)), flow);
        Snapshot { record, extra, owners: Owners::default(), end: None }
    }

    /// What `flow` adds to an extra part; `None` while there is nothing to keep.
    fn merged_extra(&mut self, extra: Option<Extra>, flow: &ctnetlink::Flow<'_>) -> Option<Extra> {
        if !adds_extra(flow) {
            return extra;
        }
        let mut extra = extra.unwrap_or_else(|| Extra::new(&flow.reply));
        if let Some(labels) = flow.labels {
            extra.set_labels(labels);
        }
        if let Some(helper) = flow.helper {
            extra.helper = self.names.intern(&mut self.state, helper);
        }
        if let Some(context) = flow.security_context {
            extra.security_context = self.names.intern(&mut self.state, context);
        }
        Some(extra)
    }

    fn insert(&mut self, flow: &mut Snapshot, changes: &mut Changes) {
        let slot = self.free_records.pop().unwrap_or(self.state.header.records);
        if slot as usize >= MAXIMUM_FLOWS {
            self.state.header.counters.flows_refused += 1;
            return;
        }
        if let Some(extra) = &flow.extra {
            flow.record.extra = self.insert_extra(extra);
        }
        // Owners first: the record says whether it has some, and is written once.
        self.attribute_new(slot, flow);
        self.state.add_record(slot, &flow.record);
        self.state.header.active += 1;
        self.silent += u32::from(flow.record.is_silent());
        self.index.insert(self.hash(&flow.record.key), slot);
        self.order.push(slot);
        self.push_change(flow, What::New, PriorExtra::EMPTY, changes);
    }

    fn insert_extra(&mut self, extra: &Extra) -> u32 {
        let slot = self.free_extras.pop().unwrap_or(self.state.header.extras);
        self.state.put_extra(slot, extra);
        slot
    }

    /// Takes an active flow out.
    fn remove(&mut self, slot: u32) -> Snapshot {
        let mut flow = self.snapshot(slot);
        let Record { key, extra, .. } = flow.record;
        self.state.clear_record(slot);
        self.state.header.active -= 1;
        self.silent -= u32::from(flow.record.is_silent());
        self.index.remove(self.hash(&key), slot);
        self.forget_other_tuples(slot, &flow);
        self.attribute_ended(slot, &mut flow);
        self.order.remove(slot);
        self.released_records.push(slot);
        if extra != NO_EXTRA {
            self.free_extras.push(extra);
        }
        flow
    }

    /// Ends an active flow whose end was not reported.
    fn close_unseen(&mut self, slot: u32, reason: EndReason, now: Now, changes: &mut Changes) {
        let flow = self.remove(slot);
        self.push_closed(&flow, now.realtime_usec, TimeSource::Estimated, reason, now, changes);
    }

    /// Puts a flow that is not in the table among the closed ones.
    fn push_closed(
        &mut self,
        flow: &Snapshot,
        usec: u64,
        source: TimeSource,
        reason: EndReason,
        now: Now,
        changes: &mut Changes,
    ) {
        let duration_usec = flow.record.duration_usec(usec, now);
        let end = End { usec, source, reason, duration_usec, sequence: self.state.header.sequence + 1 };
        self.closed.push(&mut self.state, flow, end, now);
        self.push_change(flow, What::Destroy(end), PriorExtra::EMPTY, changes);
    }

    fn push_change(&mut self, flow: &Snapshot, what: What, before: PriorExtra, changes: &mut Changes) {
        let sequence = self.state.number_change(matches!(what, What::Destroy(_)));
        changes.push(sequence, self.change_usec, flow, what, before);
    }

    fn push_update(&mut self, slot: u32, before: (Prior, PriorExtra), changes: &mut Changes) {
        let (prior, extra) = before;
        self.push_change(&self.snapshot(slot), What::Update(prior), extra, changes);
    }
}

/// Whether a message has something for the extra part of its flow, beside the reply tuple.
fn adds_extra(flow: &ctnetlink::Flow<'_>) -> bool {
    flow.labels.is_some() || flow.helper.is_some() || flow.security_context.is_some()
}

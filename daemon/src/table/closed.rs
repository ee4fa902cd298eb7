//! The flows that ended, newest last, bounded by count and age.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::hint::black_box;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::clock::Now;
use crate::flow::{ClosedFlow, ClosedLimits, End, Ends, Key, Record, Snapshot};
use crate::state::{KNOWN_ENDS, State};

/// The index of the closed flows, which lie in the state as a ring, each with the number of those before it.
#[derive(Debug)]
pub(super) struct Closed {
    maximum_age_usec: u64,
    /// Key and `CTA_ID` to the number of the newest closed flow that had them.
    index: HashTable<u64>,
    /// The hash of each closed flow, oldest first: a flow that is forgotten need not be read again.
    hashes: VecDeque<u64>,
    /// The id of each closed flow, oldest first: a search for one reads no flow.
    ids: VecDeque<u64>,
    hasher: RandomState,
}

impl Closed {
    /// The closed flows that the state holds, brought to these limits.
    pub(super) fn new(state: &mut State, limits: ClosedLimits) -> Self {
        let mut closed = Self {
            maximum_age_usec: 0,
            index: HashTable::new(),
            hashes: VecDeque::new(),
            ids: VecDeque::new(),
            hasher: RandomState::default(),
        };
        closed.set_limits(state, limits);
        closed
    }

    pub(super) fn set_limits(&mut self, state: &mut State, limits: ClosedLimits) {
        self.maximum_age_usec = u64::try_from(limits.maximum_age.as_micros()).unwrap_or(u64::MAX);
        let count = state.header.closed_count;
        if state.header.closed_capacity != limits.capacity {
            state.resize_closed(limits.capacity);
            state.header.counters.closed_evicted += u64::from(count - state.header.closed_count);
        }
        self.index.clear();
        self.hashes.clear();
        self.ids.clear();
        for number in numbers(state) {
            self.insert_index(state, number, &state.closed(number).record);
        }
    }

    /// Adds a flow that ended, its end's `sequence` being larger than all before it.
    pub(super) fn push(&mut self, state: &mut State, flow: &Snapshot, end: End, now: Now) {
        if state.header.closed_capacity == 0 {
            state.header.counters.closed_evicted += 1;
            return;
        }
        if state.header.closed_count == state.header.closed_capacity {
            self.drop_oldest(state);
        }
        let number = state.header.closed_total;
        state.add_closed(&ClosedFlow::new(flow, end, now));
        self.insert_index(state, number, &flow.record);
    }

    /// Reads ahead the flows that are forgotten when `count` are added.
    pub(super) fn prefetch(&self, count: usize) {
        for hash in self.hashes.iter().take(count) {
            black_box(self.index.find(*hash, |_| true));
        }
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, state: &mut State, now: Now) {
        while let Some(oldest) = numbers(state).next() {
            let age = now.boottime_usec.saturating_sub(state.closed(oldest).closed_boottime_usec);
            if age <= self.maximum_age_usec {
                return;
            }
            self.drop_oldest(state);
        }
    }

    /// The stamp at which the newest flow with this key and `CTA_ID` was last seen, if it ended and is remembered.
    pub(super) fn seen(&self, state: &State, key: &Key, conntrack_id: Option<u32>) -> Option<u32> {
        let hash = self.hasher.hash_one((key, conntrack_id));
        let is_it = |number: &u64| state.closed(*number).is_incarnation(key, conntrack_id);
        self.index.find(hash, is_it).map(|number| state.closed(*number).record.seen)
    }

    /// A closed flow by its id.
    pub(super) fn get(&self, state: &State, id: u64) -> Option<Snapshot> {
        let older = self.ids.iter().rposition(|other| *other == id)?;
        numbers(state).nth(older).map(|number| state.closed(number).snapshot())
    }

    fn insert_index(&mut self, state: &State, number: u64, record: &Record) {
        let Self { index, hashes, ids, hasher, .. } = self;
        let hash_of = |record: &Record| hasher.hash_one((&record.key, record.conntrack_id()));
        let hash = hash_of(record);
        hashes.push_back(hash);
        ids.push_back(record.id);
        let is_it = |other: &u64| state.closed(*other).is_incarnation(&record.key, record.conntrack_id());
        match index.entry(hash, is_it, |other| hash_of(&state.closed(*other).record)) {
            Entry::Occupied(mut entry) => *entry.get_mut() = number,
            Entry::Vacant(entry) => {
                entry.insert(number);
            }
        }
    }

    fn drop_oldest(&mut self, state: &mut State) {
        let (Some(oldest), Some(hash)) = (numbers(state).next(), self.hashes.pop_front()) else { return };
        self.ids.pop_front();
        // A newer flow of the same key and CTA_ID keeps the entry.
        if let Ok(entry) = self.index.find_entry(hash, |number| *number == oldest) {
            entry.remove();
        }
        state.header.closed_count -= 1;
        state.header.counters.closed_evicted += 1;
    }
}

/// The flows that ended before the change numbered `before`, newest first.
pub(super) fn before(state: &State, before: u64) -> impl Iterator<Item = Snapshot> + '_ {
    let older = numbers(state).start..position(state, before);
    older.rev().map(|number| state.closed(number).snapshot())
}

/// The flows that ended with the change numbered `first` or later, oldest first.
pub(super) fn from(state: &State, first: u64) -> impl Iterator<Item = Snapshot> + '_ {
    (position(state, first)..numbers(state).end).map(|number| state.closed(number).snapshot())
}

/// What is forgotten of the ends among the changes from `first` to `last`: exactly, where `first` is one of the newest
/// [`KNOWN_ENDS`] changes, and else no fewer than there were.
pub(super) fn forgotten(state: &State, first: u64, last: u64) -> Option<Ends> {
    let newest = state.header.sequence;
    // All ends before the oldest closed flow are forgotten, and none after it.
    let remembered = numbers(state).next().map_or(newest + 1, |oldest| state.closed(oldest).sequence);
    let before_remembered = remembered.saturating_sub(1).min(newest);
    let last = last.min(before_remembered);
    if first > last {
        return None;
    }
    let known = newest.saturating_sub(KNOWN_ENDS) + 1;
    let mut ends = state.ends(first.max(known)..=last);
    if first < known {
        let back = last.min(known - 1);
        let all = state.header.counters.closed_evicted;
        let unknown = all.saturating_sub(state.ends(known..=before_remembered).count);
        ends.count += unknown.min(back + 1 - first);
        ends.last = ends.last.max(back);
    }
    (ends.count > 0).then_some(ends)
}

/// The first closed flow whose end has this number or a larger one.
fn position(state: &State, sequence: u64) -> u64 {
    let (mut low, mut high) = {
        let numbers = numbers(state);
        (numbers.start, numbers.end)
    };
    while low < high {
        let middle = low + (high - low) / 2;
        if state.closed(middle).sequence < sequence {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

fn numbers(state: &State) -> std::ops::Range<u64> {
    let total = state.header.closed_total;
    total - u64::from(state.header.closed_count)..total
}

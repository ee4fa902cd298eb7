//! The flows that ended, newest last, bounded by count and age.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::clock::Now;
use crate::flow::{Key, Snapshot};

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClosedLimits {
    /// At most so many flows.
    pub(crate) capacity: u32,
    /// And none that ended longer ago than this.
    pub(crate) maximum_age: Duration,
}

#[derive(Debug)]
pub(super) struct Closed {
    limits: ClosedLimits,
    entries: VecDeque<Entry>,
    /// How many entries ever left at the front: turns a position into a number that stays.
    left: u64,
    /// Key and `CTA_ID` to the newest entry of them.
    index: HashTable<u64>,
    hasher: RandomState,
    evicted: u64,
}

#[derive(Debug)]
struct Entry {
    flow: Snapshot,
    closed_boottime_usec: u64,
}

impl Closed {
    pub(super) fn new(limits: ClosedLimits) -> Self {
        Self {
            limits,
            entries: VecDeque::new(),
            left: 0,
            index: HashTable::new(),
            hasher: RandomState::default(),
            evicted: 0,
        }
    }

    pub(super) fn set_limits(&mut self, limits: ClosedLimits) {
        self.limits = limits;
        while self.entries.len() > limits.capacity as usize {
            self.drop_oldest();
        }
        self.entries.shrink_to(limits.capacity as usize);
    }

    /// Adds a flow that ended, its end's `sequence` being larger than all before it.
    pub(super) fn push(&mut self, flow: Snapshot, now: Now) {
        if self.limits.capacity == 0 {
            self.evicted += 1;
            return;
        }
        if self.entries.len() >= self.limits.capacity as usize {
            self.drop_oldest();
        }
        let number = self.left + self.entries.len() as u64;
        let hash = self.hash(&flow);
        self.entries.push_back(Entry { flow, closed_boottime_usec: now.boottime_usec });
        let Self { index, entries, left, hasher, .. } = self;
        let same = |other: &u64| {
            entries.get(offset(*other, *left)).is_some_and(|entry| same_incarnation(&entry.flow, &flow))
        };
        match index.find_mut(hash, same) {
            Some(newest) => *newest = number,
            None => {
                index.insert_unique(hash, number, |number| {
                    entries.get(offset(*number, *left)).map_or(0, |entry| hash_of(hasher, &entry.flow))
                });
            }
        }
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: Now) {
        let age = u64::try_from(self.limits.maximum_age.as_micros()).unwrap_or(u64::MAX);
        while self
            .entries
            .front()
            .is_some_and(|entry| now.boottime_usec.saturating_sub(entry.closed_boottime_usec) > age)
        {
            self.drop_oldest();
        }
    }

    /// True when a flow with this key and `CTA_ID` ended and is still remembered.
    pub(super) fn contains(&self, key: &Key, conntrack_id: Option<u32>) -> bool {
        self.index
            .find(self.hasher.hash_one((key, conntrack_id)), |number| {
                self.entries.get(offset(*number, self.left)).is_some_and(|entry| {
                    entry.flow.record.key == *key && entry.flow.record.conntrack_id() == conntrack_id
                })
            })
            .is_some()
    }

    /// The flows that ended before the change numbered `before`, newest first.
    pub(super) fn before(&self, before: u64) -> impl Iterator<Item = &Snapshot> {
        let end = self.entries.partition_point(|entry| sequence(&entry.flow) < before);
        self.entries.range(..end).rev().map(|entry| &entry.flow)
    }

    /// A flow by our id.
    pub(super) fn get(&self, id: u64) -> Option<&Snapshot> {
        self.entries.iter().rev().map(|entry| &entry.flow).find(|flow| flow.record.id == id)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn capacity(&self) -> u32 {
        self.limits.capacity
    }

    fn drop_oldest(&mut self) {
        let Some(oldest) = self.entries.front() else { return };
        let hash = self.hash(&oldest.flow);
        // A newer flow of the same key and CTA_ID keeps the index entry.
        if let Ok(entry) = self.index.find_entry(hash, |number| *number == self.left) {
            entry.remove();
        }
        self.entries.pop_front();
        self.left += 1;
        self.evicted += 1;
    }

    fn hash(&self, flow: &Snapshot) -> u64 {
        hash_of(&self.hasher, flow)
    }
}

fn offset(number: u64, left: u64) -> usize {
    usize::try_from(number - left).unwrap_or(usize::MAX)
}

fn hash_of(hasher: &RandomState, flow: &Snapshot) -> u64 {
    hasher.hash_one((&flow.record.key, flow.record.conntrack_id()))
}

fn same_incarnation(one: &Snapshot, other: &Snapshot) -> bool {
    one.record.key == other.record.key && one.record.conntrack_id() == other.record.conntrack_id()
}

fn sequence(flow: &Snapshot) -> u64 {
    flow.end.map_or(0, |end| end.sequence)
}

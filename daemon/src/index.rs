//! Slots by the hash of a key: those of active flows, and of the directions of sockets.

use hashbrown::HashTable;

use flowbus_interfaces::fit;

/// Hashes and slots. The hash is kept beside the slot, so that what has the slot is not read to refuse it, to move it when the index
/// grows, or to take it out.
#[derive(Debug, Default)]
pub(crate) struct Index(HashTable<Entry>);

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u32,
    slot: u32,
}

impl Index {
    /// The slot with this hash that `is_it`.
    pub(crate) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let hash = short(hash);
        self.0.find(long(hash), |entry| entry.hash == hash && is_it(entry.slot)).map(|entry| entry.slot)
    }

    /// Adds a slot, under one hash only.
    pub(crate) fn insert(&mut self, hash: u64, slot: u32) {
        let hash = short(hash);
        self.0.insert_unique(long(hash), Entry { hash, slot }, |entry| long(entry.hash));
    }

    pub(crate) fn remove(&mut self, hash: u64, slot: u32) {
        if let Ok(entry) = self.0.find_entry(long(short(hash)), |entry| entry.slot == slot) {
            entry.remove();
        }
    }

    /// Gives what had a slot another one.
    pub(crate) fn change(&mut self, hash: u64, slot: u32, new: u32) {
        let hash = long(short(hash));
        if let Some(entry) = self.0.find_mut(hash, |entry| entry.slot == slot) {
            entry.slot = new;
        }
    }

    /// Gives back the memory that is not needed for `capacity` slots.
    pub(crate) fn shrink_to(&mut self, capacity: usize) {
        self.0.shrink_to(capacity, |entry| long(entry.hash));
    }
}

/// The half of a hash that is kept: 2^24 flows need 25 bits for their group, seven more tell those of a group apart.
fn short(hash: u64) -> u32 {
    fit(hash & u64::from(u32::MAX))
}

/// A kept hash as the hash table takes one: it finds the group by the low bits and the place in it by the highest seven.
fn long(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

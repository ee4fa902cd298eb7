//! The active flows in ascending order of their ids.
//!
//! Ids only grow, so a new flow goes to the end, and one that ends leaves a hole that the next compaction
//! takes out. Each slot knows its position, so adding and removing cost amortised constant time and look at no flow.

use flowbus_interfaces::fit;

/// The slots of the flows by their ids, and where each slot stands there.
#[derive(Debug, Default)]
pub(super) struct Order {
    slots: Vec<u32>,
    positions: Vec<u32>,
    /// How many of each [`BLOCK`] of `slots` are no holes: thousands of holes in a row are not looked at one by one.
    filled: Vec<u16>,
    holes: usize,
}

const HOLE: u32 = u32::MAX;
const BLOCK: usize = 256;
/// Below this many holes a compaction would cost more than the holes do.
const HOLES_KEPT: usize = 1024;

impl Order {
    /// Appends a slot. The id of its flow is larger than every id before it.
    pub(super) fn push(&mut self, slot: u32) {
        // There are fewer positions than 2^32: at most half of them are holes, and 2^24 are not.
        let position = fit(self.slots.len());
        let index = slot as usize;
        if index >= self.positions.len() {
            self.positions.resize(index + 1, HOLE);
        }
        self.positions[index] = position;
        if self.slots.len().is_multiple_of(BLOCK) {
            self.filled.push(0);
        }
        self.filled[self.slots.len() / BLOCK] += 1;
        self.slots.push(slot);
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let Some(position) = self.position(slot) else { return };
        self.slots[position] = HOLE;
        self.filled[position / BLOCK] -= 1;
        self.holes += 1;
        if self.holes > HOLES_KEPT.max(self.slots.len() / 2) {
            self.compact();
        }
    }

    /// Where a slot that is in use stands.
    pub(super) fn position(&self, slot: u32) -> Option<usize> {
        let position = *self.positions.get(slot as usize)? as usize;
        (*self.slots.get(position)? == slot).then_some(position)
    }

    /// The slot of the flow with this id; `id_of` returns the id of the flow in a slot.
    pub(super) fn slot(&self, id: u64, id_of: impl Fn(u32) -> u64) -> Option<u32> {
        let slot = self.from(id, &id_of).next()?;
        (id_of(slot) == id).then_some(slot)
    }

    /// The slots of the flows whose id is `first` or larger, ascending.
    pub(super) fn from(&self, first: u64, id_of: impl Fn(u32) -> u64) -> impl Iterator<Item = u32> + '_ {
        let (mut low, mut high) = (0, self.slots.len());
        while low < high {
            let middle = low + (high - low) / 2;
            // A hole has the id of the flow behind it.
            match self.filled_from(middle) {
                position if position < high && id_of(self.slots[position]) < first => low = position + 1,
                _ => high = middle,
            }
        }
        self.slots[low..].iter().copied().filter(|slot| *slot != HOLE)
    }

    /// The first position from here on that is no hole, or the end.
    fn filled_from(&self, mut position: usize) -> usize {
        while position < self.slots.len() && self.slots[position] == HOLE {
            let block = position / BLOCK;
            position = if self.filled[block] == 0 { (block + 1) * BLOCK } else { position + 1 };
        }
        position.min(self.slots.len())
    }

    /// All slots in use, in the order of the ids.
    pub(super) fn all(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().copied().filter(|slot| *slot != HOLE)
    }

    fn compact(&mut self) {
        self.slots.retain(|slot| *slot != HOLE);
        for (position, slot) in (0..).zip(&self.slots) {
            self.positions[*slot as usize] = position;
        }
        let blocks = self.slots.chunks(BLOCK).map(|block| fit(block.len()));
        self.filled = blocks.collect();
        self.holes = 0;
        if self.slots.capacity() > 4 * self.slots.len().max(HOLES_KEPT) {
            self.slots.shrink_to(2 * self.slots.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_agrees_with_a_sorted_map(removals in proptest::collection::vec(0_u64..5000, 0..6000), first in 0_u64..5000) {
            let mut order = Order::default();
            let mut map = BTreeMap::new();
            // The flow in each slot: 4 ids to a step, so that some are in no slot.
            let id_of = |slot: u32| u64::from(slot / 2) * 4 + u64::from(slot % 2);
            for slot in 0..2500 {
                order.push(slot);
                map.insert(id_of(slot), slot);
            }
            for id in removals {
                if let Some(slot) = map.remove(&id) {
                    order.remove(slot);
                }
            }
            prop_assert_eq!(order.from(first, id_of).collect::<Vec<_>>(), map.range(first..).map(|(_, slot)| *slot).collect::<Vec<_>>());
            prop_assert_eq!(order.all().collect::<Vec<_>>(), map.values().copied().collect::<Vec<_>>());
            prop_assert_eq!(order.slot(first, id_of), map.get(&first).copied());
            for slot in 0..2500 {
                prop_assert_eq!(order.position(slot).is_some(), map.contains_key(&id_of(slot)));
            }
        }
    }
}

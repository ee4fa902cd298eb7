//! The active flows in ascending order of their ids.
//!
//! Ids only grow, so a new flow goes to the end, and one that ends leaves a hole that the next compaction
//! takes out: both cost amortised constant time, and a page starts at any id by binary search.

/// Ids and the slots of their flows.
#[derive(Debug, Default)]
pub(super) struct Order {
    ids: Vec<u64>,
    slots: Vec<u32>,
    holes: usize,
}

const HOLE: u32 = u32::MAX;
/// Below this many holes a compaction would cost more than the holes do.
const HOLES_KEPT: usize = 1024;

impl Order {
    /// `id` is larger than every id before it.
    pub(super) fn push(&mut self, id: u64, slot: u32) {
        debug_assert!(self.ids.last().is_none_or(|last| *last < id));
        self.ids.push(id);
        self.slots.push(slot);
    }

    pub(super) fn remove(&mut self, id: u64) {
        let Ok(position) = self.ids.binary_search(&id) else { return };
        self.slots[position] = HOLE;
        self.holes += 1;
        if self.holes > HOLES_KEPT.max(self.ids.len() / 2) {
            self.compact();
        }
    }

    pub(super) fn slot(&self, id: u64) -> Option<u32> {
        let slot = self.slots[self.ids.binary_search(&id).ok()?];
        (slot != HOLE).then_some(slot)
    }

    /// The slots of the flows whose id is larger than `after`, ascending.
    pub(super) fn after(&self, after: u64) -> impl Iterator<Item = u32> + '_ {
        let start = self.ids.partition_point(|id| *id <= after);
        self.slots[start..].iter().copied().filter(|slot| *slot != HOLE)
    }

    fn compact(&mut self) {
        let mut kept = 0;
        for position in 0..self.ids.len() {
            if self.slots[position] != HOLE {
                self.ids[kept] = self.ids[position];
                self.slots[kept] = self.slots[position];
                kept += 1;
            }
        }
        self.ids.truncate(kept);
        self.slots.truncate(kept);
        self.holes = 0;
        if self.ids.capacity() > 4 * kept.max(HOLES_KEPT) {
            self.ids.shrink_to(2 * kept);
            self.slots.shrink_to(2 * kept);
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
        fn it_agrees_with_a_sorted_map(removals in proptest::collection::vec(0_u64..5000, 0..6000), after in 0_u64..5000) {
            let mut order = Order::default();
            let mut map = BTreeMap::new();
            for id in 1..5000_u64 {
                let slot = u32::try_from(id).unwrap() % 977;
                order.push(id, slot);
                map.insert(id, slot);
            }
            for id in removals {
                if map.remove(&id).is_some() {
                    order.remove(id);
                }
            }
            prop_assert_eq!(order.after(after).collect::<Vec<_>>(), map.range(after + 1..).map(|(_, slot)| *slot).collect::<Vec<_>>());
            prop_assert_eq!(order.slot(after), map.get(&after).copied());
        }
    }
}

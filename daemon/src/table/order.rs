//! The active flows in ascending order of their ids.
//!
//! Ids only grow, so a new flow goes to the end, and one that ends leaves a hole that the next compaction
//! takes out. Where an id stands is guessed from its distance to the ends, which is exact while there are no gaps; so
//! adding and removing cost amortised constant time, for few cache misses.

use std::cmp::Ordering;

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
        let Ok(position) = self.position(id) else { return };
        self.slots[position] = HOLE;
        self.holes += 1;
        if self.holes > HOLES_KEPT.max(self.ids.len() / 2) {
            self.compact();
        }
    }

    pub(super) fn slot(&self, id: u64) -> Option<u32> {
        let slot = self.slots[self.position(id).ok()?];
        (slot != HOLE).then_some(slot)
    }

    /// The slots of the flows whose id is larger than `after`, ascending.
    pub(super) fn after(&self, after: u64) -> impl Iterator<Item = u32> + '_ {
        let start = self.position(after).map_or_else(|next| next, |position| position + 1);
        self.slots[start..].iter().copied().filter(|slot| *slot != HOLE)
    }

    /// Where the id is, or where it would be. Ids that were given out one after the other and mostly live are spread
    /// evenly, so a few guesses find one; a binary search ends what they do not.
    fn position(&self, id: u64) -> Result<usize, usize> {
        const GUESSES: usize = 4;
        let (mut low, mut high) = (0, self.ids.len());
        for _ in 0..GUESSES {
            let [first, .., last] = self.ids[low..high] else { break };
            let into = u128::from(id.clamp(first, last) - first) * (high - low - 1) as u128;
            let guess = low + usize::try_from(into / u128::from(last - first)).unwrap_or(0);
            match self.ids[guess].cmp(&id) {
                Ordering::Equal => return Ok(guess),
                Ordering::Less => low = guess + 1,
                Ordering::Greater => high = guess,
            }
        }
        let found = self.ids[low..high].binary_search(&id);
        found.map(|place| low + place).map_err(|place| low + place)
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

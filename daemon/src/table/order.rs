//! The active flows in ascending order of their ids.
//!
//! Ids only grow, so a new flow goes to the end, and one that ends leaves a hole that the next compaction
//! takes out. Where an id stands is guessed from its distance to the ends, which is exact while there are no gaps; so
//! adding and removing cost amortised constant time, for few cache misses.

use std::cmp::Ordering;

/// Ids and the slots of their flows.
#[derive(Debug, Default)]
pub(super) struct Order {
    places: Vec<Place>,
    holes: usize,
}

/// Packed: twelve bytes a flow, and one cache line to find one by.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
struct Place {
    id: u64,
    slot: u32,
}

const HOLE: u32 = u32::MAX;
/// Below this many holes a compaction would cost more than the holes do.
const HOLES_KEPT: usize = 1024;

impl Order {
    /// `id` is larger than every id before it.
    pub(super) fn push(&mut self, id: u64, slot: u32) {
        debug_assert!(self.places.last().is_none_or(|last| last.id < id));
        self.places.push(Place { id, slot });
    }

    pub(super) fn remove(&mut self, id: u64) {
        let Ok(position) = self.position(id) else { return };
        self.places[position].slot = HOLE;
        self.holes += 1;
        if self.holes > HOLES_KEPT.max(self.places.len() / 2) {
            self.compact();
        }
    }

    pub(super) fn slot(&self, id: u64) -> Option<u32> {
        let slot = self.places[self.position(id).ok()?].slot;
        (slot != HOLE).then_some(slot)
    }

    /// The slots of the flows whose id is larger than `after`, ascending.
    pub(super) fn after(&self, after: u64) -> impl Iterator<Item = u32> + '_ {
        let start = self.position(after).map_or_else(|next| next, |position| position + 1);
        self.places[start..].iter().map(|place| place.slot).filter(|slot| *slot != HOLE)
    }

    /// Where the id is, or where it would be. Ids that were given out one after the other and mostly live are spread
    /// evenly, so a few guesses find one; a binary search ends what they do not.
    fn position(&self, id: u64) -> Result<usize, usize> {
        const GUESSES: usize = 4;
        let (mut low, mut high) = (0, self.places.len());
        for _ in 0..GUESSES {
            let [Place { id: first, .. }, .., Place { id: last, .. }] = self.places[low..high] else { break };
            let into = u128::from(id.clamp(first, last) - first) * (high - low - 1) as u128;
            let guess = low + usize::try_from(into / u128::from(last - first)).unwrap_or(0);
            let found = self.places[guess].id;
            match found.cmp(&id) {
                Ordering::Equal => return Ok(guess),
                Ordering::Less => low = guess + 1,
                Ordering::Greater => high = guess,
            }
        }
        let found = self.places[low..high].binary_search_by_key(&id, |place| place.id);
        found.map(|place| low + place).map_err(|place| low + place)
    }

    fn compact(&mut self) {
        self.places.retain(|place| place.slot != HOLE);
        self.holes = 0;
        if self.places.capacity() > 4 * self.places.len().max(HOLES_KEPT) {
            self.places.shrink_to(2 * self.places.len());
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

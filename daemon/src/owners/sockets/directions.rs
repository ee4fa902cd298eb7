//! The directions that sockets have had, each with its claims.

use std::hash::BuildHasher;
use std::hint::black_box;

use foldhash::fast::RandomState;

use flowbus_interfaces::fit;

use crate::flow::Key;
use crate::index::Index;
use crate::owners::claims::Claims;

/// Claims by direction.
///
/// A burst of sockets adds directions by the hundred thousand, and most look-ups of its flows ask for one that is not there. So the
/// claims lie one behind the other, in the order in which they came: memory is touched as far as there are directions, and is not
/// copied when the index grows. A look-up reads claims only where the hash fits.
#[derive(Debug, Default)]
pub(super) struct Directions {
    /// The place in `entries` of each direction.
    index: Index,
    hasher: RandomState,
    /// Without holes: the last entry takes the place of one that is removed.
    entries: Vec<(Key, Claims)>,
}

impl Directions {
    pub(super) fn get(&self, key: &Key) -> Option<&Claims> {
        let place = self.place(key)?;
        Some(&self.entries[place].1)
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Claims> {
        let place = self.place(key)?;
        Some(&mut self.entries[place].1)
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.place(key).is_some()
    }

    /// Adds a direction that is not there yet.
    pub(super) fn insert(&mut self, key: Key, claims: Claims) {
        self.index.insert(self.hasher.hash_one(key), fit(self.entries.len()));
        self.entries.push((key, claims));
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Claims> {
        let hash = self.hasher.hash_one(key);
        let place = self.find(hash, key)?;
        let last = self.entries.len() - 1;
        self.index.remove(hash, fit(place));
        if place != last {
            self.index.change(self.hasher.hash_one(self.entries[last].0), fit(last), fit(place));
        }
        Some(self.entries.swap_remove(place).1)
    }

    /// Gives back the memory of a burst that has passed.
    pub(super) fn shrink(&mut self) {
        let len = self.entries.len();
        if self.entries.capacity() > 4 * len.max(1024) {
            self.entries.shrink_to(2 * len);
            self.index.shrink_to(2 * len);
        }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Claims> {
        self.entries.iter().map(|(_, claims)| claims)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&Key, &mut Claims)> {
        self.entries.iter_mut().map(|(key, claims)| (&*key, claims))
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Brings what is known of these directions into the processor's cache: all places first, then the claims, so that the processor
    /// waits for many at once. Any direction with the hash will do, as in [`Table::prefetch`](crate::table::Table::prefetch).
    pub(super) fn prefetch(&self, keys: impl Iterator<Item = Key>) {
        let places: Vec<u32> =
            keys.filter_map(|key| self.index.find(self.hasher.hash_one(key), |_| true)).collect();
        for place in places {
            let (key, claims) = &self.entries[place as usize];
            // A byte of each cache line.
            black_box((key.protocol(), claims.newest().since, claims.floor));
        }
    }

    fn place(&self, key: &Key) -> Option<usize> {
        self.find(self.hasher.hash_one(key), key)
    }

    fn find(&self, hash: u64, key: &Key) -> Option<usize> {
        let is_it = |place: u32| self.entries[place as usize].0 == *key;
        self.index.find(hash, is_it).map(|place| place as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::super::place;
    use super::*;
    use crate::flow::{OwnerNumber, UDP};
    use crate::owners::claims::{Claim, ProcessId};

    fn key(number: u16) -> Key {
        let end = |port| SocketAddr::from(([198, 18, 0, 1], port));
        place::key(UDP, end(number), end(53))
    }

    fn claim(cookie: u64) -> Claim {
        Claim {
            cookie,
            owner: OwnerNumber::default(),
            process: ProcessId::default(),
            since: 0,
            sure: 0,
            until: u64::MAX,
            forget: u64::MAX,
            pending: false,
            used: false,
            late: false,
            namespace: 0,
            elsewhere: false,
        }
    }

    #[test]
    fn a_direction_with_one_socket_takes_little_memory() {
        assert_eq!((size_of::<Claim>(), size_of::<(Key, Claims)>()), (64, 136));
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(steps in prop::collection::vec((0..40_u16, 0..4_u8), 0..400)) {
            let (mut directions, mut map) = (Directions::default(), HashMap::new());
            for (cookie, (number, step)) in (0..).zip(steps) {
                let key = key(number);
                match step {
                    0 | 1 if !map.contains_key(&key) => {
                        directions.insert(key, Claims::new(claim(cookie)));
                        map.insert(key, cookie);
                    }
                    2 => {
                        let removed = directions.remove(&key).map(|claims| claims.newest().cookie);
                        prop_assert_eq!(removed, map.remove(&key));
                    }
                    _ => directions.shrink(),
                }
                prop_assert_eq!(directions.len(), map.len());
                for number in 0..40 {
                    let key = self::key(number);
                    let found = directions.get(&key).map(|claims| claims.newest().cookie);
                    prop_assert_eq!(found, map.get(&key).copied());
                    prop_assert_eq!(directions.contains(&key), found.is_some());
                }
            }
        }
    }
}

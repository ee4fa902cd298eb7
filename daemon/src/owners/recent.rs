//! Texts by number, of which those are kept that were of use last.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;

/// At most this many texts are kept, and at least half as many: those programs that the kernel takes for reported
/// (`attribution/bpf/process.h`).
const MAXIMUM: usize = 4096;

/// Texts by number.
#[derive(Debug)]
pub(super) struct Recent<K> {
    /// Each text, with what `uses` was when it was last of use.
    texts: HashMap<K, (Box<str>, u64), RandomState>,
    /// How often a text was of use.
    uses: u64,
}

impl<K> Default for Recent<K> {
    fn default() -> Self {
        Self { texts: HashMap::default(), uses: 0 }
    }
}

impl<K: Eq + Hash> Recent<K> {
    pub(super) fn set(&mut self, key: K, text: &str) {
        if self.texts.len() >= MAXIMUM {
            // Groups and processes come and go: those that were not of use for longest are gone, most likely.
            let mut uses: Vec<u64> = self.texts.values().map(|(_, used)| *used).collect();
            let (_, median, _) = uses.select_nth_unstable(MAXIMUM / 2);
            let oldest = *median;
            self.texts.retain(|_, (_, used)| *used > oldest);
        }
        self.uses += 1;
        self.texts.insert(key, (text.into(), self.uses));
    }

    pub(super) fn get(&mut self, key: &K) -> Option<&str> {
        self.uses += 1;
        self.texts.get_mut(key).map(|(text, used)| {
            *used = self.uses;
            &**text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_of_use_lately_is_kept() {
        let mut recent = Recent::default();
        recent.set(0, "kept");
        for number in 1..=2 * MAXIMUM {
            recent.set(number, "new");
            assert_eq!(recent.get(&0), Some("kept"));
            assert!(recent.texts.len() <= MAXIMUM);
            assert!(recent.texts.len() > number.min(MAXIMUM / 2 - 1));
        }
        assert_eq!(recent.get(&1), None);
    }
}

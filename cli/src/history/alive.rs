//! The flows that pass and have not ended, as far as the record has been read.

use std::collections::{BTreeMap, BTreeSet};

/// How many bytes of lines are remembered: more than a kernel's table has.
const BYTES: usize = 1 << 30;
/// What a flow takes besides its line.
const FLOW_BYTES: usize = 64;

/// Flows by id, each by its last line.
pub(super) struct Alive {
    lines: BTreeMap<u64, Box<str>>,
    /// The ids of `lines` that the snapshot of the file lacks so far.
    unseen: BTreeSet<u64>,
    bytes: usize,
    most: usize,
}

impl Alive {
    pub(super) const fn new() -> Self {
        Self { lines: BTreeMap::new(), unseen: BTreeSet::new(), bytes: 0, most: BYTES }
    }

    /// Begins another file, whose snapshot lacks every flow so far.
    pub(super) fn begin_file(&mut self) {
        self.unseen = self.lines.keys().copied().collect();
    }

    /// Remembers a flow by a line of it; false where there is no room.
    #[must_use]
    pub(super) fn insert(&mut self, id: u64, line: &str) -> bool {
        self.remove(id);
        let bytes = self.bytes + line.len() + FLOW_BYTES;
        if bytes > self.most {
            return false;
        }
        self.bytes = bytes;
        self.lines.insert(id, line.into());
        true
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Box<str>> {
        self.unseen.remove(&id);
        let line = self.lines.remove(&id)?;
        self.bytes -= line.len() + FLOW_BYTES;
        Some(line)
    }

    /// Takes the flows that the snapshot, now complete, lacks.
    pub(super) fn take_unseen(&mut self) -> Vec<Box<str>> {
        std::mem::take(&mut self.unseen).into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Takes all flows.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Box<str>> + use<> {
        self.unseen.clear();
        self.bytes = 0;
        std::mem::take(&mut self.lines).into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_has_a_bound_and_room_comes_back() {
        let mut alive = Alive { most: 2 * (FLOW_BYTES + 4), ..Alive::new() };
        assert!(alive.insert(1, "one!") && alive.insert(2, "two!"));
        assert!(!alive.insert(3, ""), "no room");
        assert!(alive.insert(2, "2nd!"), "a line takes the place of the one before");
        alive.begin_file();
        assert_eq!(alive.remove(1).as_deref(), Some("one!"));
        assert!(alive.insert(3, "new!"));
        assert_eq!(alive.take_unseen(), ["2nd!".into()]);
        assert_eq!(alive.take().collect::<Vec<_>>(), ["new!".into()]);
        assert!(alive.insert(4, &"x".repeat(FLOW_BYTES)), "nothing is left over");
    }
}

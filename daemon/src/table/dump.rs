//! A dump that is merged: when it begins and ends, and the tombstones of the flows that ended meanwhile.
//!
//! The rules by which its entries change the table are in `apply.rs`.

use std::collections::HashSet;
use std::hash::BuildHasher;

use flowbus_interfaces::EndReason;
use foldhash::fast::RandomState;

use super::Table;
use crate::change::Changes;
use crate::clock::Now;
use crate::flow::Key;
use flowbus_interfaces::fit;

/// A dump that is being merged.
#[derive(Debug)]
pub(super) struct Dump {
    /// Flows seen before this stamp and not since are gone when the dump ends.
    pub(super) stamp: u32,
    /// Hashes of key and `CTA_ID` of the flows destroyed since the dump began: the dump may still show them.
    pub(super) tombstones: HashSet<u64, RandomState>,
    pub(super) added: u32,
    pub(super) changed: u32,
}

/// What merging a dump did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Merged {
    pub(crate) added: u32,
    /// Flows of which an entry showed what no event had.
    pub(crate) changed: u32,
    pub(crate) closed: u32,
}

impl Merged {
    /// True when the table agreed with the kernel's already.
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl Table {
    /// Begins to merge a dump. Every flow that is seen from here to [`Table::end_dump`] counts as alive.
    pub(crate) fn begin_dump(&mut self) {
        self.change().header().stamp += 1;
        self.dump = Some(Dump {
            stamp: self.state.header.stamp,
            tombstones: HashSet::with_hasher(self.hasher.clone()),
            added: 0,
            changed: 0,
        });
    }

    /// Gives a dump up that did not end: nothing is closed by it.
    pub(crate) fn abandon_dump(&mut self) {
        self.dump = None;
    }

    /// Ends the merge. A complete dump closes the flows that neither it nor an event since its begin has shown.
    pub(crate) fn end_dump(&mut self, complete: bool, now: Now, changes: &mut Changes) -> Merged {
        let Some(dump) = self.dump.take() else { return Merged::default() };
        self.change_usec = now.realtime_usec;
        let gone = |slot: &u32| complete && self.state.record(*slot).seen < dump.stamp;
        let unseen: Vec<u32> = self.order.all().filter(gone).collect();
        let closed = fit(unseen.len());
        for slot in unseen {
            self.change().table().close_unseen(slot, EndReason::Resync, now, changes);
        }
        Merged { added: dump.added, changed: dump.changed, closed }
    }

    /// Remembers a destroyed flow while a dump runs that may still show it.
    pub(super) fn add_tombstone(&mut self, key: &Key, conntrack_id: Option<u32>) {
        if self.dump.is_none() {
            return;
        }
        let tombstone = self.tombstone(key, conntrack_id);
        if let Some(dump) = &mut self.dump {
            dump.tombstones.insert(tombstone);
        }
    }

    /// The hash that is kept of a destroyed flow.
    pub(super) fn tombstone(&self, key: &Key, conntrack_id: Option<u32>) -> u64 {
        self.hasher.hash_one((key, conntrack_id))
    }
}

//! What changed in the table, numbered, and the bounded log that everyone follows it in.

use std::collections::VecDeque;

use ctnetlink::EventKind;

use crate::flow::{Before, Snapshot};

/// One change that sends an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// One larger than the change before.
    pub(crate) sequence: u64,
    pub(crate) kind: EventKind,
    /// The flow after the change.
    pub(crate) flow: Snapshot,
    /// What an update changed, as it was: a follower's filter may have let the flow pass then.
    pub(crate) before: Option<Before>,
}

impl Change {
    /// The flow before the change; `None` of a new one.
    pub(crate) fn flow_before(&self) -> Option<Snapshot> {
        match (self.kind, self.before) {
            (EventKind::New, _) => None,
            (EventKind::Update, Some(before)) => Some(self.flow.with(before)),
            (EventKind::Update, None) => Some(self.flow),
            (EventKind::Destroy, _) => Some(Snapshot { end: None, ..self.flow }),
        }
    }
}

/// The newest changes. Who falls further behind than its capacity misses the oldest, and knows how many:
/// sequence numbers have no holes.
#[derive(Debug, Default)]
pub(crate) struct ChangeLog {
    changes: VecDeque<Change>,
    /// The number of the newest change, or 0 before the first.
    newest: u64,
}

/// So many changes are kept: about 3 MiB, 50 ms of the fastest burst that was measured.
const CAPACITY: usize = 12 * 1024;

impl ChangeLog {
    /// An empty log after the change with this number.
    pub(crate) fn starting_after(newest: u64) -> Self {
        Self { changes: VecDeque::new(), newest }
    }

    /// Appends changes in the order of their numbers, leaving `changes` empty for its next use.
    pub(crate) fn append(&mut self, changes: &mut Vec<Change>) {
        let Some(newest) = changes.last() else { return };
        self.newest = newest.sequence;
        let skipped = changes.len().saturating_sub(CAPACITY);
        let overflow = (self.changes.len() + changes.len() - skipped).saturating_sub(CAPACITY);
        self.changes.drain(..overflow.min(self.changes.len()));
        self.changes.extend(changes.drain(..).skip(skipped));
    }

    /// The number of the newest change.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// The changes numbered above `after` that are still there, oldest first. A first one that is not `after` + 1
    /// tells how many were missed.
    pub(crate) fn after(&self, after: u64) -> impl Iterator<Item = &Change> {
        let start = self.changes.partition_point(|change| change.sequence <= after);
        self.changes.range(start..)
    }
}

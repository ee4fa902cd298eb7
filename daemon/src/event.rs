//! What changed in the table, numbered, and the bounded log that everyone follows it in.

use std::collections::VecDeque;

use ctnetlink::{EventKind, Tuple};
use flowbus_interfaces::{Expectation, Flow};

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

/// What became of an expectation. It is no flow: it is not numbered, not kept, and told to those who listen just then.
#[derive(Clone, Debug)]
pub(crate) struct ExpectationEvent {
    /// New or destroyed; the kernel tells of no updates.
    pub(crate) kind: EventKind,
    tuple: Tuple,
    pub(crate) expectation: Expectation,
}

impl ExpectationEvent {
    pub(crate) fn new(kind: EventKind, expectation: &ctnetlink::Expectation<'_>) -> Self {
        Self { kind, tuple: expectation.tuple, expectation: expectation.into() }
    }

    /// The flow that is waited for, as far as it is known.
    pub(crate) fn flow(&self) -> Flow<'_> {
        Flow { helper: self.expectation.helper.as_deref(), ..Flow::new(0, self.tuple, self.tuple) }
    }
}

/// The newest changes. Who falls further behind than its capacity misses the oldest, and knows how many:
/// sequence numbers have no holes.
#[derive(Debug, Default)]
pub(crate) struct ChangeLog {
    /// The changes in pieces, none of them empty: those of a busy turn are taken over as they are, not copied.
    pieces: VecDeque<Vec<Change>>,
    count: usize,
    /// The number of the newest change, or 0 before the first.
    newest: u64,
}

/// So many changes are kept, and at most a piece more: about 3 MiB, 50 ms of the fastest burst that was measured.
const CAPACITY: usize = 12 * 1024;
/// A piece has at most so many changes; a turn of the tracker rarely has more.
const PIECE: usize = 2 * 1024;

impl ChangeLog {
    /// An empty log after the change with this number.
    pub(crate) fn starting_after(newest: u64) -> Self {
        Self { newest, ..Self::default() }
    }

    /// Appends changes in the order of their numbers, leaving `changes` empty for its next use.
    pub(crate) fn append(&mut self, changes: &mut Vec<Change>) {
        let Some(newest) = changes.last() else { return };
        self.newest = newest.sequence;
        if changes.len() > PIECE {
            // What a dump closes all at once; its memory is given back.
            let all = std::mem::take(changes);
            let skipped = all.len().saturating_sub(CAPACITY);
            for piece in all[skipped..].chunks(PIECE) {
                self.push(piece.to_vec());
            }
            return;
        }
        match self.pieces.back_mut() {
            Some(piece) if piece.len() + changes.len() <= PIECE => {
                self.count += changes.len();
                piece.append(changes);
            }
            _ => *changes = self.push(std::mem::take(changes)),
        }
    }

    /// Adds a piece, and drops old ones that there is no room for: the last one's memory is the result, empty.
    fn push(&mut self, piece: Vec<Change>) -> Vec<Change> {
        self.count += piece.len();
        self.pieces.push_back(piece);
        let mut dropped = Vec::new();
        while let Some(oldest) = self.pieces.pop_front_if(|oldest| self.count - oldest.len() >= CAPACITY) {
            self.count -= oldest.len();
            dropped = oldest;
        }
        dropped.clear();
        dropped
    }

    /// The number of the newest change.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// The changes numbered above `after` that are still there, oldest first. A first one that is not `after` + 1
    /// tells how many were missed.
    pub(crate) fn after(&self, after: u64) -> impl Iterator<Item = &Change> {
        let is_old = |change: &Change| change.sequence <= after;
        let first = self.pieces.partition_point(|piece| piece.last().is_some_and(is_old));
        let skipped = self.pieces.get(first).map_or(0, |piece| piece.partition_point(is_old));
        self.pieces.range(first..).flatten().skip(skipped)
    }
}

//! A bounded log of numbered entries, which everyone follows at a pace of their own.

use std::collections::VecDeque;

/// What a log keeps.
pub(crate) trait Numbered: Clone {
    /// At least this many entries are kept, and at most a piece more.
    const KEPT: usize;

    /// The entry's number, larger than that of the entry before.
    fn sequence(&self) -> u64;
}

/// Maximum number of entries of a piece; a turn of the tracker rarely has more.
pub(crate) const PIECE: usize = 1024;

/// The newest entries. A follower that falls further behind misses the oldest, and knows how many where the numbers have no
/// holes.
#[derive(Debug)]
pub(crate) struct Log<T> {
    /// The entries in pieces, none of them empty: those of a busy turn are taken over as they are, not copied.
    pieces: VecDeque<Vec<T>>,
    count: usize,
    /// The number of the newest entry, or 0 before the first.
    newest: u64,
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self { pieces: VecDeque::new(), count: 0, newest: 0 }
    }
}

impl<T: Numbered> Log<T> {
    /// An empty log after the entry with this number.
    pub(crate) fn starting_after(newest: u64) -> Self {
        Self { newest, ..Self::default() }
    }

    /// Appends entries in the order of their numbers, leaving `entries` empty for its next use.
    pub(crate) fn append(&mut self, entries: &mut Vec<T>) {
        let Some(newest) = entries.last() else { return };
        self.newest = newest.sequence();
        if entries.len() > PIECE {
            // What a dump closes all at once; its memory is given back.
            let all = std::mem::take(entries);
            let skipped = all.len().saturating_sub(T::KEPT);
            for piece in all[skipped..].chunks(PIECE) {
                self.push(piece.to_vec());
            }
            return;
        }
        match self.pieces.back_mut() {
            Some(piece) if piece.len() + entries.len() <= PIECE => {
                self.count += entries.len();
                piece.append(entries);
            }
            _ => *entries = self.push(std::mem::take(entries)),
        }
    }

    /// Adds a piece, and drops old ones that there is no room for: the last one's memory is the result, empty.
    fn push(&mut self, piece: Vec<T>) -> Vec<T> {
        self.count += piece.len();
        self.pieces.push_back(piece);
        let mut dropped = Vec::new();
        while self.pieces.front().is_some_and(|oldest| self.count - oldest.len() >= T::KEPT)
            && let Some(oldest) = self.pieces.pop_front()
        {
            self.count -= oldest.len();
            dropped = oldest;
        }
        dropped.clear();
        dropped
    }

    /// The number of the newest entry.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// The entries numbered above `after` that are still there, oldest first. A first one that is not `after` + 1
    /// shows how many were missed.
    pub(crate) fn after(&self, after: u64) -> impl Iterator<Item = &T> {
        let is_old = |entry: &T| entry.sequence() <= after;
        let first = self.pieces.partition_point(|piece| piece.last().is_some_and(is_old));
        let skipped = self.pieces.get(first).map_or(0, |piece| piece.partition_point(is_old));
        self.pieces.range(first..).flatten().skip(skipped)
    }
}

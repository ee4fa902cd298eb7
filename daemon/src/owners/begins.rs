//! When the flows of the table began, as far as it matters for their owners.

use super::window::{Begin, Window};

/// All sockets that have ended within this time are known: half of the time for which they are kept.
const REMEMBERED_NSEC: u64 = 1_000_000_000;
/// At most this many flows wait until they are finished.
const MAXIMUM_REUSED: usize = 16_384;

/// `Begins::before` of a flow some of whose sockets may not have been reported.
const UNKNOWN: u8 = u8::MAX;

/// When flows began, by slot.
#[derive(Debug, Default)]
pub(crate) struct Begins {
    /// The start of the window in which the flow was first seen; `u64::MAX` where that is not known.
    from: Vec<u64>,
    /// How many flows with the same ends had begun and ended before it in that window; [`UNKNOWN`] where it may have begun
    /// earlier, or sockets are not known.
    before: Vec<u8>,
    /// The flows before which another one with the same ends ended in the same window, in the order of their beginnings: what was
    /// reported of their sockets cannot be distinguished from what was reported of the sockets before.
    reused: Vec<Reused>,
}

/// A flow whose ends another one had just before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reused {
    pub(crate) slot: u32,
    pub(crate) id: u64,
    pub(crate) begin: Begin,
    /// The last time at which the flow's end is of use, CLOCK_MONOTONIC nanoseconds.
    until: u64,
}

impl Begins {
    /// Notes when the flow was first seen that has this slot from now on; `is_known` where it began then and all of its
    /// sockets have been reported.
    pub(crate) fn note(&mut self, slot: u32, begin: Begin, is_known: bool) {
        let slot = slot as usize;
        if self.from.len() <= slot {
            self.from.resize(slot + 1, u64::MAX);
            self.before.resize(slot + 1, UNKNOWN);
        }
        self.from[slot] = begin.from;
        self.before[slot] = if is_known { begin.before } else { UNKNOWN };
    }

    /// Adds a flow that began within the window to those that [`Begins::take_reused`] returns.
    pub(crate) fn add_reused(&mut self, slot: u32, id: u64, begin: Begin, window: Window) {
        if self.reused.len() < MAXIMUM_REUSED {
            self.reused.push(Reused { slot, id, begin, until: window.to.saturating_add(REMEMBERED_NSEC) });
        }
    }

    /// Takes the flows out whose ends were used again lately.
    pub(crate) fn take_reused(&mut self, now: u64) -> Vec<Reused> {
        let mut reused = std::mem::take(&mut self.reused);
        reused.retain(|reused| now <= reused.until);
        reused
    }

    /// Puts those back that have not ended.
    pub(crate) fn put_reused(&mut self, reused: Vec<Reused>) {
        self.reused = reused;
    }

    /// The time since which what sockets did is of use: within `window`, or to flows whose ends were used again.
    pub(crate) fn useful_from(&self, window: Window) -> u64 {
        self.reused.first().map_or(window.from, |oldest| oldest.begin.from.min(window.from))
    }

    /// The beginning of the flow, where no socket has been forgotten that ended since. `window` is that of the events that
    /// were applied last.
    pub(crate) fn remembered(&self, slot: u32, window: Window) -> Option<Begin> {
        let slot = slot as usize;
        let from = self.from.get(slot).copied()?;
        let before = self.before.get(slot).copied().filter(|before| *before != UNKNOWN)?;
        (from >= window.from || window.to <= from.saturating_add(REMEMBERED_NSEC))
            .then_some(Begin { from, before })
    }

    /// Whether the flow is known to have been there before this time.
    pub(crate) fn is_before(&self, slot: u32, time: u64) -> bool {
        self.from.get(slot as usize).is_some_and(|from| *from < time)
    }

    /// Forgets all: sockets or flows may be unknown.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

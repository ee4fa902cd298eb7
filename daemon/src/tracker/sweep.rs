//! When the table is compared with the kernel's although no loss was seen.
//!
//! Flows older than the first listener end without an event, so they are looked for, often at first, then at a
//! slower pace while none has gone. And rarely everything is: a dump can skip an entry, and the kernel can be late.

use std::time::{Duration, Instant};

use crate::table::{Merged, Table};

/// The pace while flows may end unseen.
const SHORTEST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(16);
/// A dump costs the kernel time: sweeping takes at most this part of it.
const SHARE: u32 = 20;

#[derive(Debug)]
pub(super) struct Sweeps {
    /// The pace when every flow tells its end.
    interval: Duration,
    /// The pace while some do not.
    silent_interval: Duration,
    last_dump: Instant,
}

impl Sweeps {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, silent_interval: SHORTEST, last_dump: Instant::now() }
    }

    /// Notes a dump that was merged and took so long.
    pub(super) fn dump_ended(&mut self, merged: Merged, took: Duration, now: Instant) {
        self.last_dump = now;
        let next = if merged.closed > 0 { SHORTEST } else { (self.silent_interval * 2).min(LONGEST) };
        self.silent_interval = next.max(took * SHARE);
    }

    pub(super) fn is_due(&self, table: &Table, now: Instant) -> bool {
        self.until_due(table, now).is_some_and(|duration| duration.is_zero())
    }

    /// How long until the next sweep; `None` while there is nothing to look for.
    pub(super) fn until_due(&self, table: &Table, now: Instant) -> Option<Duration> {
        let interval = match (table.header().active, table.silent_count()) {
            (0, _) => return None,
            (_, 0) => self.interval,
            _ => self.silent_interval,
        };
        Some((self.last_dump + interval).saturating_duration_since(now))
    }
}

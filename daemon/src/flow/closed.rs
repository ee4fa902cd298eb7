//! A flow that ended, as the state holds it.

use std::time::Duration;

use flowbus_interfaces::EndReason;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{End, Extra, Key, NO_EXTRA, Owners, Record, Snapshot, time_source};
use crate::checksum::{Checksummed, layout_of};
use crate::clock::Now;

/// How many ended flows are kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClosedLimits {
    /// Maximum number of flows.
    pub(crate) capacity: u32,
    /// Flows that ended longer ago than this are forgotten.
    pub(crate) maximum_age: Duration,
}

impl ClosedLimits {
    /// The largest capacity.
    pub(crate) const MAXIMUM_CAPACITY: u32 = 1_000_000;
}

/// A closed flow as the state holds it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ClosedFlow {
    pub(crate) record: Record,
    extra: Extra,
    owners: Owners,
    end_usec: u64,
    duration_usec: u64,
    pub(crate) sequence: u64,
    /// CLOCK_BOOTTIME microseconds when it was put here.
    pub(crate) closed_boottime_usec: u64,
    check: u32,
    end_source: u8,
    end_reason: u8,
    padding: [u8; 2],
}

layout_of!(ClosedFlow {
    record,
    extra,
    owners,
    end_usec,
    duration_usec,
    sequence,
    closed_boottime_usec,
    check,
    end_source,
    end_reason,
    padding,
});

impl Checksummed for ClosedFlow {
    const CHECK: usize = std::mem::offset_of!(Self, check);
}

impl ClosedFlow {
    pub(crate) fn new(flow: &Snapshot, end: End, now: Now) -> Self {
        // Where the extra part of an active flow stands means nothing here; whether there is one does.
        let mut record = flow.record;
        record.extra = if flow.extra.is_some() { 0 } else { NO_EXTRA };
        Self {
            record,
            extra: flow.extra.unwrap_or(Extra::EMPTY),
            owners: flow.owners,
            end_usec: end.usec,
            duration_usec: end.duration_usec,
            sequence: end.sequence,
            closed_boottime_usec: now.boottime_usec,
            check: 0,
            end_source: end.source as u8,
            end_reason: end.reason as u8,
            padding: [0; 2],
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let reasons = [EndReason::Destroyed, EndReason::Resync, EndReason::Replaced];
        let reason = reasons.into_iter().find(|reason| *reason as u8 == self.end_reason);
        let end = End {
            usec: self.end_usec,
            source: time_source(self.end_source),
            reason: reason.unwrap_or(EndReason::Resync),
            duration_usec: self.duration_usec,
            sequence: self.sequence,
        };
        let extra = (self.record.extra != NO_EXTRA).then_some(self.extra);
        Snapshot { record: self.record, extra, owners: self.owners, end: Some(end) }
    }

    /// True when the flow had this key and `CTA_ID`.
    pub(crate) fn is_incarnation(&self, key: &Key, conntrack_id: Option<u32>) -> bool {
        self.record.key == *key && self.record.conntrack_id() == conntrack_id
    }
}

/// Ends in a range of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) count: u64,
    /// The number of the newest end, 0 without one.
    pub(crate) last: u64,
}

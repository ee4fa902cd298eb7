//! When a flow started and ended, how that is known, and why it ended.

/// A point in time and how it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// `CLOCK_REALTIME`, microseconds.
    pub usec: u64,
    /// How it is known.
    pub source: TimeSource,
}

/// How the time of a start or an end is known, most exact first. The numbers stand in flowbusd's restart state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TimeSource {
    /// The kernel's own stamp (nf_conntrack_timestamp).
    Kernel = 0,
    /// When the event that says so was received.
    Event = 1,
    /// When the flow was first seen: it may have started earlier.
    Observed = 2,
    /// Somewhen since the flow was last seen.
    Estimated = 3,
}

impl TimeSource {
    /// The name, as `start_source` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Event => "event",
            Self::Observed => "observed",
            Self::Estimated => "estimated",
        }
    }
}

/// Why a flow ended. The numbers stand in flowbusd's restart state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EndReason {
    /// The kernel said so.
    Destroyed = 0,
    /// A dump no longer had it.
    Resync = 1,
    /// The kernel made another flow of the same tuple.
    Replaced = 2,
}

impl EndReason {
    /// The name, as `end_reason` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Destroyed => "destroyed",
            Self::Resync => "resync",
            Self::Replaced => "replaced",
        }
    }
}

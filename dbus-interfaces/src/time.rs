//! When a flow started and ended, how that is known, and why it ended.

/// A point in time and how it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// `CLOCK_REALTIME`, microseconds.
    pub usec: u64,
    /// How it is known.
    pub source: TimeSource,
}

/// How the time of a start or an end is known, most exact first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TimeSource {
    /// The kernel's own stamp (nf_conntrack_timestamp).
    Kernel,
    /// When the event that says so was received.
    Event,
    /// When the flow was first seen: it may have started earlier.
    Observed,
    /// Somewhen since the flow was last seen.
    Estimated,
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

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EndReason {
    /// The kernel said so.
    Destroyed,
    /// A dump no longer had it.
    Resync,
    /// The kernel made another flow of the same tuple.
    Replaced,
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

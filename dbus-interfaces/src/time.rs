//! When a flow started and ended, how that is known, and why it ended.

use std::fmt;

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
    /// At some time since the flow was last seen.
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
    /// The kernel reported the end.
    Destroyed = 0,
    /// A dump no longer had the flow.
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

/// A span of time in microseconds, which is shown in two units: `250ms`, `5s`, `3m12s`, `2h5m`, `4d3h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000_000;
        let (minutes, hours) = (seconds / 60, seconds / 3600);
        match (hours, minutes, seconds) {
            (24.., ..) => write!(f, "{}d{}h", hours / 24, hours % 24),
            (1.., ..) => write!(f, "{hours}h{}m", minutes % 60),
            (_, 1.., _) => write!(f, "{minutes}m{}s", seconds % 60),
            (.., 1..) => write!(f, "{seconds}s"),
            _ => write!(f, "{}ms", self.0 / 1000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_two_units() {
        for (usec, text) in [
            (0, "0ms"),
            (250_000, "250ms"),
            (5_000_000, "5s"),
            (192_000_000, "3m12s"),
            (7_500_000_000, "2h5m"),
            (356_400_000_000, "4d3h"),
        ] {
            assert_eq!(Span(usec).to_string(), text);
        }
        assert!(Span(u64::MAX).to_string().ends_with('h'));
    }
}

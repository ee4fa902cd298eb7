//! Within which bounds the kernel sent an event, in nanoseconds on CLOCK_MONOTONIC.

/// When the kernel sent the events that are being applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Window {
    /// The kernel sent them not before this time, at which the event socket was empty.
    pub(crate) from: u64,
    /// The kernel sent them not after this time, at which they had been received.
    pub(crate) to: u64,
}

/// The beginning of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begin {
    /// The start of the window in which the flow was first seen.
    pub(crate) from: u64,
    /// How many flows with the same ends had begun and ended before the flow in that window.
    pub(crate) before: u8,
}

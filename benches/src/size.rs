//! How much is measured.

use std::time::Duration;

/// The receive buffer of every reader that takes one: as large as a flowbusd of the default configuration has.
pub(crate) const BUFFER: usize = 32 * 1024 * 1024;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// The flows of a full table.
    pub(crate) flows: u32,
    /// How often what is compared takes turns.
    pub(crate) rounds: usize,
    /// The largest table that memory is measured with.
    pub(crate) largest: u32,
    /// How long the longer of the measures take.
    pub(crate) time: Duration,
}

//! What the screen and its feed tell each other.

use std::collections::HashMap;

use flowbus_interfaces::OwnedFlow;

use super::tally::Counted;
use super::view::View;

/// What the screen wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) view: View,
    pub(super) paused: bool,
    /// All of this flow as well.
    pub(super) detail: Option<u64>,
}

/// What the screen receives.
#[derive(Debug)]
pub(super) enum Report {
    Snapshot(Box<Snapshot>),
    Detail {
        id: u64,
        flow: Result<OwnedFlow, String>,
    },
    /// The daemon could not be asked, or refused; what is on the screen is old.
    Failed(String),
}

/// The connections at a moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) view: View,
    pub(super) counted: Counted,
    /// What is shown of the rows that are flows, by id. One that has ended since is absent.
    pub(super) shown: HashMap<u64, OwnedFlow>,
    /// Microseconds since 1970.
    pub(super) now: u64,
    /// Whether new flows count bytes.
    pub(super) accounting: bool,
    /// Whether the daemon's table agrees with the kernel's.
    pub(super) synchronized: bool,
    /// How many flows the kernel has, and how many it can have.
    pub(super) kernel: Option<(u64, u64)>,
}

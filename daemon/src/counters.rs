//! What is counted over restarts, and why a resync was needed.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::checksum::layout_of;

/// What goes on counting over a restart, as GetStatistics names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Counters {
    pub(crate) events_new: u64,
    pub(crate) events_update: u64,
    pub(crate) events_destroy: u64,
    pub(crate) events_lost: u64,
    pub(crate) events_invalid: u64,
    pub(crate) events_foreign: u64,
    pub(crate) events_repeated: u64,
    pub(crate) unknown_attributes: u64,
    pub(crate) resyncs: u64,
    pub(crate) sweeps: u64,
    pub(crate) dumps: u64,
    pub(crate) closed_evicted: u64,
    pub(crate) names_refused: u64,
    pub(crate) flows_refused: u64,
    pub(crate) owners_unmatched_flows: u64,
    pub(crate) owners_unmatched_sockets: u64,
    pub(crate) owners_expired: u64,
    pub(crate) owners_refused: u64,
    pub(crate) owners_ambiguous: u64,
}

layout_of!(Counters {
    events_new,
    events_update,
    events_destroy,
    events_lost,
    events_invalid,
    events_foreign,
    events_repeated,
    unknown_attributes,
    resyncs,
    sweeps,
    dumps,
    closed_evicted,
    names_refused,
    flows_refused,
    owners_unmatched_flows,
    owners_unmatched_sockets,
    owners_expired,
    owners_refused,
    owners_ambiguous,
});

impl Counters {
    /// Events that change how many flows there are.
    pub(crate) fn births_and_ends(&self) -> u64 {
        self.events_new + self.events_destroy
    }
}

/// Why a resync was needed. The restart state holds these numbers; 0 means that none was needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum ResyncReason {
    /// The daemon began with an empty table.
    Start = 1,
    /// The kernel dropped events: the socket's buffer was full.
    Overrun = 2,
    /// The state of the last life could not be taken over.
    StateRefused = 3,
    /// The state was kept, the event socket was not.
    NewSocket = 4,
}

impl ResyncReason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Overrun => "overrun",
            Self::StateRefused => "state-refused",
            Self::NewSocket => "new-socket",
        }
    }

    /// The reason that the state holds.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        [Self::Start, Self::Overrun, Self::StateRefused, Self::NewSocket]
            .into_iter()
            .find(|reason| *reason as u32 == number)
    }
}

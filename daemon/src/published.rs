//! What the tracker publishes.

use std::collections::VecDeque;

use crate::change::Change;
use crate::connection::ConnectionEvent;
use crate::counters::{Counters, ResyncReason};
use crate::log::Log;
use crate::names::NameStrings;
use crate::owners::ProcessTexts;

/// What stays as it is while the daemon lives.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) epoch: String,
    /// The newest change of the life before.
    pub(crate) first_sequence: u64,
    /// The newest connection event of the life before.
    pub(crate) first_connection: u64,
    pub(crate) names: NameStrings,
    pub(crate) processes: ProcessTexts,
}

/// What moves.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) log: Log<Change>,
    pub(crate) connections: Log<ConnectionEvent>,
    pub(crate) summary: Summary,
    /// Why the last dump failed, until one is merged.
    pub(crate) failure: Option<String>,
    /// The newest resyncs; `summary.counters.resyncs` tells how many there ever were.
    pub(crate) resyncs: VecDeque<Resync>,
}

impl Published {
    /// The resyncs since `told` of them were told, as far as they are kept, for whoever has been told of the changes up to
    /// `sequence`: what a resync did comes before it. `told` is brought up to date.
    pub(crate) fn resyncs_since(&self, told: &mut u64, sequence: u64) -> Vec<Resync> {
        let total = self.summary.counters.resyncs;
        let untold = usize::try_from(total - *told).unwrap_or(usize::MAX);
        let kept = self.resyncs.iter().skip(self.resyncs.len().saturating_sub(untold));
        let due = kept.clone().take_while(|resync| resync.sequence <= sequence);
        *told = total - (kept.len() - due.clone().count()) as u64;
        due.copied().collect()
    }
}

/// Changes of these are announced on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) synchronized: bool,
    pub(crate) closed_capacity: u32,
    pub(crate) attribution: Tier,
}

/// How flows get their processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// They do not.
    None,
    /// Looked up in /proc after the fact.
    Procfs,
    /// Told by BPF programs.
    Bpf,
}

impl Tier {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Procfs => "procfs",
            Self::Bpf => "bpf",
        }
    }
}

/// One dump that brought the table back to the kernel's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resync {
    pub(crate) reason: ResyncReason,
    /// Events that the kernel dropped since the resync before.
    pub(crate) lost: u64,
    pub(crate) closed: u32,
    pub(crate) added: u32,
    /// The newest change when it was done.
    pub(crate) sequence: u64,
}

/// The tracker's numbers at the last publishing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) counters: Counters,
    pub(crate) active: u32,
    pub(crate) closed: u32,
    /// The event socket's buffer, as the kernel counts it.
    pub(crate) buffer_bytes: u64,
    /// Active flows that may not send all events.
    pub(crate) silent: u32,
    /// Why the table may differ from the kernel's: a [`ResyncReason`], else 0.
    pub(crate) resync: u32,
    /// Sockets whose flow has not been seen yet.
    pub(crate) owners_pending: u64,
    /// The newest connection event.
    pub(crate) connections: u64,
}

impl Summary {
    /// The event messages read from the event socket.
    pub(crate) fn events_received(&self) -> u64 {
        let Counters { events_new, events_update, events_destroy, events_invalid, .. } = self.counters;
        events_new + events_update + events_destroy + events_invalid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resync_is_for_those_who_know_what_it_did() {
        let mut published = Published::default();
        let resync =
            |sequence| Resync { reason: ResyncReason::Overrun, lost: 1, closed: 0, added: 0, sequence };
        published.resyncs.extend([10, 20, 30].map(resync));
        published.summary.counters.resyncs = 5;
        let mut told = 0;
        let mut due = |sequence| -> Vec<u64> {
            let resyncs = published.resyncs_since(&mut told, sequence);
            resyncs.iter().map(|resync| resync.sequence).collect()
        };
        assert_eq!(due(9), [0; 0]);
        assert_eq!(due(29), [10, 20]);
        assert_eq!(due(29), [0; 0]);
        assert_eq!(due(30), [30]);
        assert_eq!(due(99), [0; 0]);
    }
}

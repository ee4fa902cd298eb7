//! What the tracker publishes.

use std::collections::VecDeque;

use crate::change::ChangeLog;
use crate::connection::ConnectionEvent;
use crate::counters::{Counters, ResyncReason};
use crate::flow::ProcessTexts;
use crate::log::Log;
use crate::names::NameStrings;

/// What stays as it is while the daemon lives.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) epoch: String,
    /// The newest change of the life before.
    pub(crate) first_sequence: u64,
    /// The newest connection event of the life before.
    pub(crate) first_connection: u64,
    pub(crate) names: NameStrings,
    pub(crate) processes: ProcessTexts,
}

/// What changes while the daemon lives.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) log: ChangeLog,
    pub(crate) connections: Log<ConnectionEvent>,
    pub(crate) summary: Summary,
    /// Why the last dump failed, until one is merged.
    pub(crate) failure: Option<String>,
    /// The newest resyncs; `summary.counters.resyncs` tells how many there ever were.
    pub(crate) resyncs: VecDeque<Resync>,
}

impl Published {
    /// Whether a resync with a number above `seen` is kept. Those of an earlier life are counted and not kept.
    pub(crate) fn has_resyncs_after(&self, seen: u64) -> bool {
        !self.resyncs.is_empty() && self.summary.counters.resyncs > seen
    }

    /// Resyncs with a number above `seen`, as far as they are kept, each with its number, for a follower that has seen the changes
    /// up to `sequence`: what a resync did comes before it. A follower has seen one once it has passed it on.
    pub(crate) fn resyncs_after(&self, seen: u64, sequence: u64) -> Vec<(u64, Resync)> {
        let first = (self.summary.counters.resyncs + 1).saturating_sub(self.resyncs.len() as u64);
        let numbered = (first..).zip(self.resyncs.iter().copied());
        let unseen = numbered.skip_while(|(number, _)| *number <= seen);
        unseen.take_while(|(_, resync)| resync.sequence <= sequence).collect()
    }
}

/// Changes of these are announced on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Properties {
    pub(crate) synchronized: bool,
    pub(crate) closed_capacity: u32,
    pub(crate) attribution: Tier,
    /// How events are received: ring or socket.
    pub(crate) event_source: &'static str,
}

/// How flows get their processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Flows get no processes.
    None,
    /// Processes are looked up in /proc after the fact.
    Procfs,
    /// BPF programs report the processes.
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
    /// The newest flow.
    pub(crate) newest_id: u64,
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
    fn a_resync_is_for_those_who_know_what_it_did_until_they_have_passed_it_on() {
        let mut published = Published::default();
        // Two resyncs of an earlier life.
        published.summary.counters.resyncs = 2;
        assert!(!published.has_resyncs_after(0) && published.resyncs_after(0, 99).is_empty());
        let resync =
            |sequence| Resync { reason: ResyncReason::Overrun, lost: 1, closed: 0, added: 0, sequence };
        published.resyncs.extend([10, 20, 30].map(resync));
        published.summary.counters.resyncs = 5;
        let due = |seen, sequence| -> Vec<(u64, u64)> {
            let resyncs = published.resyncs_after(seen, sequence);
            resyncs.iter().map(|(number, resync)| (*number, resync.sequence)).collect()
        };
        assert_eq!(due(0, 9), []);
        assert_eq!(due(0, 29), [(3, 10), (4, 20)]);
        // The first was sent, then the connection broke.
        assert_eq!(due(3, 29), [(4, 20)]);
        assert_eq!(due(4, 29), []);
        assert_eq!(due(4, 30), [(5, 30)]);
        assert_eq!(due(5, 99), []);
        assert!(published.has_resyncs_after(4) && !published.has_resyncs_after(5));
    }
}

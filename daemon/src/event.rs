//! What changed in the table, and what connections did: numbered, and each in a bounded log that everyone follows it in.

use std::collections::VecDeque;
use std::sync::Arc;

use ctnetlink::{EventKind, Tuple};
use flowbus_attribution::{Event, Kind};
use flowbus_interfaces::{Connection, ConnectionKind, Expectation, Flow};

use crate::flow::{Before, Snapshot};
use crate::owners::ProcessText;

/// One change that sends an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// One larger than the change before.
    pub(crate) sequence: u64,
    pub(crate) kind: EventKind,
    /// The flow after the change.
    pub(crate) flow: Snapshot,
    /// What an update changed, as it was: a follower's filter may have let the flow pass then.
    pub(crate) before: Option<Before>,
}

impl Change {
    /// The flow before the change; `None` of a new one.
    pub(crate) fn flow_before(&self) -> Option<Snapshot> {
        match (self.kind, self.before) {
            (EventKind::New, _) => None,
            (EventKind::Update, Some(before)) => Some(self.flow.with(before)),
            (EventKind::Update, None) => Some(self.flow),
            (EventKind::Destroy, _) => Some(Snapshot { end: None, ..self.flow }),
        }
    }
}

/// What became of an expectation. It is no flow: it is not numbered, not kept, and told to those who listen just then.
#[derive(Clone, Debug)]
pub(crate) struct ExpectationEvent {
    /// New or destroyed; the kernel tells of no updates.
    pub(crate) kind: EventKind,
    tuple: Tuple,
    pub(crate) expectation: Expectation,
}

impl ExpectationEvent {
    pub(crate) fn new(kind: EventKind, expectation: &ctnetlink::Expectation<'_>) -> Self {
        Self { kind, tuple: expectation.tuple, expectation: expectation.into() }
    }

    /// The flow that is waited for, as far as it is known.
    pub(crate) fn flow(&self) -> Flow<'_> {
        Flow { helper: self.expectation.helper.as_deref(), ..Flow::new(0, self.tuple, self.tuple) }
    }
}

/// One thing that a connection did, seen from one end.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionEvent {
    /// One larger than the connection event before.
    pub(crate) sequence: u64,
    pub(crate) event: Event,
    /// CLOCK_REALTIME microseconds.
    pub(crate) time_usec: u64,
    /// The id of the flow, where it is in the table.
    pub(crate) flow: Option<u64>,
    pub(crate) process: Option<Arc<ProcessText>>,
}

impl ConnectionEvent {
    /// Hands the event to `show` as the bus shows it.
    pub(crate) fn show<R>(&self, show: impl FnOnce(&Connection<'_>) -> R) -> R {
        let Event { kind, monotonic_ns, network_namespace, protocol, local, remote, process, .. } =
            self.event;
        let number = match kind {
            Kind::ConnectFailed { errno } if errno != 0 => Some(error_text(errno)),
            _ => None,
        };
        let (reset, sent_bytes, received_bytes) = match kind {
            Kind::Close { reset, sent, received } => (Some(reset), Some(sent), Some(received)),
            _ => (None, None, None),
        };
        let owner = self.process.as_ref().zip(process);
        show(&Connection {
            kind: match kind {
                Kind::Accept => ConnectionKind::Accept,
                Kind::ConnectFailed { .. } => ConnectionKind::ConnectFailed,
                Kind::Close { .. } => ConnectionKind::Close,
                _ => ConnectionKind::Connect,
            },
            sequence: self.sequence,
            flow: self.flow,
            protocol,
            local,
            remote,
            network_namespace: (network_namespace != 0).then_some(network_namespace),
            monotonic_nsec: monotonic_ns,
            time_usec: self.time_usec,
            owner: owner.map(|(text, process)| text.owner(process.confidence)),
            tid: process.map(|process| process.tid),
            error: number.as_deref(),
            reset,
            sent_bytes,
            received_bytes,
        })
    }
}

/// The names of what connections fail with, `include/uapi/asm-generic/errno.h`.
const ERRORS: [(i32, &str); 20] = [
    (1, "EPERM"),
    (4, "EINTR"),
    (13, "EACCES"),
    (22, "EINVAL"),
    (32, "EPIPE"),
    (71, "EPROTO"),
    (92, "ENOPROTOOPT"),
    (93, "EPROTONOSUPPORT"),
    (95, "EOPNOTSUPP"),
    (97, "EAFNOSUPPORT"),
    (99, "EADDRNOTAVAIL"),
    (100, "ENETDOWN"),
    (101, "ENETUNREACH"),
    (103, "ECONNABORTED"),
    (104, "ECONNRESET"),
    (105, "ENOBUFS"),
    (110, "ETIMEDOUT"),
    (111, "ECONNREFUSED"),
    (112, "EHOSTDOWN"),
    (113, "EHOSTUNREACH"),
];

/// The name of an error; its number where it is a strange one.
fn error_text(errno: i32) -> String {
    let known = ERRORS.iter().find(|(number, _)| *number == errno);
    known.map_or_else(|| errno.to_string(), |(_, name)| (*name).to_owned())
}

/// What stands in a log.
pub(crate) trait Numbered: Clone {
    /// So many are kept, and at most a piece more.
    const KEPT: usize;

    /// One larger than that of the entry before.
    fn sequence(&self) -> u64;
}

/// About 3 MiB, 50 ms of the fastest burst that was measured.
impl Numbered for Change {
    const KEPT: usize = 12 * 1024;

    fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// About 2 MiB, a tenth of a second of the fastest burst that was measured.
impl Numbered for ConnectionEvent {
    const KEPT: usize = 8 * 1024;

    fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// A piece has at most so many entries; a turn of the tracker rarely has more.
const PIECE: usize = 1024;

/// The newest entries. Who falls further behind than is kept misses the oldest, and knows how many:
/// sequence numbers have no holes.
#[derive(Debug)]
pub(crate) struct Log<T> {
    /// The entries in pieces, none of them empty: those of a busy turn are taken over as they are, not copied.
    pieces: VecDeque<Vec<T>>,
    count: usize,
    /// The number of the newest entry, or 0 before the first.
    newest: u64,
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self { pieces: VecDeque::new(), count: 0, newest: 0 }
    }
}

impl<T: Numbered> Log<T> {
    /// An empty log after the entry with this number.
    pub(crate) fn starting_after(newest: u64) -> Self {
        Self { newest, ..Self::default() }
    }

    /// Appends entries in the order of their numbers, leaving `entries` empty for its next use.
    pub(crate) fn append(&mut self, entries: &mut Vec<T>) {
        let Some(newest) = entries.last() else { return };
        self.newest = newest.sequence();
        if entries.len() > PIECE {
            // What a dump closes all at once; its memory is given back.
            let all = std::mem::take(entries);
            let skipped = all.len().saturating_sub(T::KEPT);
            for piece in all[skipped..].chunks(PIECE) {
                self.push(piece.to_vec());
            }
            return;
        }
        match self.pieces.back_mut() {
            Some(piece) if piece.len() + entries.len() <= PIECE => {
                self.count += entries.len();
                piece.append(entries);
            }
            _ => *entries = self.push(std::mem::take(entries)),
        }
    }

    /// Adds a piece, and drops old ones that there is no room for: the last one's memory is the result, empty.
    fn push(&mut self, piece: Vec<T>) -> Vec<T> {
        self.count += piece.len();
        self.pieces.push_back(piece);
        let mut dropped = Vec::new();
        while self.pieces.front().is_some_and(|oldest| self.count - oldest.len() >= T::KEPT)
            && let Some(oldest) = self.pieces.pop_front()
        {
            self.count -= oldest.len();
            dropped = oldest;
        }
        dropped.clear();
        dropped
    }

    /// The number of the newest entry.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// The entries numbered above `after` that are still there, oldest first. A first one that is not `after` + 1
    /// tells how many were missed.
    pub(crate) fn after(&self, after: u64) -> impl Iterator<Item = &T> {
        let is_old = |entry: &T| entry.sequence() <= after;
        let first = self.pieces.partition_point(|piece| piece.last().is_some_and(is_old));
        let skipped = self.pieces.get(first).map_or(0, |piece| piece.partition_point(is_old));
        self.pieces.range(first..).flatten().skip(skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_kernels_names_and_strange_ones_their_number() {
        assert_eq!(error_text(111), "ECONNREFUSED");
        assert_eq!(error_text(512), "512");
    }
}

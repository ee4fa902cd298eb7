//! What changed in the table.

use ctnetlink::EventKind;

use crate::flow::{Prior, Snapshot};
use crate::log::Numbered;

/// A change that sends an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// The change's number, larger by one than that of the change before.
    pub(crate) sequence: u64,
    /// When it was, CLOCK_REALTIME microseconds.
    pub(crate) time_usec: u64,
    pub(crate) kind: EventKind,
    /// The flow after the change.
    pub(crate) flow: Snapshot,
    /// What an update changed, as it was: a follower's filter may have let the flow pass then.
    pub(crate) before: Option<Prior>,
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

/// The log keeps about 3 MiB, 50 ms of the fastest burst that was measured.
impl Numbered for Change {
    const KEPT: usize = 12 * 1024;

    fn sequence(&self) -> u64 {
        self.sequence
    }
}

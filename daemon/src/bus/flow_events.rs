//! The interface org.flowbus.FlowEvents1: signals alone. The emitter sends them.

use std::collections::HashMap;

use zbus::interface;
use zbus::object_server::SignalEmitter;
use zbus::wire::Variant;

use crate::dictionary::Listing;

/// The object; it has no state.
#[derive(Debug)]
pub(super) struct FlowEvents;

#[interface(name = "org.flowbus.FlowEvents1")]
impl FlowEvents {
    /// A batch of changes, in order. Each event is a whole flow with `event` (new, update or destroy) and its
    /// own `sequence`; `sequence` is that of the first.
    ///
    /// Updates of one flow within a batch are merged into the last; new and destroy never are. `lost` counts
    /// the changes before this batch that were dropped because they came faster than signals may be sent; it
    /// is always told, if need be by an empty batch whose `sequence` is the next one.
    #[zbus(signal)]
    pub(super) async fn flow_events(
        emitter: &SignalEmitter<'_>,
        sequence: u64,
        events: &Listing,
        lost: u64,
    ) -> zbus::Result<()>;

    /// The table agrees with the kernel's again, after a start or a loss.
    ///
    /// `details` has `reason` (s: start, overrun, state-refused or new-socket), `lost` (t: events that the
    /// kernel dropped), `closed` (u: flows that had ended unseen) and `added` (u: flows that were not known).
    #[zbus(signal)]
    pub(super) async fn resynced(
        emitter: &SignalEmitter<'_>,
        details: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<()>;
}

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
    /// Changes of the table, in order. DOC
    #[zbus(signal)]
    pub(super) async fn flow_events(
        emitter: &SignalEmitter<'_>,
        sequence: u64,
        events: &Listing,
        lost: u64,
    ) -> zbus::Result<()>;

    /// The table agrees with the kernel's again. DOC
    #[zbus(signal)]
    pub(super) async fn resynced(
        emitter: &SignalEmitter<'_>,
        details: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<()>;
}

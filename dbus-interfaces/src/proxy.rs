//! The client side: one proxy per interface, and queries in the form that they take.

use std::collections::HashMap;

use zbus::{OwnedVariant, Variant};

use crate::{Error, OwnedConnection, OwnedFlow, Page};

/// A query as a client writes it, by key.
pub type QueryMap<'a> = HashMap<&'a str, Variant<'a>>;

/// `org.flowbus.FlowMonitor1`: what the table holds. `org.flowbus.FlowMonitor1.xml` documents each member.
#[zbus::proxy(
    interface = "org.flowbus.FlowMonitor1",
    default_service = "org.flowbus.FlowMonitor1",
    default_path = "/org/flowbus/FlowMonitor1"
)]
pub trait FlowMonitor {
    /// One page of the active flows, by ascending id.
    fn list_active(&self, query: &QueryMap<'_>) -> Result<(Vec<OwnedFlow>, Page), Error>;

    /// One page of the flows that ended, latest end first.
    fn list_closed(&self, query: &QueryMap<'_>) -> Result<(Vec<OwnedFlow>, Page), Error>;

    /// The flow with this id, active or ended.
    fn get_flow(&self, id: u64) -> Result<OwnedFlow, Error>;

    /// Flows and changes as JSON lines: the read end of a pipe.
    fn open_stream(&self, query: &QueryMap<'_>) -> Result<zbus::wire::OwnedFd, Error>;

    /// A text for a feedback report: redacted, plain, of bounded length.
    fn get_report(&self, options: &QueryMap<'_>) -> Result<String, Error>;

    /// The fields of a flow that follow from a mark.
    fn decode_mark(&self, mark: u32) -> Result<OwnedFlow, Error>;

    /// Counters of the daemon and of the kernel.
    fn get_statistics(&self) -> Result<HashMap<String, OwnedVariant>, Error>;

    /// The version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;

    /// The table's epoch: ids and sequences of another one mean nothing in it.
    #[zbus(property)]
    fn epoch(&self) -> zbus::Result<String>;

    /// Whether the table agrees with the kernel's.
    #[zbus(property)]
    fn synchronized(&self) -> zbus::Result<bool>;

    /// How flows get their processes: none, procfs or bpf.
    #[zbus(property)]
    fn attribution(&self) -> zbus::Result<String>;

    /// How events are received: ring or socket.
    #[zbus(property)]
    fn event_source(&self) -> zbus::Result<String>;

    /// The most ended flows that are remembered.
    #[zbus(property)]
    fn closed_capacity(&self) -> zbus::Result<u32>;

    /// The number of the latest change.
    #[zbus(property(emits_changed_signal = "false"))]
    fn sequence(&self) -> zbus::Result<u64>;

    /// The number of active flows.
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_count(&self) -> zbus::Result<u32>;

    /// How many ended flows are remembered.
    #[zbus(property(emits_changed_signal = "false"))]
    fn closed_count(&self) -> zbus::Result<u32>;

    /// How many events were read from the kernel.
    #[zbus(property(emits_changed_signal = "false"))]
    fn events_received(&self) -> zbus::Result<u64>;

    /// How many events the kernel says it dropped.
    #[zbus(property(emits_changed_signal = "false"))]
    fn events_lost(&self) -> zbus::Result<u64>;

    /// How often the table was brought in line with the kernel's after it may have differed.
    #[zbus(property(emits_changed_signal = "false"))]
    fn resyncs(&self) -> zbus::Result<u64>;

    /// Whether new flows count packets and bytes; false also where that cannot be read.
    #[zbus(property(emits_changed_signal = "false"))]
    fn accounting_enabled(&self) -> zbus::Result<bool>;

    /// Whether the kernel stamps start and end of new flows; false also where that cannot be read.
    #[zbus(property(emits_changed_signal = "false"))]
    fn timestamping_enabled(&self) -> zbus::Result<bool>;
}

/// `org.flowbus.FlowEvents1`: what changes. Anyone on the bus can send a signal of this name; the streams of this
/// proxy (`receive_flow_events` and its like) yield those of the name's owner alone, whose unique name zbus
/// looks up and follows, so a signal that someone else makes up is not seen. They stay open while the service
/// restarts.
#[zbus::proxy(
    interface = "org.flowbus.FlowEvents1",
    default_service = "org.flowbus.FlowEvents1",
    default_path = "/org/flowbus/FlowEvents1"
)]
pub trait FlowEvents {
    /// A batch of changes, in order; `lost` counts those before it that were dropped.
    #[zbus(signal)]
    fn flow_events(&self, sequence: u64, events: Vec<OwnedFlow>, lost: u64) -> zbus::Result<()>;

    /// What TCP connections did, numbered apart from the changes of flows; `lost` counts events before them that were dropped.
    #[zbus(signal)]
    fn connection_events(&self, sequence: u64, events: Vec<OwnedConnection>, lost: u64) -> zbus::Result<()>;

    /// The table agrees with the kernel's again.
    #[zbus(signal)]
    fn resynced(&self, details: HashMap<String, OwnedVariant>) -> zbus::Result<()>;
}

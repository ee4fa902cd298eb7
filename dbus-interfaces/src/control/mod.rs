//! `org.flowbus.FlowControl1`: the privileged helper, which asks the kernel what the daemon may not, and changes its table
//! for those who may.

mod expectation;
mod result;

use std::collections::HashMap;

use zbus::{DeserializeDict, SerializeDict, Type, Variant};

use crate::{Error, QueryMap};

pub use expectation::Expectation;
pub use result::{Changes, CpuStatistics};

/// The well-known name of the helper; the bus starts it when it is called.
pub const FLOW_CONTROL_NAME: &str = "org.flowbus.FlowControl1";
/// The only object of [`FLOW_CONTROL_NAME`].
pub const FLOW_CONTROL_PATH: &str = "/org/flowbus/FlowControl1";
/// The interface of [`FLOW_CONTROL_PATH`].
pub const FLOW_CONTROL_INTERFACE: &str = "org.flowbus.FlowControl1";
/// The introspection XML of [`FLOW_CONTROL_INTERFACE`], with documentation.
pub const FLOW_CONTROL_XML: &str = include_str!("../../org.flowbus.FlowControl1.xml");

/// What the kernel says of connection tracking as a whole, in the network namespace of the helper: the answer of
/// GetKernelState, `a{sv}` with these names. What could not be read is absent. The kernel's side says what each means.
#[derive(Clone, Debug, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct KernelState {
    /// [`ctnetlink::KernelState::count`].
    pub count: Option<u32>,
    /// [`ctnetlink::KernelState::maximum`].
    pub maximum: Option<u32>,
    /// [`ctnetlink::KernelState::accounting`].
    pub accounting: Option<bool>,
    /// [`ctnetlink::KernelState::timestamping`].
    pub timestamping: Option<bool>,
    /// [`ctnetlink::KernelState::events`].
    pub events: Option<u8>,
    /// [`ctnetlink::KernelState::early_drop`].
    pub early_drop: Option<u64>,
    /// [`ctnetlink::KernelState::drop`].
    pub drop: Option<u64>,
    /// [`ctnetlink::KernelState::insert_failed`].
    pub insert_failed: Option<u64>,
    /// [`ctnetlink::KernelState::clash_resolve`].
    pub clash_resolve: Option<u64>,
    /// [`ctnetlink::KernelState::chain_toolong`].
    pub chain_toolong: Option<u64>,
    /// Where rules choose which events flows send (`ct event set`, `-j CT --ctevents`), as in "table m, chain p".
    pub event_masks: Option<String>,
}

impl KernelState {
    /// True when flows may exist that no event reports.
    #[must_use]
    pub fn may_hide_flows(&self) -> bool {
        self.events == Some(0) || self.event_masks.is_some()
    }
}

impl From<ctnetlink::KernelState> for KernelState {
    fn from(state: ctnetlink::KernelState) -> Self {
        let ctnetlink::KernelState {
            count,
            maximum,
            accounting,
            timestamping,
            events,
            early_drop,
            drop,
            insert_failed,
            clash_resolve,
            chain_toolong,
            event_masks,
        } = state;
        Self {
            count,
            maximum,
            accounting,
            timestamping,
            events,
            early_drop,
            drop,
            insert_failed,
            clash_resolve,
            chain_toolong,
            event_masks,
        }
    }
}

/// `org.flowbus.FlowControl1`. `org.flowbus.FlowControl1.xml` documents each member.
#[zbus::proxy(
    interface = "org.flowbus.FlowControl1",
    default_service = "org.flowbus.FlowControl1",
    default_path = "/org/flowbus/FlowControl1"
)]
pub trait FlowControl {
    /// Has one dump request sent on the passed netfilter netlink socket, with this nlmsg_seq. The replies, or the
    /// kernel's refusal, come on the socket. No key of `filter` is known yet: pass an empty one.
    fn request_dump(
        &self,
        socket: zbus::Fd<'_>,
        sequence: u32,
        filter: &HashMap<&str, Variant<'_>>,
    ) -> Result<(), Error>;

    /// The state of the kernel's connection tracking.
    fn get_kernel_state(&self) -> Result<KernelState, Error>;

    /// The state of the kernel's connection tracking once flows may exist that no event reports, after some minutes at the latest.
    fn await_kernel_state(&self) -> Result<KernelState, Error>;

    /// Ends the flows that match.
    #[zbus(allow_interactive_auth)]
    fn delete_flows(&self, query: &QueryMap<'_>, options: &QueryMap<'_>) -> Result<Changes, Error>;

    /// Sets the mask's bits of the mark of the flows that match.
    #[zbus(allow_interactive_auth)]
    fn set_mark(
        &self,
        query: &QueryMap<'_>,
        mark: u32,
        mask: u32,
        options: &QueryMap<'_>,
    ) -> Result<Changes, Error>;

    /// Sets the timeout of the flows that match: the seconds without traffic after which they end.
    #[zbus(allow_interactive_auth)]
    fn set_timeout(
        &self,
        query: &QueryMap<'_>,
        seconds: u32,
        options: &QueryMap<'_>,
    ) -> Result<Changes, Error>;

    /// Ends all flows.
    #[zbus(allow_interactive_auth)]
    fn flush_flows(&self, confirm: bool) -> Result<(), Error>;

    /// The expectations that match.
    #[zbus(allow_interactive_auth)]
    fn list_expectations(&self, query: &QueryMap<'_>) -> Result<Vec<Expectation>, Error>;

    /// Deletes the expectations that match.
    #[zbus(allow_interactive_auth)]
    fn delete_expectations(&self, query: &QueryMap<'_>, options: &QueryMap<'_>) -> Result<Changes, Error>;

    /// What each CPU has counted.
    fn get_cpu_statistics(&self) -> Result<Vec<CpuStatistics>, Error>;
}

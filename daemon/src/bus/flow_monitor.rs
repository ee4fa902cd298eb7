//! The interface org.flowbus.FlowMonitor1: methods and properties that read.

use std::collections::HashMap;
use std::sync::Arc;

use flowbus_interfaces::{Error, Query, RawQuery};
use zbus::interface;
use zbus::wire::Variant;

use super::BusCounters;
use crate::dictionary::{DecodedMark, FlowNames, Item, Listing, Single};
use crate::handle::{AskError, Handle, Page};
use crate::kernel::KernelState;

/// A page is at most so long, however few flows that are: the bus disconnects who sends more than it takes.
const PAGE_BYTES: usize = 1024 * 1024 - 4096;

/// Names and values.
type Dictionary = HashMap<&'static str, Variant<'static>>;

/// The object.
#[derive(Debug)]
pub(super) struct FlowMonitor {
    handle: Handle,
    names: FlowNames,
    counters: Arc<BusCounters>,
}

impl FlowMonitor {
    pub(super) fn new(handle: Handle, names: FlowNames, counters: Arc<BusCounters>) -> Self {
        Self { handle, names, counters }
    }

    /// A page as the bus has it.
    fn page(&self, page: Result<FlowPage, AskError>) -> Result<(Listing, Dictionary), Error> {
        let FlowPage { listing, next, sequence, synchronized } =
            page.map_err(|error| self.unanswered(&error))?;
        let mut details = Dictionary::from([
            ("sequence", Variant::from(sequence)),
            ("epoch", Variant::from(self.handle.epoch().to_owned())),
            ("synchronized", Variant::from(synchronized)),
        ]);
        details.extend(next.map(|next| ("next", Variant::from(next))));
        Ok((listing, details))
    }

    /// Counts a call that takes work, for as long as the result lives.
    fn begin(&self, header: &Header<'_>) -> Result<Call, Error> {
        self.calls.begin(header).map_err(|error| self.refuse(error))
    }

    fn refuse(&self, error: Error) -> Error {
        BusCounters::add(&self.counters.calls_refused, 1);
        error
    }

    fn parse(&self, query: &RawQuery) -> Result<Query, Error> {
        let config = self.names.config();
        Query::parse(query, &config.source_names).map_err(|error| self.refuse(error.into()))
    }

    fn unanswered(&self, error: &AskError) -> Error {
        match error {
            AskError::Busy => self.refuse(Error::LimitExceeded(error.to_string())),
            AskError::Unanswered => Error::Unavailable(error.to_string()),
        }
    }
}

#[interface(name = "org.flowbus.FlowMonitor1")]
impl FlowMonitor {
    /// One page of the flows that are alive, by ascending id.
    ///
    /// `query` takes `after` (the `next` of the page before), `limit` (1 to 1000, 500 if absent) and `fields`
    /// (as: which fields each flow shows, all if absent). Integers may be of any D-Bus integer type or
    /// decimal strings. Other keys, repeated keys and wrong values are refused by name.
    ///
    /// `page` has `sequence` (t: all changes up to it are included, later ones may be), `epoch` (s),
    /// `synchronized` (b) and, unless it is the last, `next` (t). A page has at most 1 MiB. To join a listing
    /// with FlowEvents take the first page's `sequence` and apply every later event by `id`.
    ///
    /// Errors: org.flowbus.Error.InvalidArgument, LimitExceeded, Unavailable.
    #[zbus(out_args("flows", "page"))]
    async fn list_active(
        &self,
        #[zbus(header)] header: Header<'_>,
        query: RawQuery,
    ) -> Result<(Listing, Dictionary), Error> {
        let _call = self.begin(&header)?;
        let query = self.parse(&query)?;
        self.page(listing::active(&self.handle, &self.names, &query).await)
    }

    /// One page of the flows that ended and are still remembered, latest end first.
    ///
    /// Each flow carries the `sequence` of its end. `next` is such a number, and `after` continues with
    /// smaller ones. Otherwise as ListActive.
    #[zbus(out_args("flows", "page"))]
    async fn list_closed(
        &self,
        #[zbus(header)] header: Header<'_>,
        query: RawQuery,
    ) -> Result<(Listing, Dictionary), Error> {
        let _call = self.begin(&header)?;
        let query = self.parse(&query)?;
        self.page(listing::closed(&self.handle, &self.names, &query).await)
    }

    /// The flow with this id, alive or ended.
    ///
    /// Errors: org.flowbus.Error.NotFound if there never was one or it is forgotten, LimitExceeded,
    /// Unavailable.
    #[zbus(out_args("flow"))]
    async fn get_flow(&self, #[zbus(header)] header: Header<'_>, id: u64) -> Result<Single, Error> {
        let _call = self.begin(&header)?;
        match self.handle.flow(id).await.map_err(|error| self.unanswered(&error))? {
            Some(flow) => Ok(Single::new(&self.names, flow)),
            None => {
                Err(Error::NotFound(format!("no flow has the id {id}: it was never given or is forgotten")))
            }
        }
    }

    /// The fields of a flow that follow from a mark: `mark`, `source`, `source_id`, `vpn`, `qos`,
    /// `routing_table` (absent below 1000), `interface` (while it exists) and `legacy_snat`. Every value
    /// decodes.
    #[zbus(out_args("fields"))]
    fn decode_mark(&self, mark: u32) -> DecodedMark {
        DecodedMark::new(&self.names, mark)
    }

    /// Counters of the daemon and of the kernel, each an unsigned integer (t or u).
    ///
    /// Events: `events_new`, `events_update`, `events_destroy`, `events_lost` (the kernel says that it
    /// dropped them), `events_invalid`, `events_foreign` (not sent by the kernel), `events_repeated`,
    /// `unknown_attributes`. Table: `active`, `closed`, `closed_evicted`, `dumps`, `resyncs`. Bus:
    /// `signals_sent`, `signals_lost`, `calls_refused`. Receive buffer: `buffer_bytes`. Kernel:
    /// `kernel_count` and `kernel_max` flows, absent where they cannot be read. Later versions add more.
    #[zbus(out_args("statistics"))]
    fn get_statistics(&self) -> Dictionary {
        let summary = self.handle.published().summary;
        let counters = summary.counters;
        let kernel = KernelState::read();
        let mut statistics = Dictionary::from([
            ("events_new", Variant::from(counters.events_new)),
            ("events_update", Variant::from(counters.events_update)),
            ("events_destroy", Variant::from(counters.events_destroy)),
            ("events_lost", Variant::from(counters.events_lost)),
            ("events_invalid", Variant::from(counters.events_invalid)),
            ("events_foreign", Variant::from(counters.events_foreign)),
            ("events_repeated", Variant::from(counters.events_repeated)),
            ("unknown_attributes", Variant::from(counters.unknown_attributes)),
            ("resyncs", Variant::from(counters.resyncs)),
            ("dumps", Variant::from(counters.dumps)),
            ("sweeps", Variant::from(counters.sweeps)),
            ("active", Variant::from(summary.active)),
            ("closed", Variant::from(summary.closed)),
            ("closed_evicted", Variant::from(counters.closed_evicted)),
            ("flows_refused", Variant::from(counters.flows_refused)),
            ("names_refused", Variant::from(counters.names_refused)),
            ("buffer_bytes", Variant::from(summary.buffer_bytes)),
            ("signals_sent", Variant::from(BusCounters::value(&self.counters.signals_sent))),
            ("signals_lost", Variant::from(BusCounters::value(&self.counters.signals_lost))),
            ("calls_refused", Variant::from(BusCounters::value(&self.counters.calls_refused))),
        ]);
        let known = [("kernel_count", kernel.count), ("kernel_max", kernel.maximum)];
        statistics.extend(known.into_iter().filter_map(|(key, value)| Some((key, Variant::from(value?)))));
        statistics
    }

    /// The version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    /// 128 random bits, hexadecimal. Ids and sequences of another epoch mean nothing in this one.
    #[zbus(property)]
    fn epoch(&self) -> String {
        self.handle.epoch().to_owned()
    }

    /// Whether the table agrees with the kernel's: false from a loss, or the start, until a dump is merged.
    #[zbus(property)]
    fn synchronized(&self) -> bool {
        self.handle.state().borrow().synchronized
    }

    /// How flows get their processes: none, procfs or bpf.
    #[zbus(property)]
    fn attribution(&self) -> &'static str {
        "none"
    }

    /// How many ended flows are remembered at most.
    #[zbus(property)]
    fn closed_capacity(&self) -> u32 {
        self.handle.state().borrow().closed_capacity
    }

    /// The number of the latest change.
    #[zbus(property(emits_changed_signal = "false"))]
    fn sequence(&self) -> u64 {
        self.handle.published().log.newest()
    }

    /// How many flows are alive.
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_count(&self) -> u32 {
        self.handle.published().summary.active
    }

    /// How many ended flows are remembered.
    #[zbus(property(emits_changed_signal = "false"))]
    fn closed_count(&self) -> u32 {
        self.handle.published().summary.closed
    }

    /// How many events were read from the kernel.
    #[zbus(property(emits_changed_signal = "false"))]
    fn events_received(&self) -> u64 {
        self.handle.published().summary.events_received()
    }

    /// How many events the kernel says it dropped because the receive buffer was full.
    #[zbus(property(emits_changed_signal = "false"))]
    fn events_lost(&self) -> u64 {
        self.handle.published().summary.counters.events_lost
    }

    /// How often the table was brought in line with the kernel's after it may have differed.
    #[zbus(property(emits_changed_signal = "false"))]
    fn resyncs(&self) -> u64 {
        self.handle.published().summary.counters.resyncs
    }

    /// Whether new flows count packets and bytes (nf_conntrack_acct); false also where that cannot be read.
    #[zbus(property(emits_changed_signal = "false"))]
    fn accounting_enabled(&self) -> bool {
        KernelState::read().accounting.unwrap_or(false)
    }

    /// Whether the kernel stamps the start and end of new flows (nf_conntrack_timestamp); false also where
    /// that cannot be read.
    #[zbus(property(emits_changed_signal = "false"))]
    fn timestamping_enabled(&self) -> bool {
        KernelState::read().timestamping.unwrap_or(false)
    }
}

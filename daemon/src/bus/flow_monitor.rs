//! The interface org.flowbus.FlowMonitor1: methods and properties that read.

use std::sync::Arc;
use std::time::Instant;

use flowbus_guard::Guard;
use flowbus_interfaces::{DictionaryArray, Error, Query, RawQuery, ReportOptions, StreamQuery};
use zbus::fdo::DBusProxy;
use zbus::message::Header;
use zbus::wire::{OwnedFd, Variant};
use zbus::{Connection, interface};

use super::feedback;
use super::listing::{self, FlowPage};
use super::services::{BusCounters, Services, VERSION};
use super::statistics::{self, Dictionary};
use crate::dictionary::{DecodedMark, Single};
use crate::handle::AskError;
use crate::streams::OpenError;

/// The object that serves org.flowbus.FlowMonitor1.
#[derive(Clone, Debug)]
pub(super) struct FlowMonitor {
    services: Services,
    started: Instant,
    counters: Arc<BusCounters>,
    guard: Arc<Guard>,
}

impl FlowMonitor {
    pub(super) fn new(services: Services, counters: Arc<BusCounters>, guard: Arc<Guard>) -> Self {
        Self { services, started: Instant::now(), counters, guard }
    }

    /// A page as the bus has it.
    fn page(&self, page: Result<FlowPage, AskError>) -> Result<(DictionaryArray, Dictionary), Error> {
        let FlowPage { flows, next, sequence, synchronized } =
            page.map_err(|error| self.unanswered(&error))?;
        let mut details = Dictionary::from([
            ("sequence", Variant::from(sequence)),
            ("epoch", Variant::from(self.services.handle.epoch().to_owned())),
            ("synchronized", Variant::from(synchronized)),
        ]);
        details.extend(next.map(|next| ("next", Variant::from(next))));
        Ok((flows, details))
    }

    fn refuse(&self, error: Error) -> Error {
        self.guard.count_refused();
        error
    }

    fn parse(&self, query: &RawQuery) -> Result<Query, Error> {
        let config = self.services.names.config();
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
    /// One page of the active flows, by ascending id.
    ///
    /// `query` takes `after` (the `next` of the page before), `limit` (1 to 1000, 500 if absent), `fields` (as:
    /// which fields each flow shows, all if absent), `refresh` (b: a dump brings counters up to date first, at
    /// most once a second for all callers together) and the filter keys. Keys are AND-ed, the values of one key
    /// OR-ed: a single value or an array. A text that begins with `!` excludes: "!443", "!198.18.0.0/15".
    ///
    /// Filter keys: `family`, `protocol`; `src`, `dst`, `reply_src`, `reply_dst`, `nat_src`, `nat_dst`, `address` (any
    /// of src, dst, reply_src, reply_dst): an address or CIDR; `sport`, `dport`, `reply_sport`, `reply_dport`,
    /// `nat_sport`, `nat_dport`, `port` (any of the first four): a number or "low-high"; `icmp_type`, `icmp_code`,
    /// `icmp_id`; `nat` (source, destination, any, none); `mark` (a number or "value/mask"); `source`, `vpn`, `qos`,
    /// `routing_table`, `interface`, `zone`, `orig_zone`, `reply_zone`, `state`, `helper`, `labels`; `status` (a name or
    /// "!name"); `id`, `conntrack_id`; `pid`, `comm`, `uid`, `unit`, `container`, `pod`, `exe` (of either owner); `min_bytes`;
    /// `since`, `until` (CLOCK_REALTIME microseconds: the flow's time overlaps that interval).
    ///
    /// Integers may be of any D-Bus integer type or decimal strings, names are matched without regard to case.
    /// Unknown keys, repeated keys and wrong values return an error that names them.
    ///
    /// `page` has `sequence` (t: all changes up to it are included, later ones may be), `epoch` (s),
    /// `synchronized` (b) and, unless it is the last, `next` (t). A page has at most 1 MiB. To join a listing
    /// with FlowEvents take the first page's `sequence` and apply every later event by `id`.
    ///
    /// Errors: org.flowbus.Error.InvalidArgument, LimitExceeded, Unavailable.
    #[zbus(out_args("flows", "page"))]
    async fn list_active(
        &self,
        query: RawQuery,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(DictionaryArray, Dictionary), Error> {
        let query = self.parse(&query)?;
        let endian = header.primary().endian_sig().into();
        self.page(listing::active(&self.services.handle, &self.services.names, &query, endian).await)
    }

    /// One page of the flows that ended and are still remembered, latest end first.
    ///
    /// Each flow carries the `sequence` of its end. `next` is such a number, and `after` continues with
    /// smaller ones. Otherwise as ListActive.
    #[zbus(out_args("flows", "page"))]
    async fn list_closed(
        &self,
        query: RawQuery,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(DictionaryArray, Dictionary), Error> {
        let query = self.parse(&query)?;
        let endian = header.primary().endian_sig().into();
        self.page(listing::closed(&self.services.handle, &self.services.names, &query, endian).await)
    }

    /// The flow with this id, active or ended.
    ///
    /// Errors: org.flowbus.Error.NotFound if there never was one or it is forgotten, LimitExceeded,
    /// Unavailable.
    #[zbus(out_args("flow"))]
    async fn get_flow(&self, id: u64) -> Result<Single, Error> {
        match self.services.handle.flow(id).await.map_err(|error| self.unanswered(&error))? {
            Some(flow) => Ok(Single::new(&self.services.names, flow)),
            None => {
                Err(Error::NotFound(format!("no flow has the id {id}: it was never given or is forgotten")))
            }
        }
    }

    /// Flows and changes as JSON lines through a pipe: for those who need the whole table or every event.
    ///
    /// `query` takes the filter keys of ListActive, `fields` and `refresh`, and `snapshot` (b, true: the active
    /// flows), `follow` (b, true: every change), `closed` (b, false: the flows that ended, first), `connections`
    /// (b, false: events of connections, too), `expectations` (b, false: events of expectations, too) and `events`
    /// (as, all: which of new, update and destroy, or none).
    ///
    /// `after` (t: the number of the last change of an earlier stream) and `epoch` (s: its epoch), with `closed` true,
    /// resume that stream: `closed` begins after that change. Ends that are forgotten are a `gap` with the reason forgotten,
    /// whose `lost` counts them: exactly, up to four million changes back, and beyond that as an upper bound. In another
    /// epoch, or if that change is later than the table's, both are ignored, as `begin` shows. An active flow with
    /// an `id` above all ids that were seen began since.
    ///
    /// The lines are objects with a `type`:
    /// - `begin`, the first: `epoch`, `sequence`, `newest_id` (of the newest flow), and `machine`, the id that
    ///   `systemd-id128 machine-id -a ab5ed77833064470ad28e715b1f0e4f7` prints, absent if the machine has none.
    /// - `closed`: a flow that ended, the oldest end first.
    /// - `flow`: an active flow.
    /// - `snapshot-end`, after the last of these: `sequence`.
    /// - `new`, `update`, `destroy`: a change, with the flow and its `sequence`; `matches` is false if the flow has left the
    ///   filter.
    /// - `gap`, in place of changes that are missing: `first`, `last`, `lost`, `reason` (slow-reader, overrun or forgotten).
    /// - `reached`, after thousands of changes of which none passes the filter: `sequence`, where to resume.
    /// - `resync`, when a dump has corrected the table: `reason`, `lost`, `closed`, `added`.
    /// - `connect`, `accept`, `close`, `connect-failed`, with `connections`: the keys of ConnectionEvents.
    /// - `connection-gap`, with `connections`: the keys of `gap`, by the numbers of connection events.
    /// - `expectation`, with `expectations`: `event` (new or destroy) and the keys of FlowControl1's ListExpectations. The filter
    ///   applies to the keys of the expected connection, as far as it has them.
    /// - `expectation-gap`, with `expectations`: `lost`, `reason`.
    /// - `end`, the last: `reason` (complete or stopping).
    ///
    /// Snapshot and changes join without gaps or duplicates. The daemon never waits for a reader: what it could not write in
    /// time is a gap.
    ///
    /// A user has at most 16 streams, all together 64. Close the descriptor to end a stream.
    ///
    /// Errors: org.flowbus.Error.InvalidArgument, LimitExceeded, Unavailable.
    #[zbus(out_args("stream"))]
    async fn open_stream(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        query: RawQuery,
    ) -> Result<OwnedFd, Error> {
        let config = self.services.names.config();
        let query =
            StreamQuery::parse(&query, &config.source_names).map_err(|error| self.refuse(error.into()))?;
        let user = sender_uid(connection, &header).await?;
        match self.services.streams.open(user, query) {
            Ok(stream) => Ok(stream.into()),
            Err(error @ OpenError::Pipe(_)) => Err(Error::Unavailable(error.to_string())),
            Err(error) => Err(self.refuse(Error::LimitExceeded(error.to_string()))),
        }
    }

    /// A text about the table for a feedback report: the daemon and the kernel, totals, then flows, the latest last.
    ///
    /// `options` takes `max_bytes` (4096 to 524288, which is the default: the most recent flows are kept), `flows` (b,
    /// true: list them; the totals are there in any case), `since` (t, microseconds since 1970: flows that ended earlier
    /// are passed over, in the totals too), `processes` (b, false: names of processes) and `redact` (b, true). Redacted,
    /// addresses are tokens such as "(IPv4 private 10: 1)" or "(IPv4: 2)", the same for the same address in one report;
    /// ports from 32768 up are EPH, byte counts are rounded. Only root may request an unredacted report.
    /// The report gives its time in UTC; its other times are relative to that.
    ///
    /// Errors: org.flowbus.Error.InvalidArgument, NotAuthorized, LimitExceeded, Unavailable.
    #[zbus(out_args("report"))]
    async fn get_report(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        options: RawQuery,
    ) -> Result<String, Error> {
        let options = ReportOptions::parse(&options).map_err(|error| self.refuse(error.into()))?;
        if !options.redact && sender_uid(connection, &header).await? != 0 {
            let reason = "only root gets a report that is not redacted; leave `redact` out".to_owned();
            return Err(self.refuse(Error::NotAuthorized(reason)));
        }
        let report = feedback::report(&self.services, self.started, options).await;
        report.map_err(|error| self.unanswered(&error))
    }

    /// The fields of a flow that follow from a mark: `mark`, `source`, `source_id`, `vpn`, `qos`,
    /// `routing_table` (absent below 1000), `interface` (also when it is gone, until its index is used again) and
    /// `legacy_snat`. Every value decodes.
    /// patchpanel saves routing table, source and QoS category into connection marks, and keeps VPN intent and legacy SNAT
    /// on packets: those two say nothing about a Chromebook's flows.
    #[zbus(out_args("fields"))]
    fn decode_mark(&self, mark: u32) -> DecodedMark {
        DecodedMark::new(&self.services.names, mark)
    }

    /// Counters and gauges of the daemon and of the kernel by name, each an unsigned integer (t or u). The manual page
    /// org.flowbus.FlowMonitor1(5) and `flowctl stats` say what each means. One that cannot be known is absent: those of BPF
    /// programs (`bpf_...`) where none run, those of the kernel (`kernel_...`) where they cannot be read.
    ///
    /// Three are texts: `event_masks` (s: where a rule masks events, absent where none does), `not_synchronized` (s: why the
    /// table may differ from the kernel's, absent while `Synchronized` is true) and `bpf_accept` (s: function, syscall, reader
    /// or inherited: how BPF programs learn who accepts). Later versions add more.
    ///
    /// Read changing numbers here: properties such as `ActiveCount` and `Sequence` are not announced, and a proxy that
    /// caches them shows old ones. They are `active` and `sequence` here.
    ///
    /// Errors: org.flowbus.Error.LimitExceeded.
    #[zbus(out_args("statistics"))]
    async fn get_statistics(&self) -> Result<Dictionary, Error> {
        Ok(statistics::gather(&self.services, &self.counters, &self.guard).await)
    }

    /// The version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &'static str {
        VERSION
    }

    /// 128 random bits, hexadecimal. Ids and sequences of another epoch mean nothing in this one.
    #[zbus(property)]
    fn epoch(&self) -> String {
        self.services.handle.epoch().to_owned()
    }

    /// Whether the table agrees with the kernel's: false from a loss, or the start, until a dump is merged.
    #[zbus(property)]
    fn synchronized(&self) -> bool {
        self.services.handle.properties().borrow().synchronized
    }

    /// How flows get their processes: none, procfs or bpf.
    #[zbus(property)]
    fn attribution(&self) -> &'static str {
        self.services.handle.properties().borrow().attribution.name()
    }

    /// How events are received: ring, or socket where the kernel refuses the ring, the configuration turns it off, or
    /// flowbus-attribution is still loading it.
    #[zbus(property)]
    fn event_source(&self) -> &'static str {
        self.services.handle.properties().borrow().event_source
    }

    /// The most ended flows that are remembered.
    #[zbus(property)]
    fn closed_capacity(&self) -> u32 {
        self.services.handle.properties().borrow().closed_capacity
    }

    /// The number of the latest change.
    #[zbus(property(emits_changed_signal = "false"))]
    fn sequence(&self) -> u64 {
        self.services.handle.published().log.newest()
    }

    /// The number of active flows.
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_count(&self) -> u32 {
        self.services.handle.published().summary.active
    }

    /// How many ended flows are remembered.
    #[zbus(property(emits_changed_signal = "false"))]
    fn closed_count(&self) -> u32 {
        self.services.handle.published().summary.closed
    }

    /// How many events were read from the kernel.
    #[zbus(property(emits_changed_signal = "false"))]
    fn events_received(&self) -> u64 {
        self.services.handle.published().summary.events_received()
    }

    /// How many events the kernel dropped because the receive buffer was full.
    #[zbus(property(emits_changed_signal = "false"))]
    fn events_lost(&self) -> u64 {
        self.services.handle.published().summary.counters.events_lost
    }

    /// How often the table was brought in line with the kernel's after it may have differed.
    #[zbus(property(emits_changed_signal = "false"))]
    fn resyncs(&self) -> u64 {
        self.services.handle.published().summary.counters.resyncs
    }

    /// Whether new flows count packets and bytes (nf_conntrack_acct); false also where that cannot be read.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn accounting_enabled(&self) -> bool {
        self.services.kernel.state().await.accounting.unwrap_or(false)
    }

    /// Whether the kernel stamps the start and end of new flows (nf_conntrack_timestamp); false also where
    /// that cannot be read.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn timestamping_enabled(&self) -> bool {
        self.services.kernel.state().await.timestamping.unwrap_or(false)
    }
}

/// The user who sent a message, as the bus knows it.
async fn sender_uid(connection: &Connection, header: &Header<'_>) -> Result<u32, Error> {
    let Some(sender) = header.sender() else {
        return Err(Error::NotAuthorized("the message has no sender".to_owned()));
    };
    let bus = DBusProxy::new(connection).await?;
    Ok(bus.get_connection_unix_user(sender.to_owned().into()).await.map_err(zbus::Error::from)?)
}

//! What GetStatistics answers.

use std::collections::HashMap;

use flowbus_guard::Guard;
use flowbus_interfaces::Statistics;
use zbus::wire::Variant;

use super::services::{BusCounters, Services};
use crate::counters::ResyncReason;
use crate::published::Summary;

/// What an event takes of the event socket's buffer, as the kernel counts it: the packet and its bookkeeping.
const EVENT_BYTES: u64 = 1_280;

/// Names and values.
pub(super) type Dictionary = HashMap<&'static str, Variant<'static>>;

/// The statistics as they are now. The table in `flowbus_interfaces::Statistic` says what each means.
pub(super) async fn gather(services: &Services, bus: &BusCounters, guard: &Guard) -> Dictionary {
    let (summary, failure, sequence) = {
        let published = services.handle.published();
        (published.summary, published.failure.clone(), published.log.newest())
    };
    let kernel = services.kernel.state().await;
    let counters = summary.counters;
    let programs = services.handle.program_statistics();
    let (bpf, accept) = programs.map_or((None, None), |(bpf, accept)| (Some(bpf), Some(accept)));
    let statistics = Statistics {
        kernel_count: kernel.count,
        kernel_max: kernel.maximum,
        sequence: Some(sequence),
        active: Some(summary.active),
        closed: Some(summary.closed),
        closed_evicted: Some(counters.closed_evicted),
        events_new: Some(counters.events_new),
        events_update: Some(counters.events_update),
        events_destroy: Some(counters.events_destroy),
        events_lost: Some(counters.events_lost),
        events_repeated: Some(counters.events_repeated),
        events_invalid: Some(counters.events_invalid),
        events_foreign: Some(counters.events_foreign),
        unknown_attributes: Some(counters.unknown_attributes),
        silent: Some(summary.silent),
        kernel_events: kernel.events.map(u32::from),
        kernel_acct: kernel.accounting.map(u32::from),
        kernel_timestamp: kernel.timestamping.map(u32::from),
        kernel_early_drop: kernel.early_drop,
        kernel_drop: kernel.drop,
        kernel_insert_failed: kernel.insert_failed,
        kernel_clash_resolve: kernel.clash_resolve,
        kernel_chain_toolong: kernel.chain_toolong,
        buffer_bytes: Some(summary.buffer_bytes),
        buffer_events: Some(summary.buffer_bytes / EVENT_BYTES),
        dumps: Some(counters.dumps),
        resyncs: Some(counters.resyncs),
        sweeps: Some(counters.sweeps),
        flows_refused: Some(counters.flows_refused),
        names_refused: Some(counters.names_refused),
        signals_sent: Some(BusCounters::value(&bus.signals_sent)),
        signals_lost: Some(BusCounters::value(&bus.signals_lost)),
        calls_refused: Some(guard.refused()),
        streams: Some(services.streams.count()),
        stream_gaps: Some(services.streams.gaps()),
        connection_events: Some(summary.connections),
        connection_events_lost: Some(BusCounters::value(&bus.connection_events_lost)),
        owners_pending: Some(summary.owners_pending),
        owners_unmatched_sockets: Some(counters.owners_unmatched_sockets),
        owners_unmatched_flows: Some(counters.owners_unmatched_flows),
        owners_expired: Some(counters.owners_expired),
        owners_ambiguous: Some(counters.owners_ambiguous),
        owners_refused: Some(counters.owners_refused),
        bpf_written: bpf.map(|bpf| bpf.written),
        bpf_dropped: bpf.map(|bpf| bpf.dropped),
        bpf_no_storage: bpf.map(|bpf| bpf.no_storage),
        bpf_no_owner: bpf.map(|bpf| bpf.no_owner),
        bpf_recursion_misses: bpf.and_then(|bpf| bpf.missed),
    };
    let texts = [
        ("bpf_accept", accept.map(|accept| accept.name().to_owned())),
        ("event_masks", kernel.event_masks),
        (
            "not_synchronized",
            (!services.handle.properties().borrow().synchronized).then(|| why_not(&summary, failure)),
        ),
    ];
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name, Variant::from(text?))));
    statistics.entries().chain(texts).collect()
}

/// Why the table may differ from the kernel's.
fn why_not(summary: &Summary, failure: Option<String>) -> String {
    let reason = match ResyncReason::from_number(summary.resync) {
        Some(ResyncReason::Overrun) => "events were lost, and the kernel's table must be read again",
        Some(_) => "waiting for the first dump of the kernel's table",
        None => "flows do not send all their events, and the kernel's table cannot be read",
    };
    match failure {
        Some(failure) => format!("{reason}: {failure}; trying again"),
        None => reason.to_owned(),
    }
}

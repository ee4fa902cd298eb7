//! Gathers what a feedback report says.

use std::time::Instant;

use flowbus_interfaces::ReportOptions;

use super::services::{Services, VERSION};
use crate::clock::Now;
use crate::dictionary::Item;
use crate::handle::{AskError, Preselection};
use crate::report::{DaemonState, Report};
use flowbus_interfaces::fit;

/// Flows in each piece in which the table is read.
const CHUNK: usize = 2048;

/// Makes the report of a daemon that has served since `started`.
pub(super) async fn report(
    services: &Services,
    started: Instant,
    options: ReportOptions,
) -> Result<String, AskError> {
    let Services { handle, names, kernel, .. } = services;
    let kernel = kernel.state().await;
    let summary = handle.published().summary;
    let mut report = Report::new(options, Now::read().realtime_usec);
    let mut after = 0;
    loop {
        let page = handle.list_active(after, CHUNK, false, Preselection::All).await?;
        for flow in page.flows {
            after = flow.record.id;
            names.show(&Item::from(flow), |flow| report.add_active(flow));
        }
        if !page.more {
            break;
        }
    }
    let mut before = u64::MAX;
    loop {
        let page = handle.list_closed(before, CHUNK).await?;
        for flow in page.flows {
            before = flow.end.map_or(0, |end| end.sequence);
            names.show(&Item::from(flow), |flow| report.add_closed(flow));
        }
        if !page.more {
            break;
        }
    }
    let properties = *handle.properties().borrow();
    let state = DaemonState {
        version: VERSION,
        uptime_usec: fit(started.elapsed().as_micros()),
        synchronized: properties.synchronized,
        attribution: properties.attribution.name(),
        events_received: summary.events_received(),
        events_lost: summary.counters.events_lost,
        resyncs: summary.counters.resyncs,
        closed_capacity: properties.closed_capacity,
        closed_evicted: summary.counters.closed_evicted,
        buffer_bytes: summary.buffer_bytes,
        kernel,
    };
    Ok(report.finish(&state, &names.config().source_names))
}

//! What the bus side answers from, and counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::dictionary::FlowNames;
use crate::handle::Handle;
use crate::kernel_state::Kernel;
use crate::streams::Streams;

/// The version of the daemon.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the methods answer from.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    pub(crate) handle: Handle,
    pub(crate) names: FlowNames,
    pub(crate) streams: Streams,
    pub(crate) kernel: Kernel,
}

/// Counters of the bus side, as GetStatistics names them.
#[derive(Debug, Default)]
pub(super) struct BusCounters {
    pub(super) signals_sent: AtomicU64,
    pub(super) signals_lost: AtomicU64,
    pub(super) connection_events_lost: AtomicU64,
}

impl BusCounters {
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn value(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

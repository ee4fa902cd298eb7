//! What the daemon is asked, and when: off the screen's thread, and no more than a fifth of the time.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use flowbus_interfaces::{FlowStream, Key, OwnedFlow, QueryKey, StreamError, StreamItem, fit};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot, watch};

use super::message::{Report, Snapshot, Wish};
use super::tally::{Counted, Memory, ROWS, Tally};
use super::view::{Grouping, View};
use crate::cell;
use crate::daemon::Daemon;
use crate::error::Error;

/// The least time between the end of one snapshot and the next. A dump is new enough for a second: any sooner and the counters
/// would be those of before.
const REST: Duration = Duration::from_millis(1100);
/// How many times as long as a snapshot that took long the rest after it is.
const REST_FACTOR: u32 = 4;

/// Asks for what is wished until nobody wishes any more.
pub(super) async fn feed(mut feed: Feed, mut wishes: watch::Receiver<Wish>, reports: mpsc::Sender<Report>) {
    let mut due = Instant::now();
    let mut told: Option<Wish> = None;
    loop {
        let wish = wishes.borrow_and_update().clone();
        let is_new = told.as_ref().is_none_or(|told| told.view != wish.view);
        if wish.detail.is_some()
            && told.as_ref().is_none_or(|told| told.detail != wish.detail)
            && !feed.tell_detail(&wish, &reports).await
        {
            return;
        }
        if !wish.paused && (is_new || due <= Instant::now()) {
            let started = Instant::now();
            let report = tokio::select! {
                // What is not wished any more is not waited for.
                changed = wishes.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                report = feed.snapshot(&wish.view) => report,
            };
            due = Instant::now() + feed.rest(started.elapsed());
            let report = match report {
                Ok(snapshot) => Report::Snapshot(snapshot),
                Err(error) => Report::Failed(first_line(&error)),
            };
            if reports.send(report).await.is_err() || !feed.tell_detail(&wish, &reports).await {
                return;
            }
        }
        let paused = wish.paused;
        told = Some(wish);
        tokio::select! {
            changed = wishes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(due.into()), if !paused => {}
        }
    }
}

fn first_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// What asks for snapshots, and what it keeps of the last one.
pub(super) struct Feed {
    daemon: Daemon,
    /// The least time between two snapshots.
    interval: Duration,
    memory: Option<Arc<Memory>>,
    /// When the last snapshot was made, microseconds since 1970.
    since: u64,
}

impl Feed {
    pub(super) const fn new(daemon: Daemon, interval: Duration) -> Self {
        Self { daemon, interval, memory: None, since: 0 }
    }

    /// Fails where the daemon cannot be asked.
    pub(super) async fn check(&self) -> Result<(), Error> {
        self.daemon.monitor.version().await.map(|_| ()).map_err(|error| self.daemon.failed(error))
    }

    /// How long to wait after a snapshot that took this long.
    pub(super) fn rest(&self, took: Duration) -> Duration {
        self.interval.max(REST).max(took * REST_FACTOR)
    }

    /// Reports the flow that is shown in full; false when nobody listens.
    async fn tell_detail(&self, wish: &Wish, reports: &mpsc::Sender<Report>) -> bool {
        let Some(id) = wish.detail else { return true };
        let flow = self.daemon.monitor.get_flow(id).await;
        let flow = flow.map_err(|error| first_line(&self.daemon.refused(error)));
        reports.send(Report::Detail { id, flow }).await.is_ok()
    }

    pub(super) async fn snapshot(&mut self, view: &View) -> Result<Box<Snapshot>, Error> {
        let failed = |error| self.daemon.failed(error);
        let now = cell::now();
        let accounting = self.daemon.monitor.accounting_enabled().await.map_err(failed)?;
        let synchronized = self.daemon.monitor.synchronized().await.map_err(failed)?;
        let pipe = self.open(view, accounting).await?;
        let mut counted = read(pipe, view.clone(), self.memory.clone()).await?;
        let shown = self.shown(&counted, view).await?;
        let statistics = self.daemon.statistics().await?;
        let kernel = |name| statistics.get(name).copied();
        let kernel = kernel("kernel_count").zip(kernel("kernel_max"));
        if let Some(memory) = counted.memory.take() {
            self.memory = Some(Arc::new(memory));
            self.since = now;
        }
        let view = view.clone();
        Ok(Box::new(Snapshot { view, counted, shown, now: cell::now(), accounting, synchronized, kernel }))
    }

    /// The flows that are alive, and those that ended since the snapshot before: of each what the counting takes.
    async fn open(&self, view: &View, accounting: bool) -> Result<OwnedFd, Error> {
        let before = self.memory.as_deref().filter(|memory| !memory.is_fresh(Instant::now()));
        let counts = accounting || self.memory.as_deref().is_some_and(Memory::has_counters);
        let mut query = view.filter.to_map();
        // Owners say which direction is up.
        let fields =
            [Key::Id, Key::StartUsec, Key::OrigBytes, Key::ReplyBytes, Key::Initiator, Key::Responder];
        let fields: Vec<&str> =
            fields.iter().chain(view.grouping.fields()).map(|field| field.name()).collect();
        query.insert(QueryKey::Fields.name(), fields.into());
        query.insert(QueryKey::Follow.name(), false.into());
        let first = self.memory.is_none();
        query.insert(QueryKey::Refresh.name(), (counts && (first || before.is_some())).into());
        if before.is_some() {
            query.insert(QueryKey::Closed.name(), true.into());
            // The number of an end says exactly whether it is new; this spares the daemon most of the others.
            const MARGIN: u64 = 5_000_000;
            if !query.contains_key(QueryKey::Until.name()) {
                let since = || self.since.saturating_sub(MARGIN).into();
                query.entry(QueryKey::Since.name()).or_insert_with(since);
            }
        }
        let pipe = self.daemon.monitor.open_stream(&query).await;
        Ok(pipe.map_err(|error| self.daemon.refused(error))?.into())
    }

    /// What the columns show of the first rows.
    async fn shown(&self, counted: &Counted, view: &View) -> Result<HashMap<u64, OwnedFlow>, Error> {
        if view.grouping != Grouping::Flow || counted.rows.is_empty() {
            return Ok(HashMap::new());
        }
        let ids: Vec<u64> = counted.rows.iter().map(|row| row.id).collect();
        let fields: Vec<&str> = super::table::FIELDS.iter().map(|field| field.name()).collect();
        let limit: u32 = fit(ROWS);
        let query = HashMap::from([
            (QueryKey::Id.name(), ids.into()),
            (QueryKey::Fields.name(), fields.into()),
            (QueryKey::Limit.name(), limit.into()),
        ]);
        let (flows, _) =
            self.daemon.monitor.list_active(&query).await.map_err(|error| self.daemon.refused(error))?;
        Ok(flows.into_iter().filter_map(|flow| Some((flow.number(Key::Id)?, flow))).collect())
    }
}

/// Reads a stream to its end on a thread of its own, which gives up when nobody waits for it any more.
async fn read(pipe: OwnedFd, view: View, memory: Option<Arc<Memory>>) -> Result<Counted, Error> {
    let (mut sender, counted) = oneshot::channel();
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    thread::Builder::new().name("stream".to_owned()).spawn(move || {
        runtime.block_on(async {
            let counted = tokio::select! {
                () = sender.closed() => return,
                counted = count(pipe, view, memory.as_deref()) => counted,
            };
            let _ = sender.send(counted);
        });
    })?;
    counted.await.unwrap_or(Err(Error::Closed))
}

async fn count(pipe: OwnedFd, view: View, memory: Option<&Memory>) -> Result<Counted, Error> {
    let broken = |error: StreamError| Error::Refused(error.to_string());
    let mut stream = FlowStream::from_fd(pipe).map_err(broken)?;
    let mut tally = Tally::new(view, memory, Instant::now());
    while let Some(item) = stream.next().await.map_err(broken)? {
        tally.add(&item, Instant::now());
        if matches!(item, StreamItem::SnapshotEnd { .. }) {
            return Ok(tally.finish());
        }
    }
    Err(Error::Refused("the stream ended early: flowbusd stops".to_owned()))
}

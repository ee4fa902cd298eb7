//! Sends the table's changes as FlowEvents, batched and capped, and Resynced after each resync; and what connections do as
//! ConnectionEvents, by the same rules.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flowbus_interfaces::DictionaryArray;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use zbus::object_server::SignalEmitter;
use zbus::wire::Variant;

use super::batch::{Batch, ChangeBatch, ConnectionBatch};
use super::flow_events::FlowEvents;
use super::outlet::Outlet;
use super::services::BusCounters;
use crate::change::FlowEvent;
use crate::config::Config;
use crate::connection::ConnectionEvent;
use crate::dictionary::FlowNames;
use crate::handle::Handle;
use crate::published::{Published, Resync};

/// The most changes that are copied out of the log at once.
const CHANGES_AT_ONCE: usize = 256;

/// What is sent: the entries of a log, by a signal of their own.
pub(super) trait Topic: Sized {
    /// The events of one signal.
    type Batch: Batch<Self>;

    /// The number of the last entry before this life.
    fn first(handle: &Handle) -> u64;

    /// Wakes when there is something to send, and perhaps when there is not.
    fn news(handle: &Handle) -> watch::Receiver<()>;

    /// The number of the newest entry.
    fn newest(published: &Published) -> u64;

    /// Entries of the log numbered above `after`, as [`Log::after`](crate::log::Log::after) returns them.
    fn after(published: &Published, after: u64) -> impl Iterator<Item = Self>;

    /// The entry's number, larger by one than that of the entry before.
    fn sequence(&self) -> u64;

    /// The counter of lost entries.
    fn lost(counters: &BusCounters) -> &AtomicU64;

    /// Sends the signal.
    async fn send(
        emitter: &SignalEmitter<'_>,
        sequence: u64,
        events: &DictionaryArray,
        lost: u64,
    ) -> zbus::Result<()>;

    /// Whether there are resyncs with a number above `seen`, for a topic that sends them.
    fn has_resyncs(published: &Published, seen: u64) -> bool;

    /// Resyncs to be sent, as [`Published::resyncs_after`] returns them; none for a topic that does not send them.
    fn resyncs(handle: &Handle, seen: u64, sequence: u64) -> Vec<(u64, Resync)>;
}

impl Topic for FlowEvent {
    type Batch = ChangeBatch;

    fn first(handle: &Handle) -> u64 {
        handle.first_sequence()
    }

    fn news(handle: &Handle) -> watch::Receiver<()> {
        handle.news()
    }

    fn newest(published: &Published) -> u64 {
        published.log.newest()
    }

    fn after(published: &Published, after: u64) -> impl Iterator<Item = Self> {
        published.log.after(after)
    }

    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn lost(counters: &BusCounters) -> &AtomicU64 {
        &counters.signals_lost
    }

    async fn send(
        emitter: &SignalEmitter<'_>,
        sequence: u64,
        events: &DictionaryArray,
        lost: u64,
    ) -> zbus::Result<()> {
        FlowEvents::flow_events(emitter, sequence, events, lost).await
    }

    fn has_resyncs(published: &Published, seen: u64) -> bool {
        published.has_resyncs_after(seen)
    }

    fn resyncs(handle: &Handle, seen: u64, sequence: u64) -> Vec<(u64, Resync)> {
        handle.published().resyncs_after(seen, sequence)
    }
}

impl Topic for ConnectionEvent {
    type Batch = ConnectionBatch;

    fn first(handle: &Handle) -> u64 {
        handle.first_connection()
    }

    fn news(handle: &Handle) -> watch::Receiver<()> {
        handle.connection_news()
    }

    fn newest(published: &Published) -> u64 {
        published.connections.newest()
    }

    fn after(published: &Published, after: u64) -> impl Iterator<Item = Self> {
        published.connections.after(after).cloned()
    }

    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn lost(counters: &BusCounters) -> &AtomicU64 {
        &counters.connection_events_lost
    }

    async fn send(
        emitter: &SignalEmitter<'_>,
        sequence: u64,
        events: &DictionaryArray,
        lost: u64,
    ) -> zbus::Result<()> {
        FlowEvents::connection_events(emitter, sequence, events, lost).await
    }

    fn has_resyncs(_published: &Published, _seen: u64) -> bool {
        false
    }

    fn resyncs(_handle: &Handle, _seen: u64, _sequence: u64) -> Vec<(u64, Resync)> {
        Vec::new()
    }
}

/// Keeps the signals of all emitters apart.
#[derive(Clone, Debug)]
pub(super) struct Pace(Arc<Mutex<Instant>>);

impl Pace {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Waits until one more may be sent.
    async fn turn(&self, interval: Duration) {
        let turn = {
            let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + interval;
            turn
        };
        sleep_until(turn).await;
    }
}

/// A connection that sends nothing any more.
#[derive(Debug)]
struct Broken;

/// Follows a log, which is its queue: entries that the log drops before they are taken are counted as lost.
#[derive(Debug)]
pub(super) struct Emitter<T> {
    handle: Handle,
    names: FlowNames,
    counters: Arc<BusCounters>,
    config: watch::Receiver<Arc<Config>>,
    /// The number of the last entry that was taken or lost.
    cursor: u64,
    /// The number of the last resync that was sent.
    resyncs: u64,
    /// Entries that were lost, which the next signal reports.
    lost: u64,
    /// The number of the last entry that was sent or reported as lost.
    sent: u64,
    /// Whether an earlier connection may have left entries that were not sent.
    again: bool,
    pace: Pace,
    entries: Vec<T>,
}

impl<T: Topic> Emitter<T> {
    pub(super) fn new(
        handle: Handle,
        names: FlowNames,
        counters: Arc<BusCounters>,
        config: watch::Receiver<Arc<Config>>,
        pace: Pace,
    ) -> Self {
        Self {
            cursor: T::first(&handle),
            sent: T::first(&handle),
            handle,
            names,
            counters,
            config,
            resyncs: 0,
            lost: 0,
            again: false,
            pace,
            entries: Vec::new(),
        }
    }

    /// Sends until the connection is stuck or closed.
    pub(super) async fn run(&mut self, outlet: &Outlet) {
        self.skip_backlog();
        let mut news = T::news(&self.handle);
        loop {
            while !self.has_news() {
                if news.changed().await.is_err() {
                    return;
                }
            }
            let batch = self.collect().await;
            if self.send(outlet, batch).await.is_err() {
                return;
            }
        }
    }

    /// Counts what was taken for an earlier connection, and what has come since, as lost: subscribers never receive a backlog of
    /// stale signals.
    fn skip_backlog(&mut self) {
        if std::mem::replace(&mut self.again, true) {
            let newest = T::newest(&self.handle.published());
            self.lose(newest - self.sent);
            (self.cursor, self.sent) = (newest, newest);
        }
    }

    fn has_news(&self) -> bool {
        let published = self.handle.published();
        self.lost > 0 || T::newest(&published) > self.cursor || T::has_resyncs(&published, self.resyncs)
    }

    fn lose(&mut self, count: u64) {
        self.lost += count;
        BusCounters::add(T::lost(&self.counters), count);
    }

    /// Fills a batch until it is full or its time is up; it is empty where only losses or a resync are to be sent. The log keeps
    /// what comes meanwhile, so it is looked at as often as signals may be sent, and not each time that something comes.
    async fn collect(&mut self) -> T::Batch {
        let signals = self.config.borrow().signals.clone();
        let deadline = Instant::now() + Duration::from_millis(signals.batch_msec);
        let mut batch = T::Batch::new(&signals);
        loop {
            let is_full = self.fill(&mut batch);
            let now = Instant::now();
            if is_full || batch.is_empty() || now >= deadline {
                return batch;
            }
            sleep_until(deadline.min(now + signals.interval())).await;
        }
    }

    /// Moves entries from the log into the batch; true when the batch has to be sent before there can be more.
    ///
    /// Every entry up to `cursor` was sent, is in the batch, or is counted as lost. Numbers have no holes, so a first entry that is
    /// not `cursor` + 1 shows how many the log has dropped. A signal reports what was lost *before* its events, so a loss is counted
    /// only while the batch is empty; met later it ends the batch, and the next call finds it again. An entry that does not fit is
    /// not lost: `cursor` stays before it, and the next batch begins with it.
    fn fill(&mut self, batch: &mut T::Batch) -> bool {
        let config = self.names.config();
        loop {
            self.entries.clear();
            let published = self.handle.published();
            self.entries.extend(T::after(&published, self.cursor).take(CHANGES_AT_ONCE));
            drop(published);
            let Some(first) = self.entries.first() else { return false };
            let missed = first.sequence() - self.cursor - 1;
            if missed > 0 {
                if !batch.is_empty() {
                    return true;
                }
                self.lose(missed);
                self.cursor += missed;
                self.sent = self.cursor;
            }
            for entry in &self.entries {
                if !batch.push(entry, &self.names, &config) {
                    return true;
                }
                self.cursor = entry.sequence();
            }
        }
    }

    async fn send(&mut self, outlet: &Outlet, batch: T::Batch) -> Result<(), Broken> {
        if !batch.is_empty() || self.lost > 0 {
            let sequence = batch.sequence().unwrap_or(self.cursor + 1);
            let events = batch.into_array();
            let signal =
                async |emitter: &SignalEmitter<'_>| T::send(emitter, sequence, &events, self.lost).await;
            self.write(outlet, signal).await?;
            (self.sent, self.lost) = (self.cursor, 0);
        }
        for (number, resync) in T::resyncs(&self.handle, self.resyncs, self.cursor) {
            let details = HashMap::from([
                ("reason", Variant::from(resync.reason.name())),
                ("lost", Variant::from(resync.lost)),
                ("closed", Variant::from(resync.closed)),
                ("added", Variant::from(resync.added)),
            ]);
            let signal = async |emitter: &SignalEmitter<'_>| FlowEvents::resynced(emitter, details).await;
            // A resync that could not be sent is due again on the next connection.
            self.write(outlet, signal).await?;
            self.resyncs = number;
        }
        Ok(())
    }

    /// Sends a signal when it is its turn.
    async fn write(
        &self,
        outlet: &Outlet,
        signal: impl AsyncFnOnce(&SignalEmitter<'_>) -> zbus::Result<()>,
    ) -> Result<(), Broken> {
        let interval = self.config.borrow().signals.interval();
        self.pace.turn(interval).await;
        if let Err(error) = outlet.send(signal).await {
            tracing::debug!(%error, "signals cannot be sent");
            return Err(Broken);
        }
        BusCounters::add(&self.counters.signals_sent, 1);
        Ok(())
    }
}

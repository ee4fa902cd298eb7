//! Sends the table's changes as FlowEvents, batched and capped, and Resynced after each resync.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flowbus_interfaces::FLOW_EVENTS_PATH;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use zbus::Connection;
use zbus::object_server::SignalEmitter;
use zbus::wire::Variant;

use super::BusCounters;
use super::batch::Batch;
use super::flow_events::FlowEvents;
use crate::config::Config;
use crate::dictionary::FlowNames;
use crate::event::Change;
use crate::handle::{Handle, Resync};

/// A write that takes longer means that somebody who reads nothing holds the connection up.
const STUCK: Duration = Duration::from_secs(5);
/// So many changes are copied out of the log at once.
const CHANGES_AT_ONCE: usize = 256;

/// Follows the change log, which is its queue: what it falls behind by more than the log keeps is lost, and told.
#[derive(Debug)]
pub(super) struct Emitter {
    handle: Handle,
    names: FlowNames,
    counters: Arc<BusCounters>,
    config: watch::Receiver<Arc<Config>>,
    /// The number of the last change that was taken or lost.
    cursor: u64,
    /// How many resyncs were told.
    resyncs: u64,
    /// Changes that were lost and not told yet.
    lost: u64,
    /// The number of the last change that was sent or told as lost.
    sent: u64,
    /// Whether an earlier connection may have left changes that were not sent.
    again: bool,
    /// The next signal waits until then.
    not_before: Instant,
    changes: Vec<Change>,
}

impl Emitter {
    pub(super) fn new(
        handle: Handle,
        names: FlowNames,
        counters: Arc<BusCounters>,
        config: watch::Receiver<Arc<Config>>,
    ) -> Self {
        Self {
            cursor: handle.first_sequence(),
            sent: handle.first_sequence(),
            handle,
            names,
            counters,
            config,
            resyncs: 0,
            lost: 0,
            again: false,
            not_before: Instant::now(),
            changes: Vec::new(),
        }
    }

    /// Sends until the connection is stuck or closed.
    pub(super) async fn run(&mut self, connection: &Connection) {
        let Ok(emitter) = SignalEmitter::new(connection, FLOW_EVENTS_PATH) else { return };
        self.skip_backlog();
        let mut news = self.handle.news();
        loop {
            while !self.has_news() {
                tokio::select! {
                    changed = news.changed() => if changed.is_err() { return },
                    () = connection.closed() => return,
                }
            }
            let batch = self.collect(&mut news).await;
            sleep_until(self.not_before).await;
            self.not_before =
                Instant::now() + Duration::from_secs(1) / self.config.borrow().signals.per_second;
            match timeout(STUCK, self.send(&emitter, batch)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "signals cannot be sent");
                    break;
                }
                Err(_) => {
                    tracing::warn!("a signal could not be written for {STUCK:?}: opening a new connection");
                    break;
                }
            }
        }
    }

    /// Counts what was taken for an earlier connection, and what has come since, as lost: nobody is to get a late heap.
    fn skip_backlog(&mut self) {
        if std::mem::replace(&mut self.again, true) {
            let newest = self.handle.published().log.newest();
            self.lose(newest - self.sent);
            (self.cursor, self.sent) = (newest, newest);
        }
    }

    fn has_news(&self) -> bool {
        let published = self.handle.published();
        self.lost > 0
            || published.log.newest() > self.cursor
            || published.summary.counters.resyncs > self.resyncs
    }

    fn lose(&mut self, count: u64) {
        self.lost += count;
        BusCounters::add(&self.counters.signals_lost, count);
    }

    /// Fills a batch until it is full or its time is up; it is empty where only losses or a resync are to be told.
    async fn collect(&mut self, news: &mut watch::Receiver<()>) -> Batch {
        let deadline = Instant::now() + Duration::from_millis(self.config.borrow().signals.batch_msec);
        let mut batch = Batch::new();
        loop {
            news.mark_unchanged();
            let full = self.fill(&mut batch);
            if full || batch.is_empty() || timeout_at(deadline, news.changed()).await.is_err() {
                return batch;
            }
        }
    }

    /// Takes what the log has; true when the batch takes no more.
    fn fill(&mut self, batch: &mut Batch) -> bool {
        let config = self.names.config();
        loop {
            self.changes.clear();
            let published = self.handle.published();
            self.changes.extend(published.log.after(self.cursor).take(CHANGES_AT_ONCE));
            drop(published);
            let Some(first) = self.changes.first() else { return false };
            let missed = first.sequence - self.cursor - 1;
            if missed > 0 {
                if !batch.is_empty() {
                    return true; // The gap belongs before the next batch.
                }
                self.lose(missed);
                self.cursor += missed;
                self.sent = self.cursor;
            }
            for change in &self.changes {
                if !batch.push(change, &self.names, &config.signals) {
                    return true;
                }
                self.cursor = change.sequence;
            }
        }
    }

    async fn send(&mut self, emitter: &SignalEmitter<'_>, batch: Batch) -> zbus::Result<()> {
        if !batch.is_empty() || self.lost > 0 {
            let sequence = batch.sequence().unwrap_or(self.cursor + 1);
            let events = batch.into_listing(&self.names);
            FlowEvents::flow_events(emitter, sequence, &events, self.lost).await?;
            (self.sent, self.lost) = (self.cursor, 0);
            BusCounters::add(&self.counters.signals_sent, 1);
        }
        let resyncs: Vec<Resync> = self.handle.published().resyncs_since(&mut self.resyncs);
        for resync in resyncs {
            let details = HashMap::from([
                ("reason", Variant::from(resync.reason.name())),
                ("lost", Variant::from(resync.lost)),
                ("closed", Variant::from(resync.closed)),
                ("added", Variant::from(resync.added)),
            ]);
            FlowEvents::resynced(emitter, details).await?;
            BusCounters::add(&self.counters.signals_sent, 1);
        }
        Ok(())
    }
}

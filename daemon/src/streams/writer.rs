//! The task of one stream.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ctnetlink::EventKind;
use flowbus_interfaces::{Key, Resume, StreamItem, StreamQuery};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::broadcast::{self, error::TryRecvError};
use tokio::sync::watch;

use super::join::Join;
use super::line::Lines;
use crate::change::FlowEvent;
use crate::dictionary::{FlowNames, Item};
use crate::expectation::ExpectationEvent;
use crate::handle::{AskError, Handle, Preselection};
use crate::published::Resync;

/// How many flows are asked for at once.
const CHUNK: usize = 1024;
/// Bytes of lines that are gathered before they are written.
const WRITE_BYTES: usize = 128 * 1024;
/// The most changes that wait in the task while a snapshot is written, 5 MiB; the log keeps 12,288 more.
const WAITING: usize = 16 * 1024;

/// After how many changes without a line the reader learns how far the stream has come.
const REACHED: u64 = 4096;

/// Writes one stream.
#[derive(Debug)]
pub(super) struct Writer {
    pipe: pipe::Sender,
    handle: Handle,
    names: FlowNames,
    query: StreamQuery,
    stopping: watch::Receiver<bool>,
    lines: Lines,
    join: Join,
    /// Changes taken out of the log and not written yet.
    waiting: VecDeque<FlowEvent>,
    /// The number of the last change taken, written or skipped.
    cursor: u64,
    /// The number of the last change that the reader knows the stream to have reached.
    reached: u64,
    /// The newest flow when the stream was opened.
    newest_id: u64,
    /// The number of the last connection event taken or skipped.
    connections: u64,
    /// The number of the last resync that was written.
    resyncs: u64,
    /// Changes of expectations, if the reader asked for them.
    expectations: Option<broadcast::Receiver<Arc<ExpectationEvent>>>,
}

/// Why a stream ends.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("the reader is gone: {0}")]
    Reader(#[from] io::Error),
    #[error(transparent)]
    Tracker(#[from] AskError),
    #[error("the daemon stops")]
    Daemon,
}

impl Writer {
    pub(super) fn new(
        pipe: pipe::Sender,
        handle: Handle,
        names: FlowNames,
        mut query: StreamQuery,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        // Without its number an event cannot be put in order.
        query.fields = query.fields.with(Key::Sequence);
        let published = handle.published();
        let (cursor, connections) = (published.log.newest(), published.connections.newest());
        let (newest_id, resyncs) = (published.summary.newest_id, published.summary.counters.resyncs);
        drop(published);
        let expectations = query.expectations.then(|| handle.expectations());
        Self {
            pipe,
            handle,
            names,
            query,
            stopping,
            lines: Lines::default(),
            join: Join::default(),
            waiting: VecDeque::new(),
            cursor,
            reached: cursor,
            newest_id,
            connections,
            resyncs,
            expectations,
        }
    }

    /// Writes until the end, counting the gaps that the reader receives.
    pub(super) async fn run(mut self, machine: Option<&str>, gaps: &AtomicU64) {
        let last = match self.write(machine, gaps).await {
            Ok(()) => Some("complete"),
            Err(Stop::Daemon | Stop::Tracker(_)) => Some("stopping"),
            Err(Stop::Reader(error)) => {
                tracing::debug!(%error, "a stream's reader is gone");
                None
            }
        };
        if let Some(reason) = last {
            self.lines.push(&StreamItem::End { reason: reason.into() });
            let _ = self.pipe.write_all(self.lines.bytes()).await;
        }
    }

    /// Writes the parts of a stream: `begin`, closed flows, the snapshot, changes.
    ///
    /// They meet at `begin`, the newest change when the stream was opened: closed flows are those that ended up to it, and each later
    /// change is taken from the log. A stream that resumes differs in one thing: its closed flows begin behind the last change that the
    /// reader has seen, so that each end since is sent, or counted in a gap where it is forgotten. What else happened in between is
    /// not sent again: begins and updates show in the snapshot, or in the end of a flow that is over. A place that means nothing here is
    /// ignored, which the reader learns from the epoch and number in `begin`.
    async fn write(&mut self, machine: Option<&str>, gaps: &AtomicU64) -> Result<(), Stop> {
        let begin = self.cursor;
        let (epoch, newest_id) = (self.handle.epoch().into(), Some(self.newest_id));
        let machine = machine.map(Into::into);
        self.lines.push(&StreamItem::Begin { epoch, sequence: begin, newest_id, machine });
        if self.query.closed {
            self.write_closed(self.resumes_after(begin), begin, gaps).await?;
        }
        if self.query.snapshot {
            self.write_snapshot(begin, gaps).await?;
        }
        if self.query.follow {
            self.follow(gaps).await?;
        }
        Ok(())
    }

    /// The change behind which the closed flows begin; `None` for all that are remembered. A place in another epoch means nothing,
    /// nor does one ahead of the table.
    fn resumes_after(&self, begin: u64) -> Option<u64> {
        let is_ours = |resume: &&Resume| resume.epoch == self.handle.epoch() && resume.after <= begin;
        self.query.resume.as_ref().filter(is_ours).map(|resume| resume.after)
    }

    /// Writes the flows that ended with a change above `after` and up to `last`, oldest end first; without `after`, all that are
    /// remembered.
    async fn write_closed(
        &mut self,
        mut after: Option<u64>,
        last: u64,
        gaps: &AtomicU64,
    ) -> Result<(), Stop> {
        loop {
            let first = after.map_or(0, |after| after + 1);
            let page = self.handle.list_closed_from(first, last, CHUNK).await?;
            // A reader that asks for all that is remembered misses what is forgotten while it reads.
            if let (Some(after), Some(forgotten)) = (after, page.forgotten) {
                gaps.fetch_add(1, Ordering::Relaxed);
                let (first, last, lost) = (after + 1, forgotten.last, forgotten.count);
                self.lines.push(&StreamItem::Gap { first, last, lost, reason: "forgotten".into() });
            }
            for flow in page.flows {
                let item = Item::from(flow);
                after = item.sequence.or(after);
                self.push_flow(&item);
            }
            self.flush_full().await?;
            if !page.more {
                return self.flush().await;
            }
        }
    }

    async fn write_snapshot(&mut self, begin: u64, gaps: &AtomicU64) -> Result<(), Stop> {
        let mut after = 0;
        let mut refresh = self.query.refresh;
        loop {
            let refresh = std::mem::take(&mut refresh);
            let page = match self.handle.list_active(after, CHUNK, refresh, Preselection::All).await {
                // Without the dump the counters are as old as they are.
                Err(AskError::Unanswered) if refresh => {
                    self.handle.list_active(after, CHUNK, false, Preselection::All).await?
                }
                page => page?,
            };
            for flow in &page.flows {
                self.push_flow(&Item::from(*flow));
            }
            after = page.flows.last().map_or(after, |flow| flow.record.id);
            self.join.push(if page.more { after } else { u64::MAX }, page.sequence);
            self.take_changes();
            if !page.more {
                break;
            }
            self.flush_full().await?;
        }
        let sequence = self.join.sequence();
        if self.query.closed && !self.query.follow {
            // A reader that does not follow receives here the flows that ended before the snapshot reached them.
            self.write_closed(Some(begin), sequence, gaps).await?;
        }
        self.lines.push(&StreamItem::SnapshotEnd { sequence });
        self.flush().await
    }

    fn push_flow(&mut self, item: &Item) {
        let Self { names, query, lines, .. } = self;
        let config = names.config();
        names.show(item, |flow| {
            if query.filter.matches(flow) {
                lines.push_flow(flow, &config.source_names, query.fields);
            }
        });
    }

    /// Writes every change, as it comes.
    async fn follow(&mut self, gaps: &AtomicU64) -> Result<(), Stop> {
        let mut news = self.handle.news();
        loop {
            news.mark_unchanged();
            self.take_changes();
            while let Some(change) = self.waiting.pop_front() {
                self.push_gap(change.sequence, gaps);
                self.push_change(&change);
                self.cursor = change.sequence;
                if self.cursor >= self.join.sequence() {
                    self.join.clear();
                }
                self.flush_full().await?;
            }
            self.push_resyncs(gaps);
            self.push_reached();
            self.push_expectations(gaps).await?;
            self.push_connections(gaps).await?;
            self.flush().await?;
            if self.has_news() {
                continue;
            }
            tokio::select! {
                changed = news.changed() => changed.map_err(|_| Stop::Daemon)?,
                gone = self.pipe.ready(Interest::ERROR) => {
                    gone?;
                    return Err(Stop::Reader(io::ErrorKind::BrokenPipe.into()));
                }
                _ = self.stopping.wait_for(|stopping| *stopping) => return Err(Stop::Daemon),
            }
        }
    }

    fn has_news(&self) -> bool {
        let published = self.handle.published();
        published.log.newest() > self.cursor
            || self.query.connections && published.connections.newest() > self.connections
    }

    /// Takes what fits out of the log.
    fn take_changes(&mut self) {
        if !self.query.follow {
            return;
        }
        // In pieces: the tracker waits for the log while it is copied.
        loop {
            let after = self.waiting.back().map_or(self.cursor, |change| change.sequence);
            let before = self.waiting.len();
            let room = (WAITING - before).min(CHUNK);
            self.waiting.extend(self.handle.published().log.after(after).take(room));
            if self.waiting.len() - before < CHUNK {
                return;
            }
        }
    }

    /// Writes a gap for what the log dropped before this change.
    fn push_gap(&mut self, sequence: u64, gaps: &AtomicU64) {
        let (first, last) = (self.cursor + 1, sequence - 1);
        if first <= last {
            gaps.fetch_add(1, Ordering::Relaxed);
            let lost = last - first + 1;
            self.lines.push(&StreamItem::Gap { first, last, lost, reason: "slow-reader".into() });
        }
    }

    fn push_change(&mut self, change: &FlowEvent) {
        let Self { names, query, lines, join, .. } = self;
        let StreamQuery { filter, fields, events, closed, .. } = query;
        // The closed flows are those that had ended when the stream began: a reader of them needs each end after that.
        let unseen_end = *closed && change.kind == EventKind::Destroy;
        let included = !unseen_end && join.includes(change.flow.record.id, change.sequence);
        if included || !events.contains(change.kind) {
            return;
        }
        let (config, length) = (names.config(), lines.len());
        let before = || {
            let before = change.flow_before()?;
            Some(names.show(&Item::from(before), |flow| filter.matches(flow)))
        };
        names.show(&Item::from(change), |flow| {
            let matches = filter.matches(flow);
            if matches || before() == Some(true) {
                lines.push_event(*flow, &config.source_names, *fields, matches);
            }
        });
        if lines.len() > length {
            self.reached = change.sequence;
        }
    }

    /// Writes the place for a reader whose filter passes little, so that it resumes there and not where the last line was.
    fn push_reached(&mut self) {
        if self.cursor.saturating_sub(self.reached) >= REACHED {
            self.reached = self.cursor;
            self.lines.push(&StreamItem::Reached { sequence: self.cursor });
        }
    }

    /// Writes what became of expectations since the last time.
    async fn push_expectations(&mut self, gaps: &AtomicU64) -> Result<(), Stop> {
        let Some(mut expectations) = self.expectations.take() else { return Ok(()) };
        loop {
            match expectations.try_recv() {
                Ok(event) => {
                    let StreamQuery { filter, events, .. } = &self.query;
                    if events.contains(event.kind) && filter.matches(&event.flow()) {
                        self.lines.push_expectation(&event);
                    }
                }
                Err(TryRecvError::Lagged(lost)) => {
                    gaps.fetch_add(1, Ordering::Relaxed);
                    self.lines.push(&StreamItem::ExpectationGap { lost, reason: "slow-reader".into() });
                }
                Err(_) => break,
            }
            self.flush_full().await?;
        }
        self.expectations = Some(expectations);
        Ok(())
    }

    /// Writes what connections did since the last time.
    async fn push_connections(&mut self, gaps: &AtomicU64) -> Result<(), Stop> {
        while self.query.connections {
            let events: Vec<_> =
                self.handle.published().connections.after(self.connections).take(CHUNK).cloned().collect();
            let Some(first) = events.first() else { break };
            let (first, last) = (self.connections + 1, first.sequence - 1);
            if first <= last {
                gaps.fetch_add(1, Ordering::Relaxed);
                let lost = last - first + 1;
                self.lines.push(&StreamItem::ConnectionGap {
                    first,
                    last,
                    lost,
                    reason: "slow-reader".into(),
                });
            }
            for event in events {
                self.connections = event.sequence;
                let Self { query, lines, .. } = self;
                event.show(|connection| {
                    if query.filter.matches_connection(connection) {
                        lines.push_connection(connection);
                    }
                });
            }
            self.flush_full().await?;
        }
        Ok(())
    }

    /// Writes the resyncs, and what the kernel lost before them.
    fn push_resyncs(&mut self, gaps: &AtomicU64) {
        let resyncs = self.handle.published().resyncs_after(self.resyncs, self.cursor);
        for (number, resync) in resyncs {
            self.resyncs = number;
            if resync.lost > 0 {
                gaps.fetch_add(1, Ordering::Relaxed);
                // No number is missing: what was lost never got one.
                let (first, last, lost) = (resync.sequence, resync.sequence, resync.lost);
                self.lines.push(&StreamItem::Gap { first, last, lost, reason: "overrun".into() });
            }
            let Resync { reason, lost, closed, added, .. } = resync;
            self.lines.push(&StreamItem::Resync { reason: reason.name().into(), lost, closed, added });
        }
    }

    async fn flush_full(&mut self) -> Result<(), Stop> {
        if self.lines.len() < WRITE_BYTES { Ok(()) } else { self.flush().await }
    }

    /// Writes the lines, however long the reader takes; the daemon's end cuts it short.
    async fn flush(&mut self) -> Result<(), Stop> {
        let Self { pipe, lines, stopping, .. } = self;
        tokio::select! {
            written = pipe.write_all(lines.bytes()) => written?,
            _ = stopping.wait_for(|stopping| *stopping) => {
                // Part of a line may be written already: nothing may follow it.
                return Err(Stop::Reader(io::ErrorKind::Interrupted.into()));
            }
        }
        lines.clear();
        Ok(())
    }
}

//! The kernel's events: read, and applied to the table.

use ctnetlink::{DecodeError, EventKind, Message, Received};
use flowbus_attribution::events::Next;
use flowbus_logging::message_id;

use super::dump::flow_of;
use super::{Tracker, TrackerError};
use crate::change::Changes;
use crate::clock::{Now, monotonic_nsec};
use crate::counters::ResyncReason;
use crate::event_source::EventSource;
use crate::expectation::ExpectationEvent;
use crate::handle::Publisher;
use crate::state::BATCH;
use crate::table::{Outcome, Transaction};

/// The most events that are read before dumps and questions have their turn.
const EVENTS_AT_ONCE: usize = 1024;

/// How reading events ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// There were none.
    Quiet,
    /// There were some, and no more.
    Drained,
    /// There are more, which are on their way: they come within microseconds, unless whoever sends them is interrupted.
    HeldBack,
    /// There may be more.
    Unfinished,
}

/// What is applied next, as one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Batch {
    /// Messages that lie in the ring.
    Ring,
    /// Messages that were received into the inbox.
    Inbox,
}

impl Tracker {
    /// Reads and applies events.
    pub(super) fn read_events(&mut self) -> Result<Reading, TrackerError> {
        let now = Now::read();
        let is_attributed = self.table.attribution().is_some();
        let mut read = 0;
        while read < EVENTS_AT_ONCE {
            let begin = if is_attributed { monotonic_nsec() } else { 0 };
            let Some((batch, count)) = self.receive()? else {
                if self.events.is_held_back() {
                    return Ok(Reading::HeldBack);
                }
                self.table.settle(begin, &mut self.changes);
                return Ok(if read == 0 { Reading::Quiet } else { Reading::Drained });
            };
            self.read_sockets_of_batch();
            self.apply_received(batch, now);
            read += count;
        }
        Ok(Reading::Unfinished)
    }

    /// Receives a batch of events and how many it has; `None` when there are no more.
    ///
    /// What was received from the queue waits in the inbox, of this life or the last, until all is applied that was in the ring by then: it was
    /// sent before.
    fn receive(&mut self) -> Result<Option<(Batch, usize)>, TrackerError> {
        let mut is_drained = false;
        loop {
            match self.events.next(BATCH) {
                Next::Ring(count) => return Ok(Some((Batch::Ring, count))),
                Next::HeldBack => return Ok(None),
                Next::Queue if self.inbox.len() > 0 => return Ok(Some((Batch::Inbox, self.inbox.len()))),
                Next::Queue if is_drained => {
                    self.compare_counts()?;
                    return Ok(None);
                }
                Next::Queue => is_drained = self.receive_from_queue()?,
            }
        }
    }

    /// Fills the inbox from the socket's queue. True when the queue is empty.
    fn receive_from_queue(&mut self) -> Result<bool, TrackerError> {
        for _ in 0..BATCH {
            let Some(place) = self.inbox.prepare() else { break };
            match self.events.socket().receive(place)? {
                Received::Datagram(length) => self.inbox.keep(length),
                Received::Foreign(_) => {
                    self.inbox.discard();
                    self.table.change().header().counters.events_foreign += 1;
                }
                Received::Truncated(_) => {
                    self.inbox.discard();
                    let mut change = self.table.change();
                    let header = change.header();
                    header.counters.events_invalid += 1;
                    header.ring_offset = header.ring_offset.wrapping_add(1);
                }
                Received::Empty => return Ok(true),
                Received::Overrun => {} // count_losses learns how many.
            }
        }
        Ok(false)
    }

    /// Applies what was received, as one change for the next life.
    fn apply_received(&mut self, batch: Batch, now: Now) {
        let Self { table, changes, publisher, inbox, decoder, events, .. } = self;
        let mut messages = Vec::with_capacity(BATCH);
        match (batch, &*events) {
            (Batch::Ring, EventSource::Ring(reader)) => {
                reader.messages().for_each(|datagram| messages.extend(decoder.messages(datagram)));
            }
            _ => inbox.messages().for_each(|datagram| messages.extend(decoder.messages(datagram))),
        }
        table.prefetch(messages.iter().filter_map(flow_of));
        let mut change = table.change();
        for message in &messages {
            apply(&mut change, changes, publisher, message, now);
        }
        let header = change.header();
        let mut unreadable = 0;
        match (batch, events) {
            (Batch::Ring, EventSource::Ring(reader)) => {
                header.ring_position = reader.position();
                unreadable = reader.take_unreadable();
            }
            _ => {
                header.message = inbox.number();
                inbox.clear();
            }
        }
        header.counters.events_invalid += unreadable;
        if unreadable > 0 {
            Self::note_disorder(&mut change);
        }
        change.commit();
        if unreadable > 0 {
            self.dump.restart(&mut self.table);
        }
    }

    /// Asks the kernel how many events it dropped.
    pub(super) fn count_losses(&mut self) -> Result<(), TrackerError> {
        let drops = self.events.socket().drops()?;
        let lost = u64::from(drops.wrapping_sub(self.table.header().drops));
        if lost == 0 {
            return Ok(());
        }
        let mut change = self.table.change();
        let header = change.header();
        header.drops = drops;
        header.counters.events_lost += lost;
        header.lost += lost;
        header.ring_offset = header.ring_offset.wrapping_add(lost);
        if change.require_resync(ResyncReason::Overrun) {
            tracing::warn!(
                message_id = message_id::EVENTS_LOST,
                lost,
                "events lost: the socket's buffer was full, resynchronizing"
            );
        }
        change.commit();
        self.dump.restart(&mut self.table);
        Ok(())
    }

    /// Events may be applied in another order than they were sent: the table may be wrong until it has been compared.
    pub(super) fn note_disorder(change: &mut Transaction<'_>) {
        change.require_resync(ResyncReason::Overrun);
        tracing::warn!(
            message_id = message_id::EVENTS_LOST,
            "the order of events is not known: their ring and the socket's queue disagree, resynchronizing"
        );
    }
}

/// Applies a message to the table.
fn apply(
    change: &mut Transaction<'_>,
    changes: &mut Changes,
    publisher: &Publisher,
    message: &Result<Message<'_>, DecodeError>,
    now: Now,
) {
    let (kind, flow) = match message {
        Ok(Message::Flow(_, kind, flow)) => (*kind, flow),
        Ok(Message::Expectation(_, kind, expectation)) => {
            publisher.tell_expectation(|| ExpectationEvent::new(*kind, expectation));
            return;
        }
        Ok(_) => return,
        Err(error) => {
            change.header().counters.events_invalid += 1;
            tracing::debug!(%error, "event skipped");
            return;
        }
    };
    let counters = &mut change.header().counters;
    match kind {
        EventKind::New => counters.events_new += 1,
        EventKind::Update => counters.events_update += 1,
        EventKind::Destroy => counters.events_destroy += 1,
    }
    counters.unknown_attributes += u64::from(flow.unknown_attributes);
    if change.apply(kind, flow, now, changes) == Outcome::Repeated {
        change.header().counters.events_repeated += 1;
    }
}

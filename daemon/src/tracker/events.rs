//! The kernel's events: read, and applied to the table.

use ctnetlink::{DecodeError, EventKind, Message, Received};
use flowbus_logging::message_id;

use super::dump::flow_of;
use super::{Tracker, TrackerError};
use crate::change::Changes;
use crate::clock::{Now, monotonic_nsec};
use crate::counters::ResyncReason;
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

impl Tracker {
    /// Reads and applies events.
    pub(super) fn read_events(&mut self) -> Result<Reading, TrackerError> {
        let now = Now::read();
        let is_attributed = self.table.attribution().is_some();
        let mut read = 0;
        while read < EVENTS_AT_ONCE {
            let begin = if is_attributed { monotonic_nsec() } else { 0 };
            let received = self.receive()?;
            if received > 0 {
                self.read_sockets_of_batch();
                self.apply_received(now);
            }
            // This batch is part of what may be out of order.
            if self.events.take_disorder() {
                self.note_disorder();
            }
            read += received;
            if received < BATCH && self.events.is_held_back() {
                return Ok(Reading::HeldBack);
            }
            if received < BATCH {
                self.table.settle(begin, &mut self.changes);
                return Ok(if read == 0 { Reading::Quiet } else { Reading::Drained });
            }
        }
        Ok(Reading::Unfinished)
    }

    /// Receives a batch of events; fewer than [`BATCH`] when there are no more.
    fn receive(&mut self) -> Result<usize, TrackerError> {
        self.inbox.clear();
        for received in 0..BATCH {
            let Some(place) = self.inbox.prepare() else { break };
            match self.events.receive(place)? {
                Received::Datagram(length) => self.inbox.keep(length),
                Received::Foreign(_) => {
                    self.inbox.discard();
                    self.table.change().header().counters.events_foreign += 1;
                }
                Received::Truncated(_) => {
                    self.inbox.discard();
                    self.table.change().header().counters.events_invalid += 1;
                }
                Received::Empty => return Ok(received),
                Received::Overrun => {} // count_losses learns how many.
            }
        }
        Ok(BATCH)
    }

    /// Applies what was received, as one change for the next life.
    pub(super) fn apply_received(&mut self, now: Now) {
        let Self { table, changes, publisher, inbox, decoder, .. } = self;
        let mut messages = Vec::with_capacity(BATCH);
        for (number, datagram) in inbox.messages() {
            messages.extend(decoder.messages(datagram).map(|message| (number, message)));
        }
        table.prefetch(messages.iter().filter_map(|(_, message)| flow_of(message)));
        let mut change = table.change();
        for (number, message) in &messages {
            apply(&mut change, changes, publisher, message, now);
            change.header().message = *number;
        }
        change.commit();
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
        if header.resync == 0 {
            header.resync = ResyncReason::Overrun as u32;
            tracing::warn!(
                message_id = message_id::EVENTS_LOST,
                lost,
                "events lost: the socket's buffer was full, resynchronizing"
            );
        }
        change.note_loss();
        change.commit();
        self.dump.restart(&mut self.table);
        Ok(())
    }

    /// Events may be applied in another order than they were sent: the table may be wrong until it has been compared.
    fn note_disorder(&mut self) {
        let mut change = self.table.change();
        let header = change.header();
        if header.resync == 0 {
            header.resync = ResyncReason::Overrun as u32;
        }
        change.note_loss();
        change.commit();
        tracing::warn!(
            message_id = message_id::EVENTS_LOST,
            "the order of events is not known: their ring and the socket's queue disagree, resynchronizing"
        );
        self.dump.restart(&mut self.table);
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

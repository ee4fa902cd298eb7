//! The ring of events: taken over from the last life, or begun, and kept in order with the socket's queue.
//!
//! The header says how far it was read (`ring_position`) and how much of the queue is accounted for (`message` and `ring_offset`). Both change
//! with what they are about, in one transaction, so the next life goes on behind the last event that was applied: what was not is in the
//! ring, in the queue, or in the inbox. The inbox waits until the ring is empty, in that life as in this.

use std::os::fd::AsFd;

use ctnetlink::Socket;
use flowbus_attribution::events::{Counts, EventFilter, EventReader, FilterError, has_filter, remove_filter};

use super::{Tracker, TrackerError};
use crate::clock::monotonic_nsec;
use crate::counters::ResyncReason;
use crate::event_source::EventSource;
use crate::table::Table;

/// The source of events. Where events may be missing that the socket's drop counter does not have, the table is to be compared: that is
/// noted before anything is changed that shows it.
pub(super) fn open(
    socket: Socket,
    filter: Option<EventFilter>,
    table: &mut Table,
) -> Result<EventSource, TrackerError> {
    let is_filtered = has_filter(socket.as_fd()).map_err(TrackerError::Filter)?;
    let mut ring = match filter.map(|filter| open_reader(&socket, filter)).transpose() {
        Ok(ring) => ring,
        Err(error) => {
            say_refused(&error);
            None
        }
    };
    let header = table.header();
    let is_known = match &mut ring {
        Some((reader, _)) if header.ring == reader.mark() && header.socket_cookie == socket.cookie()? => {
            header.ring != 0 && reader.resume(header.ring_position, header.ring_has_begun != 0)
        }
        _ => false,
    };
    if !is_known && (is_filtered || header.ring != 0) {
        table.change().require_resync(ResyncReason::NewSocket);
    }
    if !is_known && is_filtered {
        remove_filter(socket.as_fd()).map_err(TrackerError::Filter)?;
        tracing::warn!(
            "the event socket had a filter whose ring is gone: it is detached, events may be missing, resynchronizing"
        );
    }
    if let Some((mut reader, filter)) = ring {
        let begun = if is_known && is_filtered {
            // Once more: somebody may have put another in its place.
            filter.attach(socket.as_fd())
        } else {
            begin(&mut reader, &filter, is_known, table)
        };
        match begun {
            Ok(()) => return Ok(EventSource::Ring(Box::new(reader))),
            Err(error) => say_refused(&error),
        }
        if is_known {
            table.change().require_resync(ResyncReason::NewSocket);
        }
    }
    table.change().header().ring = 0;
    Ok(EventSource::Socket(socket))
}

fn open_reader(socket: &Socket, filter: EventFilter) -> Result<(EventReader, EventFilter), FilterError> {
    Ok((EventReader::open(Socket::from_fd(socket.try_clone()?)?, &filter)?, filter))
}

/// Attaches the filter. A ring that is not known holds nothing of ours, the other what its filter put there before it was detached.
fn begin(
    reader: &mut EventReader,
    filter: &EventFilter,
    is_known: bool,
    table: &mut Table,
) -> Result<(), FilterError> {
    if !is_known {
        // Nobody else has it: each was read off the clock since the machine has started.
        reader.set_mark(monotonic_nsec().max(1));
    }
    let mut change = table.change();
    let header = change.header();
    header.ring = reader.mark();
    header.ring_position = reader.position();
    header.ring_has_begun = 0;
    change.commit();
    // Last: the next life has to know the ring of a filter that is attached.
    reader.attach(filter)
}

fn say_refused(error: &FilterError) {
    tracing::warn!(%error, "events are received from the socket, not by a ring");
}

impl Tracker {
    /// Has events come by the ring of this filter from now on.
    pub(super) fn read_by_ring(&mut self, filter: EventFilter) {
        let EventSource::Socket(socket) = &self.events else { return };
        let begun = open_reader(socket, filter).and_then(|(mut reader, filter)| {
            begin(&mut reader, &filter, false, &mut self.table)?;
            Ok(reader)
        });
        match begun {
            Ok(reader) => {
                self.events = EventSource::Ring(Box::new(reader));
                tracing::info!("events come by a ring");
            }
            Err(error) => {
                say_refused(&error);
                self.table.change().header().ring = 0;
            }
        }
    }

    /// Compares the counts of what the filter has left to the queue. The queue was seen empty, and what was received is applied.
    pub(super) fn compare_counts(&mut self) -> Result<(), TrackerError> {
        let EventSource::Ring(reader) = &self.events else { return Ok(()) };
        if reader.passed() != self.done() {
            self.count_losses()?;
        }
        let done = self.done();
        let EventSource::Ring(reader) = &mut self.events else { return Ok(()) };
        let (counts, is_disorder) = match reader.compare(done)? {
            Counts::Agree | Counts::HeldBack => return Ok(()),
            Counts::Begin(count) => (count, false),
            Counts::Disagree(count) => (count, true),
        };
        let mut change = self.table.change();
        let header = change.header();
        header.ring_offset = counts.wrapping_sub(header.message);
        header.ring_has_begun = 1;
        if is_disorder {
            Self::note_disorder(&mut change);
        }
        change.commit();
        // After the commit: a next life that found an old count would take the order for lost.
        reader.set_taken(counts);
        if is_disorder {
            self.dump.restart(&mut self.table);
        }
        Ok(())
    }

    /// How many messages of the queue are received or dropped, of those that the filter has left to it.
    fn done(&self) -> u64 {
        let header = self.table.header();
        header.message.wrapping_add(header.ring_offset)
    }
}

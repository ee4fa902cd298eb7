//! One dump at a time: asked for, distinguished from older ones by its number, merged, repeated where it failed.
//!
//! `start` sends the request, once the event socket has been read empty: old events that were read after it would make flows seem
//! to be seen again. From then on (`Merging`) `read` merges the replies that have the request's number, some datagrams in each turn,
//! while events are applied as ever. The kernel's DONE leads to `Ended`, where no flow has been closed yet: the DESTROY of a flow that
//! ended during the dump may still wait in the event socket. So `finish` is called when that has been read empty once more. It
//! closes what neither an entry nor an event has shown, and is back at `Idle`.
//!
//! Only a whole dump proves that a flow is gone. Where the table changed under it (`NLM_F_DUMP_INTR`), a datagram is cut short or events
//! are lost meanwhile, `restart` gives the dump up with nothing closed, and whatever wanted it asks again in a later turn. An entry that
//! cannot be read spoils the proof alone (`complete`): the dump goes on to its end, closes nothing, and counts as failed. Each try after a
//! failure (`fail`) waits twice as long as the one before, up to [`LONGEST_WAIT`].

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use ctnetlink::{
    DecodeError, Decoder, EventKind, Flow, Message, NLM_F_DUMP_INTR, Received, Socket, SocketError,
    dump_request,
};

use crate::change::Changes;
use crate::clock::Now;
use crate::dump_requests::DumpRequest;
use crate::state::BATCH;
use crate::table::{Merged, Table, Transaction};

/// Dumps begin at least so far apart: each costs the kernel a walk over its whole table.
const SPACING: Duration = Duration::from_secs(1);
/// A dump that failed is tried again after [`SPACING`], then after twice as long, up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Replies to a dump come one after the other: when this passes without one, none comes any more.
const SILENCE: Duration = Duration::from_secs(30);
/// The most datagrams that are merged before events and callers have their turn: the kernel fills the next one while one is read, for
/// some 150 flows, which takes it 0.4 ms.
const DATAGRAMS_AT_ONCE: usize = 2;

/// The process that sends the requests, which takes CAP_NET_ADMIN.
#[derive(Debug)]
pub(crate) enum Requester {
    /// This process.
    Ourselves,
    /// The helper, on our socket; the outcome arrives as `Command::DumpFailed` or as replies.
    Helper(mpsc::Sender<DumpRequest>),
}

/// Reads dumps from a socket of its own.
#[derive(Debug)]
pub(super) struct DumpReader {
    socket: Socket,
    requester: Requester,
    phase: Phase,
    /// When the last dump was asked for.
    began: Option<Instant>,
    /// No dump starts before this time.
    not_before: Option<Instant>,
    wait: Duration,
    failure: Option<String>,
    /// Whether a dump was merged once: whatever the kernel refuses then, it need not refuse for good.
    has_worked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// The replies that carry this number are being merged.
    Merging {
        sequence: u32,
        /// Whether every entry could be read; else the dump adds and updates, but closes nothing.
        complete: bool,
        /// When it was asked for or last heard of.
        heard: Instant,
    },
    /// All replies are merged. Ends of flows that came meanwhile are still to be read from the event socket.
    Ended {
        complete: bool,
    },
}

impl DumpReader {
    pub(super) fn new(socket: Socket, requester: Requester) -> Self {
        Self {
            socket,
            requester,
            phase: Phase::Idle,
            began: None,
            not_before: None,
            wait: SPACING,
            failure: None,
            has_worked: false,
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// True when no dump runs and the last one began long enough ago.
    pub(super) fn may_start(&self, now: Instant) -> bool {
        self.phase == Phase::Idle && self.not_before.is_none_or(|instant| instant <= now)
    }

    /// How long until there is something to do without a reply.
    pub(super) fn until_start(&self, now: Instant) -> Duration {
        match self.phase {
            Phase::Merging { heard, .. } => (heard + SILENCE).saturating_duration_since(now),
            Phase::Ended { .. } => Duration::ZERO,
            Phase::Idle => {
                self.not_before.map_or(Duration::ZERO, |instant| instant.saturating_duration_since(now))
            }
        }
    }

    /// True from the request until the merge is finished.
    pub(super) fn is_running(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// How long ago the last dump was asked for.
    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        self.began.map(|began| now.saturating_duration_since(began))
    }

    /// Asks for a dump of the whole table.
    pub(super) fn start(&mut self, table: &mut Table) -> Result<(), SocketError> {
        let now = Instant::now();
        self.began = Some(now);
        self.not_before = Some(now + SPACING);
        // Random, so that the replies to a reader killed before us are never taken for ours; never 0, which events have.
        let sequence = random_sequence().max(1);
        self.drain();
        match self.request(sequence) {
            Ok(false) => {
                self.fail(table, "an earlier request is still with flowbus-control");
                Ok(())
            }
            Ok(true) => {
                table.begin_dump();
                self.phase = Phase::Merging { sequence, complete: true, heard: now };
                Ok(())
            }
            Err(error) => self.fail_for_good(table, error),
        }
    }

    /// Gives a running dump up: events were lost while it ran, so it proves nothing.
    pub(super) fn restart(&mut self, table: &mut Table) {
        table.abandon_dump();
        self.phase = Phase::Idle;
    }

    /// Merges what has arrived.
    pub(super) fn read(
        &mut self,
        table: &mut Table,
        changes: &mut Changes,
        decoder: &mut Decoder,
        buffer: &mut [u8],
    ) -> Result<(), SocketError> {
        let now = Now::read();
        for _ in 0..DATAGRAMS_AT_ONCE {
            match self.socket.receive(buffer)? {
                Received::Datagram(length) => {
                    self.merge(decoder.messages(&buffer[..length]), now, table, changes)?;
                }
                Received::Foreign(_) => {}
                Received::Empty => break,
                // Part of the dump is missing.
                Received::Truncated(_) | Received::Overrun => self.restart(table),
            }
        }
        Ok(())
    }

    fn merge<'a>(
        &mut self,
        mut messages: impl Iterator<Item = Result<Message<'a>, DecodeError>>,
        now: Now,
        table: &mut Table,
        changes: &mut Changes,
    ) -> Result<(), SocketError> {
        if let Phase::Merging { heard, .. } = &mut self.phase {
            *heard = Instant::now();
        }
        // What follows the end of a dump, or belongs to one that was given up, says nothing.
        while matches!(self.phase, Phase::Merging { .. }) {
            let batch: Vec<_> = messages.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                break;
            }
            table.prefetch(batch.iter().filter_map(flow_of));
            let mut change = table.change();
            for message in &batch {
                self.merge_message(message, now, &mut change, changes)?;
            }
            change.commit();
        }
        Ok(())
    }

    fn merge_message(
        &mut self,
        message: &Result<Message<'_>, DecodeError>,
        now: Now,
        change: &mut Transaction<'_>,
        changes: &mut Changes,
    ) -> Result<(), SocketError> {
        let Phase::Merging { sequence: expected, complete, .. } = self.phase else { return Ok(()) };
        match message {
            Ok(Message::Flow(header, _, flow)) if header.sequence == expected => {
                change.header().counters.unknown_attributes += u64::from(flow.unknown_attributes);
                change.apply_dump_entry(flow, now, changes);
                if header.flags & NLM_F_DUMP_INTR != 0 {
                    self.restart(change.table());
                }
            }
            Ok(Message::Done(header, 0)) if header.sequence == expected => {
                if header.flags & NLM_F_DUMP_INTR == 0 {
                    self.phase = Phase::Ended { complete };
                } else {
                    self.restart(change.table());
                }
            }
            Ok(Message::Done(header, code) | Message::Error(header, code)) if header.sequence == expected => {
                self.fail_for_good(change.table(), SocketError::refused("dump request", *code))?;
            }
            Ok(_) => {}
            Err(error) => {
                self.phase = Phase::Merging { sequence: expected, complete: false, heard: Instant::now() };
                tracing::debug!(%error, "dump entry skipped");
            }
        }
        Ok(())
    }

    /// Ends the merge once the events that the kernel sent until the end of the dump are applied: flows whose DESTROY is
    /// among them have ended by it, and not unseen. Something when the table is the kernel's.
    pub(super) fn finish(&mut self, table: &mut Table, changes: &mut Changes) -> Option<Merged> {
        let Phase::Ended { complete } = self.phase else { return None };
        self.phase = Phase::Idle;
        let merged = table.end_dump(complete, Now::read(), changes);
        if complete {
            self.wait = SPACING;
            self.has_worked = true;
            return Some(merged);
        }
        self.fail(table, "an entry of the dump could not be read");
        None
    }

    /// Gives a dump up whose replies do not come: the request, or the report of its failure, was lost.
    pub(super) fn give_up_if_silent(&mut self, now: Instant, table: &mut Table) {
        if let Phase::Merging { heard, .. } = self.phase
            && now.saturating_duration_since(heard) >= SILENCE
        {
            self.fail(table, "no reply came");
        }
    }

    /// Why a dump has failed since the last call.
    pub(super) fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    fn request(&self, sequence: u32) -> Result<bool, SocketError> {
        match &self.requester {
            Requester::Ourselves => self.socket.send(&dump_request(sequence, None)).map(|()| true),
            Requester::Helper(requests) => {
                let socket = self.socket.try_clone()?;
                // While the helper is slow and events are lost again, requests can pile up: then this one waits as if it had
                // been refused.
                Ok(requests.try_send(DumpRequest { socket, sequence }).is_ok())
            }
        }
    }

    /// Notes that the request with this number could not be sent.
    pub(super) fn request_failed(&mut self, sequence: u32, reason: &str, table: &mut Table) {
        if matches!(self.phase, Phase::Merging { sequence: current, .. } if current == sequence) {
            self.fail(table, reason);
        }
    }

    /// Notes a failure. One that waiting does not mend ends the daemon, unless the helper sends the requests or a dump has worked
    /// before: a module that was unloaded comes back.
    fn fail_for_good(&mut self, table: &mut Table, error: SocketError) -> Result<(), SocketError> {
        self.fail(table, &error.to_string());
        let lasting =
            matches!(error, SocketError::PermissionDenied { .. } | SocketError::NotSupported { .. });
        let ours = matches!(self.requester, Requester::Ourselves);
        if lasting && ours && !self.has_worked { Err(error) } else { Ok(()) }
    }

    /// Waits longer before the next try. EBUSY is a dump of a reader before us that still runs.
    fn fail(&mut self, table: &mut Table, reason: &str) {
        self.restart(table);
        self.failure = Some(reason.to_owned());
        self.not_before = Some(Instant::now() + self.wait);
        let retry_after_sec = self.wait.as_secs();
        if self.wait == SPACING {
            tracing::warn!(reason, "dump failed, retrying with backoff");
        } else {
            tracing::debug!(reason, retry_after_sec, "dump failed");
        }
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }

    /// Throws away what an older dump has left.
    fn drain(&self) {
        let mut buffer = [0; 64];
        while matches!(
            self.socket.receive(&mut buffer),
            Ok(Received::Datagram(_) | Received::Truncated(_) | Received::Foreign(_) | Received::Overrun)
        ) {}
    }
}

fn random_sequence() -> u32 {
    let mut bytes = [0; 4];
    // The kernel's generator is ready long before services start.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    u32::from_ne_bytes(bytes)
}

/// The event and the flow of a message about a flow.
pub(super) fn flow_of<'a>(
    message: &'a Result<Message<'a>, DecodeError>,
) -> Option<(EventKind, &'a Flow<'a>)> {
    match message {
        Ok(Message::Flow(_, kind, flow)) => Some((*kind, flow)),
        _ => None,
    }
}

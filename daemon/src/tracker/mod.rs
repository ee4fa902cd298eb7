//! The thread that owns the table: reads the kernel's events, merges dumps, answers questions.
//!
//! It never waits for anyone but the kernel: it publishes once per batch, answers from the table, and sleeps
//! in `poll` when nothing happens. After a busy read it naps, which halves the cost of a burst: what costs is
//! being woken for every event.

mod dump;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use ctnetlink::{EventKind, Message, Received, Socket, SocketError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;

use crate::clock::Now;
use crate::event::Change;
use crate::handle::{COMMANDS, Command, Counters, Handle, Page, Publisher, Resync, ResyncReason, State};
use crate::table::{ClosedLimits, Outcome, Table};
use dump::{DumpReader, Progress};

/// After a read that found events, the next one waits so long: a burst's events are then read together.
const NAP: Duration = Duration::from_millis(2);
/// So many events are read before dumps and questions have their turn.
const EVENTS_AT_ONCE: usize = 4096;
/// An event has about 200 bytes, a dump's datagram up to 32 KiB.
const BUFFER: usize = 64 * 1024;

/// The two sockets that the tracker reads, joined to the groups and sized by whoever opened them.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// NEW, UPDATE and DESTROY.
    pub(crate) events: Socket,
    /// The replies of dumps.
    pub(crate) dump: Socket,
    /// The real size of the events' buffer.
    pub(crate) buffer_bytes: usize,
}

/// Why the tracker ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrackerError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("waiting for the kernel failed: {0}")]
    Poll(#[from] rustix::io::Errno),
}

/// The tracker. [`Tracker::run`] is its thread.
#[derive(Debug)]
pub(crate) struct Tracker {
    table: Table,
    events: Socket,
    dump: DumpReader,
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
    publisher: Publisher,
    changes: Vec<Change>,
    counters: Counters,
    /// The event socket's drop counter, as last read.
    drops: u32,
    /// Set while the table may differ from the kernel's; the first cause stays until the dump is merged.
    resync: Option<ResyncReason>,
    /// Events lost since the last resync.
    lost: u64,
    stop: bool,
}

impl Tracker {
    /// A tracker with an empty table and the handle to it.
    pub(crate) fn new(sockets: Sockets, limits: ClosedLimits) -> Result<(Self, Handle), TrackerError> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (sender, commands) = sync_channel(COMMANDS);
        let table = Table::new(limits);
        let state = State { synchronized: false, closed_capacity: limits.capacity };
        let (publisher, handle) =
            Publisher::new(new_epoch()?, table.name_strings(), state, sender, Arc::clone(&wake));
        let drops = sockets.events.drops()?;
        let tracker = Self {
            table,
            events: sockets.events,
            dump: DumpReader::new(sockets.dump),
            commands,
            wake,
            publisher,
            changes: Vec::new(),
            counters: Counters { buffer_bytes: sockets.buffer_bytes as u64, ..Counters::default() },
            drops,
            resync: Some(ResyncReason::Start),
            lost: 0,
            stop: false,
        };
        Ok((tracker, handle))
    }

    /// Tracks until [`Command::Stop`].
    pub(crate) fn run(mut self) -> Result<(), TrackerError> {
        let mut buffer = vec![0; BUFFER];
        while !self.stop {
            let busy = self.read_events(&mut buffer)?;
            if busy {
                self.count_losses()?;
            }
            self.advance_dump(&mut buffer)?;
            self.publish();
            self.answer();
            if !self.stop {
                self.wait(busy)?;
            }
        }
        Ok(())
    }

    /// Reads and applies events; true when there were any.
    fn read_events(&mut self, buffer: &mut [u8]) -> Result<bool, TrackerError> {
        let now = Now::read();
        for read in 0..EVENTS_AT_ONCE {
            match self.events.receive(buffer)? {
                Received::Datagram(length) => self.apply(&buffer[..length], now),
                Received::Foreign(_) => self.counters.events_foreign += 1,
                Received::Truncated(_) => self.counters.events_invalid += 1,
                Received::Empty => return Ok(read > 0),
                Received::Overrun => {} // count_losses learns how many.
            }
        }
        Ok(true)
    }

    fn apply(&mut self, datagram: &[u8], now: Now) {
        for message in ctnetlink::messages(datagram) {
            let (kind, flow) = match message {
                Ok(Message::Flow(_, kind, flow)) => (kind, flow),
                Ok(_) => continue,
                Err(error) => {
                    self.counters.events_invalid += 1;
                    tracing::debug!(%error, "event skipped");
                    continue;
                }
            };
            match kind {
                EventKind::New => self.counters.events_new += 1,
                EventKind::Update => self.counters.events_update += 1,
                EventKind::Destroy => self.counters.events_destroy += 1,
            }
            self.counters.unknown_attributes += u64::from(flow.unknown_attributes);
            if self.table.apply(kind, &flow, now, &mut self.changes) == Outcome::Repeated {
                self.counters.events_repeated += 1;
            }
        }
    }

    /// Asks the kernel how many events it dropped.
    fn count_losses(&mut self) -> Result<(), TrackerError> {
        let drops = self.events.drops()?;
        let lost = u64::from(drops.wrapping_sub(self.drops));
        if lost > 0 {
            self.drops = drops;
            self.counters.events_lost += lost;
            self.lost += lost;
            self.table.note_loss();
            if self.resync.is_none() {
                tracing::warn!(lost, "events lost: the buffer was full, resynchronizing");
            }
            self.resync.get_or_insert(ResyncReason::Overrun);
            self.dump.restart(&mut self.table);
        }
        Ok(())
    }

    /// Starts a dump where one is needed, reads some of a running one.
    fn advance_dump(&mut self, buffer: &mut [u8]) -> Result<(), TrackerError> {
        if self.resync.is_some() && self.dump.may_start(Instant::now()) {
            self.dump.start(&mut self.table)?;
            self.counters.dumps += 1;
        }
        match self.dump.read(&mut self.table, &mut self.changes, buffer)? {
            Progress::None => {}
            Progress::Merged(merged) => {
                let reason = self.resync.take().unwrap_or(ResyncReason::Start);
                let resync = Resync {
                    reason,
                    lost: std::mem::take(&mut self.lost),
                    closed: merged.closed,
                    added: merged.added,
                };
                tracing::info!(
                    reason = reason.name(),
                    lost = resync.lost,
                    added = resync.added,
                    closed = resync.closed,
                    "table synchronized"
                );
                self.publish();
                self.publisher.publish_resync(resync);
                self.counters.resyncs += 1;
            }
        }
        self.counters.unknown_attributes += self.dump.take_unknown_attributes();
        self.counters.events_invalid += self.dump.take_invalid();
        Ok(())
    }

    fn publish(&mut self) {
        self.counters.active = self.table.active_count();
        self.counters.closed = self.table.closed_count();
        self.counters.closed_evicted = self.table.closed_evicted();
        self.counters.names_refused = self.table.names_refused();
        self.publisher.publish(&mut self.changes, self.counters);
        self.publisher.set_state(State {
            synchronized: self.resync.is_none(),
            closed_capacity: self.table.closed_capacity(),
        });
    }

    fn answer(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            // A caller that has gone away needs no answer.
            match command {
                Command::ListActive { after, limit, reply } => {
                    let flows = self.table.active_after(after).take(limit + 1).collect();
                    let _ = reply.send(self.page(flows, limit));
                }
                Command::ListClosed { before, limit, reply } => {
                    let flows =
                        self.table.closed_before(before, Now::read()).take(limit + 1).copied().collect();
                    let _ = reply.send(self.page(flows, limit));
                }
                Command::Flow { id, reply } => {
                    let _ = reply.send(self.table.flow(id, Now::read()));
                }
                Command::SetClosedLimits(limits) => {
                    self.table.set_closed_limits(limits, Now::read());
                    self.publish();
                }
                Command::Stop => self.stop = true,
            }
        }
    }

    /// A page of at most `limit` flows, `flows` having one more where the listing goes on.
    fn page(&self, mut flows: Vec<crate::flow::Snapshot>, limit: usize) -> Page {
        let more = flows.len() > limit;
        flows.truncate(limit);
        Page { flows, more, sequence: self.table.sequence(), synchronized: self.resync.is_none() }
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self, busy: bool) -> Result<(), TrackerError> {
        let readable = PollFlags::IN;
        let (events, dump) = (self.events.as_fd(), self.dump.as_fd());
        let mut fds =
            [PollFd::new(&self.wake, readable), PollFd::new(&dump, readable), PollFd::new(&events, readable)];
        // Napping, the events are left to gather; questions and dumps are not kept waiting.
        let (fds, timeout) = if busy {
            (&mut fds[..2], Some(NAP))
        } else {
            let until_dump = self.resync.is_some().then(|| self.dump.until_start(Instant::now())).flatten();
            (&mut fds[..], until_dump)
        };
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        match poll(fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        Ok(())
    }
}

/// 128 random bits in hexadecimal.
fn new_epoch() -> Result<String, rustix::io::Errno> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

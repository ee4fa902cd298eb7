//! The thread that owns the table: reads the kernel's events, merges dumps, answers questions.
//!
//! It never waits for anyone but the kernel: it publishes once a turn, answers from the table, and sleeps
//! in `poll` when nothing happens. After a busy read it naps, which halves the cost of a burst: what costs is
//! being woken for every event.

mod attribution;
mod commands;
mod dump;
mod events;
mod ring;
mod sockets;
mod sweep;

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ctnetlink::{Decoder, Socket, SocketError, Tuple};
use flowbus_attribution::events::EventFilter;
use flowbus_attribution::{Accept, Counters};
use flowbus_logging::message_id;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::change::Changes;
use crate::clock::Now;
use crate::connection::ConnectionEvent;
use crate::counters::ResyncReason;
use crate::event_source::EventSource;
use crate::flow::ClosedLimits;
use crate::handle::{COMMANDS, Command, Handle, Look, Publisher};
use crate::owners::Attribution;
use crate::published::{Properties, Resync, Session, Summary, Tier};
use crate::state::{Inbox, Refused, State};
use crate::table::{Merged, Table};
use dump::DumpReader;
pub(crate) use dump::Requester;
use events::Reading;
use sockets::RingReader;
use sweep::Sweeps;

/// The pause between a read that found events and the next one: a burst's events are then read together.
const NAP: Duration = Duration::from_millis(2);
/// The pause after a read that found socket events. Their programs wake us for the first event after everything was read, and waking
/// is most of their cost.
const SOCKETS_NAP: Duration = Duration::from_millis(5);
/// The kernel's dump datagrams have up to 32 KiB.
const DUMP_BUFFER: usize = 64 * 1024;

/// What the tracker starts with.
#[derive(Debug)]
pub(crate) struct Setup {
    /// Joined to the groups of NEW, UPDATE and DESTROY, and to those of expectations.
    pub(crate) events: Socket,
    /// What puts events into a ring, if it is there already.
    pub(crate) filter: Option<EventFilter>,
    /// For the replies of dumps.
    pub(crate) dump: Socket,
    pub(crate) requester: Requester,
    pub(crate) state: State,
    /// Why `state` is not that of the last life, where there was one.
    pub(crate) refused: Option<Refused>,
    pub(crate) closed_limits: ClosedLimits,
    /// How often a table of which all is known is compared with the kernel's.
    pub(crate) sweep_interval: Duration,
}

/// Why the tracker ended before [`Command::Stop`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrackerError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("waiting for the kernel failed: {0}")]
    Poll(#[from] Errno),
    #[error(
        "the event socket's filter cannot be detached: {0}; `systemctl restart flowbusd.socket` has PID 1 open the socket anew"
    )]
    Filter(std::io::Error),
}

/// The tracker. [`Tracker::run`] is its thread.
#[derive(Debug)]
pub(crate) struct Tracker {
    table: Table,
    events: EventSource,
    inbox: Inbox,
    decoder: Decoder,
    dump: DumpReader,
    sweeps: Sweeps,
    /// While BPF programs tell of sockets.
    sockets: Option<RingReader>,
    /// What the programs count, until it is announced that they run: see [`Tracker::announce_programs`].
    unannounced: Option<(Counters, Accept)>,
    /// Where they do not, but somebody looks for them.
    questions: Option<SyncSender<Tuple>>,
    /// When the last dump was merged.
    merged: Option<Instant>,
    /// Callers who wait for a dump, at most [`COMMANDS`].
    waiting: Vec<Command>,
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
    publisher: Publisher,
    changes: Changes,
    connections: Vec<ConnectionEvent>,
    /// Sockets have reported something in this turn.
    told: bool,
    buffer_bytes: u64,
    /// To be compared with the table once all events are read that were sent before it.
    look: Option<Look>,
    /// A sweep that was needed has failed, and none was merged since: the table may differ from the kernel's.
    behind: bool,
    /// Addresses of the network namespace, once they are known.
    addresses: Option<HashSet<IpAddr>>,
    stop: bool,
}

impl Tracker {
    /// A tracker of what the state holds, and the handle to it.
    pub(crate) fn new(setup: Setup) -> Result<(Self, Handle), TrackerError> {
        let Setup { events, filter, dump, requester, state, refused, closed_limits, sweep_interval } = setup;
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (sender, commands) = sync_channel(COMMANDS);
        let inbox = state.inbox()?;
        let mut table = Table::new(state, closed_limits);
        let events = ring::open(events, filter, &mut table)?;
        let announced = Properties {
            synchronized: false,
            closed_capacity: closed_limits.capacity,
            attribution: Tier::None,
            event_source: events.name(),
        };
        let (publisher, handle) = Publisher::new(
            Session {
                epoch: table.state().epoch(),
                first_sequence: table.header().sequence,
                first_connection: table.header().connections,
                names: table.name_strings(),
                processes: table.process_texts(),
            },
            announced,
            sender,
            Arc::clone(&wake),
        );
        let buffer_bytes = events.socket().receive_buffer()? as u64;
        let mut tracker = Self {
            table,
            events,
            inbox,
            decoder: Decoder::default(),
            dump: DumpReader::new(dump, requester),
            sweeps: Sweeps::new(sweep_interval),
            sockets: None,
            unannounced: None,
            questions: None,
            merged: None,
            waiting: Vec::new(),
            commands,
            wake,
            publisher,
            changes: Changes::default(),
            connections: Vec::new(),
            told: false,
            buffer_bytes,
            look: None,
            behind: false,
            addresses: None,
            stop: false,
        };
        take_over(&mut tracker.table, tracker.events.socket(), refused.as_ref())?;
        // Events may have been lost while nobody read them: counted before the table is announced as synchronized.
        tracker.count_losses()?;
        tracker.publish();
        Ok((tracker, handle))
    }

    /// Tracks until [`Command::Stop`].
    pub(crate) fn run(mut self) -> Result<(), TrackerError> {
        let mut buffer = vec![0; DUMP_BUFFER];
        while !self.stop {
            // Sockets first, so that a flow's birth is published with its owner.
            self.told = false;
            self.read_sockets();
            let reading = self.read_events()?;
            if reading != Reading::Unfinished {
                self.announce_programs();
            }
            if reading != Reading::Quiet {
                self.table.expire_closed(Now::read());
                self.count_losses()?;
            }
            self.advance_dump(reading, &mut buffer)?;
            self.tell_connections();
            self.publish();
            self.answer();
            if !self.stop && reading != Reading::Unfinished && self.changes.is_empty() {
                self.wait(reading)?;
            }
        }
        Ok(())
    }

    /// Starts a dump where one is needed, reads some of a running one.
    fn advance_dump(&mut self, reading: Reading, buffer: &mut [u8]) -> Result<(), TrackerError> {
        let now = Instant::now();
        // What was queued before a loss is read before the dump begins: a flow whose end was lost would else seem to be
        // seen again by its own old events.
        let drained = matches!(reading, Reading::Quiet | Reading::Drained);
        if drained && let Some(merged) = self.dump.finish(&mut self.table, &mut self.changes) {
            self.end_dump(merged);
        }
        if drained && let Some(look) = self.look.take() {
            self.compare(look, now);
        }
        self.dump.give_up_if_silent(now, &mut self.table);
        if drained && self.dump.may_start(now) && (self.wants_dump() || self.sweeps.is_due(&self.table, now))
        {
            self.table.change().header().counters.dumps += 1;
            self.dump.start(&mut self.table)?;
        }
        self.dump.read(&mut self.table, &mut self.changes, &mut self.decoder, buffer)?;
        if let Some(reason) = self.dump.take_failure() {
            self.waiting.clear(); // Their answer needs a dump, and there is none.
            self.behind |= self.sweeps.are_needed(&self.table, now);
            self.publisher.set_failure(Some(reason));
        }
        Ok(())
    }

    /// True when somebody waits for a dump, or the table may differ from the kernel's.
    fn wants_dump(&self) -> bool {
        self.table.header().resync != 0 || !self.waiting.is_empty()
    }

    /// Compares a look at the kernel with the table.
    fn compare(&mut self, look: Look, now: Instant) {
        self.table.set_masked(look.masked);
        if self.sweeps.looked(look, &self.table, now) {
            tracing::warn!(
                "received events of flows that no event announced: something masks events (`ct event set`, `-j CT --ctevents`, \
                 Open vSwitch); flows are compared with the kernel's table every 2 to 16 s"
            );
        }
    }

    fn end_dump(&mut self, merged: Merged) {
        // The changes first: a follower receives the resync after everything that it changed.
        self.publish();
        let now = Instant::now();
        self.sweeps.dump_ended(merged, self.dump.age(now).unwrap_or_default(), now);
        self.merged = Some(now);
        self.behind = false;
        self.publisher.set_failure(None);
        let mut change = self.table.change();
        let header = change.header();
        let lost = std::mem::take(&mut header.lost);
        let reason = ResyncReason::from_number(std::mem::take(&mut header.resync));
        match reason {
            Some(_) => header.counters.resyncs += 1,
            None => header.counters.sweeps += 1,
        }
        let sequence = header.sequence;
        change.commit();
        let Merged { added, closed, .. } = merged;
        if let Some(reason) = reason {
            self.publisher.publish_resync(Resync { reason, lost, closed, added, sequence }, self.summary());
            let reason = reason.name();
            tracing::info!(
                message_id = message_id::SYNCHRONIZED,
                reason,
                lost,
                added,
                closed,
                "table synchronized"
            );
        } else {
            tracing::debug!(added, closed, "table swept");
        }
        self.publish();
        for command in std::mem::take(&mut self.waiting) {
            self.handle(command);
        }
    }

    fn summary(&self) -> Summary {
        let header = self.table.header();
        Summary {
            counters: header.counters,
            active: header.active,
            closed: header.closed_count,
            buffer_bytes: self.buffer_bytes,
            silent: self.table.silent_count(),
            resync: header.resync,
            owners_pending: self.table.attribution().map_or(0, Attribution::pending),
            newest_id: header.last_id,
            connections: header.connections,
        }
    }

    fn publish(&mut self) {
        self.ask_for_owners();
        let summary = self.summary();
        self.publisher.publish(&mut self.changes, &mut self.connections, summary);
        let header = self.table.header();
        self.publisher.set_properties(Properties {
            synchronized: header.resync == 0 && !self.behind,
            closed_capacity: header.closed_capacity,
            attribution: match (&self.sockets, &self.questions) {
                (Some(_), _) if self.unannounced.is_none() => Tier::Bpf,
                (None, Some(_)) => Tier::Procfs,
                _ => Tier::None,
            },
            event_source: self.events.name(),
        });
    }

    /// Sleeps until there is something to do.
    ///
    /// Being woken for every event is what a burst costs. So after a turn that found events the tracker naps: it leaves the event
    /// socket and the rings out of `poll` for [`NAP`], events gather there, and the next turn reads all of them at once. Reports of
    /// sockets gather for [`SOCKETS_NAP`]; also where some wait until the events that were sent meanwhile are applied. Commands and
    /// replies of dumps end either nap, so nobody waits for its end. Only a turn that found nothing polls for everything, and has no
    /// timeout unless a dump is due. A nap loses nothing: what has gathered is still there, and `poll` returns at once for it.
    fn wait(&mut self, reading: Reading) -> Result<(), TrackerError> {
        let readable = PollFlags::IN;
        let is_waiting =
            self.table.is_unsettled() || self.sockets.as_ref().is_some_and(RingReader::has_unpublished);
        let is_to_sleep = reading == Reading::Quiet && !self.told && !is_waiting;
        if is_to_sleep && !self.events.prepare_to_sleep() {
            return Ok(());
        }
        let [ring, events] = self.events.descriptors();
        let sockets = self.sockets.as_ref().map_or(events, RingReader::as_fd);
        let mut fds = [self.wake.as_fd(), self.dump.as_fd(), ring, events, sockets]
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, readable));
        let (fds, timeout) = match reading {
            _ if self.told || is_waiting => (&mut fds[..2], Some(SOCKETS_NAP)),
            _ if is_to_sleep => (&mut fds[..], self.until_dump()),
            _ => (&mut fds[..2], Some(NAP)),
        };
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        match poll(fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        Ok(())
    }

    /// How long until a dump is to be started; `None` while none is wanted, or while one runs, which wakes us.
    fn until_dump(&self) -> Option<Duration> {
        let now = Instant::now();
        let until_start = self.dump.until_start(now);
        if self.wants_dump() || self.dump.is_running() {
            return Some(until_start);
        }
        self.sweeps.until_due(&self.table, now).map(|until_due| until_due.max(until_start))
    }
}

/// Fits the state to the event socket: with the one that the state was made with, nothing was missed, unless [`ring::open`] noted it.
fn take_over(table: &mut Table, events: &Socket, refused: Option<&Refused>) -> Result<(), TrackerError> {
    let cookie = events.cookie()?;
    let header = table.header();
    let reason = if let Some(refused) = refused {
        tracing::warn!(
            message_id = message_id::STATE_REFUSED,
            "the state of the last run is refused, ignoring: {refused}"
        );
        Some(ResyncReason::StateRefused)
    } else if header.socket_cookie == 0 {
        Some(ResyncReason::Start)
    } else if header.socket_cookie != cookie {
        Some(ResyncReason::NewSocket)
    } else {
        None
    };
    if let Some(reason) = reason {
        let drops = events.drops()?;
        let mut change = table.change();
        let header = change.header();
        header.resync = reason as u32;
        header.socket_cookie = cookie;
        header.drops = drops;
        change.note_loss();
        change.commit();
    }
    Ok(())
}

//! The thread that owns the table: reads the kernel's events, merges dumps, answers questions.
//!
//! It never waits for anyone but the kernel: it publishes once per batch, answers from the table, and sleeps
//! in `poll` when nothing happens. After a busy read it naps, which halves the cost of a burst: what costs is
//! being woken for every event.

mod dump;
mod sockets;
mod sweep;

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ctnetlink::{DecodeError, EventKind, Message, Received, Socket, SocketError, Tuple};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::clock::Now;
use crate::event::{Change, ConnectionEvent, ExpectationEvent};
use crate::flow::Snapshot;
use crate::handle::{
    COMMANDS, Candidates, Command, Handle, Life, Page, Publisher, Resync, ResyncReason, State, Summary, Tier,
};
use crate::logging::{EVENTS_LOST, STATE_REFUSED, SYNCHRONIZED};
use crate::owners::{Attribution, Found, Probe};
use crate::state::{BATCH, Inbox, Refused};
use crate::table::{ClosedLimits, Merged, Outcome, Table};
use dump::DumpReader;
pub(crate) use dump::Requester;
use sockets::Sockets;
use sweep::Sweeps;

/// After a read that found events, the next one waits so long: a burst's events are then read together.
const NAP: Duration = Duration::from_millis(2);
/// The same after sockets told something: their programs wake us for the first word after all was read, and that is what
/// their cost is made of.
const SOCKETS_NAP: Duration = Duration::from_millis(5);
/// So many events are read before dumps and questions have their turn.
const EVENTS_AT_ONCE: usize = 1024;
/// The kernel's dump datagrams have up to 32 KiB.
const DUMP_BUFFER: usize = 64 * 1024;
/// A dump that is younger is new enough for a caller who wants counters refreshed.
const REFRESH_AGE: Duration = Duration::from_secs(1);

/// What the tracker starts with.
#[derive(Debug)]
pub(crate) struct Start {
    /// Joined to the groups of NEW, UPDATE and DESTROY, and to those of expectations.
    pub(crate) events: Socket,
    /// For the replies of dumps.
    pub(crate) dump: Socket,
    pub(crate) requester: Requester,
    pub(crate) state: crate::state::State,
    /// Why `state` is not that of the last life, where there was one.
    pub(crate) refused: Option<Refused>,
    pub(crate) closed_limits: ClosedLimits,
    /// How often a table of which all is known is compared with the kernel's.
    pub(crate) sweep_interval: Duration,
}

/// Why the tracker ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrackerError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("waiting for the kernel failed: {0}")]
    Poll(#[from] Errno),
}

/// The tracker. [`Tracker::run`] is its thread.
#[derive(Debug)]
pub(crate) struct Tracker {
    table: Table,
    events: Socket,
    inbox: Inbox,
    dump: DumpReader,
    sweeps: Sweeps,
    /// While BPF programs tell of sockets.
    sockets: Option<Sockets>,
    /// Where they do not, but somebody looks for them.
    questions: Option<SyncSender<Tuple>>,
    /// When the last dump was merged.
    merged: Option<Instant>,
    /// Callers who wait for a dump, at most [`COMMANDS`].
    waiting: Vec<Command>,
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
    publisher: Publisher,
    changes: Vec<Change>,
    connections: Vec<ConnectionEvent>,
    buffer_bytes: u64,
    /// Those of the network namespace, once they are known.
    addresses: Option<HashSet<IpAddr>>,
    stop: bool,
}

/// How reading events ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// There were none.
    Quiet,
    /// There were some, and no more.
    Drained,
    /// There may be more.
    Unfinished,
}

impl Tracker {
    /// A tracker of what the state holds, and the handle to it.
    pub(crate) fn new(start: Start) -> Result<(Self, Handle), TrackerError> {
        let Start { events, dump, requester, state, refused, closed_limits, sweep_interval } = start;
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (sender, commands) = sync_channel(COMMANDS);
        let inbox = state.inbox()?;
        let mut table = Table::new(state, closed_limits);
        take_over(&mut table, &events, refused.as_ref())?;
        let announced =
            State { synchronized: false, closed_capacity: closed_limits.capacity, attribution: Tier::None };
        let (publisher, handle) = Publisher::new(
            Life {
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
        let buffer_bytes = events.receive_buffer()? as u64;
        let mut tracker = Self {
            table,
            events,
            inbox,
            dump: DumpReader::new(dump, requester),
            sweeps: Sweeps::new(sweep_interval),
            sockets: None,
            questions: None,
            merged: None,
            waiting: Vec::new(),
            commands,
            wake,
            publisher,
            changes: Vec::new(),
            connections: Vec::new(),
            buffer_bytes,
            addresses: None,
            stop: false,
        };
        // What the last life received and did not come to apply.
        tracker.apply_received(Now::read());
        // Events may have been lost while nobody read them: known before anybody is told that the table is right.
        tracker.count_losses()?;
        tracker.publish();
        Ok((tracker, handle))
    }

    /// Tracks until [`Command::Stop`].
    pub(crate) fn run(mut self) -> Result<(), TrackerError> {
        let mut buffer = vec![0; DUMP_BUFFER];
        while !self.stop {
            // Sockets first: the flow of one that was told of is told with its owner.
            let told = self.read_sockets();
            let reading = self.read_events()?;
            if reading != Reading::Quiet {
                self.table.expire_closed(Now::read());
                self.count_losses()?;
            }
            self.advance_dump(reading, &mut buffer)?;
            self.tell_connections(reading);
            self.publish();
            self.answer();
            if !self.stop && reading != Reading::Unfinished {
                self.wait(reading, told)?;
            }
        }
        Ok(())
    }

    /// Reads what sockets did; true when something was told.
    fn read_sockets(&mut self) -> bool {
        let Self { sockets, table, changes, .. } = self;
        sockets.as_mut().is_some_and(|sockets| sockets.read(table, changes, Now::read()))
    }

    /// Tells what connections did, where their flows can be known.
    fn tell_connections(&mut self, reading: Reading) {
        let Self { sockets, table, connections, .. } = self;
        if let Some(sockets) = sockets {
            sockets.tell(reading != Reading::Unfinished, table, connections);
        }
    }

    /// Asks who has the new flows, where nobody tells. A thread that has too much to do is not asked.
    fn ask_for_owners(&self) {
        let Some(questions) = &self.questions else { return };
        let new = self.changes.iter().filter(|change| change.kind == EventKind::New);
        for direction in new.flat_map(|change| self.table.unowned(&change.flow)) {
            let _ = questions.try_send(direction);
        }
    }

    /// Hands the addresses on, which sockets without one of their own need.
    fn set_addresses(&mut self) {
        if let (Some(addresses), Some(attribution)) = (&self.addresses, self.table.attribution_mut()) {
            attribution.sockets.set_addresses(addresses.clone());
            self.table.attribute_all(&mut self.changes);
        }
    }

    /// Begins to give flows their owners by these programs.
    fn attribute(&mut self, probe: Probe) {
        let accept = probe.report.accept();
        let Self { table, changes, .. } = self;
        let (sockets, counters) = Sockets::begin(probe, table, changes);
        self.sockets = Some(sockets);
        self.set_addresses();
        self.publisher.set_programs(counters, accept);
        self.publish();
    }

    /// Reads and applies events.
    fn read_events(&mut self) -> Result<Reading, TrackerError> {
        let now = Now::read();
        let mut read = 0;
        while read < EVENTS_AT_ONCE {
            let received = self.receive()?;
            self.apply_received(now);
            read += received;
            if received < BATCH {
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
                    self.table.header_mut().counters.events_foreign += 1;
                }
                Received::Truncated(_) => {
                    self.inbox.discard();
                    self.table.header_mut().counters.events_invalid += 1;
                }
                Received::Empty => return Ok(received),
                Received::Overrun => {} // count_losses learns how many.
            }
        }
        Ok(BATCH)
    }

    /// Applies what was received, as one change for the next life.
    fn apply_received(&mut self, now: Now) {
        let Self { table, changes, publisher, sockets, inbox, .. } = self;
        let mut messages = Vec::with_capacity(BATCH);
        for (number, datagram) in inbox.messages() {
            for message in ctnetlink::messages(datagram) {
                messages.push((number, message));
            }
        }
        table.look_ahead(messages.iter().filter_map(|(_, message)| match message {
            Ok(Message::Flow(_, kind, flow)) => Some((*kind, flow)),
            _ => None,
        }));
        for (number, message) in &messages {
            apply(table, changes, publisher, sockets.as_mut(), message, now);
            table.header_mut().message = *number;
        }
        table.commit();
    }

    /// Asks the kernel how many events it dropped.
    fn count_losses(&mut self) -> Result<(), TrackerError> {
        let drops = self.events.drops()?;
        let header = self.table.header_mut();
        let lost = u64::from(drops.wrapping_sub(header.drops));
        if lost == 0 {
            return Ok(());
        }
        header.drops = drops;
        header.counters.events_lost += lost;
        header.lost += lost;
        if header.resync == 0 {
            header.resync = ResyncReason::Overrun as u32;
            tracing::warn!(
                message_id = EVENTS_LOST,
                lost,
                "events lost: the socket's buffer was full, resynchronizing"
            );
        }
        self.table.note_loss();
        self.table.commit();
        self.dump.restart(&mut self.table);
        Ok(())
    }

    /// Starts a dump where one is needed, reads some of a running one.
    fn advance_dump(&mut self, reading: Reading, buffer: &mut [u8]) -> Result<(), TrackerError> {
        let now = Instant::now();
        // What was queued before a loss is read before the dump begins: a flow whose end was lost would else seem to be
        // seen again by its own old events.
        let drained = reading != Reading::Unfinished;
        if drained && let Some(merged) = self.dump.finish(&mut self.table, &mut self.changes) {
            self.end_dump(merged);
        }
        self.dump.give_up_if_silent(now, &mut self.table);
        if drained && self.dump.may_start(now) && (self.wants_dump() || self.sweeps.is_due(&self.table, now))
        {
            self.table.header_mut().counters.dumps += 1;
            self.dump.start(&mut self.table)?;
        }
        self.dump.read(&mut self.table, &mut self.changes, buffer)?;
        if self.dump.take_failed() {
            self.waiting.clear(); // Their answer needs a dump, and there is none.
        }
        Ok(())
    }

    /// True when somebody waits for a dump, or the table may differ from the kernel's.
    fn wants_dump(&self) -> bool {
        self.table.header().resync != 0 || !self.waiting.is_empty()
    }

    fn end_dump(&mut self, merged: Merged) {
        // The changes first: who is told of the resync has been told of what it did.
        self.publish();
        let now = Instant::now();
        self.sweeps.dump_ended(merged, self.dump.age(now).unwrap_or_default(), now);
        self.merged = Some(now);
        let header = self.table.header_mut();
        let lost = std::mem::take(&mut header.lost);
        let reason = ResyncReason::from_number(std::mem::take(&mut header.resync));
        match reason {
            Some(_) => header.counters.resyncs += 1,
            None => header.counters.sweeps += 1,
        }
        let sequence = header.sequence;
        self.table.commit();
        let Merged { added, closed } = merged;
        if let Some(reason) = reason {
            self.publisher.publish_resync(Resync { reason, lost, closed, added, sequence }, self.summary());
            let reason = reason.name();
            tracing::info!(message_id = SYNCHRONIZED, reason, lost, added, closed, "table synchronized");
        } else {
            tracing::debug!(added, closed, "table swept");
        }
        self.publish();
        for command in std::mem::take(&mut self.waiting) {
            self.obey(command);
        }
    }

    fn summary(&self) -> Summary {
        let header = self.table.header();
        Summary {
            counters: header.counters,
            active: header.active,
            closed: header.closed_count,
            buffer_bytes: self.buffer_bytes,
            owners_pending: self.table.attribution().map_or(0, |attribution| attribution.sockets.pending()),
            connections: header.connections,
        }
    }

    fn publish(&mut self) {
        self.ask_for_owners();
        let summary = self.summary();
        self.publisher.publish(&mut self.changes, &mut self.connections, summary);
        let header = self.table.header();
        self.publisher.set_state(State {
            synchronized: header.resync == 0,
            closed_capacity: header.closed_capacity,
            attribution: match (&self.sockets, &self.questions) {
                (Some(_), _) => Tier::Bpf,
                (None, Some(_)) => Tier::Procfs,
                (None, None) => Tier::None,
            },
        });
    }

    fn answer(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::ListActive { refresh: true, .. }
                    if !self.is_fresh() && self.waiting.len() < COMMANDS =>
                {
                    self.waiting.push(command);
                }
                command => self.obey(command),
            }
        }
    }

    /// True when the counters are as new as a caller may want them.
    fn is_fresh(&self) -> bool {
        self.merged.is_some_and(|merged| merged.elapsed() < REFRESH_AGE)
    }

    /// Does what a command says; a caller that has gone away needs no answer.
    fn obey(&mut self, command: Command) {
        match command {
            Command::ListActive { after, limit, candidates, reply, .. } => {
                let flows = match candidates {
                    Candidates::All => self.table.active_after(after).take(limit + 1).collect(),
                    Candidates::Ids(ids) => self.table.active_of(after, &ids).take(limit + 1).collect(),
                    Candidates::Owned => self.table.active_with_owner(after).take(limit + 1).collect(),
                    Candidates::Port(port) => {
                        self.table.active_with_port(after, port).take(limit + 1).collect()
                    }
                };
                let _ = reply.send(self.page(flows, limit));
            }
            Command::ListClosed { before, limit, reply } => {
                let flows = self.table.closed_before(before, Now::read()).take(limit + 1).collect();
                let _ = reply.send(self.page(flows, limit));
            }
            Command::ListClosedFrom { first, limit, reply } => {
                let flows = self.table.closed_from(first, Now::read()).take(limit + 1).collect();
                let _ = reply.send(self.page(flows, limit));
            }
            Command::Flow { id, reply } => {
                let _ = reply.send(self.table.flow(id, Now::read()));
            }
            Command::SetClosedLimits(limits) => {
                self.table.set_closed_limits(limits, Now::read());
                self.publish();
            }
            Command::Attribute(probe) => self.attribute(*probe),
            Command::ReadSnapshot(snapshot) => {
                let Self { sockets, table, changes, .. } = self;
                if let Some(sockets) = sockets {
                    sockets.read_snapshot(snapshot, table, changes);
                }
            }
            Command::LookUp { network_namespace, questions } => {
                self.table.attribute(Attribution::new(network_namespace));
                for flow in self.table.active_after(0) {
                    for direction in self.table.unowned(&flow) {
                        let _ = questions.try_send(direction);
                    }
                }
                self.questions = Some(questions);
                self.set_addresses();
                self.publish();
            }
            Command::Found(found) => {
                for Found { event, path } in found {
                    if let (Some(process), Some(path), Some(attribution)) =
                        (&event.process, &path, self.table.attribution_mut())
                    {
                        attribution.set_path(process.cgroup, path);
                    }
                    self.table.apply_socket(&event, Now::read(), &mut self.changes);
                    self.table.commit();
                }
                self.publish();
            }
            Command::SetAddresses(addresses) => {
                self.addresses = Some(addresses);
                self.set_addresses();
            }
            Command::DumpFailed { sequence, reason } => {
                self.dump.request_failed(sequence, &reason, &mut self.table);
            }
            Command::Ping { reply } => {
                let _ = reply.send(());
            }
            Command::Stop => self.stop = true,
        }
    }

    /// A page of at most `limit` flows, `flows` having one more where the listing goes on.
    fn page(&self, mut flows: Vec<Snapshot>, limit: usize) -> Page {
        let more = flows.len() > limit;
        flows.truncate(limit);
        let header = self.table.header();
        Page { flows, more, sequence: header.sequence, synchronized: header.resync == 0 }
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self, reading: Reading, told: bool) -> Result<(), TrackerError> {
        let readable = PollFlags::IN;
        let (events, dump) = (self.events.as_fd(), self.dump.as_fd());
        let sockets = self.sockets.as_ref().map_or(events, Sockets::as_fd);
        let mut fds = [self.wake.as_fd(), dump, events, sockets]
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, readable));
        // Napping, the events are left to gather; questions and dumps are not kept waiting.
        let (fds, timeout) = match reading {
            _ if told => (&mut fds[..2], Some(SOCKETS_NAP)),
            Reading::Quiet => (&mut fds[..], self.until_dump()),
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

/// Fits the state to the event socket: with the one that the state was made with, nothing was missed.
fn take_over(table: &mut Table, events: &Socket, refused: Option<&Refused>) -> Result<(), TrackerError> {
    let cookie = events.cookie()?;
    let header = table.header();
    let reason = if let Some(refused) = refused {
        tracing::warn!(
            message_id = STATE_REFUSED,
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
        let header = table.header_mut();
        header.resync = reason as u32;
        header.socket_cookie = cookie;
        header.drops = drops;
        table.note_loss();
    }
    table.commit();
    Ok(())
}

/// Applies a message to the table.
fn apply(
    table: &mut Table,
    changes: &mut Vec<Change>,
    publisher: &Publisher,
    sockets: Option<&mut Sockets>,
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
            table.header_mut().counters.events_invalid += 1;
            tracing::debug!(%error, "event skipped");
            return;
        }
    };
    // What a socket did is told before the kernel tells of its flow: it is there by now.
    if kind == EventKind::New
        && let Some(sockets) = sockets
        && !table.knows_sender(&flow.original)
    {
        sockets.read(table, changes, now);
    }
    let counters = &mut table.header_mut().counters;
    match kind {
        EventKind::New => counters.events_new += 1,
        EventKind::Update => counters.events_update += 1,
        EventKind::Destroy => counters.events_destroy += 1,
    }
    counters.unknown_attributes += u64::from(flow.unknown_attributes);
    if table.apply(kind, flow, now, changes) == Outcome::Repeated {
        table.header_mut().counters.events_repeated += 1;
    }
}

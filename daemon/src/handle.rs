//! How everything else asks the tracker and follows what it publishes.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ctnetlink::Tuple;
use flowbus_attribution::events::EventFilter;
use flowbus_attribution::{Accept, Counters as ProgramCounters, Snapshot as OpenSockets, Statistics};
use rustix::fd::OwnedFd;
use tokio::sync::{broadcast, oneshot, watch};

use crate::change::{ChangeLog, Changes};
use crate::connection::ConnectionEvent;
use crate::expectation::ExpectationEvent;
use crate::flow::{ClosedLimits, Ends, ProcessTexts, Snapshot};
use crate::log::Log;
use crate::names::NameStrings;
use crate::owners::{Found, Probe};
use crate::published::{Properties, Published, Resync, Session, Summary};

/// Commands that wait for the tracker at most; the calls in flight are fewer.
pub(crate) const COMMANDS: usize = 256;

/// The most expectation events that wait for a follower that is late.
const EXPECTATIONS: usize = 1024;

/// A question to the tracker or an order.
#[derive(Debug)]
pub(crate) enum Command {
    /// The active flows with an id above `after`, ascending; answered with a [`Page`].
    /// With `refresh` a dump brings counters up to date first.
    ListActive {
        after: u64,
        limit: usize,
        refresh: bool,
        candidates: Preselection,
        reply: oneshot::Sender<Page>,
    },
    /// The flows that ended before the change numbered `before`, newest first; answered with a [`Page`].
    ListClosed { before: u64, limit: usize, reply: oneshot::Sender<Page> },
    /// The flows that ended with a change numbered `first` to `last`, oldest first.
    ListClosedFrom { first: u64, last: u64, limit: usize, reply: oneshot::Sender<History> },
    /// One flow, active or closed.
    Flow { id: u64, reply: oneshot::Sender<Option<Snapshot>> },
    /// The configuration was read again.
    SetClosedLimits(ClosedLimits),
    /// Events come by the ring of this filter.
    ReadByRing(EventFilter),
    /// Flows get their owners by these BPF programs.
    Attribute(Box<Probe>),
    /// The sockets that were open when the programs were attached, which run already.
    ReadSnapshot(OpenSockets),
    /// Directions of flows that begin here may be asked for by this channel; what is found comes as [`Command::Found`].
    LookUp { network_namespace: u32, questions: SyncSender<Tuple> },
    /// The processes that send in directions that were asked for.
    Found(Vec<Found>),
    /// The addresses of the network namespace.
    SetAddresses(HashSet<IpAddr>),
    /// The dump request with this number could not be sent.
    DumpFailed { sequence: u32, reason: String },
    /// What the kernel counts, and whether its flows send all their events.
    Looked(Look),
    /// Show that the thread goes on.
    Ping { reply: oneshot::Sender<()> },
    /// End the thread.
    Stop,
}

/// A look at the kernel's count and at what keeps flows from sending events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// How many flows the kernel has; absent where that cannot be read.
    pub(crate) count: Option<u32>,
    /// Whether nf_conntrack_events is 0.
    pub(crate) off: bool,
    /// Whether rules set event masks.
    pub(crate) masked: bool,
    /// [`Counters::births_and_ends`](crate::counters::Counters::births_and_ends) before the count was read.
    pub(crate) births_and_ends: u64,
}

impl Look {
    /// True when flows may not send all their events.
    pub(crate) fn is_muted(self) -> bool {
        self.off || self.masked
    }
}

/// Which flows a filter can let pass at all, as far as the table knows without names.
#[derive(Clone, Debug)]
pub(crate) enum Preselection {
    /// Every flow.
    All,
    /// Flows with these ids.
    Ids(Arc<[u64]>),
    /// Flows of which an end has an owner.
    Owned,
    /// Flows that have this port at one of their four ends.
    Port(u16),
}

/// Flows of a listing.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) flows: Vec<Snapshot>,
    /// True when the listing goes on after the last flow.
    pub(crate) more: bool,
    /// All changes up to this one are included, later ones may be.
    pub(crate) sequence: u64,
    pub(crate) synchronized: bool,
}

/// Flows that ended, oldest end first.
#[derive(Debug)]
pub(crate) struct History {
    pub(crate) flows: Vec<Snapshot>,
    /// True when more follow after the last flow.
    pub(crate) more: bool,
    /// What was asked about and is forgotten: all of it lies before the first flow.
    pub(crate) forgotten: Option<Ends>,
}

/// Why a question got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("the tracker has {COMMANDS} questions waiting already")]
    Busy,
    #[error("the tracker gave no answer: it is ending, or the kernel did not give the dump that was needed")]
    Unanswered,
}

/// How the rest of the daemon asks the tracker, and reads what it publishes.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: SyncSender<Command>,
    wake: Arc<OwnedFd>,
    shared: Arc<Shared>,
    news: watch::Receiver<()>,
    connection_news: watch::Receiver<()>,
    properties: watch::Receiver<Properties>,
}

/// What the tracker publishes, once a turn.
pub(crate) struct Shared {
    session: Session,
    published: Mutex<Published>,
    expectations: broadcast::Sender<Arc<ExpectationEvent>>,
    programs: Mutex<Option<(ProgramCounters, Accept)>>,
}

impl Handle {
    /// The epoch of the flow ids.
    pub(crate) fn epoch(&self) -> &str {
        &self.shared.session.epoch
    }

    /// The number of the newest change before this session: what came later is in the log, or was dropped from it.
    pub(crate) fn first_sequence(&self) -> u64 {
        self.shared.session.first_sequence
    }

    /// Number of the first connection event of this session.
    pub(crate) fn first_connection(&self) -> u64 {
        self.shared.session.first_connection
    }

    /// What the BPF programs count, and how they learn who accepts; `None` while none run.
    pub(crate) fn program_statistics(&self) -> Option<(Statistics, Accept)> {
        let programs = self.shared.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.as_ref().map(|(counters, accept)| (counters.read(), *accept))
    }

    /// The strings behind the flows' names.
    pub(crate) fn names(&self) -> &NameStrings {
        &self.shared.session.names
    }

    /// The processes behind the flows' owners.
    pub(crate) fn processes(&self) -> &ProcessTexts {
        &self.shared.session.processes
    }

    /// What was published last. The tracker waits for the guard: it is held for a copy, not for work.
    pub(crate) fn published(&self) -> MutexGuard<'_, Published> {
        self.shared.published()
    }

    /// Wakes when changes or resyncs were published.
    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.news.clone()
    }

    /// Wakes when connection events were published.
    pub(crate) fn connection_news(&self) -> watch::Receiver<()> {
        self.connection_news.clone()
    }

    /// Follows what helpers of the kernel expect, from now on.
    pub(crate) fn expectations(&self) -> broadcast::Receiver<Arc<ExpectationEvent>> {
        self.shared.expectations.subscribe()
    }

    /// Follows the properties whose changes are announced.
    pub(crate) fn properties(&self) -> watch::Receiver<Properties> {
        self.properties.clone()
    }

    /// Asks for active flows.
    pub(crate) async fn list_active(
        &self,
        after: u64,
        limit: usize,
        refresh: bool,
        candidates: Preselection,
    ) -> Result<Page, AskError> {
        self.ask(|reply| Command::ListActive { after, limit, refresh, candidates, reply }).await
    }

    /// Asks for closed flows.
    pub(crate) async fn list_closed(&self, before: u64, limit: usize) -> Result<Page, AskError> {
        self.ask(|reply| Command::ListClosed { before, limit, reply }).await
    }

    /// Asks for closed flows, oldest first.
    pub(crate) async fn list_closed_from(
        &self,
        first: u64,
        last: u64,
        limit: usize,
    ) -> Result<History, AskError> {
        self.ask(|reply| Command::ListClosedFrom { first, last, limit, reply }).await
    }

    /// Asks for one flow.
    pub(crate) async fn flow(&self, id: u64) -> Result<Option<Snapshot>, AskError> {
        self.ask(|reply| Command::Flow { id, reply }).await
    }

    /// Waits until the tracker has come around.
    pub(crate) async fn ping(&self) -> Result<(), AskError> {
        self.ask(|reply| Command::Ping { reply }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.map_err(|_| AskError::Unanswered)
    }

    /// Sends a command that has no answer.
    pub(crate) fn send(&self, command: Command) -> Result<(), AskError> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => AskError::Busy,
            TrySendError::Disconnected(_) => AskError::Unanswered,
        })?;
        self.wake();
        Ok(())
    }

    /// Sends a command that has no answer, and waits until there is room for it: for threads that may wait.
    pub(crate) fn send_blocking(&self, command: Command) -> Result<(), AskError> {
        self.commands.send(command).map_err(|_| AskError::Unanswered)?;
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        // A full eventfd counter would mean that the tracker is already being woken.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Shared {
    fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tracker's end of a [`Handle`].
#[derive(Debug)]
pub(crate) struct Publisher {
    shared: Arc<Shared>,
    news: watch::Sender<()>,
    connection_news: watch::Sender<()>,
    properties: watch::Sender<Properties>,
}

impl Publisher {
    /// Both ends. `wake` is an eventfd that the tracker polls.
    pub(crate) fn new(
        session: Session,
        properties: Properties,
        commands: SyncSender<Command>,
        wake: Arc<OwnedFd>,
    ) -> (Self, Handle) {
        let log = ChangeLog::starting_after(session.first_sequence);
        let connections = Log::starting_after(session.first_connection);
        let published = Mutex::new(Published { log, connections, ..Published::default() });
        let expectations = broadcast::Sender::new(EXPECTATIONS);
        let shared = Arc::new(Shared { session, published, expectations, programs: Mutex::new(None) });
        let (news_sender, news) = watch::channel(());
        let (connection_sender, connection_news) = watch::channel(());
        let (announced, properties) = watch::channel(properties);
        let publisher = Self {
            shared: Arc::clone(&shared),
            news: news_sender,
            connection_news: connection_sender,
            properties: announced,
        };
        (publisher, Handle { commands, wake, shared, news, connection_news, properties })
    }

    /// Publishes a batch: takes the changes over and wakes those who follow.
    pub(crate) fn publish(
        &self,
        changes: &mut Changes,
        connections: &mut Vec<ConnectionEvent>,
        summary: Summary,
    ) {
        let mut published = self.shared.published();
        published.summary = summary;
        if changes.is_empty() && connections.is_empty() {
            return;
        }
        let has_connections = !connections.is_empty();
        published.log.append(changes);
        published.connections.append(connections);
        drop(published);
        self.news.send_replace(());
        if has_connections {
            self.connection_news.send_replace(());
        }
    }

    /// Publishes a change of an expectation, if anybody follows expectations.
    pub(crate) fn tell_expectation(&self, event: impl FnOnce() -> ExpectationEvent) {
        let expectations = &self.shared.expectations;
        if expectations.receiver_count() > 0 {
            // A follower that left just now misses nothing.
            let _ = expectations.send(Arc::new(event()));
            self.news.send_replace(());
        }
    }

    /// Publishes the end of a resync, which `summary` counts already.
    pub(crate) fn publish_resync(&self, resync: Resync, summary: Summary) {
        /// The most that are kept for followers that are late.
        const KEPT: usize = 16;
        let mut published = self.shared.published();
        published.summary = summary;
        if published.resyncs.len() == KEPT {
            published.resyncs.pop_front();
        }
        published.resyncs.push_back(resync);
        drop(published);
        self.news.send_replace(());
    }

    /// Shows why a dump failed, until one does not.
    pub(crate) fn set_failure(&self, failure: Option<String>) {
        self.shared.published().failure = failure;
    }

    /// Shows what the BPF programs count.
    pub(crate) fn set_programs(&self, counters: ProgramCounters, accept: Accept) {
        let mut programs = self.shared.programs.lock().unwrap_or_else(PoisonError::into_inner);
        *programs = Some((counters, accept));
    }

    /// Announces the properties that changed.
    pub(crate) fn set_properties(&self, new: Properties) {
        self.properties.send_if_modified(|properties| std::mem::replace(properties, new) != new);
    }
}

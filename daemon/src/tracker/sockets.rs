//! Reads what the BPF programs report of sockets, and hands it to the table.

use std::os::fd::{AsFd, BorrowedFd};

use flowbus_attribution::{Counters, Event, Kind, Message, Programs, Ring, Snapshot};

use crate::clock::{Now, monotonic_nsec};
use crate::connection::ConnectionEvent;
use crate::flow::TCP;
use crate::owners::{Attribution, Probe, ProgramKey, direction};
use crate::table::Table;

/// The most connection events that wait for their flow; further ones are sent without it.
const WAITING: usize = 4096;

/// The ring's reader.
pub(super) struct RingReader {
    ring: Ring,
    /// The programs run as long as this is open.
    _programs: Programs,
    /// What connections did and is not published yet: their flows may be in events that are not read yet.
    waiting: Vec<Event>,
}

impl std::fmt::Debug for RingReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RingReader").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

impl RingReader {
    /// Begins with programs that run; the counters are for whoever shows them.
    pub(super) fn begin(probe: Probe, table: &mut Table) -> (Self, Counters) {
        let Probe { programs, ring, report, counters, snapshot } = probe;
        table.attribute(Attribution::new(report.network_namespace));
        let mut sockets = Self { ring, _programs: programs, waiting: Vec::new() };
        if let Some(snapshot) = snapshot {
            sockets.read_snapshot(snapshot, table);
        }
        (sockets, counters)
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Reads what was open when the programs were attached. What they have reported since is newer, so it is read first.
    pub(super) fn read_snapshot(&mut self, mut snapshot: Snapshot, table: &mut Table) {
        let groups = snapshot.cgroups(|id, path| {
            if let Some(attribution) = table.attribution_mut() {
                attribution.set_path(id, path);
            }
        });
        let now = Now::read();
        self.read(table, now);
        let open = snapshot.sockets(|message| match message {
            Message::Event(event) => table.change().apply_socket(&event, now),
            other => note(other, table),
        });
        if let Some(attribution) = table.attribution_mut() {
            attribution.look_at_all = Some(monotonic_nsec());
        }
        for error in [groups.err(), open.err()].into_iter().flatten() {
            tracing::warn!(%error, "the snapshot of open sockets cannot be read to its end, ignoring");
        }
    }

    /// Reads all that is there; true when there was something.
    pub(super) fn read(&mut self, table: &mut Table, now: Now) -> bool {
        let Self { ring, waiting, .. } = self;
        let mut read = false;
        let drained = ring.drain(|message| {
            read = true;
            match message {
                Message::Event(event) => {
                    table.change().apply_socket(&event, now);
                    if is_connection(&event) {
                        waiting.push(event);
                    }
                }
                other => note(other, table),
            }
        });
        if let Some(attribution) = table.attribution_mut() {
            if ring.take_was_full() {
                let at = monotonic_nsec();
                for sockets in attribution.all_sockets() {
                    sockets.note_loss(at, now.boottime_usec);
                }
                attribution.begins.clear();
                attribution.look_at_all = Some(at);
            }
            if ring.is_held_back() {
                let to = attribution.window.to;
                for sockets in attribution.all_sockets() {
                    sockets.note_held_back(to);
                }
            }
        }
        read || !drained
    }

    /// True when connections did something that is still to be published.
    pub(super) fn has_unpublished(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Reports what connections did until the time up to which all events of flows have been applied, so that the flows
    /// of these are known; and without them where there are too many.
    pub(super) fn tell(&mut self, table: &mut Table, told: &mut Vec<ConnectionEvent>) {
        let applied = table.attribution().map_or(u64::MAX, |attribution| attribution.window.from);
        let is_known = |event: &Event| event.monotonic_ns <= applied;
        let count = match self.waiting.len() {
            WAITING.. => self.waiting.len(),
            _ => self.waiting.iter().take_while(|event| is_known(event)).count(),
        };
        if count == 0 {
            return;
        }
        let now = Now::read();
        for event in self.waiting.drain(..count) {
            let Event { protocol, local, remote, .. } = event;
            let sent = direction(protocol, local, remote);
            let flow = table.is_ours(&event).then(|| table.flow_with(&sent, event.monotonic_ns));
            let text = |process| table.process_text(process, event.network_namespace);
            let process = event.process.as_ref().and_then(text);
            let mut change = table.change();
            let header = change.header();
            header.connections += 1;
            told.push(ConnectionEvent {
                sequence: header.connections,
                time_usec: now.realtime_usec_at(event.monotonic_ns),
                flow: flow.flatten(),
                process,
                event,
            });
            change.commit();
        }
    }
}

/// Notes what is said of a control group or a program.
fn note(message: Message<'_>, table: &mut Table) {
    let Some(attribution) = table.attribution_mut() else { return };
    match message {
        Message::Cgroup { id, path } => attribution.set_path(id, path),
        Message::Program { pid, start_boottime_ns, execs, path } => {
            attribution.set_program(ProgramKey { pid, start_boottime_ns, execs }, path);
        }
        // A group's number is not used again, and events of processes that were in it still come.
        Message::CgroupRemoved { .. } | Message::Event(_) => {}
    }
}

/// Whether an event is published as a connection event: what the ends of TCP connections did, and what could not be reached,
/// by UDP either.
fn is_connection(event: &Event) -> bool {
    match event.kind {
        Kind::ConnectFailed { .. } => true,
        // A listener has no connection to close, and neither has a socket that never had a remote address.
        Kind::Connect | Kind::Accept | Kind::Close { .. } => {
            event.protocol == TCP && event.remote.port() != 0
        }
        _ => false,
    }
}

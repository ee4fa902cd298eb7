//! Where the flows' owners come from: BPF programs that report sockets, or a thread that looks in /proc.

use std::sync::mpsc::SyncSender;

use ctnetlink::{EventKind, Tuple};
use flowbus_attribution::Snapshot as OpenSockets;

use super::Tracker;
use super::sockets::RingReader;
use crate::clock::{Now, monotonic_nsec};
use crate::flow::Snapshot;
use crate::owners::{Attribution, Found, Probe, ProgramKey};

impl Tracker {
    /// Reads what sockets have done by now; true when something was reported.
    pub(super) fn read_sockets(&mut self) -> bool {
        let Self { sockets, table, told, .. } = self;
        let Some(attribution) = table.attribution_mut() else { return false };
        // Before the ring is read: a record that is written later has a later time.
        attribution.window.to = monotonic_nsec();
        let read = sockets.as_mut().is_some_and(|sockets| sockets.read(table, Now::read()));
        *told |= read;
        read
    }

    /// The step between receiving a batch of events and applying it: what a socket did is reported before the kernel reports
    /// its flow, so whatever is said of these flows' sockets is in the ring by now.
    pub(super) fn read_sockets_of_batch(&mut self) {
        self.read_sockets();
    }

    /// Publishes what connections did, where their flows can be known.
    pub(super) fn tell_connections(&mut self) {
        let Self { sockets, table, connections, .. } = self;
        if let Some(sockets) = sockets {
            sockets.tell(table, connections);
        }
    }

    /// Asks for the processes of new flows, where no program reports them.
    pub(super) fn ask_for_owners(&self) {
        let Some(questions) = &self.questions else { return };
        let new = self.changes.iter().filter(|change| change.kind == EventKind::New);
        for change in new {
            self.ask(questions, &change.flow);
        }
    }

    /// Hands the addresses on, which sockets without one of their own need.
    pub(super) fn hand_addresses_on(&mut self) {
        if let (Some(addresses), Some(attribution)) = (&self.addresses, self.table.attribution_mut()) {
            // They are read anew after each loss, and are the same then as a rule.
            if attribution.sockets.set_addresses(addresses.clone()) {
                attribution.look_at_all = attribution.look_at_all.max(Some(0));
            }
        }
    }

    /// Begins to give flows their owners by these programs.
    pub(super) fn attribute(&mut self, probe: Probe) {
        let accept = probe.report.accept();
        let (sockets, counters) = RingReader::begin(probe, &mut self.table);
        self.sockets = Some(sockets);
        self.hand_addresses_on();
        self.unannounced = Some((counters, accept));
    }

    /// Announces that flows get their owners by BPF, once the event socket was seen empty with the programs in place: a flow that
    /// began before that has no bound in time for who began it, one that begins later has its owner.
    pub(super) fn announce_programs(&mut self) {
        if let Some((counters, accept)) = self.unannounced.take() {
            self.publisher.set_programs(counters, accept);
        }
    }

    /// Reads what was open when the programs were attached, which report by now.
    pub(super) fn read_snapshot(&mut self, snapshot: OpenSockets) {
        let Self { sockets, table, .. } = self;
        if let Some(sockets) = sockets {
            sockets.read_snapshot(snapshot, table);
        }
    }

    /// Begins to ask for the owners of flows, of those that are there first.
    pub(super) fn look_up(&mut self, network_namespace: u32, questions: SyncSender<Tuple>) {
        self.table.attribute(Attribution::new(network_namespace));
        for flow in self.table.active_after(0) {
            self.ask(&questions, &flow);
        }
        self.questions = Some(questions);
        self.hand_addresses_on();
        self.publish();
    }

    /// Gives flows the owners that were asked for.
    pub(super) fn apply_found(&mut self, found: Vec<Found>) {
        for Found { event, path, exe } in found {
            if let (Some(process), Some(attribution)) = (&event.process, self.table.attribution_mut()) {
                if let Some(path) = &path {
                    attribution.set_path(process.cgroup, path);
                }
                if let Some(exe) = &exe {
                    attribution.set_program(ProgramKey::of(process), exe);
                }
            }
            self.table.change().apply_socket(&event, Now::read());
        }
        self.publish();
    }

    /// Asks for the owners of a flow; a thread that has too much to do is not asked.
    fn ask(&self, questions: &SyncSender<Tuple>, flow: &Snapshot) {
        for direction in self.table.unowned(flow) {
            let _ = questions.try_send(direction);
        }
    }
}

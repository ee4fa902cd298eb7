//! Where the flows' owners come from: BPF programs that tell of sockets, or somebody who looks in /proc.

use std::sync::mpsc::SyncSender;

use ctnetlink::{EventKind, Tuple};
use flowbus_attribution::Snapshot as OpenSockets;

use super::sockets::Sockets;
use super::{Reading, Tracker};
use crate::clock::Now;
use crate::flow::Snapshot;
use crate::owners::{Attribution, Found, Probe};

impl Tracker {
    /// Reads what sockets did; true when something was told.
    pub(super) fn read_sockets(&mut self) -> bool {
        let Self { sockets, table, changes, .. } = self;
        sockets.as_mut().is_some_and(|sockets| sockets.read(table, changes, Now::read()))
    }

    /// Tells what connections did, where their flows can be known.
    pub(super) fn tell_connections(&mut self, reading: Reading) {
        let Self { sockets, table, connections, .. } = self;
        if let Some(sockets) = sockets {
            sockets.tell(reading != Reading::Unfinished, table, connections);
        }
    }

    /// Asks who has the new flows, where nobody tells.
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
            attribution.sockets.set_addresses(addresses.clone());
            self.table.attribute_all(&mut self.changes);
        }
    }

    /// Begins to give flows their owners by these programs.
    pub(super) fn attribute(&mut self, probe: Probe) {
        let accept = probe.report.accept();
        let Self { table, changes, .. } = self;
        let (sockets, counters) = Sockets::begin(probe, table, changes);
        self.sockets = Some(sockets);
        self.hand_addresses_on();
        self.publisher.set_programs(counters, accept);
        self.publish();
    }

    /// Reads what was open when the programs were attached, which tell by now.
    pub(super) fn read_snapshot(&mut self, snapshot: OpenSockets) {
        let Self { sockets, table, changes, .. } = self;
        if let Some(sockets) = sockets {
            sockets.read_snapshot(snapshot, table, changes);
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

    /// A thread that has too much to do is not asked.
    fn ask(&self, questions: &SyncSender<Tuple>, flow: &Snapshot) {
        for direction in self.table.unowned(flow) {
            let _ = questions.try_send(direction);
        }
    }
}

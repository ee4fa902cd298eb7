//! The answers to commands, between turns.

use std::time::Duration;

use super::Tracker;
use crate::clock::Now;
use crate::flow::Snapshot;
use crate::handle::{COMMANDS, Command, History, Page, Preselection};

/// A dump that is younger is new enough for a caller who wants counters refreshed.
const REFRESH_AGE: Duration = Duration::from_secs(1);

impl Tracker {
    pub(super) fn answer(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::ListActive { refresh: true, .. }
                    if !self.is_fresh() && self.waiting.len() < COMMANDS =>
                {
                    self.waiting.push(command);
                }
                command => self.handle(command),
            }
        }
    }

    /// True when the counters are as new as a caller may want them.
    fn is_fresh(&self) -> bool {
        self.merged.is_some_and(|merged| merged.elapsed() < REFRESH_AGE)
    }

    /// Does what a command says; a caller that has gone away needs no answer.
    pub(super) fn handle(&mut self, command: Command) {
        match command {
            Command::ListActive { after, limit, candidates, reply, .. } => {
                let flows = match candidates {
                    Preselection::All => self.table.active_after(after).take(limit + 1).collect(),
                    Preselection::Ids(ids) => self.table.active_of(after, &ids).take(limit + 1).collect(),
                    Preselection::Owned => self.table.active_with_owner(after).take(limit + 1).collect(),
                    Preselection::Port(port) => {
                        self.table.active_with_port(after, port).take(limit + 1).collect()
                    }
                };
                let _ = reply.send(self.page(flows, limit));
            }
            Command::ListClosed { before, limit, reply } => {
                let flows = self.table.closed_before(before, Now::read()).take(limit + 1).collect();
                let _ = reply.send(self.page(flows, limit));
            }
            Command::ListClosedFrom { first, last, limit, reply } => {
                let now = Now::read();
                // A reader that begins with what is remembered has missed nothing.
                let forgotten = if first == 0 { None } else { self.table.forgotten(first, last, now) };
                let is_asked = |flow: &Snapshot| flow.end.is_none_or(|end| end.sequence <= last);
                let mut flows: Vec<_> =
                    self.table.closed_from(first, now).take_while(is_asked).take(limit + 1).collect();
                let more = flows.len() > limit;
                flows.truncate(limit);
                let _ = reply.send(History { flows, more, forgotten });
            }
            Command::Flow { id, reply } => {
                let _ = reply.send(self.table.flow(id, Now::read()));
            }
            Command::SetClosedLimits(limits) => {
                self.table.set_closed_limits(limits, Now::read());
                self.publish();
            }
            Command::Attribute(probe) => self.attribute(*probe),
            Command::ReadByRing(filter) => self.read_by_ring(filter),
            Command::ReadSnapshot(snapshot) => self.read_snapshot(snapshot),
            Command::LookUp { network_namespace, questions } => self.look_up(network_namespace, questions),
            Command::Found(found) => self.apply_found(found),
            Command::SetAddresses(addresses) => {
                self.addresses = Some(addresses);
                self.hand_addresses_on();
            }
            Command::DumpFailed { sequence, reason } => {
                self.dump.request_failed(sequence, &reason, &mut self.table);
            }
            Command::Looked(look) => self.look = Some(look),
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
        Page { flows, more, sequence: header.sequence, synchronized: header.resync == 0 && !self.behind }
    }
}

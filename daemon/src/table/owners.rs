//! The rules by which sockets give flows their owners.
//!
//! A socket sends packets from its own end to the other: that is the original direction of a flow that it opened,
//! and the reply direction of one that it accepted, whatever is translated on the way. What a flow's birth finds
//! here it is told with; what comes later is an update of the flow. An owner is replaced by a surer one alone.

use std::hash::BuildHasher;
use std::sync::Arc;

use ctnetlink::Tuple;
use flowbus_attribution::{Event, Process};
use hashbrown::HashTable;

use super::Table;
use crate::clock::Now;
use crate::event::Change;
use crate::flow::{Key, OwnerNumber, Owners, ProcessNumber, Snapshot, inverted};
use crate::owners::{Attribution, ProcessText, direction};

/// The directions that the index of the table does not find: the original one of flows in a zone, and the reply of
/// flows that are translated or in a zone. Both by their tuple in zone 0.
#[derive(Debug, Default)]
pub(super) struct OtherTuples(HashTable<OtherTuple>);

#[derive(Debug)]
struct OtherTuple {
    hash: u64,
    slot: u32,
    direction: Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Original,
    Reply,
}

impl Direction {
    const BOTH: [Self; 2] = [Self::Original, Self::Reply];

    fn of(self, flow: &Snapshot) -> Tuple {
        match self {
            Self::Original => flow.original(),
            Self::Reply => flow.reply(),
        }
    }

    /// The owner of the socket that sends in this direction.
    fn owner(self, owners: &mut Owners) -> &mut OwnerNumber {
        match self {
            Self::Original => &mut owners.initiator,
            Self::Reply => &mut owners.responder,
        }
    }

    /// True when the table's own index does not find the flow by this direction's tuple.
    fn is_other(self, flow: &Snapshot) -> bool {
        let original = flow.original();
        original.zone != 0 || (self == Self::Reply && flow.reply() != inverted(&original, 0))
    }
}

fn without_zone(tuple: &Tuple) -> Key {
    Key::new(&Tuple { zone: 0, ..*tuple })
}

impl Table {
    /// Gives flows their owners from here on.
    pub(crate) fn attribute(&mut self, attribution: Attribution) {
        self.attribution = Some(attribution);
        self.other_tuples = OtherTuples::default();
        let slots: Vec<u32> = self.order.all().collect();
        for slot in slots {
            let flow = self.snapshot(slot);
            self.note_other_tuples(slot, &flow);
        }
    }

    /// What is known of sockets, while flows are given owners.
    pub(crate) fn attribution(&self) -> Option<&Attribution> {
        self.attribution.as_ref()
    }

    /// The same, to be told more.
    pub(crate) fn attribution_mut(&mut self) -> Option<&mut Attribution> {
        self.attribution.as_mut()
    }

    /// Notes what an event tells of a socket, and gives the flows that have its ends their owner.
    pub(crate) fn apply_socket(&mut self, event: &Event, now: Now, changes: &mut Vec<Change>) {
        if self.processes.are_many(&self.state, now.boottime_usec) {
            self.free_processes(now);
        }
        let Self { attribution, processes, state, .. } = self;
        let Some(attribution) = attribution else { return };
        // The same ends in another namespace are another socket.
        if event.network_namespace != attribution.network_namespace {
            return;
        }
        let owner = attribution.owner(processes, state, event.process.as_ref());
        let counters = &mut state.header.counters;
        attribution.sockets.expire(now.boottime_usec, counters);
        attribution.sockets.apply(event, owner, now.boottime_usec, counters);
        if owner.is_none() {
            return;
        }
        let sent = direction(event.protocol, event.local, event.remote);
        for (slot, direction) in self.flows_with(&sent) {
            if let Some(attribution) = &mut self.attribution {
                let _ = attribution.sockets.sender(&sent); // It has found its flow.
            }
            let flow = self.snapshot(slot);
            let mut owners = flow.owners;
            if direction.owner(&mut owners).improve(owner) {
                self.put_owners(slot, owners);
                self.push_update(slot, flow.changeable(), changes);
            }
        }
    }

    /// Whether a socket is one of the network namespace whose flows these are.
    pub(crate) fn is_ours(&self, event: &Event) -> bool {
        let ours = self.attribution.as_ref().map(|attribution| attribution.network_namespace);
        ours == Some(event.network_namespace)
    }

    /// A process in words, wherever it is.
    pub(crate) fn process_text(&mut self, process: &Process) -> Option<Arc<ProcessText>> {
        let Self { attribution, processes, state, .. } = self;
        let owner = attribution.as_mut()?.owner(processes, state, Some(process));
        Some(processes.texts().owner(owner)?.0)
    }

    /// Looks once more for the owners of all flows: after the sockets that were open before have been told.
    pub(crate) fn attribute_all(&mut self, changes: &mut Vec<Change>) {
        let slots: Vec<u32> = self.order.all().collect();
        for slot in slots {
            let before = self.snapshot(slot).changeable();
            if self.attribute_again(slot) {
                self.push_update(slot, before, changes);
                self.commit();
            }
        }
    }

    /// The newest flow that has a direction with these ends.
    pub(crate) fn flow_with(&self, sent: &Tuple) -> Option<u64> {
        self.flows_with(sent).map(|(slot, _)| self.state.record(slot).id).max()
    }

    /// The directions of a flow that begin at an address of this machine and have no owner.
    pub(crate) fn unowned(&self, flow: &Snapshot) -> impl Iterator<Item = Tuple> + use<> {
        let Owners { initiator, responder } = flow.owners;
        let directions = [(initiator, flow.original()), (responder, flow.reply())];
        let is_ours = |direction: &Tuple| {
            self.attribution.as_ref().is_some_and(|attribution| attribution.sockets.is_ours(direction.src))
        };
        let wanted = directions
            .map(|(owner, direction)| (owner.is_none() && is_ours(&direction)).then_some(direction));
        wanted.into_iter().flatten()
    }

    /// True unless a new flow with this original tuple may have an owner that has not been told yet.
    pub(crate) fn knows_sender(&mut self, original: &Tuple) -> bool {
        self.attribution.as_mut().is_none_or(|attribution| !attribution.sockets.sender(original).is_none())
    }

    /// The owners of the sockets at the ends of a flow.
    fn owners_of(&mut self, flow: &Snapshot) -> Owners {
        let Some(Attribution { sockets, .. }) = &mut self.attribution else { return Owners::default() };
        Owners { initiator: sockets.sender(&flow.original()), responder: sockets.sender(&flow.reply()) }
    }

    /// Gives a flow that is new to the table its owners.
    pub(super) fn attribute_new(&mut self, slot: u32, flow: &mut Snapshot) {
        if self.attribution.is_some() {
            self.note_other_tuples(slot, flow);
            let owners = self.owners_of(flow);
            self.put_owners(slot, owners);
            *flow = self.snapshot(slot);
        }
    }

    /// Looks once more for what a flow lacks; true when something was found.
    pub(super) fn attribute_again(&mut self, slot: u32) -> bool {
        if self.attribution.is_none() {
            return false;
        }
        let flow = self.snapshot(slot);
        let mut owners = flow.owners;
        let improved = !owners.is_complete() && owners.improve(self.owners_of(&flow));
        if improved {
            self.put_owners(slot, owners);
        }
        improved
    }

    /// Looks once more for what a flow lacks that has ended.
    pub(super) fn attribute_ended(&mut self, flow: &mut Snapshot) {
        if self.attribution.is_some() {
            let owners = self.owners_of(flow);
            flow.owners.improve(owners);
            self.state.header.counters.owners_unmatched_flows += u64::from(flow.owners.is_empty());
        }
    }

    fn put_owners(&mut self, slot: u32, owners: Owners) {
        if owners.is_empty() {
            return;
        }
        self.state.put_owners(slot, owners);
        let mut record = *self.state.record(slot);
        record.set_owned(true);
        self.state.put_record(slot, &record);
    }

    /// The active flows of which a direction has these ends, in any zone.
    fn flows_with(&self, sent: &Tuple) -> impl Iterator<Item = (u32, Direction)> + use<> {
        let plain = [(Direction::Original, *sent), (Direction::Reply, inverted(sent, 0))];
        let plain = plain.map(|(direction, original)| {
            let slot = self.find(&Key::new(&original))?;
            // The reply of a translated flow has other ends.
            (direction == Direction::Original || !direction.is_other(&self.snapshot(slot)))
                .then_some((slot, direction))
        });
        let key = without_zone(sent);
        let others = self.other_tuples.0.iter_hash(self.hasher.hash_one(key));
        let others: Vec<_> = others
            .map(|other| (other.slot, other.direction))
            .filter(|(slot, direction)| without_zone(&direction.of(&self.snapshot(*slot))) == key)
            .collect();
        plain.into_iter().flatten().chain(others)
    }

    fn note_other_tuples(&mut self, slot: u32, flow: &Snapshot) {
        for direction in Direction::BOTH {
            if direction.is_other(flow) {
                let hash = self.hasher.hash_one(without_zone(&direction.of(flow)));
                self.other_tuples
                    .0
                    .insert_unique(hash, OtherTuple { hash, slot, direction }, |other| other.hash);
            }
        }
    }

    pub(super) fn forget_other_tuples(&mut self, slot: u32, flow: &Snapshot) {
        if self.attribution.is_none() {
            return;
        }
        for direction in Direction::BOTH {
            if direction.is_other(flow) {
                let hash = self.hasher.hash_one(without_zone(&direction.of(flow)));
                let is_it = |other: &OtherTuple| (other.slot, other.direction) == (slot, direction);
                if let Ok(entry) = self.other_tuples.0.find_entry(hash, is_it) {
                    entry.remove();
                }
            }
        }
    }

    fn free_processes(&mut self, now: Now) {
        let active = self.order.all().map(|slot| self.snapshot(slot).owners);
        let closed = super::closed::before(&self.state, u64::MAX).map(|flow| flow.owners);
        let sockets = self.attribution.iter().flat_map(|attribution| attribution.sockets.owners());
        let owners = active.chain(closed).flat_map(|owners| [owners.initiator, owners.responder]);
        let used: Vec<ProcessNumber> =
            owners.chain(sockets).filter_map(|owner| Some(owner.get()?.0)).collect();
        self.processes.free_unused(&self.state, now.boottime_usec, used.into_iter());
    }
}

#[cfg(test)]
mod tests;

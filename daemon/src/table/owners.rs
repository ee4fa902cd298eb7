//! The rules by which sockets give flows their owners.
//!
//! A socket sends packets from its own end to the other: that is the original direction of a flow that it opened,
//! and the reply direction of one that it accepted, whatever is translated on the way. Two moments give an owner:
//!
//! - When a flow's event is applied, the socket whose time meets the bounds within which the kernel sent the event
//!   ([`Window`](crate::owners::Window)), if there is only one.
//! - When all events have been applied that the kernel sent until a time, what sockets reported until then is true of
//!   the flows that are there: who sends in a direction by now takes the place of who did ([`Table::settle`]).

use std::hash::BuildHasher;
use std::sync::Arc;

use ctnetlink::Tuple;
use flowbus_attribution::{Confidence, Event, Process};
use flowbus_interfaces::TimeSource;
use hashbrown::HashTable;

use super::Table;
use super::ports::PortSet;
use crate::change::Change;
use crate::clock::Now;
use crate::flow::{Key, OwnerNumber, Owners, ProcessNumber, ProcessText, Snapshot, inverted};
use crate::owners::{Attribution, Begin, Current, Reused, Role, Touched, UDP};

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

    fn role(self) -> Role {
        match self {
            Self::Original => Role::Initiator,
            Self::Reply => Role::Responder,
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

    /// Notes what an event tells of a socket. What it means for flows that are there is settled later.
    pub(super) fn apply_socket(&mut self, event: &Event, now: Now) {
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
        let Attribution { sockets, begins, window, .. } = attribution;
        let counters = &mut state.header.counters;
        sockets.expire(now.boottime_usec, begins.useful_from(*window), counters);
        if let Some(touched) = sockets.apply(event, owner, now.boottime_usec, counters) {
            attribution.touch(event.monotonic_ns, touched);
        }
    }

    /// Notes that all events have been applied that the kernel sent until a time, and gives the flows that are there
    /// the owners that sockets reported until then.
    pub(crate) fn settle(&mut self, applied: u64, changes: &mut Vec<Change>) {
        let Some(attribution) = &mut self.attribution else { return };
        attribution.window.from = applied;
        if attribution.sockets.is_held_back(attribution.window) {
            return;
        }
        self.settle_reused(changes);
        let Some(attribution) = &mut self.attribution else { return };
        if let Some(until) = attribution.look_at_all {
            if until <= applied {
                attribution.look_at_all = None;
            }
            attribution.unsettled.retain(|(at, _)| *at > applied);
            attribution.look_from = None;
            return self.settle_from(0, applied, changes);
        }
        let mut unsettled = std::mem::take(&mut attribution.unsettled);
        if let Some(first) = attribution.look_from.take() {
            self.settle_from(first, applied, changes);
        }
        let mut ports = PortSet::default();
        unsettled.retain(|(at, touched)| {
            if *at > applied {
                return true;
            }
            match touched {
                Touched::Direction(sent) => self.settle_direction(sent, applied, changes),
                Touched::Port(port) => ports.insert(*port),
            }
            false
        });
        if let Some(attribution) = &mut self.attribution {
            attribution.unsettled = unsettled;
        }
        if !ports.is_empty() {
            self.settle_ports(&ports, applied, changes);
        }
    }

    /// Whether reports of sockets wait for [`Table::settle`].
    pub(crate) fn is_unsettled(&self) -> bool {
        self.attribution.as_ref().is_some_and(Attribution::is_unsettled)
    }

    /// Gives flows their owners before which another one with the same ends ended in the same window, where one process had
    /// all sockets that can be meant: as soon as they are finished, so that no socket of theirs will be reported
    /// any more.
    fn settle_reused(&mut self, changes: &mut Vec<Change>) {
        let Some(Attribution { begins, window, .. }) = &mut self.attribution else { return };
        // The ring was read up to here before these events were applied.
        let to = window.to;
        let mut reused = begins.take_reused(to);
        reused.retain(|Reused { slot, id, begin, .. }| {
            if self.state.record(*slot).id != *id {
                return false; // It has ended.
            }
            let flow = self.snapshot(*slot);
            let owners = self.finished_owners(&flow, *begin, to);
            if owners != flow.owners {
                self.put_owners(*slot, owners);
                self.push_update(*slot, flow.changeable(), changes);
                self.commit();
            }
            !flow.record.is_finished()
        });
        if let Some(Attribution { begins, .. }) = &mut self.attribution {
            begins.put_reused(reused);
        }
    }

    /// Settles the flows with this id or a larger one.
    fn settle_from(&mut self, first: u64, applied: u64, changes: &mut Vec<Change>) {
        let slots: Vec<u32> = self.order.from(first, |slot| self.state.record(slot).id).collect();
        for slot in slots {
            for direction in Direction::BOTH {
                self.settle_flow(slot, direction, applied, changes);
            }
        }
    }

    /// Settles the replies of UDP flows at these ports, in one pass over the table however many ports there are.
    fn settle_ports(&mut self, ports: &PortSet, applied: u64, changes: &mut Vec<Change>) {
        let is_touched = |slot: &u32| {
            self.state.record(*slot).key.protocol() == UDP
                && self.has_port_that(*slot, |port| ports.contains(port))
        };
        let slots: Vec<u32> = self.order.all().filter(is_touched).collect();
        for slot in slots {
            self.settle_flow(slot, Direction::Reply, applied, changes);
        }
    }

    fn settle_direction(&mut self, sent: &Tuple, applied: u64, changes: &mut Vec<Change>) {
        let Some(attribution) = &self.attribution else { return };
        for sent in attribution.sockets.directions(sent) {
            for (slot, direction) in self.flows_with(&sent) {
                self.settle_flow(slot, direction, applied, changes);
            }
        }
    }

    /// Gives a flow that is there the process that sends in a direction of it by now.
    fn settle_flow(&mut self, slot: u32, direction: Direction, applied: u64, changes: &mut Vec<Change>) {
        let flow = self.snapshot(slot);
        let sent = direction.of(&flow);
        let Some(attribution) = &mut self.attribution else { return };
        let Some(current) = attribution.sockets.current(&sent, direction.role(), applied) else { return };
        let mut owners = flow.owners;
        let owner = direction.owner(&mut owners);
        if self.gives_way(*owner, current, &sent) {
            *owner = current.owner;
            self.put_owners(slot, owners);
            self.change_usec = Now::read().realtime_usec;
            self.push_update(slot, flow.changeable(), changes);
            self.commit();
        }
    }

    /// Whether an owner gives way to another: to one that sends now, and to one that waits for packets where the owner's
    /// socket has ended; of the same process to what is surer, and to the knowledge that it is not alone.
    fn gives_way(&self, owner: OwnerNumber, current: Current, sent: &Tuple) -> bool {
        let Some((offered, confidence)) = current.owner.get() else { return false };
        let Some((known, known_confidence)) = owner.get() else { return true };
        let [known, offered] = [known, offered].map(|process| self.processes.pid(&self.state, process));
        if known == offered {
            let is_shared = confidence == Confidence::Shared && known_confidence != Confidence::Shared;
            return confidence < known_confidence || is_shared && current.sent;
        }
        let has_ended = |pid| {
            self.attribution.as_ref().is_some_and(|attribution| attribution.sockets.has_ended(sent, pid))
        };
        current.sent || known.is_some_and(has_ended)
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

    /// The newest flow that has a direction with these ends, where something that passed at a time (CLOCK_MONOTONIC
    /// nanoseconds) was of it and not of one before.
    pub(crate) fn flow_with(&self, sent: &Tuple, at: u64) -> Option<u64> {
        if !self.attribution.as_ref()?.sockets.is_of_this_flow(sent, at) {
            return None;
        }
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

    /// The owners of the sockets at the ends of a flow whose event is being applied.
    fn owners_of(&mut self, flow: &Snapshot) -> Owners {
        let Some(Attribution { sockets, window, .. }) = &mut self.attribution else {
            return Owners::default();
        };
        Owners {
            initiator: sockets.beginner(&flow.original(), Role::Initiator, *window),
            responder: sockets.beginner(&flow.reply(), Role::Responder, *window),
        }
    }

    /// Gives a flow its owners that is about to be added to the table.
    pub(super) fn attribute_new(&mut self, slot: u32, flow: &mut Snapshot) {
        if self.attribution.is_some() {
            self.note_other_tuples(slot, flow);
            flow.owners = self.owners_of(flow);
            flow.record.set_owned(!flow.owners.is_empty());
            if flow.record.is_owned() {
                self.state.put_owners(slot, flow.owners);
            }
            self.note_begin(slot, flow);
        }
    }

    /// Notes when a flow began, where that is known and so are all sockets that it can belong to.
    fn note_begin(&mut self, slot: u32, flow: &Snapshot) {
        let Some(Attribution { begins, sockets, window, .. }) = &mut self.attribution else { return };
        let is_known = flow.record.start_source() != TimeSource::Observed && sockets.knows_since(window.from);
        let before = Direction::BOTH.map(|direction| sockets.ended_within(&direction.of(flow), *window));
        let before = before.into_iter().max().flatten();
        let begin = Begin { from: window.from, before: before.unwrap_or_default() };
        begins.note(slot, begin, is_known);
        if is_known && before.is_some() {
            begins.add_reused(slot, flow.record.id, begin, *window);
        }
    }

    /// Looks once more for what a flow lacks whose event is being applied; true when something was found.
    pub(super) fn attribute_again(&mut self, slot: u32) -> bool {
        if self.attribution.is_none() {
            return false;
        }
        let flow = self.snapshot(slot);
        let mut owners = flow.owners;
        let improved = !owners.is_complete() && owners.fill(self.owners_of(&flow));
        if improved {
            self.put_owners(slot, owners);
        }
        improved
    }

    /// Notes that a flow has ended, whose event is being applied. Where it ended before all events were applied that came
    /// meanwhile, its owners are looked for once more.
    pub(super) fn attribute_ended(&mut self, slot: u32, flow: &mut Snapshot) {
        let Some(attribution) = &self.attribution else { return };
        let Attribution { begins, window, .. } = attribution;
        if let Some(begin) = begins.remembered(slot, *window) {
            flow.owners = self.finished_owners(flow, begin, window.to);
        }
        let is_young = !begins.is_before(slot, window.from);
        self.note_end(flow, is_young);
    }

    /// Notes that a flow has ended, whose event is being applied; `is_young` where it may have begun within the window.
    pub(super) fn note_end(&mut self, flow: &Snapshot, is_young: bool) {
        if let Some(Attribution { sockets, window, .. }) = &mut self.attribution {
            sockets.flow_ended(&flow.original(), *window, is_young);
            sockets.flow_ended(&flow.reply(), *window, is_young);
            self.state.header.counters.owners_unmatched_flows += u64::from(flow.owners.is_empty());
        }
    }

    /// The owners of a flow that began as `begin` says; surer ones than it has where it was finished by `to`.
    fn finished_owners(&self, flow: &Snapshot, begin: Begin, to: u64) -> Owners {
        let mut owners = flow.owners;
        let Some(attribution) = self.attribution.as_ref().filter(|_| flow.record.is_finished()) else {
            return owners;
        };
        for direction in Direction::BOTH {
            let owner = direction.owner(&mut owners);
            let offered = attribution.sockets.finished(&direction.of(flow), begin, to);
            let [known_sure, offered_sure] = [*owner, offered].map(|owner| owner.get().map(|(_, sure)| sure));
            if offered_sure.is_some() && (known_sure.is_none() || offered_sure < known_sure) {
                *owner = offered;
            }
        }
        owners
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

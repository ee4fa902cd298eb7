//! The rules by which sockets give flows their owners.
//!
//! A socket sends packets from its own end to the other: that is the original direction of a flow that it opened,
//! and the reply direction of one that it accepted, whatever is translated on the way. Two moments give an owner:
//!
//! - When a flow's event is applied, the socket whose time meets the bounds within which the kernel sent the event
//!   ([`Window`](crate::owners::Window)), if there is only one.
//! - When all events have been applied that the kernel sent until a time, what sockets reported until then is true of
//!   the flows that are there: the process that sends in a direction by now replaces the one that did ([`Table::settle`]).

mod directions;
mod settle;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use ctnetlink::{Flow, Tuple};
use flowbus_attribution::{Event, Kind, Process};
use flowbus_interfaces::TimeSource;

use super::Table;
use crate::clock::Now;
use crate::flow::{OwnerNumber, Owners, ProcessNumber, ProcessText, Snapshot, UDP};
use crate::owners::{Attribution, Begin, Touched, direction};
use directions::Direction;
pub(super) use directions::OtherTuples;

/// Whether a socket of another namespace can have a flow in our table: what stays within its namespace is not there.
fn can_be_forwarded(event: &Event) -> bool {
    let [local, remote] = [event.local.ip(), event.remote.ip()];
    (event.protocol == UDP || !local.is_unspecified()) && !local.is_loopback() && !remote.is_loopback()
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

    /// What is known of sockets, to be changed.
    pub(crate) fn attribution_mut(&mut self) -> Option<&mut Attribution> {
        self.attribution.as_mut()
    }

    /// Notes what an event reports of a socket. What it means for flows that are there is settled later.
    pub(super) fn apply_socket(&mut self, event: &Event, now: Now) {
        if self.processes.should_collect(&self.state, now.boottime_usec) {
            self.free_processes(now);
        }
        let Self { attribution, processes, state, .. } = self;
        let Some(attribution) = attribution else { return };
        let is_ours = event.network_namespace == attribution.network_namespace;
        if !is_ours && !can_be_forwarded(event) {
            return;
        }
        // An unknown namespace (0) would be stored as the tracked one, and the process as one of ours.
        let process = event.process.as_ref().filter(|_| event.network_namespace != 0);
        let owner =
            attribution.owner(processes, state, process, event.network_namespace).with_opened(event.opened);
        let counters = &mut state.header.counters;
        let useful_from = attribution.begins.useful_from(attribution.window);
        for sockets in attribution.all_sockets() {
            sockets.expire(now.boottime_usec, useful_from, counters);
        }
        let sockets = if is_ours { &mut attribution.sockets } else { &mut attribution.elsewhere };
        let touched = sockets.apply(event, owner, now.boottime_usec, counters);
        if let Some(touched) = touched {
            attribution.touch(event.monotonic_ns, touched);
        }
        if !is_ours && event.kind == Kind::Syn {
            let sent = direction(event.protocol, event.local, event.remote);
            if self.flows_with(&sent).next().is_some()
                && let Some(attribution) = &mut self.attribution
            {
                attribution.elsewhere.note_late(&sent, event.cookie);
            }
        }
    }

    /// Whether a socket is one of the network namespace whose flows these are.
    pub(crate) fn is_ours(&self, event: &Event) -> bool {
        let ours = self.attribution.as_ref().map(|attribution| attribution.network_namespace);
        ours == Some(event.network_namespace)
    }

    /// A process in words, that has a socket in a namespace.
    pub(crate) fn process_text(
        &mut self,
        process: &Process,
        network_namespace: u32,
    ) -> Option<Arc<ProcessText>> {
        let Self { attribution, processes, state, .. } = self;
        let owner = attribution.as_mut()?.owner(processes, state, Some(process), network_namespace);
        Some(processes.texts().owner(owner)?.0)
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

    /// The owners of the sockets at the ends of a flow that is about to be added to the table. Of one that began some time
    /// before, they are found when all events have been applied.
    fn owners_of_new(&mut self, flow: &Snapshot) -> Owners {
        let next_id = flow.record.id;
        let Some(attribution) = &mut self.attribution else { return Owners::default() };
        if flow.record.start_source() == TimeSource::Observed {
            attribution.look_from.get_or_insert(next_id);
            return Owners::default();
        }
        let window = attribution.window;
        let (original, reply) = (flow.original(), flow.reply());
        let initiator = attribution.sockets_of_mut(&original).initiator(&original, window);
        let sockets = attribution.sockets_of_mut(&reply);
        let responder = if flow.record.is_answered() {
            Some(sockets.responder(&reply, window))
        } else {
            sockets.waits_for(&reply, window)
        };
        if responder.is_none() {
            attribution.touch(window.to, Touched::Direction(reply));
        }
        self.count_ambiguous();
        Owners { initiator, responder: responder.unwrap_or_default() }
    }

    fn count_ambiguous(&mut self) {
        if let Some(attribution) = &mut self.attribution {
            self.state.header.counters.owners_ambiguous += attribution.elsewhere.take_ambiguous();
        }
    }

    /// Gives its owners to a flow that is about to be added to the table.
    pub(super) fn attribute_new(&mut self, slot: u32, flow: &mut Snapshot) {
        if self.attribution.is_some() {
            self.note_other_tuples(slot, flow);
            flow.owners = self.owners_of_new(flow);
            flow.record.set_owned(!flow.owners.is_empty());
            if flow.record.is_owned() {
                self.state.put_owners(slot, flow.owners);
            }
            self.note_begin(slot, flow);
        }
    }

    /// Notes when a flow began, where that is known and so are all sockets that it can belong to.
    fn note_begin(&mut self, slot: u32, flow: &Snapshot) {
        let Some(attribution) = &mut self.attribution else { return };
        let before = Direction::BOTH.map(|direction| {
            let sent = direction.of(flow);
            attribution.sockets_of(&sent).ended_within(&sent, attribution.window)
        });
        let before = before.into_iter().max().flatten();
        let Attribution { begins, sockets, window, .. } = attribution;
        let is_known = flow.record.start_source() != TimeSource::Observed && sockets.knows_since(window.from);
        let begin = Begin { from: window.from, before: before.unwrap_or_default() };
        begins.note(slot, begin, is_known);
        if is_known && before.is_some() {
            begins.add_reused(slot, flow.record.id, begin, *window);
        }
    }

    /// Looks for the responder of a flow that has just been answered; true when one was found.
    pub(super) fn attribute_answered(&mut self, slot: u32) -> bool {
        if self.attribution.is_none() {
            return false;
        }
        let flow = self.snapshot(slot);
        let mut owners = flow.owners;
        let Some(attribution) = &mut self.attribution else { return false };
        if owners.responder.is_none() {
            let (reply, window) = (flow.reply(), attribution.window);
            owners.responder = attribution.sockets_of_mut(&reply).responder(&reply, window);
            self.count_ambiguous();
            self.put_owners(slot, owners);
        }
        owners != flow.owners
    }

    /// Takes the owners away from a flow that a message is about, where events have been lost since it was last seen: they may
    /// have said that it has ended, and that another one has begun with its ends and its `CTA_ID`. An owner stays whose
    /// socket was there all the time. True when the flow has lost an owner.
    pub(super) fn doubt_owners(&mut self, slot: u32, message: &Flow<'_>) -> bool {
        let record = self.state.record(slot);
        if record.seen >= self.state.header.loss_stamp || !record.is_owned() || record.has_start_of(message) {
            return false;
        }
        let flow = self.snapshot(slot);
        let mut owners = flow.owners;
        for direction in Direction::BOTH {
            let sent = direction.of(&flow);
            let owner = direction.owner(&mut owners);
            if *owner == OwnerNumber::CONTESTED {
                continue;
            }
            let pid = owner.get().and_then(|(process, _)| self.processes.pid(&self.state, process));
            let sockets = self.attribution.as_ref().map(|attribution| attribution.sockets_of(&sent));
            if !sockets.zip(pid).is_some_and(|(sockets, pid)| sockets.has_lasted(&sent, pid)) {
                *owner = OwnerNumber::default();
            }
        }
        if owners == flow.owners {
            return false;
        }
        self.put_owners(slot, owners);
        if let Some(attribution) = &mut self.attribution {
            attribution.look_from =
                Some(attribution.look_from.map_or(flow.record.id, |id| id.min(flow.record.id)));
        }
        true
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
        if let Some(attribution) = &mut self.attribution {
            let window = attribution.window;
            for sent in [flow.original(), flow.reply()] {
                attribution.sockets_of_mut(&sent).flow_ended(&sent, window, is_young);
            }
            self.state.header.counters.owners_unmatched_flows += u64::from(!flow.owners.name_anybody());
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
            if *owner == OwnerNumber::CONTESTED {
                continue;
            }
            let sent = direction.of(flow);
            let offered = attribution.sockets_of(&sent).finished(&sent, begin, to);
            let [known_sure, offered_sure] = [*owner, offered].map(|owner| owner.get().map(|(_, sure)| sure));
            if offered_sure.is_some() && (known_sure.is_none() || offered_sure < known_sure) {
                *owner = offered;
            }
        }
        owners
    }

    fn put_owners(&mut self, slot: u32, owners: Owners) {
        let mut record = *self.state.record(slot);
        if owners.is_empty() && !record.is_owned() {
            return;
        }
        self.state.put_owners(slot, owners);
        record.set_owned(!owners.is_empty());
        self.state.put_record(slot, &record);
    }

    fn free_processes(&mut self, now: Now) {
        let active = self.order.all().map(|slot| self.snapshot(slot).owners);
        let closed = super::closed::before(&self.state, u64::MAX).map(|flow| flow.owners);
        let sockets = self
            .attribution
            .iter()
            .flat_map(|attribution| attribution.sockets.owners().chain(attribution.elsewhere.owners()));
        let owners = active.chain(closed).flat_map(|owners| [owners.initiator, owners.responder]);
        let used: Vec<ProcessNumber> =
            owners.chain(sockets).filter_map(|owner| Some(owner.get()?.0)).collect();
        self.processes.free_unused(&self.state, now.boottime_usec, used.into_iter());
    }
}

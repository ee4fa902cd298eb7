//! What sockets reported, for the flows that are there.

use ctnetlink::Tuple;
use flowbus_attribution::Confidence;

use super::directions::Direction;
use crate::change::Changes;
use crate::clock::Now;
use crate::flow::{OwnerNumber, TCP, UDP};
use crate::owners::{Attribution, Current, Reused, Touched};
use crate::table::Table;
use crate::table::ports::PortSet;

impl Table {
    /// Notes that all events have been applied that the kernel sent until a time, and gives the flows that are there
    /// the owners that sockets reported until then.
    pub(crate) fn settle(&mut self, applied: u64, changes: &mut Changes) {
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
                Touched::Direction(sent) if self.is_settled(sent, applied) => {}
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

    /// Gives owners to flows before which another one with the same ends ended in the same window, where one process had all
    /// sockets that can be meant: as soon as the flows are finished, so that no socket of theirs will be reported any more.
    fn settle_reused(&mut self, changes: &mut Changes) {
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
                let mut change = self.change();
                let table = change.table();
                table.put_owners(*slot, owners);
                table.push_update(*slot, flow.prior(), changes);
            }
            !flow.record.is_finished()
        });
        if let Some(Attribution { begins, .. }) = &mut self.attribution {
            begins.put_reused(reused);
        }
    }

    /// Settles the flows with this id or a larger one.
    fn settle_from(&mut self, first: u64, applied: u64, changes: &mut Changes) {
        let slots: Vec<u32> = self.order.from(first, |slot| self.state.record(slot).id).collect();
        for slot in slots {
            for direction in Direction::BOTH {
                self.settle_flow(slot, direction, applied, changes);
            }
        }
    }

    /// Settles the replies of UDP flows at these ports, in one pass over the table however many ports there are.
    fn settle_ports(&mut self, ports: &PortSet, applied: u64, changes: &mut Changes) {
        let is_touched = |slot: &u32| {
            self.state.record(*slot).key.protocol() == UDP
                && self.has_port_that(*slot, |port| ports.contains(port))
        };
        let slots: Vec<u32> = self.order.all().filter(is_touched).collect();
        for slot in slots {
            self.settle_flow(slot, Direction::Reply, applied, changes);
        }
    }

    /// Whether the flow of a direction was given what its socket reported when it began, as most are. The kernel gives each direction of
    /// a zone to one flow, so only in zones and behind translations can there be others.
    fn is_settled(&self, sent: &Tuple, applied: u64) -> bool {
        let has_given =
            self.attribution.as_ref().is_some_and(|attribution| attribution.sockets.has_given(sent, applied));
        has_given && !self.may_have_other(sent)
    }

    fn settle_direction(&mut self, sent: &Tuple, applied: u64, changes: &mut Changes) {
        let Some(attribution) = &self.attribution else { return };
        for sent in attribution.sockets.directions(sent) {
            for (slot, direction) in self.flows_with(&sent) {
                self.settle_flow(slot, direction, applied, changes);
            }
        }
    }

    /// Gives a flow that is there the process that sends in a direction of it by now.
    fn settle_flow(&mut self, slot: u32, direction: Direction, applied: u64, changes: &mut Changes) {
        let flow = self.snapshot(slot);
        let sent = direction.of(&flow);
        let Some(attribution) = &mut self.attribution else { return };
        let current = attribution.sockets_of_mut(&sent).current(&sent, direction.role(), applied);
        let Some(current) = current.filter(|current| !current.owner.is_none()) else { return };
        // Where several flows have the same ends, in zones, it is not known which of them a socket of another namespace has.
        if self.is_elsewhere(&sent) && self.flows_with(&sent).nth(1).is_some() {
            return;
        }
        let mut owners = flow.owners;
        let owner = direction.owner(&mut owners);
        let known = *owner;
        *owner = self.successor(known, current, &sent);
        if *owner == known {
            return;
        }
        let is_visible = known.get() != owner.get();
        self.state.header.counters.owners_ambiguous += u64::from(*owner == OwnerNumber::CONTESTED);
        let mut change = self.change();
        let table = change.table();
        table.put_owners(slot, owners);
        if is_visible {
            table.change_usec = Now::read().realtime_usec;
            table.push_update(slot, flow.prior(), changes);
        }
    }

    /// The owner of a direction from now on. A namespace gives itself the addresses that it likes, and may send by them where no
    /// packet comes to us: that takes no flow over from a socket of another namespace, unless that was seen to end.
    fn successor(&self, known: OwnerNumber, current: Current, sent: &Tuple) -> OwnerNumber {
        if known == OwnerNumber::CONTESTED {
            return known;
        }
        if current.owner == OwnerNumber::CONTESTED {
            return if current.sent || known.is_none() { current.owner } else { known };
        }
        let is_elsewhere = self.is_elsewhere(sent);
        let namespace = |owner: OwnerNumber| self.processes.network_namespace(&self.state, owner.get()?.0);
        if is_elsewhere && !known.is_none() && namespace(known) != namespace(current.owner) {
            let is_tcp = sent.protocol == TCP;
            return match self.has_ended(known, sent) {
                true if current.sent && !is_tcp => current.owner,
                // A connection has one socket from its begin to its end.
                _ if is_tcp || !current.sent => known,
                _ => OwnerNumber::CONTESTED,
            };
        }
        if self.gives_way(known, current, sent) { current.owner } else { known }
    }

    fn has_ended(&self, owner: OwnerNumber, sent: &Tuple) -> bool {
        let pid = owner.get().and_then(|(process, _)| self.processes.pid(&self.state, process));
        let sockets = self.attribution.as_ref().map(|attribution| attribution.sockets_of(sent));
        sockets.zip(pid).is_some_and(|(sockets, pid)| sockets.has_ended(sent, pid))
    }

    fn is_elsewhere(&self, sent: &Tuple) -> bool {
        self.attribution.as_ref().is_some_and(|attribution| attribution.is_elsewhere(sent))
    }

    /// Whether an owner gives way to another: to one that sends now, and to one that waits for packets where the owner's
    /// socket has ended; of the same process to what is surer, and to the knowledge that it is not alone.
    fn gives_way(&self, owner: OwnerNumber, current: Current, sent: &Tuple) -> bool {
        let Some((offered, confidence)) = current.owner.get() else { return false };
        let Some((known, known_confidence)) = owner.get() else { return !current.late };
        let pids = [known, offered].map(|process| self.processes.pid(&self.state, process));
        if pids[0] == pids[1] {
            let is_shared = confidence == Confidence::Shared && known_confidence != Confidence::Shared;
            // The thread that accepted is another one than the one that listens.
            let is_surer =
                current.exact && current.owner != owner && known_confidence == Confidence::Forwarded;
            return confidence < known_confidence || is_surer || is_shared && current.sent;
        }
        current.sent || self.has_ended(owner, sent)
    }
}

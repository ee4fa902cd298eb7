//! The directions of flows, and the flows that have one with given ends.

use std::hash::BuildHasher;

use ctnetlink::Tuple;
use hashbrown::HashTable;

use crate::flow::{Key, OwnerNumber, Owners, Snapshot, inverted};
use crate::owners::Role;
use crate::table::Table;

/// The directions that the index of the table does not find: the original one of flows in a zone, and the reply of
/// flows that are translated or in a zone. Both by their tuple in zone 0.
#[derive(Debug, Default)]
pub(in crate::table) struct OtherTuples(HashTable<OtherTuple>);

#[derive(Debug)]
struct OtherTuple {
    hash: u64,
    slot: u32,
    direction: Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Original,
    Reply,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Original, Self::Reply];

    pub(super) fn of(self, flow: &Snapshot) -> Tuple {
        match self {
            Self::Original => flow.original(),
            Self::Reply => flow.reply(),
        }
    }

    pub(super) fn role(self) -> Role {
        match self {
            Self::Original => Role::Initiator,
            Self::Reply => Role::Responder,
        }
    }

    /// The owner of the socket that sends in this direction.
    pub(super) fn owner(self, owners: &mut Owners) -> &mut OwnerNumber {
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
    /// The newest flow that has a direction with these ends, where something that passed at a time (CLOCK_MONOTONIC
    /// nanoseconds) was of it and not of one before.
    pub(crate) fn flow_with(&self, sent: &Tuple, at: u64) -> Option<u64> {
        if !self.attribution.as_ref()?.sockets.is_of_this_flow(sent, at) {
            return None;
        }
        self.flows_with(sent).map(|(slot, _)| self.state.record(slot).id).max()
    }

    /// The active flows of which a direction has these ends, in any zone.
    pub(super) fn flows_with(&self, sent: &Tuple) -> impl Iterator<Item = (u32, Direction)> + use<> {
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

    /// Whether a flow in a zone or behind a translation may have a direction with these ends.
    pub(super) fn may_have_other(&self, sent: &Tuple) -> bool {
        self.other_tuples.0.iter_hash(self.hasher.hash_one(without_zone(sent))).next().is_some()
    }

    pub(super) fn note_other_tuples(&mut self, slot: u32, flow: &Snapshot) {
        for direction in Direction::BOTH {
            if direction.is_other(flow) {
                let hash = self.hasher.hash_one(without_zone(&direction.of(flow)));
                self.other_tuples
                    .0
                    .insert_unique(hash, OtherTuple { hash, slot, direction }, |other| other.hash);
            }
        }
    }

    pub(in crate::table) fn forget_other_tuples(&mut self, slot: u32, flow: &Snapshot) {
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
}

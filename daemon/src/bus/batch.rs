//! The events of one signal: bounded in number and bytes, updates of one flow coalesced.

use std::collections::HashMap;

use ctnetlink::EventKind;
use flowbus_interfaces::FieldSet;

use crate::config::Signals;
use crate::dictionary::{FlowNames, Item, Listing};
use crate::event::Change;

/// So many changes are coalesced to one event at most.
const REPLACED: usize = 16;

/// A batch that is being filled.
#[derive(Debug)]
pub(super) struct Batch {
    /// `None` where a newer update of the same flow has taken over.
    items: Vec<Option<Item>>,
    /// Where each flow's last update stands.
    updates: HashMap<u64, usize>,
    events: usize,
    bytes: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { items: Vec::new(), updates: HashMap::new(), events: 0, bytes: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// Takes a change in; false when it does not fit any more.
    pub(super) fn push(&mut self, change: &Change, names: &FlowNames, limits: &Signals) -> bool {
        let item = Item::from(change);
        let id = change.flow.record.id;
        let is_update = change.kind == EventKind::Update;
        // Each update that was replaced has left its place.
        if self.items.len() >= REPLACED * limits.batch_events {
            return false;
        }
        if is_update && let Some(at) = self.updates.insert(id, self.items.len()) {
            // The last update wins: it carries the whole flow.
            self.items[at] = None;
            self.items.push(Some(item));
            return true;
        }
        let size = names.show(&item, |flow| names.size_of(flow, FieldSet::ALL));
        let full = self.events == limits.batch_events || self.bytes + size > limits.batch_bytes;
        if full && !self.is_empty() {
            self.updates.remove(&id);
            return false;
        }
        self.events += 1;
        self.bytes += size;
        self.items.push(Some(item));
        true
    }

    /// The number of the first event, if there is one.
    pub(super) fn sequence(&self) -> Option<u64> {
        self.items.iter().flatten().next()?.sequence
    }

    pub(super) fn into_listing(self, names: &FlowNames) -> Listing {
        Listing::new(names, FieldSet::ALL, self.items.into_iter().flatten().collect())
    }
}

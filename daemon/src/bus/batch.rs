//! The events of one signal: bounded in number and bytes, updates of one flow coalesced.

use std::collections::HashMap;

use ctnetlink::EventKind;
use flowbus_interfaces::{ConnectionDictionary, FieldSet};
use serde::ser::{Serialize, SerializeSeq, Serializer};
use zbus::{Signature, Type};

use crate::change::FlowEvent;
use crate::config::SignalOptions;
use crate::connection::ConnectionEvent;
use crate::dictionary::{FlowNames, Item, Listing};

/// The most changes that are coalesced to one event.
const REPLACED: usize = 16;

/// A batch that is being filled.
pub(super) trait Batch<T>: Default {
    fn is_empty(&self) -> bool;

    /// Takes an entry in; false when it does not fit any more.
    fn push(&mut self, entry: &T, names: &FlowNames, limits: &SignalOptions) -> bool;

    /// The number of the first event, if there is one.
    fn sequence(&self) -> Option<u64>;
}

/// Changes of flows.
#[derive(Debug, Default)]
pub(super) struct ChangeBatch {
    /// The events; `None` where a newer update of the same flow has replaced one.
    items: Vec<Option<Item>>,
    /// Where each flow's last update stands, and its bytes.
    updates: HashMap<u64, (usize, usize)>,
    events: usize,
    bytes: usize,
}

impl Batch<FlowEvent> for ChangeBatch {
    fn is_empty(&self) -> bool {
        self.events == 0
    }

    fn push(&mut self, change: &FlowEvent, names: &FlowNames, limits: &SignalOptions) -> bool {
        let item = Item::from(change);
        let id = change.flow.record.id;
        let is_update = change.kind == EventKind::Update;
        // Each update that was replaced has left its place.
        if self.items.len() >= REPLACED * limits.batch_events {
            return false;
        }
        let size = names.show(&item, |flow| names.size_of(flow, FieldSet::ALL));
        // The last update wins: it carries the whole flow.
        let replaced = self.updates.get(&id).filter(|_| is_update).copied();
        let bytes = self.bytes + size - replaced.map_or(0, |(_, size)| size);
        let events = self.events + usize::from(replaced.is_none());
        if (events > limits.batch_events || bytes > limits.batch_bytes) && !self.is_empty() {
            return false;
        }
        if let Some((at, _)) = replaced {
            self.items[at] = None;
        }
        if is_update {
            self.updates.insert(id, (self.items.len(), size));
        }
        (self.events, self.bytes) = (events, bytes);
        self.items.push(Some(item));
        true
    }

    fn sequence(&self) -> Option<u64> {
        self.items.iter().flatten().next()?.sequence
    }
}

impl ChangeBatch {
    pub(super) fn into_listing(self, names: &FlowNames) -> Listing {
        Listing::new(names, FieldSet::ALL, self.items.into_iter().flatten().collect())
    }
}

/// What connections did.
#[derive(Debug, Default)]
pub(super) struct ConnectionBatch {
    events: Vec<ConnectionEvent>,
    bytes: usize,
}

impl Batch<ConnectionEvent> for ConnectionBatch {
    fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    fn push(&mut self, event: &ConnectionEvent, _names: &FlowNames, limits: &SignalOptions) -> bool {
        let size = event.show(|event| event.dictionary_size());
        let full = self.events.len() == limits.batch_events || self.bytes + size > limits.batch_bytes;
        if full && !self.is_empty() {
            return false;
        }
        self.bytes += size;
        self.events.push(event.clone());
        true
    }

    fn sequence(&self) -> Option<u64> {
        self.events.first().map(|event| event.sequence)
    }
}

impl ConnectionBatch {
    pub(super) fn into_listing(self) -> ConnectionListing {
        ConnectionListing(self.events)
    }
}

/// Connection events as `aa{sv}`, written out one by one as the message is built.
#[derive(Debug)]
pub(super) struct ConnectionListing(Vec<ConnectionEvent>);

impl Type for ConnectionListing {
    const SIGNATURE: &'static Signature = <Vec<ConnectionDictionary<'static>>>::SIGNATURE;
}

impl Serialize for ConnectionListing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(Some(self.0.len()))?;
        for event in &self.0 {
            event.show(|event| sequence.serialize_element(&event.dictionary()))?;
        }
        sequence.end()
    }
}

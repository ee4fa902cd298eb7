//! The events of one signal: bounded in number and bytes, updates of one flow coalesced.

use std::collections::HashMap;

use ctnetlink::EventKind;
use flowbus_interfaces::{DictionaryArray, FieldSet};
use zbus::wire::NATIVE_ENDIAN;

use crate::change::FlowEvent;
use crate::config::{Config, SignalOptions};
use crate::connection::ConnectionEvent;
use crate::dictionary::{FlowNames, Item};

/// Room for one entry, with few exceptions.
const ENTRY: usize = 8 * 1024;
/// The most changes that are coalesced to one event.
const REPLACED: usize = 16;

/// A batch that is being filled.
pub(super) trait Batch<T> {
    /// An empty batch for a signal within these limits.
    fn new(limits: &SignalOptions) -> Self;

    fn is_empty(&self) -> bool;

    /// Takes an entry in; false when it does not fit any more.
    fn push(&mut self, entry: &T, names: &FlowNames, config: &Config) -> bool;

    /// The number of the first event, if there is one.
    fn sequence(&self) -> Option<u64>;

    /// The events as the signal has them.
    fn into_array(self) -> DictionaryArray;
}

/// An array with room for what fits into a signal, and for the entry that does not, which shows when it is written.
fn array(limits: &SignalOptions) -> DictionaryArray {
    DictionaryArray::with_capacity(NATIVE_ENDIAN, limits.batch_bytes + ENTRY)
}

/// Changes of flows.
#[derive(Debug)]
pub(super) struct ChangeBatch {
    array: DictionaryArray,
    /// The number of each event in the array; `None` where a newer update of the same flow has replaced one.
    sequences: Vec<Option<u64>>,
    /// Where each flow's last update stands, and its bytes.
    updates: HashMap<u64, (usize, usize)>,
    events: usize,
    bytes: usize,
}

impl Batch<FlowEvent> for ChangeBatch {
    fn new(limits: &SignalOptions) -> Self {
        Self { array: array(limits), sequences: Vec::new(), updates: HashMap::new(), events: 0, bytes: 0 }
    }

    fn is_empty(&self) -> bool {
        self.events == 0
    }

    fn push(&mut self, change: &FlowEvent, names: &FlowNames, config: &Config) -> bool {
        let limits = &config.signals;
        let id = change.flow.record.id;
        let is_update = change.kind == EventKind::Update;
        let index = self.sequences.len();
        // Each update that was replaced has left its place.
        if index >= REPLACED * limits.batch_events {
            return false;
        }
        // The last update wins: it carries the whole flow.
        let replaced = self.updates.get(&id).filter(|_| is_update).copied();
        let events = self.events + usize::from(replaced.is_none());
        if events > limits.batch_events && !self.is_empty() {
            return false;
        }
        let size = names.show(&Item::from(change), |flow| {
            self.array.push_flow(flow, &config.source_names, FieldSet::ALL)
        });
        let bytes = self.bytes + size - replaced.map_or(0, |(_, size)| size);
        if bytes > limits.batch_bytes && !self.is_empty() {
            self.array.remove(index);
            return false;
        }
        if let Some((at, _)) = replaced {
            self.array.remove(at);
            self.sequences[at] = None;
        }
        if is_update {
            self.updates.insert(id, (index, size));
        }
        (self.events, self.bytes) = (events, bytes);
        self.sequences.push(Some(change.sequence));
        true
    }

    fn sequence(&self) -> Option<u64> {
        self.sequences.iter().flatten().next().copied()
    }

    fn into_array(self) -> DictionaryArray {
        self.array
    }
}

/// What connections did.
#[derive(Debug)]
pub(super) struct ConnectionBatch {
    array: DictionaryArray,
    /// The number of the first event.
    first: Option<u64>,
    events: usize,
    bytes: usize,
}

impl Batch<ConnectionEvent> for ConnectionBatch {
    fn new(limits: &SignalOptions) -> Self {
        Self { array: array(limits), first: None, events: 0, bytes: 0 }
    }

    fn is_empty(&self) -> bool {
        self.events == 0
    }

    fn push(&mut self, event: &ConnectionEvent, _names: &FlowNames, config: &Config) -> bool {
        let limits = &config.signals;
        if self.events >= limits.batch_events && !self.is_empty() {
            return false;
        }
        let size = event.show(|event| self.array.push_connection(event));
        if self.bytes + size > limits.batch_bytes && !self.is_empty() {
            self.array.remove(self.events);
            return false;
        }
        self.first.get_or_insert(event.sequence);
        self.events += 1;
        self.bytes += size;
        true
    }

    fn sequence(&self) -> Option<u64> {
        self.first
    }

    fn into_array(self) -> DictionaryArray {
        self.array
    }
}

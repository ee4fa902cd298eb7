//! From the table's flows to the dictionaries of the bus: names behind numbers, times, what happened.

use std::sync::Arc;

use ctnetlink::EventKind;
use flowbus_interfaces::{Dictionary, FieldSet, Flow, Mark, MarkDictionary, Time};
use serde::ser::{Serialize, Serializer};
use tokio::sync::watch;
use zbus::{Signature, Type};

use crate::change::FlowEvent;
use crate::config::Config;
use crate::flow::{ProcessTexts, Record, Snapshot};
use crate::handle::Handle;
use crate::links::Links;
use crate::names::NameStrings;

/// What it takes to name the parts of a flow.
#[derive(Clone, Debug)]
pub(crate) struct FlowNames {
    strings: NameStrings,
    processes: ProcessTexts,
    links: Links,
    config: watch::Receiver<Arc<Config>>,
}

impl FlowNames {
    pub(crate) fn new(handle: &Handle, links: Links, config: watch::Receiver<Arc<Config>>) -> Self {
        Self { strings: handle.names().clone(), processes: handle.processes().clone(), links, config }
    }

    /// The configuration in force, which names the traffic sources.
    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// The interface that a mark's routing table belongs to.
    pub(crate) fn interface(&self, mark: u32) -> Option<Arc<str>> {
        self.links.name(Mark(mark).interface_index()?)
    }

    /// Hands the flow of an item to `show` as the bus shows it.
    pub(crate) fn show<R>(&self, item: &Item, show: impl FnOnce(&Flow<'_>) -> R) -> R {
        let Item { event, sequence, time_usec, flow: snapshot } = item;
        let Snapshot { record, owners, end, .. } = snapshot;
        let interface = self.interface(record.mark);
        let helper = self.strings.get(snapshot.helper());
        let security_context = self.strings.get(snapshot.security_context());
        let numbers = [owners.initiator, owners.responder];
        let owners = numbers.map(|number| (number.opened(), self.processes.owner(number)));
        let owners = owners
            .each_ref()
            .map(|(opened, owner)| owner.as_ref().map(|(text, confidence)| text.owner(*confidence, *opened)));
        let [initiator, responder] = &owners;
        let (original_counters, reply_counters) = record.counters();
        let Record { id, start_usec, mark, .. } = *record;
        show(&Flow {
            event: *event,
            sequence: *sequence,
            event_usec: *time_usec,
            conntrack_id: record.conntrack_id(),
            state: record.state(),
            status: Some(record.status()),
            timeout: record.timeout(),
            use_count: record.use_count(),
            mark,
            interface: interface.as_deref(),
            labels: snapshot.labels(),
            helper: helper.as_deref(),
            security_context: security_context.as_deref(),
            original_counters,
            reply_counters,
            start: Some(Time { usec: start_usec, source: record.start_source() }),
            end: end.map(|end| Time { usec: end.usec, source: end.source }),
            duration_usec: end.map(|end| end.duration_usec),
            end_reason: end.map(|end| end.reason),
            initiator: initiator.as_ref(),
            responder: responder.as_ref(),
            ..Flow::new(id, snapshot.original(), snapshot.reply())
        })
    }
}

/// The names of a machine without any.
#[cfg(test)]
impl Default for FlowNames {
    fn default() -> Self {
        let (_, config) = watch::channel(Arc::default());
        Self {
            strings: NameStrings::default(),
            processes: ProcessTexts::default(),
            links: Links::default(),
            config,
        }
    }
}

/// A flow to show, alone or as an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    event: Option<EventKind>,
    pub(crate) sequence: Option<u64>,
    /// When the change was; in events alone.
    time_usec: Option<u64>,
    pub(crate) flow: Snapshot,
}

/// A flow of a listing; a closed one carries the number of its end.
impl From<Snapshot> for Item {
    fn from(flow: Snapshot) -> Self {
        Self { event: None, sequence: flow.end.map(|end| end.sequence), time_usec: None, flow }
    }
}

impl From<&FlowEvent> for Item {
    fn from(change: &FlowEvent) -> Self {
        Self {
            event: Some(change.kind),
            sequence: Some(change.sequence),
            time_usec: Some(change.time_usec),
            flow: change.flow,
        }
    }
}

/// One flow as `a{sv}`.
#[derive(Debug)]
pub(crate) struct Single {
    names: FlowNames,
    item: Item,
}

/// The parts of a mark as `a{sv}`.
#[derive(Debug)]
pub(crate) struct DecodedMark {
    names: FlowNames,
    mark: u32,
}

impl DecodedMark {
    pub(crate) fn new(names: &FlowNames, mark: u32) -> Self {
        Self { names: names.clone(), mark }
    }
}

impl Type for DecodedMark {
    const SIGNATURE: &'static Signature = MarkDictionary::SIGNATURE;
}

impl Serialize for DecodedMark {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let config = self.names.config();
        let interface = self.names.interface(self.mark);
        let mark = Mark(self.mark);
        MarkDictionary { mark, interface: interface.as_deref(), names: &config.source_names }
            .serialize(serializer)
    }
}

impl Single {
    pub(crate) fn new(names: &FlowNames, flow: Snapshot) -> Self {
        Self { names: names.clone(), item: flow.into() }
    }
}

impl Type for Single {
    const SIGNATURE: &'static Signature = Dictionary::SIGNATURE;
}

impl Serialize for Single {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let config = self.names.config();
        self.names.show(&self.item, |flow| {
            flow.dictionary(&config.source_names, FieldSet::ALL).serialize(serializer)
        })
    }
}

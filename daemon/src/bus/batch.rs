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

/// An array with room for a full signal, and for the entry that does not fit any more, which shows when it is written.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ctnetlink::{Flow, Layer4, Status, Tuple};
    use flowbus_interfaces::{Key, OwnedFlow};
    use zbus::wire::serialized::Context;
    use zbus::wire::to_bytes;

    use super::*;
    use crate::change::Changes;
    use crate::clock::Now;
    use crate::flow::{ClosedLimits, inverted};
    use crate::state::State;
    use crate::table::Table;

    fn flow(port: u16, status: Status) -> Flow<'static> {
        let original = Tuple {
            src: "198.18.0.1".parse().unwrap(),
            dst: "198.18.0.2".parse().unwrap(),
            protocol: 17,
            layer4: Layer4::Ports { src: 40_000, dst: port },
            zone: 0,
        };
        Flow { status: Some(Status::CONFIRMED | status), ..Flow::new(original, inverted(&original, 0)) }
    }

    /// The changes of the table that these events cause, numbered from 1.
    fn changes(events: &[(EventKind, Flow<'_>)]) -> Vec<FlowEvent> {
        let limits = ClosedLimits { capacity: 100, maximum_age: Duration::from_secs(3_600) };
        let mut table = Table::new(State::create().unwrap(), limits);
        let mut changes = Changes::default();
        for (kind, event) in events {
            let mut change = table.change();
            change.apply(*kind, event, Now { realtime_usec: 2, boottime_usec: 1 }, &mut changes);
            change.commit();
        }
        changes.iter().collect()
    }

    /// What is in the signal, by number and destination port.
    fn sent(batch: ChangeBatch) -> Vec<(u64, u64)> {
        let data = to_bytes(Context::new(NATIVE_ENDIAN, 0), &batch.into_array()).unwrap();
        let (flows, _): (Vec<OwnedFlow>, usize) = data.deserialize().unwrap();
        flows
            .iter()
            .map(|flow| (flow.number(Key::Sequence).unwrap(), flow.number(Key::Dport).unwrap()))
            .collect()
    }

    fn config(batch_events: usize, batch_bytes: usize) -> Config {
        let mut config = Config::default();
        config.signals = SignalOptions { batch_events, batch_bytes, ..config.signals };
        config
    }

    #[test]
    fn the_last_update_of_a_flow_takes_the_place_of_those_before() {
        const UPDATES: [Status; 2] = [Status::SEEN_REPLY, Status::ASSURED];
        let mut events =
            vec![(EventKind::New, flow(1, Status::empty())), (EventKind::New, flow(2, Status::empty()))];
        // More of one flow than the array keeps without being packed.
        events.extend((0..300).map(|number| (EventKind::Update, flow(1, UPDATES[number % 2]))));
        events.push((EventKind::Update, flow(2, Status::ASSURED)));
        events.push((EventKind::Update, flow(1, Status::SEEN_REPLY)));
        events.push((EventKind::Destroy, flow(1, Status::DYING)));
        events.push((EventKind::New, flow(3, Status::empty())));
        let (changes, names, config) = (changes(&events), FlowNames::default(), config(20, 64 * 1024));
        let mut batch = ChangeBatch::new(&config.signals);
        assert!(changes.iter().all(|change| batch.push(change, &names, &config)));
        assert_eq!((changes.len(), batch.sequence()), (306, Some(1)));
        assert_eq!(sent(batch), [(1, 1), (2, 2), (303, 2), (304, 1), (305, 1), (306, 3)]);
    }

    #[test]
    fn updates_of_a_flow_fill_a_batch_though_they_are_one_event() {
        let events: Vec<_> = (0..2 * REPLACED)
            .map(|number| match number {
                0 => (EventKind::New, flow(1, Status::empty())),
                _ if number % 2 == 0 => (EventKind::Update, flow(1, Status::SEEN_REPLY)),
                _ => (EventKind::Update, flow(1, Status::ASSURED)),
            })
            .collect();
        let (changes, names, config) = (changes(&events), FlowNames::default(), config(2, 64 * 1024));
        let mut batch = ChangeBatch::new(&config.signals);
        assert!(changes.iter().all(|change| batch.push(change, &names, &config)));
        assert!(!batch.push(&changes[1], &names, &config));
    }

    #[test]
    fn what_exceeds_a_signal_is_left_for_the_next() {
        let events: Vec<_> = (0..10).map(|port| (EventKind::New, flow(port, Status::empty()))).collect();
        let (changes, names) = (changes(&events), FlowNames::default());
        for (events, bytes, expected) in [(256, 1, 1), (256, 1_500, 2), (4, 1 << 20, 4), (256, 1 << 20, 10)] {
            let config = config(events, bytes);
            let mut batch = ChangeBatch::new(&config.signals);
            let taken = changes.iter().take_while(|change| batch.push(change, &names, &config)).count();
            let sent = sent(batch);
            assert_eq!((taken, sent.len()), (expected, expected), "{events} {bytes}");
            assert_eq!(sent.last().unwrap().0, expected as u64);
        }
    }
}

//! What tools/instructions counts the instructions of, under valgrind: the ways that every flow goes.
//!
//! Time differs from run to run and from machine to machine; the number of instructions hardly does. Each of these works on
//! a round number of things, and only what [`counted`] runs is counted.

#![cfg(test)]

use std::hint::black_box;
use std::time::Duration;

use ctnetlink::{Counters, Decoder, EventKind, Flow, Layer4, Status, Tuple};
use flowbus_interfaces::{DictionaryArray, FieldSet, Query, RawQuery, SourceNames};
use zbus::wire::serialized::Context;
use zbus::wire::{LE, to_bytes};

use crate::change::Changes;
use crate::clock::Now;
use crate::dictionary::{FlowNames, Item};
use crate::flow::{ClosedLimits, inverted};
use crate::state::{BATCH, State};
use crate::streams::Lines;
use crate::table::Table;

/// How many things each of these works on; tools/instructions divides by it.
const COUNT: u16 = 1000;
const NOW: Now = Now { realtime_usec: 1_795_319_478_832_236, boottime_usec: 5_000_000 };

/// The one function whose instructions are counted, with all that it calls.
#[inline(never)]
fn counted<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

fn flow(number: u16) -> Flow<'static> {
    let original = Tuple {
        src: "198.18.0.1".parse().unwrap(),
        dst: "198.19.200.2".parse().unwrap(),
        protocol: 17,
        layer4: Layer4::Ports { src: 40_000, dst: number },
        zone: 0,
    };
    let counters = Some(Counters { packets: 12, bytes: 3_456 });
    Flow {
        status: Some(Status::CONFIRMED),
        id: Some(u32::from(number) * 1_234_567),
        timeout: Some(30),
        mark: Some(0x040C_0100),
        original_counters: counters,
        reply_counters: counters,
        start_nsec: Some(1_795_319_478_832_236_123),
        ..Flow::new(original, inverted(&original, 0))
    }
}

/// A table that forgets its closed flows one by one, as one that has run for a while.
fn table() -> Table {
    let limits = ClosedLimits { capacity: 100, maximum_age: Duration::from_secs(3_600) };
    Table::new(State::create().unwrap(), limits)
}

/// An event of each flow.
fn events(change: Status) -> Vec<Flow<'static>> {
    (0..COUNT).map(|number| Flow { status: Some(Status::CONFIRMED | change), ..flow(number) }).collect()
}

fn apply(table: &mut Table, kind: EventKind, events: &[Flow<'_>]) {
    let mut changes = Changes::with_capacity(events.len());
    for batch in events.chunks(BATCH) {
        table.prefetch(batch.iter().map(|event| (kind, event)));
        let mut change = table.change();
        for event in batch {
            change.apply(kind, event, NOW, &mut changes);
        }
        change.commit();
    }
    assert_eq!(changes.len(), events.len());
}

fn items() -> Vec<Item> {
    let mut table = table();
    apply(&mut table, EventKind::New, &events(Status::empty()));
    table.active_after(0).map(Item::from).collect()
}

/// Events as they come: a datagram each.
fn datagrams() -> impl Iterator<Item = &'static [u8]> {
    let mut rest = &include_bytes!("../../ctnetlink/fixtures/tcp4-events.bin")[..];
    let datagrams = std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        rest.split_off(..length)
    });
    datagrams.collect::<Vec<_>>().into_iter().cycle().take(usize::from(COUNT))
}

#[test]
#[ignore = "for tools/instructions"]
fn decode() {
    let decoded = counted(|| {
        datagrams()
            .flat_map(ctnetlink::messages)
            .map(|message| black_box(message).is_ok())
            .filter(|is_ok| *is_ok)
            .count()
    });
    assert_eq!(decoded, usize::from(COUNT));
}

/// Decoding events of kinds that came before.
#[test]
#[ignore = "for tools/instructions"]
fn decode_known() {
    let mut decoder = Decoder::default();
    let mut decode = || {
        let mut decoded = 0;
        for datagram in datagrams() {
            for message in decoder.messages(datagram) {
                decoded += usize::from(black_box(message).is_ok());
            }
        }
        decoded
    };
    decode();
    assert_eq!(counted(decode), usize::from(COUNT));
}

#[test]
#[ignore = "for tools/instructions"]
fn apply_new() {
    let (mut table, born) = (table(), events(Status::empty()));
    counted(|| apply(&mut table, EventKind::New, &born));
}

#[test]
#[ignore = "for tools/instructions"]
fn apply_update() {
    let (mut table, told) = (table(), events(Status::ASSURED));
    apply(&mut table, EventKind::New, &events(Status::empty()));
    counted(|| apply(&mut table, EventKind::Update, &told));
}

#[test]
#[ignore = "for tools/instructions"]
fn apply_destroy() {
    let (mut table, told) = (table(), events(Status::DYING));
    apply(&mut table, EventKind::New, &events(Status::empty()));
    counted(|| apply(&mut table, EventKind::Destroy, &told));
}

/// A filter over flows that it refuses: what a query costs for each flow of the table.
#[test]
#[ignore = "for tools/instructions"]
fn query() {
    let (items, names) = (items(), FlowNames::default());
    let mut raw = RawQuery::default();
    for word in ["dst=198.19.0.0/17", "protocol=udp"] {
        raw.add_word(word).unwrap();
    }
    let query = Query::parse(&raw, &SourceNames::default()).unwrap();
    let found =
        counted(|| items.iter().filter(|item| names.show(item, |flow| query.filter.matches(flow))).count());
    assert_eq!(found, 0);
}

/// Flows as JSON lines, with all fields.
#[test]
#[ignore = "for tools/instructions"]
fn line() {
    let (items, names) = (items(), FlowNames::default());
    let config = names.config();
    let bytes = counted(|| {
        let mut lines = Lines::default();
        for item in &items {
            names.show(item, |flow| lines.push_flow(flow, &config.source_names, FieldSet::ALL));
        }
        lines.len()
    });
    assert!(bytes > 300 * usize::from(COUNT), "{bytes}");
}

/// Flows as `aa{sv}`, with all fields.
#[test]
#[ignore = "for tools/instructions"]
fn dictionary() {
    let (items, names) = (items(), FlowNames::default());
    let config = names.config();
    let data = counted(|| {
        let mut array = DictionaryArray::new(LE);
        for item in &items {
            names.show(item, |flow| array.push_flow(flow, &config.source_names, FieldSet::ALL));
        }
        to_bytes(Context::new(LE, 0), &array).unwrap()
    });
    assert!(data.len() > 300 * usize::from(COUNT), "{}", data.len());
}

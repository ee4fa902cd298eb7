//! A ring written by hand, in a memfd: what the kernel is never caught doing in a test.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::raw::BUSY;
use super::*;
use crate::memfd;
use crate::record::LAYOUT;
use crate::report::Report;

/// The smallest ring that there can be.
fn size() -> usize {
    rustix::param::page_size()
}

/// A ring as the kernel lays it out, which the test writes in its place.
struct Writer {
    memory: File,
    page: u64,
    position: u64,
}

impl Writer {
    /// A writer and its ring, with both positions at `position`.
    fn new(position: u64) -> (Self, Ring) {
        let page = rustix::param::page_size();
        let memory = rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, (2 * page + 2 * size()) as u64).unwrap();
        let report =
            Report { layout: LAYOUT, ring_bytes: size(), network_namespace: 0, programs: Vec::new() };
        let programs = Programs {
            ring: memory.try_clone().unwrap(),
            statistics: memory.try_clone().unwrap(),
            report: memfd::write("report", &report.to_string()).unwrap(),
            links: Vec::new(),
            programs: Vec::new(),
        };
        let writer = Self { memory: memory.into(), page: page as u64, position };
        for offset in [0, writer.page] {
            writer.memory.write_all_at(&position.to_ne_bytes(), offset).unwrap();
        }
        let ring = Ring::map(&programs).unwrap();
        (writer, ring)
    }

    fn put(&self, position: u64, bytes: &[u8]) {
        for (index, byte) in (0..).zip(bytes) {
            let offset = position.wrapping_add(index) % size() as u64;
            // The data's first page is there twice, as the kernel maps it.
            for copy in [0, size() as u64] {
                self.memory.write_all_at(&[*byte], 2 * self.page + copy + offset).unwrap();
            }
        }
    }

    fn write(&mut self, flags: u32, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap();
        self.put(self.position, &(length | flags).to_ne_bytes());
        self.put(self.position + HEADER_BYTES, bytes);
        self.advance((HEADER_BYTES + u64::from(length)).next_multiple_of(8));
    }

    fn advance(&mut self, by: u64) {
        self.position += by;
        self.memory.write_all_at(&self.position.to_ne_bytes(), self.page).unwrap();
    }
}

/// A record of a removed control group: the shortest there is.
fn removed(id: u64) -> Vec<u8> {
    let mut bytes = 13_u64.to_le_bytes().to_vec();
    bytes.extend(id.to_ne_bytes());
    bytes
}

fn made(id: u64, path: &str) -> Vec<u8> {
    let mut bytes = 12_u64.to_le_bytes().to_vec();
    bytes.extend(id.to_ne_bytes());
    bytes.extend(path.as_bytes());
    bytes.push(0);
    bytes
}

fn drained(ring: &mut Ring) -> (Vec<String>, bool) {
    let mut seen = Vec::new();
    let all = ring.drain(|message| match message {
        Message::Cgroup { id, path } => seen.push(format!("{id} {path}")),
        Message::CgroupRemoved { id } => seen.push(id.to_string()),
        Message::Program { path, .. } => seen.push(path.to_owned()),
        Message::Event(event) => seen.push(format!("{event:?}")),
    });
    (seen, all)
}

#[test]
fn records_go_on_where_the_data_begins_again() {
    let (mut writer, mut ring) = Writer::new((size() - 32) as u64);
    writer.write(0, &made(1, "/a/path/that/wraps.service"));
    writer.write(0, &removed(2));
    assert_eq!(drained(&mut ring), (vec!["1 /a/path/that/wraps.service".to_owned(), "2".to_owned()], true));
    assert_eq!(drained(&mut ring), (vec![], true));
}

#[test]
fn an_unfinished_record_holds_back_those_behind_it() {
    let (mut writer, mut ring) = Writer::new(0);
    writer.write(0, &removed(1));
    let unfinished = writer.position;
    writer.write(BUSY, &removed(2));
    writer.write(0, &removed(3));
    assert_eq!(drained(&mut ring), (vec!["1".to_owned()], true));
    assert!(ring.is_held_back());
    writer.put(unfinished, &16_u32.to_ne_bytes());
    assert_eq!(drained(&mut ring), (vec!["2".to_owned(), "3".to_owned()], true));
    assert!(!ring.is_held_back());
}

#[test]
fn a_discarded_record_is_passed_over() {
    let (mut writer, mut ring) = Writer::new(0);
    writer.write(DISCARDED, &removed(1));
    writer.write(0, &removed(2));
    assert_eq!(drained(&mut ring), (vec!["2".to_owned()], true));
    assert_eq!(ring.unreadable(), 0);
}

#[test]
fn a_full_ring_is_read_in_one_go_and_says_that_more_may_be_there() {
    let (mut writer, mut ring) = Writer::new(u64::MAX - 1023);
    let before = writer.position;
    for id in 0..size() as u64 / 24 {
        writer.put(writer.position, &16_u32.to_ne_bytes());
        writer.put(writer.position.wrapping_add(HEADER_BYTES), &removed(id));
        writer.position = writer.position.wrapping_add(24);
    }
    writer.put(writer.position, &(8 | DISCARDED).to_ne_bytes());
    writer.position = before.wrapping_add(size() as u64);
    writer.advance(0);
    let (seen, all) = drained(&mut ring);
    assert_eq!((seen.len(), all), (size() / 24, false));
    assert!(ring.take_was_full() && !ring.take_was_full());
    assert_eq!(drained(&mut ring), (vec![], true));
}

#[test]
fn bytes_that_are_no_records_are_counted_and_left_behind() {
    for seed in 0..64_u64 {
        let (mut writer, mut ring) = Writer::new(0);
        let mut state = seed;
        let garbage: Vec<u8> = (0..size())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state.to_be_bytes()[0]
            })
            .collect();
        writer.put(0, &garbage);
        // No writer is at work: nothing may hold the reader back.
        writer.put(0, &(u32::from_ne_bytes([garbage[0], garbage[1], 0, 0])).to_ne_bytes());
        writer.advance(size() as u64);
        let _ = drained(&mut ring);
        assert!(ring.unreadable() > 0, "seed {seed}");
    }
}

#[test]
fn where_the_last_reader_cannot_have_left_it_reading_goes_on_with_what_comes() {
    // In the middle of a word; ahead of the writers; farther behind than the ring is long.
    for left in [8 * 3 + 4, 1 << 20, u64::MAX - 7 - size() as u64] {
        let (mut writer, mut ring) = Writer::new(0);
        writer.write(0, &removed(1));
        writer.memory.write_all_at(&u64::to_ne_bytes(left), 0).unwrap();
        assert_eq!(drained(&mut ring), (vec![], true), "{left}");
        writer.write(0, &removed(2));
        assert_eq!(drained(&mut ring), (vec!["2".to_owned()], true), "{left}");
        assert_eq!(ring.unreadable(), 1, "{left}");
    }
}

#[test]
fn a_ring_of_an_impossible_size_is_refused() {
    let (writer, _) = Writer::new(0);
    for ring_bytes in [0, 1, 5000] {
        let report = Report { layout: LAYOUT, ring_bytes, network_namespace: 0, programs: Vec::new() };
        let programs = Programs {
            ring: writer.memory.try_clone().unwrap().into(),
            statistics: writer.memory.try_clone().unwrap().into(),
            report: memfd::write("report", &report.to_string()).unwrap(),
            links: Vec::new(),
            programs: Vec::new(),
        };
        assert!(matches!(Ring::map(&programs), Err(RingError::Size(size)) if size == ring_bytes));
    }
}

//! What lies where in the memfd. Most of it is never touched and takes no memory.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::checksum::{Checksummed, layout_of};
use crate::counters::Counters;
use crate::flow::{ClosedFlow, ClosedLimits, Extra, Owners, ProcessEntry, ProcessNumber, Record};
use flowbus_interfaces::fit;

/// Grows with every change of the layout, of the types in it, or of the checksum.
pub(super) const VERSION: u32 = 7;
pub(super) const MAGIC: [u8; 8] = *b"flowbus\0";

const PAGE: usize = 4096;
const MIB: usize = 1024 * 1024;

/// The most messages that are applied as one change.
pub(crate) const BATCH: usize = 64;

/// The header, then the undo log: 60 KiB, of which one message takes at most 416 bytes.
pub(super) const HEADER: usize = 0;
pub(super) const UNDO: usize = PAGE;
pub(super) const UNDO_END: usize = 16 * PAGE;
/// Messages of the event socket, in pages of their own: they are mapped apart.
pub(super) const INBOX: usize = 16 * PAGE;
pub(super) const INBOX_END: usize = 32 * PAGE;
pub(super) const NAMES: usize = MIB;
pub(super) const NAMES_COUNT: usize = 4096;
/// A bit for each of the newest changes: whether it was an end.
pub(super) const ENDS: usize = 2 * MIB;
pub(super) const ENDS_BYTES: usize = MIB;
pub(super) const RECORDS: usize = 16 * MIB;
pub(super) const RECORDS_COUNT: usize = 1 << 24;
pub(super) const EXTRAS: usize = RECORDS + RECORDS_COUNT * size_of::<Record>();
/// Where the closed flows lie, one of two: when their capacity changes they move from one to the other.
pub(super) const CLOSED: [usize; 2] =
    [EXTRAS + RECORDS_COUNT * size_of::<Extra>(), EXTRAS + RECORDS_COUNT * size_of::<Extra>() + CLOSED_BYTES];
pub(super) const CLOSED_COUNT: usize = 1 << 20;
/// Spare slots of the ring of closed flows: the next ones are written beside those that a kill would leave.
pub(super) const CLOSED_SPARE: usize = BATCH;
pub(super) const CLOSED_BYTES: usize =
    ((CLOSED_COUNT + CLOSED_SPARE) * size_of::<ClosedFlow>()).next_multiple_of(PAGE);
/// The owners of the flow in the same slot of `RECORDS`; not touched while no flow has one.
pub(super) const OWNERS: usize = CLOSED[1] + CLOSED_BYTES;
pub(super) const PROCESSES: usize = OWNERS + RECORDS_COUNT * size_of::<OwnersEntry>();
pub(super) const PROCESSES_COUNT: usize = 1 << 17;
pub(super) const TOTAL: usize = PROCESSES + PROCESSES_COUNT * size_of::<ProcessEntry>();

const _: () = assert!(size_of::<Header>() <= UNDO - HEADER);
const _: () = assert!(NAMES + NAMES_COUNT * size_of::<NameEntry>() <= ENDS && ENDS + ENDS_BYTES <= RECORDS);
const _: () = assert!(ClosedLimits::MAXIMUM_CAPACITY as usize <= CLOSED_COUNT);
const _: () = assert!(TOTAL.is_multiple_of(PAGE));
const _: () = assert!(PROCESSES_COUNT <= ProcessNumber::SLOTS);

/// Everything that is not a flow. It is written with every change.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    pub(super) magic: [u8; 8],
    pub(super) version: u32,
    pub(super) check: u32,
    pub(crate) epoch: [u8; 16],
    /// SO_COOKIE of the event socket that the events were read from.
    pub(crate) socket_cookie: u64,
    /// The number of the newest message that was applied; see [`super::Inbox`].
    pub(crate) message: u64,
    /// The mark of the event ring, 0 where events are received from the socket; see `crate::tracker`'s `ring`.
    pub(crate) ring: u64,
    /// The ring's position behind the newest message that was applied.
    pub(crate) ring_position: u64,
    /// How many messages the filter has left to the queue that were received or dropped, less `message`; wraps.
    pub(crate) ring_offset: u64,
    pub(crate) last_id: u64,
    pub(crate) sequence: u64,
    /// How many closed flows were ever put into the ring.
    pub(crate) closed_total: u64,
    /// Events lost since the last resync.
    pub(crate) lost: u64,
    /// The number of the newest connection event.
    pub(crate) connections: u64,
    pub(crate) counters: Counters,
    /// Places of `RECORDS` and `EXTRAS` that were ever used.
    pub(crate) records: u32,
    pub(crate) extras: u32,
    pub(crate) names: u32,
    pub(crate) processes: u32,
    /// Active flows.
    pub(crate) active: u32,
    pub(crate) closed_count: u32,
    pub(crate) closed_capacity: u32,
    /// Which of `CLOSED` the closed flows lie in.
    pub(crate) closed_place: u32,
    pub(crate) stamp: u32,
    pub(crate) loss_stamp: u32,
    /// SK_MEMINFO_DROPS as last read.
    pub(crate) drops: u32,
    /// Why the table may differ from the kernel's: a `ResyncReason`, or 0 when it does not.
    pub(crate) resync: u32,
    /// Whether `ring_offset` is known: 1, or 0.
    pub(crate) ring_has_begun: u32,
    pub(super) padding: u32,
}

layout_of!(Header {
    magic,
    version,
    check,
    epoch,
    socket_cookie,
    message,
    ring,
    ring_position,
    ring_offset,
    last_id,
    sequence,
    closed_total,
    lost,
    connections,
    counters,
    records,
    extras,
    names,
    processes,
    active,
    closed_count,
    closed_capacity,
    closed_place,
    stamp,
    loss_stamp,
    drops,
    resync,
    ring_has_begun,
    padding,
});
layout_of!(OwnersEntry { owners, check, padding });
layout_of!(NameEntry { check, length, bytes });

/// The owners of a flow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct OwnersEntry {
    pub(super) owners: Owners,
    check: u32,
    padding: u32,
}

impl OwnersEntry {
    pub(super) fn new(owners: Owners) -> Self {
        Self { owners, check: 0, padding: 0 }
    }
}

/// One interned string.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct NameEntry {
    pub(super) check: u32,
    length: u8,
    bytes: [u8; 251],
}

impl NameEntry {
    /// An entry of the string's first 251 bytes; security contexts and helpers are shorter.
    pub(crate) fn new(text: &[u8]) -> Self {
        let mut bytes = [0; 251];
        let length = text.len().min(bytes.len());
        bytes[..length].copy_from_slice(&text[..length]);
        Self { check: 0, length: fit(length), bytes }
    }

    pub(crate) fn text(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length).min(self.bytes.len())]
    }
}

impl Checksummed for Header {
    const CHECK: usize = std::mem::offset_of!(Self, check);
}

impl Checksummed for OwnersEntry {
    const CHECK: usize = std::mem::offset_of!(Self, check);
}

impl Checksummed for NameEntry {
    const CHECK: usize = std::mem::offset_of!(Self, check);
}

//! What lies where in the memfd. Most of it is never touched and takes no memory.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::flow::{Extra, Owners, ProcessNumber, Record};
use crate::owners::ProcessEntry;
use crate::table::ClosedFlow;

/// A function for tests that shows name, offset and size of every field of a stored type. One that is left out does not
/// compile.
macro_rules! layout_of {
    ($type:ident { $($field:tt),* $(,)? }) => {
        #[cfg(test)]
        impl $type {
            pub(crate) fn layout() -> String {
                use std::fmt::Write;
                fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
                    size_of::<F>()
                }
                let _ = |$type { $($field: _),* }: $type| ();
                let mut text = format!("{} {}:", stringify!($type), size_of::<$type>());
                $(
                    let (at, size) = (std::mem::offset_of!($type, $field), size_of_field(|value: &$type| &value.$field));
                    let _ = write!(text, " {} {at}+{size}", stringify!($field));
                )*
                text
            }
        }
    };
}
pub(crate) use layout_of;

/// Grows with every change of the layout, of the types in it, or of the checksum.
pub(super) const VERSION: u32 = 3;
pub(super) const MAGIC: [u8; 8] = *b"flowbus\0";

const PAGE: usize = 4096;
const MIB: usize = 1024 * 1024;

/// So many messages are applied as one change, at most.
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
pub(super) const RECORDS: usize = 16 * MIB;
pub(super) const RECORDS_COUNT: usize = 1 << 24;
pub(super) const EXTRAS: usize = RECORDS + RECORDS_COUNT * size_of::<Record>();
/// Two places for the closed flows: when their capacity changes they move from one to the other.
pub(super) const CLOSED: [usize; 2] =
    [EXTRAS + RECORDS_COUNT * size_of::<Extra>(), EXTRAS + RECORDS_COUNT * size_of::<Extra>() + CLOSED_BYTES];
pub(super) const CLOSED_COUNT: usize = 1 << 20;
/// So many places more than there are closed flows: the next ones are written beside those that a kill would leave.
pub(super) const CLOSED_SPARE: usize = BATCH;
pub(super) const CLOSED_BYTES: usize =
    ((CLOSED_COUNT + CLOSED_SPARE) * size_of::<ClosedFlow>()).next_multiple_of(PAGE);
/// The owners of the flow in the same place of `RECORDS`; not touched while no flow has one.
pub(super) const OWNERS: usize = CLOSED[1] + CLOSED_BYTES;
pub(super) const PROCESSES: usize = OWNERS + RECORDS_COUNT * size_of::<OwnersEntry>();
pub(super) const PROCESSES_COUNT: usize = 1 << 17;
pub(super) const TOTAL: usize = PROCESSES + PROCESSES_COUNT * size_of::<ProcessEntry>();

const _: () = assert!(size_of::<Header>() <= UNDO - HEADER);
const _: () = assert!(NAMES + NAMES_COUNT * size_of::<NameEntry>() <= RECORDS);
const _: () = assert!(TOTAL.is_multiple_of(PAGE));
const _: () = assert!(PROCESSES_COUNT <= ProcessNumber::PLACES);

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
    /// Which of `CLOSED`.
    pub(crate) closed_place: u32,
    pub(crate) stamp: u32,
    pub(crate) loss_stamp: u32,
    /// SK_MEMINFO_DROPS as last read.
    pub(crate) drops: u32,
    /// Why the table may differ from the kernel's: a `ResyncReason`, or 0 when it does not.
    pub(crate) resync: u32,
}

/// What goes on counting over a restart, as GetStatistics names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Counters {
    pub(crate) events_new: u64,
    pub(crate) events_update: u64,
    pub(crate) events_destroy: u64,
    pub(crate) events_lost: u64,
    pub(crate) events_invalid: u64,
    pub(crate) events_foreign: u64,
    pub(crate) events_repeated: u64,
    pub(crate) unknown_attributes: u64,
    pub(crate) resyncs: u64,
    pub(crate) sweeps: u64,
    pub(crate) dumps: u64,
    pub(crate) closed_evicted: u64,
    pub(crate) names_refused: u64,
    pub(crate) flows_refused: u64,
    pub(crate) owners_unmatched_flows: u64,
    pub(crate) owners_unmatched_sockets: u64,
    pub(crate) owners_expired: u64,
    pub(crate) owners_refused: u64,
}

layout_of!(Header {
    magic,
    version,
    check,
    epoch,
    socket_cookie,
    message,
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
});
layout_of!(Counters {
    events_new,
    events_update,
    events_destroy,
    events_lost,
    events_invalid,
    events_foreign,
    events_repeated,
    unknown_attributes,
    resyncs,
    sweeps,
    dumps,
    closed_evicted,
    names_refused,
    flows_refused,
    owners_unmatched_flows,
    owners_unmatched_sockets,
    owners_expired,
    owners_refused,
});
layout_of!(OwnersEntry { owners, check, padding });
layout_of!(NameEntry { check, length, bytes });

impl Counters {
    /// Events that change how many flows there are.
    pub(crate) fn births_and_ends(&self) -> u64 {
        self.events_new + self.events_destroy
    }
}

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
        Self { check: 0, length: u8::try_from(length).unwrap_or(u8::MAX), bytes }
    }

    pub(crate) fn text(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length).min(self.bytes.len())]
    }
}

/// A value that carries a checksum of itself.
pub(crate) trait Checked: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {
    /// Where its checksum, a `u32`, stands in it.
    const CHECK: usize;

    /// Gives the bytes of one its checksum.
    fn seal(bytes: &mut [u8]) {
        let check = checksum::<Self>(bytes);
        bytes[Self::CHECK..Self::CHECK + size_of::<u32>()].copy_from_slice(&check.to_ne_bytes());
    }

    /// True when the checksum is right.
    fn is_sound(&self) -> bool {
        let bytes = self.as_bytes();
        bytes[Self::CHECK..Self::CHECK + size_of::<u32>()] == checksum::<Self>(bytes).to_ne_bytes()
    }
}

impl Checked for Header {
    const CHECK: usize = std::mem::offset_of!(Self, check);
}

impl Checked for OwnersEntry {
    const CHECK: usize = std::mem::offset_of!(Self, check);
}

impl Checked for NameEntry {
    const CHECK: usize = std::mem::offset_of!(Self, check);
}

/// Of all bytes but the checksum's own. Fast, and enough against what is not malice: nobody else can write the memfd.
fn checksum<T: Checked>(bytes: &[u8]) -> u32 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = foldhash::fast::FixedState::with_seed(0x666c_6f77).build_hasher();
    hasher.write(&bytes[..T::CHECK]);
    hasher.write(&bytes[T::CHECK + size_of::<u32>()..]);
    let hash = hasher.finish();
    // Never 0, so that a zeroed value is not sound.
    u32::try_from((hash ^ hash >> 32) & 0xffff_ffff).unwrap_or(0) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_this_version() {
        // When this fails the function has changed: VERSION has to grow with it.
        assert_eq!(checksum::<NameEntry>(NameEntry::new(b"the state of a flow table").as_bytes()), PINNED);
    }

    const PINNED: u32 = 1_943_567_057;
}

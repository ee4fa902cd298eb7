//! The table's memory: a memfd that outlives the process, so that a restart after SIGKILL at any instant goes on
//! where the last one was.
//!
//! Flows lie in the memfd and nowhere else; indexes are built from them at start. A change is a transaction:
//! before a place is written its old bytes go to the undo log, and [`State::commit`] empties the log. Whoever finds
//! a log that is not empty rolls it back. A process that is killed has executed a prefix of its program, so the
//! order of the writes, kept by compiler fences, is all that this takes.

mod ends;
mod inbox;
mod layout;
mod mapping;
#[cfg(test)]
mod pins;
mod recovery;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, ftruncate,
    memfd_create,
};
use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, KnownLayout};

use crate::checksum::Checksummed;
use crate::flow::{ClosedFlow, Extra, Owners, ProcessEntry, Record};
pub(crate) use ends::KNOWN_ENDS;
use flowbus_interfaces::fit;
pub(crate) use inbox::Inbox;
pub(crate) use layout::{BATCH, Header, NameEntry};
use layout::{
    CLOSED, CLOSED_BYTES, CLOSED_SPARE, EXTRAS, HEADER, MAGIC, NAMES, OWNERS, OwnersEntry, PROCESSES,
    RECORDS, RECORDS_COUNT, TOTAL, UNDO, UNDO_END, VERSION,
};
use mapping::Mapping;
pub(crate) use recovery::Refused;

/// The most active flows that there is room for.
pub(crate) const MAXIMUM_FLOWS: usize = RECORDS_COUNT;
/// The most interned strings.
pub(crate) const MAXIMUM_NAMES: usize = layout::NAMES_COUNT;
/// The most processes.
pub(crate) const MAXIMUM_PROCESSES: usize = layout::PROCESSES_COUNT;

/// The restart state, mapped into memory.
#[derive(Debug)]
pub(crate) struct State {
    memfd: OwnedFd,
    map: Mapping,
    /// The header, which [`State::commit`] writes out.
    pub(crate) header: Header,
    /// Bytes of the undo log that are in use.
    undo: usize,
    /// Whether the log was full once, which is logged once.
    overfull: bool,
}

impl State {
    /// An empty state of a new epoch, in a memfd of its own.
    pub(crate) fn create() -> Result<Self, Errno> {
        Self::format(new_memfd()?)
    }

    /// An empty state of a new epoch in this empty memfd.
    fn format(memfd: OwnedFd) -> Result<Self, Errno> {
        ftruncate(&memfd, TOTAL as u64)?;
        seal(&memfd)?;
        let map = Mapping::new(memfd.as_fd(), 0, TOTAL)?;
        let mut epoch = [0; 16];
        rustix::rand::getrandom(&mut epoch, rustix::rand::GetRandomFlags::empty())?;
        let header = Header { magic: MAGIC, version: VERSION, epoch, stamp: 1, ..Header::new_zeroed() };
        let mut state = Self { memfd, map, header, undo: 0, overfull: false };
        state.commit();
        Ok(state)
    }

    /// The memfd, to be kept for the next life.
    pub(crate) fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    /// Where the event socket's messages are received.
    pub(crate) fn inbox(&self) -> Result<Inbox, Errno> {
        Inbox::new(self.memfd.as_fd(), self.header.message)
    }

    /// The epoch in 32 hexadecimal digits.
    pub(crate) fn epoch(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.header.epoch))
    }

    pub(crate) fn record(&self, slot: u32) -> &Record {
        self.read(RECORDS + slot as usize * size_of::<Record>())
    }

    /// Replaces a record.
    pub(crate) fn put_record(&mut self, slot: u32, record: &Record) {
        self.write(RECORDS + slot as usize * size_of::<Record>(), record);
    }

    /// Fills a slot that was free at the last commit, or one behind all that were ever used.
    pub(crate) fn add_record(&mut self, slot: u32, record: &Record) {
        let offset = RECORDS + slot as usize * size_of::<Record>();
        if slot < self.header.records {
            // What makes it free is the id alone.
            self.save(offset + Record::ID_OFFSET, size_of::<u64>());
        } else {
            self.header.records = slot + 1;
        }
        self.put(offset, record);
    }

    /// Makes the slot of a record free: no flow has the id 0.
    pub(crate) fn clear_record(&mut self, slot: u32) {
        let id = RECORDS + slot as usize * size_of::<Record>() + Record::ID_OFFSET;
        self.save(id, size_of::<u64>());
        self.put_number(id, 0);
    }

    pub(crate) fn extra(&self, slot: u32) -> &Extra {
        self.read(EXTRAS + slot as usize * size_of::<Extra>())
    }

    /// Fills or replaces an extra part; a slot is free when no record names it.
    pub(crate) fn put_extra(&mut self, slot: u32, extra: &Extra) {
        self.header.extras = self.header.extras.max(slot + 1);
        self.write(EXTRAS + slot as usize * size_of::<Extra>(), extra);
    }

    /// The owners of the flow in this slot, which its record says to have some.
    pub(crate) fn owners(&self, slot: u32) -> Owners {
        self.owners_entry(slot).owners
    }

    fn owners_entry(&self, slot: u32) -> &OwnersEntry {
        self.read(OWNERS + slot as usize * size_of::<OwnersEntry>())
    }

    pub(crate) fn put_owners(&mut self, slot: u32, owners: Owners) {
        self.write(OWNERS + slot as usize * size_of::<OwnersEntry>(), &OwnersEntry::new(owners));
    }

    /// The process in this slot.
    pub(crate) fn process(&self, slot: u32) -> &ProcessEntry {
        self.read(PROCESSES + slot as usize * size_of::<ProcessEntry>())
    }

    pub(crate) fn put_process(&mut self, slot: u32, process: &ProcessEntry) {
        self.header.processes = self.header.processes.max(slot + 1);
        self.write(PROCESSES + slot as usize * size_of::<ProcessEntry>(), process);
    }

    /// The closed flow with this number, counted from the first that ever ended.
    pub(crate) fn closed(&self, number: u64) -> &ClosedFlow {
        self.read(self.closed_offset(number))
    }

    /// Adds a closed flow. Its place is one that the ring has beyond its capacity: nothing to be undone refers to it,
    /// unless this change has closed more flows than there are such places.
    pub(crate) fn add_closed(&mut self, flow: &ClosedFlow) {
        let number = self.header.closed_total;
        let offset = self.closed_offset(number);
        if number < self.read::<Header>(HEADER).closed_total + CLOSED_SPARE as u64 {
            self.put(offset, flow);
        } else {
            self.write(offset, flow);
        }
        self.header.closed_total += 1;
        self.header.closed_count += 1;
    }

    fn closed_offset(&self, number: u64) -> usize {
        ring_offset(self.header.closed_place, self.header.closed_capacity, number)
    }

    /// Moves the closed flows, the newest that fit, to a ring of another capacity.
    pub(crate) fn resize_closed(&mut self, capacity: u32) {
        let header = self.header;
        let kept = header.closed_count.min(capacity);
        let first = header.closed_total - u64::from(kept);
        let place = 1 - header.closed_place;
        for number in first..header.closed_total {
            let flow = *self.closed(number);
            self.put(ring_offset(place, capacity, number), &flow);
        }
        // Until here nothing refers to the new place, from here on nothing to the old one.
        self.header.closed_place = place;
        self.header.closed_capacity = capacity;
        self.header.closed_count = kept;
        self.commit();
        let old = ring_offset(header.closed_place, 0, 0) as u64;
        let length = CLOSED_BYTES as u64;
        // Where this fails the old place's memory stays in use, nothing else.
        let _ = fallocate(&self.memfd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, old, length);
    }

    pub(crate) fn name(&self, index: usize) -> &NameEntry {
        self.read(NAMES + index * size_of::<NameEntry>())
    }

    /// Appends a string; there are fewer than [`MAXIMUM_NAMES`].
    pub(crate) fn push_name(&mut self, text: &[u8]) {
        // Nothing refers to the place before the header counts it.
        self.put(NAMES + self.header.names as usize * size_of::<NameEntry>(), &NameEntry::new(text));
        self.header.names += 1;
    }

    /// Makes what was written since the last commit, and the header, what the next life finds.
    pub(crate) fn commit(&mut self) {
        let header = self.header;
        self.write(HEADER, &header);
        self.end_undo();
    }

    fn read<T: FromBytes + Immutable + KnownLayout>(&self, offset: usize) -> &T {
        match T::ref_from_bytes(&self.map[offset..offset + size_of::<T>()]) {
            Ok(value) => value,
            Err(_) => unreachable!("every place of the layout is aligned"),
        }
    }

    /// Writes a value, its place's old bytes first into the undo log.
    fn write<T: Checksummed>(&mut self, offset: usize, value: &T) {
        self.save(offset, size_of::<T>());
        self.put(offset, value);
    }

    fn put<T: Checksummed>(&mut self, offset: usize, value: &T) {
        let place = &mut self.map[offset..offset + size_of::<T>()];
        place.copy_from_slice(value.as_bytes());
        T::write_checksum(place);
    }

    fn put_number(&mut self, offset: usize, number: u64) {
        self.map[offset..offset + size_of::<u64>()].copy_from_slice(&number.to_ne_bytes());
    }

    /// Appends the bytes at `offset` to the undo log: its length, then entries of offset, length and bytes. The entry counts once
    /// the length is written, which comes last. A kill before that leaves a place that nothing has been written to, a kill after
    /// it one that the next life restores; `commit` ends the change by writing the length 0.
    fn save(&mut self, offset: usize, length: usize) {
        if UNDO + 8 + self.undo + 16 + length > UNDO_END {
            // More than a batch of messages needs: a kill before the end of this change costs the state.
            if !std::mem::replace(&mut self.overfull, true) {
                tracing::error!(
                    "a change is larger than the undo log of the restart state: a flowbusd that is killed in the middle of it \
                     begins anew; this is a bug, please report it"
                );
            }
            self.end_undo();
        }
        let entry = UNDO + 8 + self.undo;
        let end = entry + 16 + length;
        self.put_number(entry, offset as u64);
        self.put_number(entry + 8, length as u64);
        self.map.copy_within(offset..offset + length, entry + 16);
        self.undo = end - UNDO - 8;
        compiler_fence(Ordering::SeqCst);
        self.put_number(UNDO, self.undo as u64);
        compiler_fence(Ordering::SeqCst);
    }

    fn end_undo(&mut self) {
        self.undo = 0;
        compiler_fence(Ordering::SeqCst);
        self.put_number(UNDO, 0);
        compiler_fence(Ordering::SeqCst);
    }
}

/// Where the closed flow with this number lies in a ring of this capacity, which has some places more.
fn ring_offset(place: u32, capacity: u32, number: u64) -> usize {
    let index: usize = fit(number % (u64::from(capacity) + CLOSED_SPARE as u64));
    CLOSED[place as usize % CLOSED.len()] + index * size_of::<ClosedFlow>()
}

fn new_memfd() -> Result<OwnedFd, Errno> {
    memfd_create("flowbusd-state", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
}

/// Nobody shall cut the file under the mapping, or forbid the next life to write in it.
fn seal(memfd: &OwnedFd) -> Result<(), Errno> {
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    if fcntl_get_seals(memfd)?.contains(seals) { Ok(()) } else { fcntl_add_seals(memfd, seals) }
}

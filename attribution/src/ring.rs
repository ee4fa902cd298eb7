//! The ring that the programs write into, read where it lies: shared memory and a descriptor to wait for, no bpf().
//!
//! `kernel/bpf/ringbuf.c`: a page with the reader's position, which the reader writes; a page with the writers' position,
//! then the data, which it may only read. Positions grow for ever, modulo the size of the data they are offsets. A record
//! is a header of 8 bytes (its length, and two bits), then its bytes, rounded up to 8.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use rustix::mm::{MapFlags, ProtFlags};

use crate::descriptors::{DescriptorError, Programs};
use crate::event::Message;
use crate::record::{self, LARGEST_RECORD_BYTES};

/// In a record's length: its writer has not finished.
const BUSY: u32 = 1 << 31;
/// In a record's length: its writer gave it up.
const DISCARDED: u32 = 1 << 30;
const HEADER_BYTES: u64 = 8;

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The kernel did not map it.
    #[error("the {what} cannot be mapped: {source}")]
    Map {
        /// Which part.
        what: &'static str,
        /// The kernel's answer.
        source: rustix::io::Errno,
    },
    /// The report does not tell how large the ring is.
    #[error(transparent)]
    Report(#[from] DescriptorError),
    /// The report is of another ring.
    #[error("a ring of {0} bytes: a power of two is needed, and at least a page")]
    Size(usize),
    /// There are too many descriptors.
    #[error("the ring's descriptor cannot be copied: {0}")]
    Copy(std::io::Error),
}

/// Memory shared with the kernel. It is unmapped when it is dropped.
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread, and is reached through `&mut` or by atomic reads.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(
        map: BorrowedFd<'_>,
        what: &'static str,
        length: usize,
        protection: ProtFlags,
        offset: usize,
    ) -> Result<Self, RingError> {
        let none = std::ptr::null_mut();
        // SAFETY: the kernel chooses a place that is free. It maps no more than the map has, whose size never changes, so
        // that no access within the mapping can fault.
        let start =
            unsafe { rustix::mm::mmap(none, length, protection, MapFlags::SHARED, map, offset as u64) };
        let start = start.map_err(|source| RingError::Map { what, source })?;
        let start =
            NonNull::new(start.cast()).ok_or(RingError::Map { what, source: rustix::io::Errno::FAULT })?;
        Ok(Self { start, length })
    }

    /// A number that the kernel writes, or reads, meanwhile.
    fn position(&self, offset: usize) -> &AtomicU64 {
        assert!(offset + 8 <= self.length && offset.is_multiple_of(8), "a position lies in the mapping");
        // SAFETY: within the mapping and aligned, as was just seen. All access is atomic, here and in the kernel; where
        // the mapping is for reading only, nobody calls `store`.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    /// The first half of a record's header.
    fn header(&self, offset: usize) -> &AtomicU32 {
        assert!(offset + 4 <= self.length && offset.is_multiple_of(4), "a header lies in the mapping");
        // SAFETY: as for `position`.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    /// Appends bytes that nobody writes meanwhile.
    fn copy(&self, offset: usize, length: usize, to: &mut Vec<u8>) {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length), "bytes lie in the mapping");
        // SAFETY: within the mapping, as was just seen. The kernel does not write what was committed until the reader's
        // position has passed it, which `drain` sets after it has copied.
        to.extend_from_slice(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset), length) });
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and references into it have ended with `self`. A failure would leave it mapped.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// The reader of the ring. There can be only one.
///
/// The kernel makes the descriptor readable for the first record after all was read, and for no other. So wait, let
/// records gather for about 5 ms, and call [`Ring::drain`]: without that pause the wake-ups cost the machine more than
/// the programs do. When nothing happens there are none.
pub struct Ring {
    descriptor: OwnedFd,
    reader: Mapping,
    /// The writers' page, then the data, once: the kernel would map the data twice, so that records that wrap lie in one
    /// piece, but that counts twice in the process's memory.
    writers: Mapping,
    page: usize,
    /// Bytes of the data; a power of two.
    size: usize,
    bytes: Vec<u8>,
    text: String,
    unreadable: u64,
    held_back: bool,
    was_full: bool,
}

impl Ring {
    /// Maps the ring of these programs, to be read on from where an earlier reader has left it.
    ///
    /// # Errors
    ///
    /// The descriptor is of something else, or the kernel refuses to map it.
    pub fn map(programs: &Programs) -> Result<Self, RingError> {
        let (page, size) = (rustix::param::page_size(), programs.report()?.ring_bytes);
        if !size.is_power_of_two() || size < page {
            return Err(RingError::Size(size));
        }
        let (ring, both) = (programs.ring.as_fd(), ProtFlags::READ | ProtFlags::WRITE);
        Ok(Self {
            descriptor: ring.try_clone_to_owned().map_err(RingError::Copy)?,
            reader: Mapping::new(ring, "reader's page of the ring", page, both, 0)?,
            writers: Mapping::new(ring, "ring", page + size, ProtFlags::READ, page)?,
            page,
            size,
            bytes: Vec::with_capacity(LARGEST_RECORD_BYTES),
            text: String::new(),
            unreadable: 0,
            held_back: false,
            was_full: false,
        })
    }

    /// Records that made no sense, since this reader began: 0, unless the programs are not ours.
    #[must_use]
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// True where the last [`Ring::drain`] ended before a record whose writer had not finished: others behind it can be
    /// older than that call.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.held_back
    }

    /// True where the ring was so full since this was last asked that records may have been dropped.
    pub fn take_was_full(&mut self) -> bool {
        std::mem::take(&mut self.was_full)
    }

    /// Reads what is there, oldest first, and what is written meanwhile. False where it stopped with something left,
    /// because more came than the ring holds: call it again, the descriptor does not become readable for that.
    #[must_use]
    pub fn drain(&mut self, mut each: impl FnMut(Message<'_>)) -> bool {
        let start = self.start();
        let mut position = start;
        self.held_back = false;
        while position.wrapping_sub(start) < self.size as u64 {
            let next = self.read_finished(position, &mut each);
            if next == position {
                return true;
            }
            position = next;
            self.reader.position(0).store(position, Ordering::Release);
            // A writer either sees the new position and wakes us, or was done before and is seen in the next round: that
            // holds only if the load of the next round stays behind this store.
            fence(Ordering::SeqCst);
        }
        false
    }

    /// Where the last reader has left it. One that was not ours may have left anything: then all that waits is passed over.
    fn start(&mut self) -> u64 {
        let position = self.reader.position(0).load(Ordering::Relaxed);
        let written = self.writers.position(0).load(Ordering::Acquire);
        if position.is_multiple_of(8) && written.wrapping_sub(position) <= self.size as u64 {
            return position;
        }
        self.unreadable += 1;
        self.reader.position(0).store(written, Ordering::Release);
        written
    }

    /// Reads the finished records from `position` to the writers' position, and returns where it ended: there, or before
    /// a record whose writer has not finished, which wakes us when it has.
    fn read_finished(&mut self, position: u64, each: &mut impl FnMut(Message<'_>)) -> u64 {
        let written = self.writers.position(0).load(Ordering::Acquire);
        let mut left = written.wrapping_sub(position);
        self.was_full |= left + HEADER_BYTES + LARGEST_RECORD_BYTES as u64 > self.size as u64;
        while left > 0 {
            let position = written.wrapping_sub(left);
            let Some(header) = self.finished(position) else {
                self.held_back = true;
                break;
            };
            let length = header & !DISCARDED;
            if header & DISCARDED == 0 {
                self.read_record(position.wrapping_add(HEADER_BYTES), length, each);
            }
            // A length that is not true leads nowhere: what is left cannot be found.
            left = left.saturating_sub((HEADER_BYTES + u64::from(length)).next_multiple_of(8));
        }
        written.wrapping_sub(left)
    }

    /// The header of a record, once its writer has finished. It takes a fraction of a microsecond to do so, unless it was
    /// interrupted.
    fn finished(&self, position: u64) -> Option<u32> {
        const PATIENCE: usize = 256;
        let header = self.writers.header(self.offset(position));
        for _ in 0..PATIENCE {
            let header = header.load(Ordering::Acquire);
            if header & BUSY == 0 {
                return Some(header);
            }
            std::hint::spin_loop();
        }
        None
    }

    fn read_record(&mut self, position: u64, length: u32, each: &mut impl FnMut(Message<'_>)) {
        self.copy(position, length);
        match record::decode(&self.bytes, &mut self.text) {
            Some(message) => each(message),
            None => self.unreadable += 1,
        }
    }

    /// Where a position lies in the mapping of the writers.
    #[expect(clippy::cast_possible_truncation, reason = "what is cut off is cut off by the mask too")]
    fn offset(&self, position: u64) -> usize {
        self.page + (position as usize & (self.size - 1))
    }

    /// The bytes of a record, which may go on at the beginning of the data. More than the largest of ours are cut off.
    fn copy(&mut self, position: u64, length: u32) {
        let length = (length as usize).min(LARGEST_RECORD_BYTES);
        let start = self.offset(position);
        let first = length.min(self.page + self.size - start);
        self.bytes.clear();
        self.writers.copy(start, first, &mut self.bytes);
        self.writers.copy(self.page, length - first, &mut self.bytes);
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// An array of numbers that the programs count in.
pub(crate) struct SharedNumbers(Mapping);

impl SharedNumbers {
    /// Maps the first `length` bytes of an array.
    pub(crate) fn map(descriptor: BorrowedFd<'_>, length: usize) -> Result<Self, RingError> {
        let length = length.next_multiple_of(rustix::param::page_size());
        Mapping::new(descriptor, "array of counters", length, ProtFlags::READ, 0).map(Self)
    }

    /// The number at `offset` bytes from the start.
    pub(crate) fn at(&self, offset: usize) -> u64 {
        self.0.position(offset).load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;

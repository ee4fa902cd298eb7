//! The ring that the programs write into, read where it lies: shared memory and a descriptor to wait for, no bpf().
//!
//! `kernel/bpf/ringbuf.c`: a page with the reader's position, which the reader writes; a page with the writers' position,
//! then the data, which it may only read. Positions grow for ever, modulo the size of the data they are offsets. A record
//! is a header of 8 bytes (its length, and two bits), then its bytes, rounded up to 8.

mod raw;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};

use rustix::mm::ProtFlags;

use crate::descriptors::{DescriptorError, Programs};
use crate::event::Message;
use crate::record::{self, LARGEST_RECORD_BYTES};
pub(crate) use raw::{DISCARDED, HEADER_BYTES, LONGEST_IN_ONE_PIECE, Mapping, RawRing, whole_length};

const _: () = assert!(LARGEST_RECORD_BYTES <= LONGEST_IN_ONE_PIECE);

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

/// The reader of the ring. There can be only one.
///
/// The kernel makes the descriptor readable for the first record after all was read, and for no other. So wait, let
/// records gather for about 5 ms, and call [`Ring::drain`]: without that pause the wake-ups cost the machine more than
/// the programs do. When nothing happens there are none.
pub struct Ring {
    raw: RawRing,
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
        Ok(Self {
            raw: RawRing::map(programs.ring.as_fd(), programs.report()?.ring_bytes)?,
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
        while position.wrapping_sub(start) < self.raw.size() as u64 {
            let next = self.read_finished(position, &mut each);
            if next == position {
                return true;
            }
            position = next;
            self.raw.set_read(position);
            // A writer either sees the new position and wakes us, or was done before and is seen in the next round: that
            // holds only if the load of the next round stays behind this store.
            fence(Ordering::SeqCst);
        }
        false
    }

    /// Where the last reader has left it. One that was not ours may have left anything: then all that waits is passed over.
    fn start(&mut self) -> u64 {
        if let Some(position) = self.raw.start() {
            return position;
        }
        let written = self.raw.written();
        self.unreadable += 1;
        self.raw.set_read(written);
        written
    }

    /// Reads the finished records from `position` to the writers' position, and returns where it ended: there, or before
    /// a record whose writer has not finished, which wakes us when it has.
    fn read_finished(&mut self, position: u64, each: &mut impl FnMut(Message<'_>)) -> u64 {
        let written = self.raw.written();
        let mut left = written.wrapping_sub(position);
        self.was_full |= left + HEADER_BYTES + LARGEST_RECORD_BYTES as u64 > self.raw.size() as u64;
        while left > 0 {
            let position = written.wrapping_sub(left);
            let Some(header) = self.raw.finished(position) else {
                self.held_back = true;
                break;
            };
            let length = header & !DISCARDED;
            if header & DISCARDED == 0 {
                // No record goes beyond the writers' position, where they may be writing.
                let most = u32::try_from(left - HEADER_BYTES).unwrap_or(u32::MAX);
                self.read_record(position.wrapping_add(HEADER_BYTES), length.min(most), each);
            }
            // A length that is not true leads nowhere: what is left cannot be found.
            left = left.saturating_sub(whole_length(header));
        }
        written.wrapping_sub(left)
    }

    fn read_record(&mut self, position: u64, length: u32, each: &mut impl FnMut(Message<'_>)) {
        // More than the largest of ours are cut off.
        let bytes = self.raw.bytes(position, (length as usize).min(LARGEST_RECORD_BYTES));
        match bytes.and_then(|bytes| record::decode(bytes, &mut self.text)) {
            Some(message) => each(message),
            None => self.unreadable += 1,
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
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

//! Memory that BPF programs and their reader share, and a ring in it. The one file that reads it: all of its unsafe code is here.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use super::RingError;

/// In a record's length: its writer has not finished.
pub(crate) const BUSY: u32 = 1 << 31;
/// In a record's length: its writer gave it up.
pub(crate) const DISCARDED: u32 = 1 << 30;
pub(crate) const HEADER_BYTES: u64 = 8;
/// No record of ours is longer.
pub(crate) const LONGEST_IN_ONE_PIECE: usize = 8192;

/// How many bytes a record has with this header, its header among them.
pub(crate) fn whole_length(header: u32) -> u64 {
    (HEADER_BYTES + u64::from(header & !(BUSY | DISCARDED))).next_multiple_of(8)
}

/// Memory shared with the kernel. It is unmapped when it is dropped.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread, and is reached through `&mut` or by atomic reads.
unsafe impl Send for Mapping {}

impl Mapping {
    pub(crate) fn new(
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
    pub(crate) fn position(&self, offset: usize) -> &AtomicU64 {
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

    /// Bytes between the reader's position and the writers', of a record that its writer has finished; `None` where they would not lie in the mapping.
    fn bytes(&self, offset: usize, length: usize) -> Option<&[u8]> {
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return None;
        }
        // SAFETY: within the mapping, as was just seen. The kernel does not write what was committed until the reader's
        // position has passed it. To set that takes the ring as `&mut`, which nobody has while these bytes are borrowed.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset), length) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and references into it have ended with `self`. A failure would leave it mapped.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A ring's positions and data. Positions grow for ever; modulo the size of the data they are offsets.
pub(crate) struct RawRing {
    descriptor: OwnedFd,
    reader: Mapping,
    /// The writers' page, then the data, then the data's beginning again, so that records that wrap lie in one piece. The kernel
    /// would map all of the data again, but that counts twice in the process's memory.
    writers: Mapping,
    page: usize,
    /// Bytes of the data; a power of two.
    size: usize,
}

impl RawRing {
    /// Maps a ring of `size` bytes.
    pub(crate) fn map(ring: BorrowedFd<'_>, size: usize) -> Result<Self, RingError> {
        let page = rustix::param::page_size();
        if !size.is_power_of_two() || size < page {
            return Err(RingError::Size(size));
        }
        let both = ProtFlags::READ | ProtFlags::WRITE;
        let again = LONGEST_IN_ONE_PIECE.next_multiple_of(page).min(size);
        Ok(Self {
            descriptor: ring.try_clone_to_owned().map_err(RingError::Copy)?,
            reader: Mapping::new(ring, "reader's page of the ring", page, both, 0)?,
            writers: Mapping::new(ring, "ring", page + size + again, ProtFlags::READ, page)?,
            page,
            size,
        })
    }

    /// Bytes of the data.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The writers' position.
    pub(crate) fn written(&self) -> u64 {
        self.writers.position(0).load(Ordering::Acquire)
    }

    /// The reader's position.
    pub(crate) fn read(&self) -> u64 {
        self.reader.position(0).load(Ordering::Relaxed)
    }

    /// Sets the reader's position, and with it leaves what is before it to the writers.
    pub(crate) fn set_read(&mut self, position: u64) {
        self.reader.position(0).store(position, Ordering::Release);
    }

    /// Where the last reader has left the ring; `None` where it can have left it like that only if it was not ours.
    pub(crate) fn start(&self) -> Option<u64> {
        let position = self.read();
        self.is_within(position).then_some(position)
    }

    /// Whether this position is not before the reader's, and not behind the writers'.
    pub(crate) fn is_within(&self, position: u64) -> bool {
        let (read, written) = (self.read(), self.written());
        let left = written.wrapping_sub(read);
        position.is_multiple_of(8) && left <= self.size as u64 && written.wrapping_sub(position) <= left
    }

    /// Whether a record begins at this position: from record to record it leads to the writers' position.
    pub(crate) fn begins_record(&self, position: u64) -> bool {
        if !self.is_within(position) {
            return false;
        }
        let (written, mut at) = (self.written(), position);
        while written.wrapping_sub(at) <= self.size as u64 {
            if at == written {
                return true;
            }
            let header = self.writers.header(self.offset(at)).load(Ordering::Acquire);
            if whole_length(header) == HEADER_BYTES {
                // No record is empty; what is left of one's size may be zeros.
                return false;
            }
            at = at.wrapping_add(whole_length(header));
        }
        false
    }

    /// The header of a record, once its writer has finished. It takes a fraction of a microsecond to do so, unless it was
    /// interrupted.
    pub(crate) fn finished(&self, position: u64) -> Option<u32> {
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

    /// The bytes of a finished record at a position, all of which lie between the reader's position and the writers'. `None` where they are more than
    /// [`LONGEST_IN_ONE_PIECE`] and do not lie in one piece.
    pub(crate) fn bytes(&self, position: u64, length: usize) -> Option<&[u8]> {
        self.writers.bytes(self.offset(position), length)
    }

    /// Where a position lies in the mapping of the writers.
    #[expect(clippy::cast_possible_truncation, reason = "what is cut off is cut off by the mask too")]
    fn offset(&self, position: u64) -> usize {
        self.page + (position as usize & (self.size - 1))
    }
}

impl AsFd for RawRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

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

    /// Copies bytes that nobody writes meanwhile.
    fn copy(&self, offset: usize, to: &mut [u8]) {
        let end = offset.checked_add(to.len());
        assert!(end.is_some_and(|end| end <= self.length), "bytes lie in the mapping");
        // SAFETY: within the mapping, as was just seen. The kernel does not write what was committed until the reader's
        // position has passed it, which is set after this has copied.
        to.copy_from_slice(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset), to.len()) });
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
    /// The writers' page, then the data, once: the kernel would map the data twice, so that records that wrap lie in one
    /// piece, but that counts twice in the process's memory.
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
        Ok(Self {
            descriptor: ring.try_clone_to_owned().map_err(RingError::Copy)?,
            reader: Mapping::new(ring, "reader's page of the ring", page, both, 0)?,
            writers: Mapping::new(ring, "ring", page + size, ProtFlags::READ, page)?,
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
        let (position, written) = (self.read(), self.written());
        let is_sound = position.is_multiple_of(8) && written.wrapping_sub(position) <= self.size as u64;
        is_sound.then_some(position)
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

    /// Copies the bytes at a position, at most those of the whole ring. They may go on at the beginning of the data.
    pub(crate) fn copy(&self, position: u64, to: &mut [u8]) {
        let start = self.offset(position);
        let first = to.len().min(self.page + self.size - start);
        let (first, rest) = to.split_at_mut(first);
        self.writers.copy(start, first);
        self.writers.copy(self.page, rest);
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

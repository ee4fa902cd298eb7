//! A memfd in memory. Its unsafe code is for mmap.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A range of a file that is shared with whoever has the file. It must not shrink while it is mapped: that is what
/// the memfd's seal is for.
#[derive(Debug)]
pub(super) struct Mapping {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is memory of this process that nothing else points to; it may move to another thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `length` bytes from `offset`, both multiples of the page size.
    pub(super) fn new(file: BorrowedFd<'_>, offset: usize, length: usize) -> Result<Self, Errno> {
        // Pages come into being at their first use: the range is far larger than what is used of it.
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                file.as_fd(),
                offset as u64,
            )?
        };
        let address = NonNull::new(address.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { address, length })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is mapped and readable until drop; the kernel zeroes new pages, so every byte is initialized.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.length) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and writable; the borrow of self keeps it the only one in this process.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and no borrow of it outlives self.
        // munmap fails only for ranges that are not mapped.
        let _ = unsafe { munmap(self.address.as_ptr().cast(), self.length) };
    }
}

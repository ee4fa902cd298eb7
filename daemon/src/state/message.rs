//! The message that was received and not yet applied: it survives a kill as well.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::io::Errno;

use super::layout::{MESSAGE, MESSAGE_END};
use super::mapping::Mapping;

/// A place that the kernel writes one message to. Before each read its number grows and its length is cleared; the
/// header takes the number over when the message is applied. So a message with a length and a number that the
/// header does not have was received and not applied.
#[derive(Debug)]
pub(crate) struct MessageSlot {
    map: Mapping,
    number: u64,
}

/// The number stands first.
const DATA: usize = 8;

impl MessageSlot {
    /// `applied` is the number of the last message that was applied.
    pub(super) fn new(memfd: BorrowedFd<'_>, applied: u64) -> Result<Self, Errno> {
        let mut map = Mapping::new(memfd, MESSAGE, MESSAGE_END - MESSAGE)?;
        // Touched now, so that no read of the kernel meets a page that is not there.
        for page in map.chunks_mut(4096) {
            if let Some(byte) = page.last_mut() {
                *byte = std::hint::black_box(*byte);
            }
        }
        Ok(Self { map, number: applied })
    }

    /// The message that an earlier life received and did not apply, and its number.
    pub(crate) fn pending(&mut self) -> Option<(&[u8], u64)> {
        let number = u64::from_ne_bytes(self.map[..DATA].try_into().ok()?);
        let length = u32::from_ne_bytes(self.map[DATA..DATA + 4].try_into().ok()?) as usize;
        if number <= self.number || length == 0 {
            return None;
        }
        self.number = number;
        Some((self.map.get(DATA..DATA + length)?, number))
    }

    /// The cleared place for the next message.
    pub(crate) fn prepare(&mut self) -> &mut [u8] {
        // The length goes first: a number without a message means nothing, an old message with a new number a lot.
        self.map[DATA..DATA + 4].fill(0);
        compiler_fence(Ordering::SeqCst);
        self.number += 1;
        self.map[..DATA].copy_from_slice(&self.number.to_ne_bytes());
        compiler_fence(Ordering::SeqCst);
        &mut self.map[DATA..]
    }

    /// Forgets what was received: it is not from the kernel, or not whole. Whoever is killed before this may be one who
    /// believes it in the next life; only root can send such a message.
    pub(crate) fn discard(&mut self) {
        self.map[DATA..DATA + 4].fill(0);
        compiler_fence(Ordering::SeqCst);
    }

    /// The message that was received.
    pub(crate) fn message(&self, length: usize) -> &[u8] {
        &self.map[DATA..(DATA + length).min(self.map.len())]
    }

    /// The number of the message that was received.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

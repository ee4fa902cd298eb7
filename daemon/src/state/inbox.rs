//! The messages that were received and not yet applied: they survive a kill as well.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::io::Errno;

use super::layout::{BATCH, INBOX, INBOX_END};
use super::mapping::Mapping;

/// Where the kernel writes messages to, one behind the other, a batch of at most [`BATCH`] at a time: what they need is
/// looked up for all of them before the first is applied.
///
/// A message that was received is in no socket any more, so a kill before it is applied must not lose it, nor one after that repeat
/// it. The kernel writes it into memory that the next life has, behind a number that is larger by one than that of the message
/// before, and the change that applies it writes the number to the header. So the next life begins at the front: what has a length
/// and numbers in a row was received, and of that what has a larger number than the header was not applied.
///
/// The order of the stores makes that true. [`Inbox::prepare`] clears the length before it writes the number: a number without a
/// message means nothing, but an old message with a new number would be applied twice. [`Inbox::keep`] clears the length behind
/// the message, so that nothing of an older batch seems to follow it.
#[derive(Debug)]
pub(crate) struct Inbox {
    map: Mapping,
    /// Number of the newest message.
    number: u64,
    /// Where the messages of this batch are.
    messages: Vec<Range<usize>>,
}

/// Room for the longest datagram that the kernel makes is left before it is asked for one.
const LONGEST: usize = 32 * 1024;
/// A message stands behind its number, and begins with its length.
const NUMBER: usize = 8;
const LENGTH: usize = 4;

impl Inbox {
    /// Maps the inbox, with the messages in it that came after the one with the number `applied`.
    pub(super) fn new(memfd: BorrowedFd<'_>, applied: u64) -> Result<Self, Errno> {
        let mut map = Mapping::new(memfd, INBOX, INBOX_END - INBOX)?;
        // Touched now, so that no read of the kernel meets a page that is not there.
        for page in map.chunks_mut(4096) {
            if let Some(byte) = page.last_mut() {
                *byte = std::hint::black_box(*byte);
            }
        }
        let mut inbox = Self { map, number: applied, messages: Vec::with_capacity(BATCH) };
        inbox.find_pending(applied);
        Ok(inbox)
    }

    fn find_pending(&mut self, applied: u64) {
        let (mut offset, mut last) = (0, None);
        while let Some((number, message)) = self.message_at(offset)
            && last.is_none_or(|last| number == last + 1)
        {
            last = Some(number);
            offset = next_offset(&message);
            if number > applied {
                self.messages.push(message);
                self.number = number;
            }
        }
    }

    /// The number of what stands here, and where its message is; `None` where there is none.
    fn message_at(&self, offset: usize) -> Option<(u64, Range<usize>)> {
        let (number, rest) = self.map.get(offset..)?.split_first_chunk()?;
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let is_one = length > 0 && length <= rest.len();
        let begin = offset + NUMBER;
        is_one.then(|| (u64::from_ne_bytes(*number), begin..begin + length))
    }

    /// The messages of the batch, the oldest first.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &[u8]> {
        self.messages.iter().map(|message| &self.map[message.clone()])
    }

    /// How many messages the batch has.
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The number of the newest message.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Begins the next batch, once this one is applied.
    pub(crate) fn clear(&mut self) {
        self.messages.clear();
    }

    /// The cleared room for the next message of the batch; `None` where the inbox is full.
    pub(crate) fn prepare(&mut self) -> Option<&mut [u8]> {
        let offset = self.end();
        if self.map.len() < offset + NUMBER + LONGEST {
            return None;
        }
        self.clear_length(offset);
        self.map[offset..offset + NUMBER].copy_from_slice(&(self.number + 1).to_ne_bytes());
        compiler_fence(Ordering::SeqCst);
        Some(&mut self.map[offset + NUMBER..])
    }

    /// Keeps the message that was received into the prepared room.
    pub(crate) fn keep(&mut self, length: usize) {
        let begin = self.end() + NUMBER;
        let message = begin..(begin + length).min(self.map.len());
        self.clear_length(next_offset(&message));
        self.messages.push(message);
        self.number += 1;
    }

    /// Forgets what was received: it is not from the kernel, or not whole. A daemon that is killed before this believes the message in
    /// its next life; only root can send one.
    pub(crate) fn discard(&mut self) {
        self.clear_length(self.end());
    }

    /// The offset behind the messages of the batch.
    fn end(&self) -> usize {
        self.messages.last().map_or(0, next_offset)
    }

    /// Ends the batch at an offset.
    fn clear_length(&mut self, offset: usize) {
        let length = offset + NUMBER..offset + NUMBER + LENGTH;
        if let Some(length) = self.map.get_mut(length) {
            length.fill(0);
        }
        compiler_fence(Ordering::SeqCst);
    }
}

/// Where the number of the message behind this one stands.
fn next_offset(message: &Range<usize>) -> usize {
    message.end.next_multiple_of(NUMBER)
}

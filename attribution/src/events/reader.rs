//! Reads the ring and the queue behind it, in the order in which messages were sent.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence, fence};
use std::time::{Duration, Instant};

use ctnetlink::{Received, Socket, SocketError};
use rustix::mm::ProtFlags;

use super::load::{EventFilter, FilterError};
use crate::attach;
use crate::ring::{DISCARDED, HEADER_BYTES, Mapping, RawRing};

/// Where the members of `struct control` are (`bpf/events.bpf.c`).
const PASSED: usize = 0;
const TAKEN: usize = 64;
const SLEEPING: usize = 128;

/// A record begins with the length of its message.
const HEAD: u64 = 8;
/// The kernel makes no longer message.
const LONGEST_MESSAGE: usize = 32 << 10;
/// A message that the filter has passed to the queue is there within microseconds, unless whoever sends it is interrupted.
const PATIENCE: Duration = Duration::from_secs(1);

/// An event socket whose messages come by the ring, and by its queue where the ring has no room.
///
/// It hands out each message that the filter has let pass, once and in the order in which they were sent; of those that were lost
/// [`Socket::drops`] tells how many. When it is dropped the filter is detached.
pub struct EventReader {
    socket: Socket,
    ring: RawRing,
    control: Mapping,
    /// Where reading goes on in the ring.
    position: u64,
    /// A message of the queue, at the front of `buffer`, which has to wait for what is in the ring.
    waiting: Option<usize>,
    buffer: Vec<u8>,
    /// Messages that the filter has passed to the queue, and that were received since or dropped.
    done: u64,
    /// The socket's drops, as far as they are in `done`.
    drops: u32,
    /// Since when each look at the counts has found that not all messages have come that were passed to the queue.
    missing: Option<Instant>,
    held_back: bool,
    disorder: bool,
}

impl EventReader {
    /// Attaches the filter to a socket, which joins its groups afterwards: what it receives before would be in no count.
    ///
    /// # Errors
    /// The socket has joined groups, the kernel refuses the filter, or the ring cannot be mapped.
    pub fn attach(socket: Socket, filter: &EventFilter) -> Result<Self, FilterError> {
        if !socket.groups()?.is_empty() {
            return Err(FilterError::Joined);
        }
        let ring = RawRing::map(filter.ring.as_fd(), filter.ring_bytes)?;
        let both = ProtFlags::READ | ProtFlags::WRITE;
        let page = rustix::param::page_size();
        let control = Mapping::new(filter.control.as_fd(), "event filter's array", page, both, 0)?;
        let (position, drops) = (ring.written(), socket.drops()?);
        // Last: a socket whose filter nobody reads is deaf.
        filter.attach(socket.as_fd())?;
        let mut reader = Self {
            socket,
            ring,
            control,
            position,
            waiting: None,
            buffer: vec![0; LONGEST_MESSAGE],
            done: 0,
            drops,
            missing: None,
            held_back: false,
            disorder: false,
        };
        // Another reader may have had the filter before.
        reader.ring.set_read(position);
        reader.done = reader.passed();
        reader.number(TAKEN).store(reader.done, Ordering::Release);
        Ok(reader)
    }

    /// The socket, to join groups and to ask for its drops. Whoever receives from it takes messages away.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Takes the next message, without waiting, as [`Socket::receive`] does.
    ///
    /// # Errors
    /// The socket's.
    #[inline]
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        self.held_back = false;
        loop {
            if let Some(received) = self.receive_from_ring(buffer) {
                return Ok(received);
            }
            if self.held_back {
                return Ok(Received::Empty);
            }
            if let Some(length) = self.waiting.take() {
                return Ok(hand_out(&self.buffer[..length], buffer));
            }
            match self.socket.receive(&mut self.buffer)? {
                Received::Datagram(length) => {
                    self.done += 1;
                    // What was sent before it is in the ring by now, even if it was not a moment ago.
                    self.waiting = Some(length);
                }
                truncated @ Received::Truncated(_) => {
                    self.done += 1;
                    return Ok(truncated);
                }
                // In no count: the kernel filters the message of a process again after its sender has waited for room.
                foreign @ Received::Foreign(_) => return Ok(foreign),
                Received::Overrun => return Ok(Received::Overrun),
                Received::Empty => {
                    self.compare_counts()?;
                    return Ok(Received::Empty);
                }
            }
        }
    }

    /// True where the last [`EventReader::receive`] found nothing, but knows of a message that is on its way: call it again after a
    /// while, the descriptors may not become readable for that.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.held_back
    }

    /// True where messages may have been handed out in another order than they were sent, since this was last asked: the table that is made of
    /// them has to be compared with the kernel's.
    pub fn take_disorder(&mut self) -> bool {
        std::mem::take(&mut self.disorder)
    }

    /// How many messages found no room in the ring and were left to the queue, since the filter was loaded.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.number(PASSED).load(Ordering::Acquire)
    }

    /// Has the next message wake whoever waits for [`EventReader::descriptors`]; without this the ring's does not. False where there is
    /// something to be received already.
    #[must_use]
    pub fn prepare_to_sleep(&mut self) -> bool {
        self.number(SLEEPING).store(1, Ordering::SeqCst);
        // Either the filter sees the store and wakes us, or we see its reservation.
        fence(Ordering::SeqCst);
        let is_empty = self.ring.written() == self.position && self.waiting.is_none();
        if !is_empty || self.held_back {
            self.number(SLEEPING).store(0, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// What is to be waited for: the ring, and the queue.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.ring.as_fd(), self.socket.as_fd()]
    }

    /// The next message of the ring.
    #[inline]
    fn receive_from_ring(&mut self, buffer: &mut [u8]) -> Option<Received> {
        loop {
            if self.ring.written() == self.position {
                self.release();
                return None;
            }
            let Some(header) = self.ring.finished(self.position) else {
                self.held_back = true;
                self.release();
                return None;
            };
            let record = self.position.wrapping_add(HEADER_BYTES);
            let length = u64::from(header & !DISCARDED);
            self.position = record.wrapping_add(length.next_multiple_of(8));
            if header & DISCARDED != 0 {
                continue;
            }
            let mut head = [0; size_of::<u64>()];
            self.ring.copy(record, &mut head);
            let length = usize::try_from(u64::from_ne_bytes(head)).unwrap_or(usize::MAX);
            let received = match buffer.get_mut(..length) {
                Some(buffer) => {
                    let message = record.wrapping_add(HEAD);
                    length_last(buffer, |from, part| self.ring.copy(message.wrapping_add(from as u64), part));
                    Received::Datagram(length)
                }
                None => Received::Truncated(length),
            };
            // Rarely: the filters, on other processors, read the position whenever they reserve.
            if self.position.wrapping_sub(self.ring.read()) > self.ring.size() as u64 / 8 {
                self.release();
            }
            return Some(received);
        }
    }

    /// Leaves what was read to the filter.
    fn release(&mut self) {
        if self.ring.read() != self.position {
            self.ring.set_read(self.position);
        }
    }

    /// The queue was seen empty. Where everything that was passed to it is accounted for, the filter may use the ring again.
    fn compare_counts(&mut self) -> Result<(), SocketError> {
        let taken = self.number(TAKEN).load(Ordering::Relaxed);
        if self.done == taken && self.passed() == taken {
            return Ok(());
        }
        // Drops first: those that are seen here were passed before, and are in the number that is read next.
        let drops = self.socket.drops()?;
        fence(Ordering::Acquire);
        self.done += u64::from(drops.wrapping_sub(self.drops));
        self.drops = drops;
        let passed = self.passed();
        if self.done < passed && self.missing.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            self.held_back = true;
            return Ok(());
        }
        if self.done != passed {
            self.disorder = true;
            self.done = passed;
        }
        self.missing = None;
        self.number(TAKEN).store(self.done, Ordering::Release);
        Ok(())
    }

    fn number(&self, offset: usize) -> &AtomicU64 {
        self.control.position(offset)
    }
}

/// Fills the buffer with a message by `copy`, which takes a position in it. The length, with which a message begins, is written last:
/// memory that outlives this process never has part of a message that seems complete.
fn length_last(buffer: &mut [u8], copy: impl Fn(usize, &mut [u8])) {
    let (length, rest) = buffer.split_at_mut(buffer.len().min(size_of::<u32>()));
    copy(length.len(), rest);
    compiler_fence(Ordering::SeqCst);
    copy(0, length);
}

/// Copies a message that was received elsewhere.
fn hand_out(message: &[u8], buffer: &mut [u8]) -> Received {
    match buffer.get_mut(..message.len()) {
        Some(buffer) => {
            length_last(buffer, |from, part| part.copy_from_slice(&message[from..from + part.len()]));
            Received::Datagram(message.len())
        }
        None => Received::Truncated(message.len()),
    }
}

impl Drop for EventReader {
    fn drop(&mut self) {
        // Where somebody else keeps the socket it would be deaf. It fails where somebody else has detached the filter.
        let _ = attach::remove_filter(self.socket.as_fd());
    }
}

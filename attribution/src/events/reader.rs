//! Reads the ring, and keeps it in order with the socket's queue.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use ctnetlink::{Socket, SocketError};

use super::filter::{EventFilter, FilterError, MARK, PASSED, SLEEPING, TAKEN};
use crate::attach;
use crate::ring::{DISCARDED, HEADER_BYTES, Mapping, RawRing, whole_length};

/// A record begins with the length of its message.
const HEAD: u64 = 8;
/// A message that the filter has passed to the queue is there within microseconds, unless whoever sends it is interrupted.
const PATIENCE: Duration = Duration::from_secs(1);
/// A look rarely finds a message on its way: a hundred in a row find the same one.
const LOOKS: u32 = 100;
/// What was passed to the queue before such a pause is in it.
const PAUSE: Duration = Duration::from_micros(30);

/// Where the next messages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// In the ring, this number of them: [`EventReader::messages`]. It is 0 where records were passed over that hold no message.
    Ring(usize),
    /// In the ring, but still being written: they come within microseconds, unless the writer is interrupted.
    HeldBack,
    /// In the queue. A message that was received from it earlier has its turn now.
    Queue,
}

/// What the counts of the messages tell that were passed to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Each was received or dropped, or it is not known yet.
    Agree,
    /// Some of them are on their way: they come within microseconds, unless whoever sends them is interrupted.
    HeldBack,
    /// The reader begins to count here, with this number. [`EventReader::set_taken`] ends the beginning.
    Begin(u64),
    /// They do not agree, so messages may have come in another order than they were sent. From here on this number is right;
    /// [`EventReader::set_taken`] takes it over.
    Disagree(u64),
}

/// An event socket whose messages come by the ring, and by its queue where the ring has no room.
///
/// [`EventReader::next`] says where the next messages are; those of the queue are received from [`EventReader::socket`], by the caller,
/// who counts them. When it is dropped the filter is detached, so that the socket is not deaf if somebody keeps it.
pub struct EventReader {
    socket: Socket,
    ring: RawRing,
    control: Mapping,
    /// Where reading goes on in the ring.
    position: u64,
    /// Where messages are that were read last: their positions and lengths.
    read: Vec<(u64, usize)>,
    /// Records that hold no message.
    unreadable: u64,
    /// The socket may have messages that are in no count, those from before the filter was attached.
    is_beginning: bool,
    /// Since when each look at the counts has found that not all messages have come that were passed to the queue, and how many looks.
    missing: Option<(Instant, u32)>,
    held_back: bool,
}

impl EventReader {
    /// The reader of a filter that is not attached yet, to a socket that may have messages.
    ///
    /// # Errors
    /// The descriptors are not those of a filter, or cannot be mapped.
    pub fn open(socket: Socket, filter: &EventFilter) -> Result<Self, FilterError> {
        let control = filter.map_control()?;
        let ring = filter.map_ring(&control)?;
        let position = ring.written();
        Ok(Self {
            socket,
            ring,
            control,
            position,
            read: Vec::new(),
            unreadable: 0,
            is_beginning: false,
            missing: None,
            held_back: false,
        })
    }

    /// Attaches the filter. Until [`EventReader::compare`] says where to begin, all messages go to the queue; what is in the ring was
    /// there before.
    ///
    /// # Errors
    /// The kernel's.
    pub fn attach(&mut self, filter: &EventFilter) -> Result<(), FilterError> {
        // Never equal, as long as messages are counted one by one.
        self.set_number(TAKEN, !self.passed());
        self.is_beginning = true;
        filter.attach(self.socket.as_fd())
    }

    /// The number by which a reader knows its ring again: 0 in a new one.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.number(MARK).load(Ordering::Relaxed)
    }

    /// Marks the ring for the next reader, and begins with what comes from now on.
    pub fn set_mark(&mut self, mark: u64) {
        self.position = self.ring.written();
        self.ring.set_read(self.position);
        self.set_number(MARK, mark);
    }

    /// Goes on where an earlier reader was: behind all messages that were applied. `has_begun` says whether that reader has learned from
    /// [`EventReader::compare`] where to begin. False where no reader of this ring can have been there.
    #[must_use]
    pub fn resume(&mut self, position: u64, has_begun: bool) -> bool {
        let is_sound = self.ring.begins_record(position);
        if is_sound {
            self.position = position;
            self.ring.set_read(position);
            self.is_beginning = !has_begun;
        }
        is_sound
    }

    /// The socket, to receive from its queue and to ask for its drops.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Where the next messages are, at most `most` of them. Those that it gave before have to be applied by now: the filter has their room
    /// again.
    ///
    /// A message that was received from the queue has to wait until this says [`Next::Queue`] once more: what was sent before it is in
    /// the ring by then.
    #[inline]
    pub fn next(&mut self, most: usize) -> Next {
        self.read.clear();
        if self.ring.read() != self.position {
            self.ring.set_read(self.position);
        }
        self.held_back = false;
        let (start, written) = (self.position, self.ring.written());
        while self.position != written && self.read.len() < most {
            let Some(header) = self.ring.finished(self.position) else {
                self.held_back = self.position == start;
                break;
            };
            let (record, whole) = (self.position.wrapping_add(HEADER_BYTES), whole_length(header));
            if whole > written.wrapping_sub(self.position) {
                // No record of ours: where the next one begins cannot be known.
                self.unreadable += 1;
                self.position = written;
                break;
            }
            self.position = self.position.wrapping_add(whole);
            if header & DISCARDED != 0 {
                continue;
            }
            match self.message_length(record) {
                Some(message) if (message as u64).saturating_add(HEADER_BYTES + HEAD) <= whole => {
                    self.read.push((record.wrapping_add(HEAD), message));
                }
                _ => self.unreadable += 1,
            }
        }
        match () {
            () if self.position != start => Next::Ring(self.read.len()),
            () if self.held_back => Next::HeldBack,
            () => Next::Queue,
        }
    }

    /// The messages that were read last, oldest first.
    pub fn messages(&self) -> impl Iterator<Item = &[u8]> {
        self.read.iter().filter_map(|(position, length)| self.ring.bytes(*position, *length))
    }

    /// Where the next reader goes on once these messages are applied.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Compares the counts, once the queue was seen empty and all that was received from it is applied. `done` is how many messages were
    /// received or dropped of those that the filter has passed to the queue; the socket was asked for its drops before. If all are
    /// accounted for the filter may use the ring again.
    ///
    /// # Errors
    /// The socket's.
    pub fn compare(&mut self, done: u64) -> Result<Counts, SocketError> {
        self.held_back = false;
        if self.is_beginning {
            return self.find_beginning();
        }
        // Drops that were seen were passed before, and are in the number that is read next.
        fence(Ordering::Acquire);
        let taken = self.number(TAKEN).load(Ordering::Relaxed);
        let passed = self.passed();
        if done == passed {
            self.missing = None;
            if passed != taken {
                self.set_number(TAKEN, passed);
            }
            return Ok(Counts::Agree);
        }
        let (since, looks) = self.missing.get_or_insert_with(|| (Instant::now(), 0));
        *looks += 1;
        if done < passed && (since.elapsed() < PATIENCE || *looks < LOOKS) {
            self.held_back = true;
            return Ok(Counts::HeldBack);
        }
        Ok(Counts::Disagree(passed))
    }

    /// The queue may have had messages of before the filter, so its count is known only when nothing is on its way and the queue is
    /// empty. A message that was interrupted for longer comes in no order, and [`EventReader::compare`] will notice.
    fn find_beginning(&mut self) -> Result<Counts, SocketError> {
        let passed = self.passed();
        let begin = Instant::now();
        while begin.elapsed() < PAUSE {
            std::hint::spin_loop();
        }
        let is_quiet = self.socket.queued_bytes()? == 0 && self.passed() == passed;
        Ok(if is_quiet { Counts::Begin(passed) } else { Counts::Agree })
    }

    /// Has the filter use the ring again, when `done` messages of the queue are accounted for, and whoever reads it next knows that.
    pub fn set_taken(&mut self, done: u64) {
        self.is_beginning = false;
        self.missing = None;
        self.set_number(TAKEN, done);
    }

    /// True where the last call found nothing, but knows of a message that is on its way: ask again after a while, the descriptors may
    /// not become readable for that.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.held_back
    }

    /// How many records held no message since this was last asked: none, if the ring is that of our filter. Messages may be missing
    /// behind each of them.
    pub fn take_unreadable(&mut self) -> u64 {
        std::mem::take(&mut self.unreadable)
    }

    /// How many messages the filter has left to the queue since it was loaded.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.number(PASSED).load(Ordering::Acquire)
    }

    /// Has the next message wake whoever waits for [`EventReader::descriptors`]; without this the ring's does not. False where there is
    /// something in the ring already.
    #[must_use]
    pub fn prepare_to_sleep(&mut self) -> bool {
        self.number(SLEEPING).store(1, Ordering::SeqCst);
        // Either the filter sees the store and wakes us, or we see its reservation.
        fence(Ordering::SeqCst);
        let is_empty = self.ring.written() == self.position;
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

    /// The length of the message in a record.
    fn message_length(&self, record: u64) -> Option<usize> {
        let head = self.ring.bytes(record, size_of::<u64>())?.first_chunk()?;
        usize::try_from(u64::from_ne_bytes(*head)).ok()
    }

    fn number(&self, offset: usize) -> &AtomicU64 {
        self.control.position(offset)
    }

    fn set_number(&self, offset: usize, number: u64) {
        self.number(offset).store(number, Ordering::Release);
    }
}

impl Drop for EventReader {
    fn drop(&mut self) {
        // Where somebody else keeps the socket it would be deaf. It fails where somebody else has detached the filter.
        let _ = attach::remove_filter(self.socket.as_fd());
    }
}

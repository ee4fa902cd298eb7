//! Messages of an event socket with a filter, from its ring and its queue, as the daemon reads them.

use std::time::Instant;

use ctnetlink::{Received, Socket};
use flowbus_attribution::events::{Counts, EventFilter, EventReader, Next};

use crate::process::DEADLINE;

/// The most messages that are read at once, as in the daemon.
const BATCH: usize = 64;

/// A reader that keeps the order, and counts.
pub struct EventRing {
    /// Where it reads.
    pub reader: EventReader,
    /// Messages of the queue that are received or dropped.
    done: u64,
    /// The socket's drops, as far as they are in `done`.
    drops: u32,
    /// A message of the queue, which has to wait for what is in the ring.
    waiting: Option<Vec<u8>>,
    buffer: Vec<u8>,
    has_begun: bool,
    /// Messages of processes.
    pub foreign: u64,
    /// How often the counts did not agree.
    pub disorders: u64,
}

impl EventRing {
    /// Attaches the filter to a socket that nothing is sent to, so that the ring is in use from the first message on.
    ///
    /// # Panics
    /// If the kernel refuses the filter.
    #[must_use]
    pub fn attach(socket: Socket, filter: &EventFilter) -> Self {
        let mut ring = Self::attach_under_load(socket, filter);
        let end = Instant::now() + DEADLINE;
        while !ring.has_begun {
            assert!(Instant::now() < end, "a socket without traffic is quiet");
            ring.read(|message| panic!("nobody sends, but {message:?} is there"));
        }
        ring
    }

    /// Attaches the filter to a socket that may have messages.
    ///
    /// # Panics
    /// If the kernel refuses the filter.
    #[must_use]
    pub fn attach_under_load(socket: Socket, filter: &EventFilter) -> Self {
        let mut reader = EventReader::open(socket, filter).expect("a filter can be read");
        reader.set_mark(1);
        reader.attach(filter).expect("a filter can be attached");
        Self {
            reader,
            done: 0,
            drops: 0,
            waiting: None,
            buffer: vec![0; 1 << 16],
            has_begun: false,
            foreign: 0,
            disorders: 0,
        }
    }

    /// Whether the ring is in use.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Hands on everything that there is.
    ///
    /// # Panics
    /// If the socket fails, or a message is longer than any.
    pub fn read(&mut self, mut each: impl FnMut(&[u8])) {
        loop {
            match self.reader.next(BATCH) {
                Next::Ring(_) => self.reader.messages().for_each(&mut each),
                Next::HeldBack => return,
                Next::Queue => {
                    if let Some(message) = self.waiting.take() {
                        each(&message);
                    } else if !self.receive() {
                        return;
                    }
                }
            }
        }
    }

    /// Receives a message from the queue; false if the queue is empty.
    fn receive(&mut self) -> bool {
        match self.reader.socket().receive(&mut self.buffer).expect("messages can be received") {
            Received::Datagram(length) => {
                self.done += 1;
                self.waiting = Some(self.buffer[..length].to_vec());
            }
            Received::Foreign(_) => self.foreign += 1,
            Received::Overrun => {}
            Received::Empty => {
                self.compare();
                return false;
            }
            truncated @ Received::Truncated(_) => panic!("{truncated:?}"),
        }
        true
    }

    fn compare(&mut self) {
        let drops = self.reader.socket().drops().expect("the kernel counts drops");
        self.done += u64::from(drops.wrapping_sub(self.drops));
        self.drops = drops;
        let count = match self.reader.compare(self.done).expect("a socket can be asked") {
            Counts::Agree | Counts::HeldBack => return,
            Counts::Begin(count) => {
                self.has_begun = true;
                count
            }
            Counts::Disagree(count) => {
                self.disorders += 1;
                count
            }
        };
        self.done = count;
        self.reader.set_taken(count);
    }
}

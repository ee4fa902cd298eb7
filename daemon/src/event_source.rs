//! Where the kernel's events come from: a ring that a socket filter fills, with the socket's queue as its overflow, or the socket alone.

use std::os::fd::{AsFd, BorrowedFd};

use ctnetlink::{Received, Socket, SocketError};
use flowbus_attribution::events::{DEFAULT_EVENT_RING_BYTES, EventFilter, EventReader, FilterError};

/// The source of events.
pub(crate) enum EventSource {
    /// Each event is received from the socket. So it is where PID 1 keeps the socket: a filter on it would outlive its reader.
    Socket(Socket),
    /// Events are read from memory. The filter ends with this process, as the socket does.
    Ring(Box<EventReader>),
}

impl std::fmt::Debug for EventSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EventSource").field(&self.name()).finish()
    }
}

impl EventSource {
    /// The ring of a socket that has joined no groups. It takes root's powers.
    ///
    /// # Errors
    /// The kernel refuses the filter.
    pub(crate) fn ring(socket: Socket) -> Result<Self, FilterError> {
        let filter = EventFilter::load(DEFAULT_EVENT_RING_BYTES)?;
        Ok(Self::Ring(Box::new(EventReader::attach(socket, &filter)?)))
    }

    /// Its name in the property EventSource.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Socket(_) => "socket",
            Self::Ring(_) => "ring",
        }
    }

    /// The event socket, to ask it for what it dropped.
    pub(crate) fn socket(&self) -> &Socket {
        match self {
            Self::Socket(socket) => socket,
            Self::Ring(reader) => reader.socket(),
        }
    }

    /// Takes the next event, without waiting.
    #[inline]
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        match self {
            Self::Socket(socket) => socket.receive(buffer),
            Self::Ring(reader) => reader.receive(buffer),
        }
    }

    /// True where nothing was received, but an event is known to be on its way: events that were sent earlier are not all read.
    pub(crate) fn is_held_back(&self) -> bool {
        match self {
            Self::Socket(_) => false,
            Self::Ring(reader) => reader.is_held_back(),
        }
    }

    /// True, once, where events may have come in another order than they were sent.
    pub(crate) fn take_disorder(&mut self) -> bool {
        match self {
            Self::Socket(_) => false,
            Self::Ring(reader) => reader.take_disorder(),
        }
    }

    /// Has the next event end a `poll` for the descriptors. False where there is one already.
    pub(crate) fn prepare_to_sleep(&mut self) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Ring(reader) => reader.prepare_to_sleep(),
        }
    }

    /// What is to be waited for; the socket twice where it is all there is.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        match self {
            Self::Socket(socket) => [socket.as_fd(), socket.as_fd()],
            Self::Ring(reader) => reader.descriptors(),
        }
    }
}

//! Where the kernel's events come from: a ring that a socket filter fills, with the socket's queue as its overflow, or the socket alone.

use std::os::fd::{AsFd, BorrowedFd};

use ctnetlink::Socket;
use flowbus_attribution::events::{EventReader, Next};

/// The source of events. Those of the socket's queue are received into the inbox, whichever it is.
pub(crate) enum EventSource {
    /// Each event is received from the socket.
    Socket(Socket),
    /// Events are read from memory.
    Ring(Box<EventReader>),
}

impl std::fmt::Debug for EventSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EventSource").field(&self.name()).finish()
    }
}

impl EventSource {
    /// The name of a ring in the property EventSource.
    pub(crate) const RING: &str = "ring";

    /// Its name in the property EventSource.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Socket(_) => "socket",
            Self::Ring(_) => Self::RING,
        }
    }

    /// The event socket, to receive from its queue and to ask for its drops.
    pub(crate) fn socket(&self) -> &Socket {
        match self {
            Self::Socket(socket) => socket,
            Self::Ring(reader) => reader.socket(),
        }
    }

    /// Where the next events are, at most `most`; those that were given before are applied.
    #[inline]
    pub(crate) fn next(&mut self, most: usize) -> Next {
        match self {
            Self::Socket(_) => Next::Queue,
            Self::Ring(reader) => reader.next(most),
        }
    }

    /// True where nothing was found, but an event is known to be on its way: events that were sent earlier are not all read.
    pub(crate) fn is_held_back(&self) -> bool {
        match self {
            Self::Socket(_) => false,
            Self::Ring(reader) => reader.is_held_back(),
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

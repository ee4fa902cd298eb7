//! Conntrack's events through a ring: a BPF socket filter (`bpf/events.bpf.c`) on the event socket copies each message into a
//! ring and drops it, so that the reader receives it without a system call.
//!
//! The socket's own queue is the ring's overflow. What keeps the order of both:
//!
//! - The filter counts each message that it leaves to the queue (`passed`), before the kernel queues it. The reader counts those that it is
//!   done with: it has received them, or the kernel has dropped them, which `SO_MEMINFO` tells (`done`).
//! - Messages of processes go to the queue, which says who has sent them: those in the ring are the kernel's. They are in no count.
//! - While `passed` is not what the reader has published as `taken`, the filter leaves *everything* to the queue.
//! - The reader publishes `taken` when it has seen the queue empty and `done` is `passed`: then no message is queued, nor about to be.
//! - A message of the queue is applied only after everything that the ring had when it was received.
//!
//! So what is in the ring was sent after all that the queue had before, and a message that comes after one in the queue is in the queue,
//! too. Whatever goes wrong leaves the filter passing messages on: it cannot make the socket deaf, but for a ring that nobody reads.
//!
//! The counts disagree only where the kernel dropped a message that the filter never saw (it had no memory for it), or where somebody
//! else has received from the socket. Then the order is not known: [`Counts::Disagree`].
//!
//! A reader that is killed loses nothing: messages not yet applied are in the ring, behind the position that it noted with the last
//! change, and in the queue. The next reader has the same numbers ([`EventReader::resume`]), and the filter is still attached.
//! One that ends detaches it: the ring keeps what was in it, and the queue has all that comes later.

mod filter;
mod load;
mod reader;

pub use filter::{EventFilter, FilterError};
pub use load::{DEFAULT_EVENT_RING_BYTES, SenderBy};
pub use reader::{Counts, EventReader, Next};

pub use crate::attach::{has_filter, remove_filter};

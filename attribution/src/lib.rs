//! Which process opened, accepted and closed a socket.
//!
//! BPF programs (`bpf/`) note the process at each socket's connect, accept, bind and send, and write records into a ring.
//! Whoever may calls [`load`]; what it returns, descriptors, can be handed to a process that may nothing ([`handover`]).
//! That one reads [`Ring`], [`Counters`] and [`Snapshot`] without ever calling bpf(). Joining events to flows is the
//! daemon's.

mod attach;
mod cgroup;
mod container;
mod descriptors;
mod event;
pub mod events;
pub mod handover;
mod kind;
mod load;
mod memfd;
mod record;
mod report;
mod ring;
mod snapshot;
mod statistics;

pub use cgroup::unit_of;
pub use container::{container_of, pod_of};
pub use descriptors::{DescriptorError, Programs};
pub use event::{Confidence, Event, Kind, Message, Process};
pub use load::{DEFAULT_RING_BYTES, LoadError, load, snapshot};
pub use report::{Accept, Outcome, Program, Report};
pub use ring::{Ring, RingError};
pub use snapshot::Snapshot;
pub use statistics::{Counters, Statistics};

//! Which process opened, accepted and closed a socket.
//!
//! BPF programs note the process at each socket's connect, accept, bind and send; the events they write are [`Event`]s
//! here. Joining them to flows is the daemon's.

mod event;

pub use event::{Confidence, Event, Kind, Process};

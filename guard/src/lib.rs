//! A connection to a message bus that bounds its callers before anything of theirs is kept, and outlives clients that freeze.
//!
//! A service on the bus cannot choose what it is sent: messages of 128 MiB, 253 descriptors with each, as many calls as a caller
//! cares to write, also of the interfaces that a library answers by itself (Introspectable, Properties, Peer). So the bytes pass
//! a gate before the library sees them. A message that is too large is read past without being stored, surplus descriptors are
//! never installed in the process, and a call beyond the limits is answered with an error at once. A call counts as in flight
//! until its reply has been written to the bus, because until then the reply takes memory.
//!
//! What a client does not read stays in the bus, which reads no more of a service that has too much of that. So a [`Service`]
//! changes its connection before that, leaves one that the bus does not read, and takes its name along.

mod budget;
mod calls;
mod gate;
mod guard;
mod halves;
mod head;
mod link;
mod name;
mod read;
mod transport;

use flowbus_interfaces::BusAddress;

pub use calls::Limits;
pub use guard::Guard;
pub use link::{CHANGE_AGAIN, End, Link, Service};

/// The most bytes that a call or a signal has, header included. The largest useful one, a query with every key and long lists,
/// has some 100 KiB.
pub const MAXIMUM_MESSAGE: usize = 1024 * 1024;

/// Why the bus cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// There is no connection.
    #[error("cannot reach the bus {address}: {source}; is a bus daemon running there?")]
    Unreachable {
        /// The bus.
        address: BusAddress,
        /// What failed.
        source: zbus::Error,
    },
    /// A process that is running has the name.
    #[error("the name {name} is already owned on the bus {address}: another process serves it")]
    NameTaken {
        /// The name.
        name: &'static str,
        /// The bus.
        address: BusAddress,
    },
    /// The bus's policy does not let us have the name.
    #[error("the bus {address} does not let us own {name}: {source}; its policy has to allow it")]
    NotAllowed {
        /// The name.
        name: &'static str,
        /// The bus.
        address: BusAddress,
        /// What the bus answered.
        source: zbus::Error,
    },
    /// The bus did not answer as it should.
    #[error("the bus {address} failed: {source}")]
    Failed {
        /// The bus.
        address: BusAddress,
        /// What failed.
        source: zbus::Error,
    },
    /// The name was ours.
    #[error("another process has taken the name {name} on the bus {address}")]
    NameLost {
        /// The name.
        name: &'static str,
        /// The bus.
        address: BusAddress,
    },
}

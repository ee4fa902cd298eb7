//! Linux connection tracking over netlink (ctnetlink): events and dumps decoded without copying, requests for
//! dumps, changes and statistics, and the socket for all of it.
//!
//! The crate knows bytes and sockets and nothing else: no table, no policy, no thread, no asynchrony.
//! Names are the kernel's (linux/netfilter/nfnetlink_conntrack.h), numbers are in host order.
//!
//! - [`messages`] reads a datagram: [`Message`]s, most of which are [`Flow`]s. It allocates nothing and never panics;
//!   a message that cannot be decoded is one [`DecodeError`] and costs only itself, an attribute that is not known is
//!   skipped and counted. [`Decoder`] reads the same, faster, for those who read many.
//! - [`dump_request`], [`delete_request`] and the others are what the kernel can be asked.
//! - [`Conntrack`] asks it, and reads the answers: lists, gets, makes, changes and ends flows and expectations, for programs that
//!   want the table and not its bytes. [`FlowFilter`] says which flows are meant.
//! - [`Socket`] joins groups, receives without waiting and says exactly how many messages were lost.
//!
//! Print every flow that begins or ends, and the table as it is (needs CAP_NET_ADMIN):
//!
//! ```no_run
//! use ctnetlink::{Groups, Message, Received, Socket, dump_request, messages};
//!
//! let (events, dump) = (Socket::open()?, Socket::open()?);
//! events.set_receive_buffer(16 << 20)?;
//! // Join before dumping: a flow born in between would be lost.
//! events.join(Groups::NEW | Groups::DESTROY)?;
//! dump.send(&dump_request(1, None))?;
//!
//! let mut buffer = vec![0; 65_536]; // the kernel sends at most 32 KiB at once
//! for socket in [&dump, &events] {
//!     // A real program waits in poll() where this one ends.
//!     while let Received::Datagram(length) = socket.receive(&mut buffer)? {
//!         for message in messages(&buffer[..length]) {
//!             match message {
//!                 Ok(Message::Flow(_, kind, flow)) => println!("{kind:?} {:?}", flow.original),
//!                 Ok(_) => {}
//!                 Err(error) => eprintln!("{error}, ignoring"),
//!             }
//!         }
//!     }
//! }
//! # Ok::<(), ctnetlink::SocketError>(())
//! ```

mod attribute;
mod change;
mod conntrack;
mod decode;
mod encode;
mod error;
mod event;
mod expectation;
mod filter;
mod flow;
mod kernel;
mod line;
mod masks;
mod notices;
mod protocol;
mod request;
mod socket;
mod stats;
mod status;
mod tuple;

pub use change::{
    Update, create_request, delete_request, expectation_create_request, expectation_delete_request,
    expectation_dump_request, expectation_flush_request, flush_request, get_request, update_request,
};
pub use conntrack::{Conntrack, Deleted, RequestError};
pub use decode::{Decoder, Messages, messages};
pub use error::DecodeError;
pub use event::{EventKind, Header, Message, NLM_F_DUMP_INTR, NLM_F_MULTI};
pub use expectation::{Expectation, ExpectationFlags, ExpectationNat};
pub use filter::{End, FilterError, FlowFilter, Network, label_bits};
pub use flow::{Counters, Flow, SequenceAdjust, Synproxy};
pub use kernel::KernelState;
pub use masks::EventMasks;
pub use notices::Notices;
pub use protocol::{
    DccpInfo, PROTOCOLS, ProtocolInfo, SctpInfo, TcpInfo, protocol_name, state_name, state_names,
};
pub use request::{cpu_stats_request, dump_request, stats_request};
pub use socket::{Groups, Received, Socket, SocketError};
pub use stats::{CpuStats, Stats};
pub use status::Status;
pub use tuple::{Family, Layer4, Tuple};

//! Linux connection tracking over netlink (ctnetlink).
#![doc = "Skeleton; the crate's owner completes this page."]

mod attribute;
mod decode;
mod error;
mod event;
mod flow;
mod protocol;
mod request;
mod socket;
mod stats;
mod status;
mod tuple;

pub use decode::{Messages, messages};
pub use error::DecodeError;
pub use event::{EventKind, Header, Message, NLM_F_DUMP_INTR, NLM_F_MULTI};
pub use flow::{Counters, Flow, SequenceAdjust, Synproxy};
pub use protocol::{DccpInfo, ProtocolInfo, SctpInfo, TcpInfo, state_name, state_names};
pub use request::{Request, cpu_stats_request, dump_request, stats_request};
pub use socket::{Groups, Received, Socket, SocketError};
pub use stats::{CpuStats, Stats};
pub use status::Status;
pub use tuple::{Family, Layer4, Tuple};

//! Linux connection tracking over netlink (ctnetlink).
#![doc = "Skeleton; the crate's owner completes this page."]

mod event;
mod flow;
mod protocol;
mod status;
mod tuple;

pub use event::{EventKind, Header, Message, NLM_F_DUMP_INTR, NLM_F_MULTI};
pub use flow::{Counters, Flow, SequenceAdjust, Synproxy};
pub use protocol::{DccpInfo, ProtocolInfo, SctpInfo, TcpInfo, state_name, state_names};
pub use status::Status;
pub use tuple::{Family, Layer4, Tuple};

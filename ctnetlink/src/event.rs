//! A netlink message of the connection tracking subsystem, decoded.

use crate::{CpuStats, Expectation, Flow, Stats};

/// What happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// `IPCTNL_MSG_CT_NEW` with `NLM_F_CREATE | NLM_F_EXCL`.
    New,
    /// `IPCTNL_MSG_CT_NEW` without `NLM_F_CREATE | NLM_F_EXCL`.
    Update,
    /// `IPCTNL_MSG_CT_DELETE`.
    Destroy,
}

/// The fields of `struct nlmsghdr` that a reader needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `nlmsg_seq`: of a reply, the number of its request; of an event 0 or the number of the request that caused it.
    pub sequence: u32,
    /// `nlmsg_pid`: the port of the process that asked for the change or the dump; 0 is the kernel itself.
    pub port: u32,
    /// `nlmsg_flags`.
    pub flags: u16,
}

/// One message. Whether a flow is an event or a dump's reply is known from the socket it came through: both
/// look like an update (a dump's reply has [`NLM_F_MULTI`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A flow: an event, or one entry of a dump.
    Flow(Header, EventKind, Flow<'a>),
    /// An expectation: an event (subsystem 2 reports new and removed ones), or one entry of a dump.
    Expectation(Header, EventKind, Expectation<'a>),
    /// `NLMSG_DONE`: the end of a dump; the number is 0 or a negative errno.
    Done(Header, i32),
    /// `NLMSG_ERROR`: the answer to a request; 0 is an acknowledgement, else a negative errno.
    Error(Header, i32),
    /// The answer to [`stats_request`](crate::stats_request).
    Stats(Header, Stats),
    /// One CPU's part of the answer to [`cpu_stats_request`](crate::cpu_stats_request).
    CpuStats(Header, CpuStats),
    /// A message that this crate does not decode (`NLMSG_NOOP`, another subsystem); the number is its `nlmsg_type`.
    Other(Header, u16),
}

/// `nlmsg_flags`: one message of several that answer one request.
pub const NLM_F_MULTI: u16 = 0x02;
/// `nlmsg_flags`: the table changed under the dump, which has to be repeated.
pub const NLM_F_DUMP_INTR: u16 = 0x10;

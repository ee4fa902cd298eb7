//! Requests to the kernel (`struct nlmsghdr` and `struct nfgenmsg`, linux/netlink.h and
//! linux/netfilter/nfnetlink.h).

use crate::Family;

/// A request without attributes: 16 bytes of `nlmsghdr`, 4 of `nfgenmsg`.
pub type Request = [u8; 20];

pub(crate) const NLM_F_REQUEST: u16 = 0x01;
pub(crate) const NLM_F_ACK: u16 = 0x04;
/// `NLM_F_ROOT | NLM_F_MATCH`.
pub(crate) const NLM_F_DUMP: u16 = 0x300;
/// `NLM_F_EXCL | NLM_F_CREATE`: of a request that makes an entry, and of the event of one that was made.
pub(crate) const NLM_F_NEW: u16 = 0x600;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*` (linux/netfilter/nfnetlink_conntrack.h).
pub(crate) const CT_NEW: u16 = 0x100;
pub(crate) const CT_GET: u16 = 0x101;
pub(crate) const CT_DELETE: u16 = 0x102;
pub(crate) const CT_GET_STATS_CPU: u16 = 0x104;
pub(crate) const CT_GET_STATS: u16 = 0x105;
/// `NFNL_SUBSYS_CTNETLINK_EXP << 8 | IPCTNL_MSG_EXP_*`.
pub(crate) const EXP_NEW: u16 = 0x200;
pub(crate) const EXP_GET: u16 = 0x201;
pub(crate) const EXP_DELETE: u16 = 0x202;

/// Asks for every flow of the network namespace, or of one family. The replies are [`Message::Flow`]s with
/// `sequence` in their headers, then [`Message::Done`]; or one [`Message::Error`] ([`SocketError::refused`] says what
/// it means): EPERM without CAP_NET_ADMIN,
/// EBUSY while an earlier dump of the socket is not read to its end.
///
/// [`SocketError::refused`]: crate::SocketError::refused
/// [`Message::Flow`]: crate::Message::Flow
/// [`Message::Done`]: crate::Message::Done
/// [`Message::Error`]: crate::Message::Error
pub fn dump_request(sequence: u32, family: Option<Family>) -> Request {
    request(CT_GET, NLM_F_REQUEST | NLM_F_DUMP, sequence, family)
}

/// Asks for [`Message::Stats`](crate::Message::Stats): one reply, without a
/// [`Message::Done`](crate::Message::Done) although its header has `NLM_F_MULTI`. Needs CAP_NET_ADMIN as dumps do.
pub fn stats_request(sequence: u32) -> Request {
    request(CT_GET_STATS, NLM_F_REQUEST, sequence, None)
}

/// Asks for one [`Message::CpuStats`](crate::Message::CpuStats) a CPU, then
/// [`Message::Done`](crate::Message::Done).
pub fn cpu_stats_request(sequence: u32) -> Request {
    request(CT_GET_STATS_CPU, NLM_F_REQUEST | NLM_F_DUMP, sequence, None)
}

/// `kind` is the `nlmsg_type`, `family` that of the `nfgenmsg`: `None` is AF_UNSPEC, every family.
pub(crate) fn request(kind: u16, flags: u16, sequence: u32, family: Option<Family>) -> Request {
    let [l0, l1, l2, l3] = 20u32.to_ne_bytes();
    let [t0, t1] = kind.to_ne_bytes();
    let [f0, f1] = flags.to_ne_bytes();
    let [s0, s1, s2, s3] = sequence.to_ne_bytes();
    // nlmsg_pid 0: the kernel fills in the sender's port. nfgenmsg: family, NFNETLINK_V0, res_id 0.
    [l0, l1, l2, l3, t0, t1, f0, f1, s0, s1, s2, s3, 0, 0, 0, 0, family.map_or(0, Family::number), 0, 0, 0]
}

//! Requests to the kernel (`struct nlmsghdr` and `struct nfgenmsg`, linux/netlink.h and
//! linux/netfilter/nfnetlink.h).

use crate::Family;

/// A request without attributes: 16 bytes of `nlmsghdr`, 4 of `nfgenmsg`.
pub type Request = [u8; 20];

const NLM_F_REQUEST: u16 = 0x01;
/// `NLM_F_ROOT | NLM_F_MATCH`.
const NLM_F_DUMP: u16 = 0x300;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*`.
const CT_GET: u16 = 0x101;
const CT_GET_STATS_CPU: u16 = 0x104;
const CT_GET_STATS: u16 = 0x105;

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
    // AF_UNSPEC (0) is every family.
    request(CT_GET, NLM_F_REQUEST | NLM_F_DUMP, sequence, family.map_or(0, Family::number))
}

/// Asks for [`Message::Stats`](crate::Message::Stats): one reply, without a
/// [`Message::Done`](crate::Message::Done) although its header has `NLM_F_MULTI`. Needs CAP_NET_ADMIN as dumps do.
pub fn stats_request(sequence: u32) -> Request {
    request(CT_GET_STATS, NLM_F_REQUEST, sequence, 0)
}

/// Asks for one [`Message::CpuStats`](crate::Message::CpuStats) a CPU, then
/// [`Message::Done`](crate::Message::Done).
pub fn cpu_stats_request(sequence: u32) -> Request {
    request(CT_GET_STATS_CPU, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0)
}

fn request(kind: u16, flags: u16, sequence: u32, family: u8) -> Request {
    let [l0, l1, l2, l3] = 20u32.to_ne_bytes();
    let [t0, t1] = kind.to_ne_bytes();
    let [f0, f1] = flags.to_ne_bytes();
    let [s0, s1, s2, s3] = sequence.to_ne_bytes();
    // nlmsg_pid 0: the kernel fills in the sender's port. nfgenmsg: family, NFNETLINK_V0, res_id 0.
    [l0, l1, l2, l3, t0, t1, f0, f1, s0, s1, s2, s3, 0, 0, 0, 0, family, 0, 0, 0]
}

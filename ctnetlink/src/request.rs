//! Requests to the kernel, as netlink-packet-netfilter writes them.

use netlink_packet_core::{
    DefaultNla, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use crate::Family;

/// Set in a request that makes an entry, and in the event of an entry that was made.
pub(crate) const NLM_F_NEW: u16 = NLM_F_EXCL | NLM_F_CREATE;

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
pub fn dump_request(sequence: u32, family: Option<Family>) -> Vec<u8> {
    request(CT_GET, NLM_F_DUMP, sequence, family, Vec::new())
}

/// Asks for [`Message::Stats`](crate::Message::Stats): one reply, without a
/// [`Message::Done`](crate::Message::Done) although its header has `NLM_F_MULTI`. Needs CAP_NET_ADMIN as dumps do.
pub fn stats_request(sequence: u32) -> Vec<u8> {
    request(CT_GET_STATS, 0, sequence, None, Vec::new())
}

/// Asks for one [`Message::CpuStats`](crate::Message::CpuStats) a CPU, then
/// [`Message::Done`](crate::Message::Done).
pub fn cpu_stats_request(sequence: u32) -> Vec<u8> {
    request(CT_GET_STATS_CPU, NLM_F_DUMP, sequence, None, Vec::new())
}

/// A request with `NLM_F_REQUEST` and `flags`. `kind` is the `nlmsg_type`; without a family every family is meant.
pub(crate) fn request(
    kind: u16,
    flags: u16,
    sequence: u32,
    family: Option<Family>,
    attributes: Vec<DefaultNla>,
) -> Vec<u8> {
    serialize(header(family, 0), kind, flags, sequence, attributes)
}

/// The `struct nfgenmsg`. Its version is `NFNETLINK_V0`, 0, in all requests but a flush.
pub(crate) fn header(family: Option<Family>, version: u8) -> NetfilterHeader {
    let family = match family {
        None => NetfilterProtoFamily::Unspec,
        Some(Family::Ipv4) => NetfilterProtoFamily::IPv4,
        Some(Family::Ipv6) => NetfilterProtoFamily::IPv6,
    };
    NetfilterHeader::new(family, version, 0)
}

/// The bytes of a request. All attributes are untyped: the crate drops `NLA_F_NESTED` of an untyped attribute among typed
/// ones, and types none of an expectation.
pub(crate) fn serialize(
    header: NetfilterHeader,
    kind: u16,
    flags: u16,
    sequence: u32,
    attributes: Vec<DefaultNla>,
) -> Vec<u8> {
    let [subsystem, message_type] = kind.to_be_bytes();
    let inner = NetfilterMessageInner::Other { subsys: subsystem.into(), message_type, attributes };
    let mut message =
        NetlinkMessage::new(NetlinkHeader::default(), NetfilterMessage::new(header, inner).into());
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

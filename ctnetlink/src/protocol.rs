//! The protocols by name, and `CTA_PROTOINFO`: what the kernel knows of a TCP, SCTP or DCCP connection.

/// `CTA_PROTOINFO`: what a flow has of its protocol's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolInfo {
    /// `CTA_PROTOINFO_TCP`.
    Tcp(TcpInfo),
    /// `CTA_PROTOINFO_DCCP`.
    Dccp(DccpInfo),
    /// `CTA_PROTOINFO_SCTP`.
    Sctp(SctpInfo),
}

/// `CTA_PROTOINFO_TCP`. A DESTROY carries the state alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// `enum tcp_conntrack`; [`state_name`] names it.
    pub state: u8,
    /// Window scale of the original direction.
    pub wscale_original: Option<u8>,
    /// Window scale of the reply direction.
    pub wscale_reply: Option<u8>,
    /// `IP_CT_TCP_FLAG_*` of the original direction: flags, mask.
    pub flags_original: Option<(u8, u8)>,
    /// `IP_CT_TCP_FLAG_*` of the reply direction: flags, mask.
    pub flags_reply: Option<(u8, u8)>,
}

/// `CTA_PROTOINFO_DCCP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DccpInfo {
    /// `enum ct_dccp_states`; [`state_name`] names it.
    pub state: u8,
    /// `enum ct_dccp_roles`: 0 the original direction is the client, 1 the server.
    pub role: Option<u8>,
    /// Sequence number of the handshake.
    pub handshake_sequence: Option<u64>,
}

/// `CTA_PROTOINFO_SCTP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SctpInfo {
    /// `enum sctp_conntrack`; [`state_name`] names it.
    pub state: u8,
    /// Verification tag of the original direction.
    pub vtag_original: Option<u32>,
    /// Verification tag of the reply direction.
    pub vtag_reply: Option<u32>,
}

impl ProtocolInfo {
    /// The number of the state, in the enumeration of its protocol.
    pub const fn state(&self) -> u8 {
        match self {
            Self::Tcp(tcp) => tcp.state,
            Self::Dccp(dccp) => dccp.state,
            Self::Sctp(sctp) => sctp.state,
        }
    }
}

/// The IP protocols that conntrack knows by name, with their numbers.
pub const PROTOCOLS: [(u8, &str); 8] = [
    (6, "tcp"),
    (17, "udp"),
    (1, "icmp"),
    (58, "icmpv6"),
    (132, "sctp"),
    (33, "dccp"),
    (47, "gre"),
    (136, "udplite"),
];

/// The name of an IP protocol; `None` for one that conntrack shows as a number.
pub fn protocol_name(number: u8) -> Option<&'static str> {
    PROTOCOLS.iter().find(|(known, _)| *known == number).map(|&(_, name)| name)
}

/// The name that `conntrack -L` prints for a state of `protocol` (an IP protocol number), or `None` where the
/// protocol has no states or the number is not known.
pub fn state_name(protocol: u8, state: u8) -> Option<&'static str> {
    state_names(protocol).get(usize::from(state)).copied()
}

/// All states of `protocol` in the kernel's order, as `conntrack -L` prints them; empty where it has none.
pub fn state_names(protocol: u8) -> &'static [&'static str] {
    match protocol {
        6 => &TCP_STATES,
        33 => &DCCP_STATES,
        132 => &SCTP_STATES,
        _ => &[],
    }
}

/// `enum tcp_conntrack` (linux/netfilter/nf_conntrack_tcp.h).
const TCP_STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];

/// `enum ct_dccp_states` (linux/netfilter/nf_conntrack_dccp.h).
const DCCP_STATES: [&str; 10] = [
    "NONE", "REQUEST", "RESPOND", "PARTOPEN", "OPEN", "CLOSEREQ", "CLOSING", "TIMEWAIT", "IGNORE", "INVALID",
];

/// `enum sctp_conntrack` (linux/netfilter/nf_conntrack_sctp.h).
const SCTP_STATES: [&str; 10] = [
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
    "HEARTBEAT_ACKED",
];

//! A tuple: one direction of a flow as the kernel matches it.

use std::net::{IpAddr, Ipv4Addr};

/// The address family of a flow; both directions of a flow share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `AF_INET`.
    Ipv4,
    /// `AF_INET6`.
    Ipv6,
}

impl Family {
    /// The kernel's number, `AF_INET` (2) or `AF_INET6` (10).
    pub const fn number(self) -> u8 {
        match self {
            Self::Ipv4 => 2,
            Self::Ipv6 => 10,
        }
    }
}

/// One direction of a flow (`struct nf_conntrack_tuple`): addresses, layer-4 protocol, what that protocol
/// is matched by, and the zone of this direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address, of the same family as `dst`.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol number (6 is TCP).
    pub protocol: u8,
    /// Ports or ICMP fields.
    pub layer4: Layer4,
    /// Conntrack zone of this direction; 0, the default zone, is never sent by the kernel.
    pub zone: u16,
}

impl Tuple {
    /// No flow's tuple.
    pub(crate) const UNSPECIFIED: Self = Self {
        src: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        dst: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        protocol: 0,
        layer4: Layer4::None,
        zone: 0,
    };

    /// The family of the addresses.
    pub const fn family(&self) -> Family {
        match self.src {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }
}

/// What a layer-4 protocol adds to a tuple. Numbers are in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer4 {
    /// TCP, UDP, UDPLite, SCTP and DCCP ports; the keys of GRE.
    Ports {
        /// Source port (or GRE key).
        src: u16,
        /// Destination port (or GRE key).
        dst: u16,
    },
    /// ICMP and ICMPv6.
    Icmp {
        /// Message type (`icmp_type`).
        kind: u8,
        /// Message code.
        code: u8,
        /// Echo identifier; 0 for types without one.
        id: u16,
    },
    /// Protocols that the kernel matches by address alone.
    None,
}

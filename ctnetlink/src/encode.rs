//! The attributes of requests: what `attribute` and `decode/tuple` read, as netlink-packet-netfilter writes it. What that crate
//! does not type (zones, labels, ICMP, helpers, expectations) are its untyped attributes.

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, Nla};
use netlink_packet_netfilter::conntrack::{IPTuple, ProtoTuple, Tuple as TuplePart};

use crate::{Family, Layer4, Tuple};

/// The most bytes that a payload keeps: an attribute with its header, and one around it, have to fit into 65,535. The kernel
/// takes no payload that is nearly as long.
const MOST: usize = 0x8000;

/// An attribute whose payload are these bytes.
pub(crate) fn bytes(kind: u16, payload: &[u8]) -> DefaultNla {
    DefaultNla::new(kind, payload[..payload.len().min(MOST)].to_vec())
}

pub(crate) fn u8(kind: u16, value: u8) -> DefaultNla {
    bytes(kind, &[value])
}

pub(crate) fn u16(kind: u16, value: u16) -> DefaultNla {
    bytes(kind, &value.to_be_bytes())
}

pub(crate) fn u32(kind: u16, value: u32) -> DefaultNla {
    bytes(kind, &value.to_be_bytes())
}

/// A C string.
pub(crate) fn text(kind: u16, text: &[u8]) -> DefaultNla {
    let text = &text[..text.len().min(MOST - 1)];
    bytes(kind, &[text, &[0]].concat())
}

/// An attribute that holds others.
pub(crate) fn nest<A: Nla>(kind: u16, inner: &[A]) -> DefaultNla {
    let mut payload = vec![0; inner.buffer_len()];
    inner.emit(&mut payload);
    DefaultNla::new(kind | NLA_F_NESTED, payload)
}

/// Addresses and protocol of a tuple. Its zone is an attribute beside it.
pub(crate) fn tuple(kind: u16, tuple: &Tuple) -> DefaultNla {
    let mut protocol = vec![ProtoTuple::Protocol(tuple.protocol.into())];
    match tuple.layer4 {
        Layer4::Ports { src, dst } => {
            protocol.extend([ProtoTuple::SourcePort(src), ProtoTuple::DestinationPort(dst)]);
        }
        Layer4::Icmp { kind, code, id } => {
            // CTA_PROTO_ICMP_ID 4, TYPE 5, CODE 6; CTA_PROTO_ICMPV6_ID 7, TYPE 8, CODE 9.
            let first = match tuple.family() {
                Family::Ipv4 => 4,
                Family::Ipv6 => 7,
            };
            let icmp = [u16(first, id), u8(first + 1, kind), u8(first + 2, code)];
            protocol.extend(icmp.map(ProtoTuple::Other));
        }
        Layer4::None => {}
    }
    let addresses = vec![IPTuple::SourceAddress(tuple.src), IPTuple::DestinationAddress(tuple.dst)];
    nest(kind, &[TuplePart::Ip(addresses), TuplePart::Proto(protocol)])
}

/// A zone, which is left out where it is the default one.
pub(crate) fn zone(kind: u16, zone: u16) -> Option<DefaultNla> {
    (zone != 0).then(|| u16(kind, zone))
}

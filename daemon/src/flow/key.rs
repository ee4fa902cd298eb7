//! Tuples, packed: what a flow is found by, and how the kernel inverts it.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ctnetlink::{Family, Layer4, Tuple};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::checksum::layout_of;

/// `IPPROTO_TCP`.
pub(crate) const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub(crate) const UDP: u8 = 17;

/// What identifies a live flow: family, protocol, original tuple, zone of the original direction. `CTA_ID` is
/// data and not part of it: the kernel hands the same one out again.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Key {
    pub(super) addresses: Addresses,
    zone: u16,
    pub(super) protocol: u8,
    pub(super) shape: Shape,
}

layout_of!(Key { addresses, zone, protocol, shape });
layout_of!(Addresses { src, dst, layer4 });
layout_of!(Shape { 0 });

impl PartialEq for Key {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.words().into_iter().zip(other.words()).all(|(word, other)| word == other)
    }
}

impl Eq for Key {}

impl Hash for Key {
    #[inline]
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for word in self.words() {
            hasher.write_u64(word);
        }
    }
}

impl Key {
    /// The key of a flow. It is made of whole words, as it is read again at once: to put a word together from small pieces that were
    /// just written, a processor waits until all that was written before has reached its cache.
    #[inline]
    pub(crate) fn new(original: &Tuple) -> Self {
        let [src, dst] = [original.src, original.dst].map(address_words);
        let [[a, b], [c, d]] = layer4_numbers(original.layer4).map(u16::to_ne_bytes);
        let [e, f] = original.zone.to_ne_bytes();
        let numbers = u64::from_ne_bytes([a, b, c, d, e, f, original.protocol, Shape::of(original).0]);
        zerocopy::transmute!([src[0], src[1], dst[0], dst[1], numbers])
    }

    #[inline]
    pub(super) fn words(&self) -> [u64; 5] {
        zerocopy::transmute!(*self)
    }

    pub(crate) fn protocol(&self) -> u8 {
        self.protocol
    }

    pub(crate) fn original(&self) -> Tuple {
        self.addresses.unpack(self.shape, self.protocol, self.zone)
    }
}

/// The addresses and layer-4 numbers of a tuple; IPv4 takes the first four bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Addresses {
    src: [u8; 16],
    dst: [u8; 16],
    /// Source and destination port; for ICMP the identifier, then type and code.
    layer4: [u16; 2],
}

impl Addresses {
    pub(super) fn pack(tuple: &Tuple) -> Self {
        let [src, dst] = [tuple.src, tuple.dst].map(|address| zerocopy::transmute!(address_words(address)));
        Self { src, dst, layer4: layer4_numbers(tuple.layer4) }
    }

    pub(super) fn ports(&self, shape: Shape) -> &[u16] {
        if shape.layer4() == Shape::PORTS { &self.layer4 } else { &[] }
    }

    pub(super) fn unpack(&self, shape: Shape, protocol: u8, zone: u16) -> Tuple {
        let layer4 = match shape.layer4() {
            Shape::PORTS => Layer4::Ports { src: self.layer4[0], dst: self.layer4[1] },
            Shape::ICMP => {
                let [kind, code] = self.layer4[1].to_be_bytes();
                Layer4::Icmp { kind, code, id: self.layer4[0] }
            }
            _ => Layer4::None,
        };
        Tuple {
            src: unpack_address(shape, self.src),
            dst: unpack_address(shape, self.dst),
            protocol,
            layer4,
            zone,
        }
    }
}

#[inline]
fn address_words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]), 0]
        }
        IpAddr::V6(v6) => zerocopy::transmute!(v6.octets()),
    }
}

#[inline]
fn layer4_numbers(layer4: Layer4) -> [u16; 2] {
    match layer4 {
        Layer4::Ports { src, dst } => [src, dst],
        Layer4::Icmp { kind, code, id } => [id, u16::from_be_bytes([kind, code])],
        Layer4::None => [0, 0],
    }
}

fn unpack_address(shape: Shape, bytes: [u8; 16]) -> IpAddr {
    match shape.family() {
        Family::Ipv4 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        Family::Ipv6 => Ipv6Addr::from(bytes).into(),
    }
}

/// How packed addresses are to be read: the family and what the layer-4 numbers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub(crate) struct Shape(u8);

impl Shape {
    const V6: u8 = 1;
    const PORTS: u8 = 2;
    const ICMP: u8 = 4;

    pub(super) fn of(tuple: &Tuple) -> Self {
        let family = match tuple.family() {
            Family::Ipv4 => 0,
            Family::Ipv6 => Self::V6,
        };
        let layer4 = match tuple.layer4 {
            Layer4::Ports { .. } => Self::PORTS,
            Layer4::Icmp { .. } => Self::ICMP,
            Layer4::None => 0,
        };
        Self(family | layer4)
    }

    const fn family(self) -> Family {
        if self.0 & Self::V6 == 0 { Family::Ipv4 } else { Family::Ipv6 }
    }

    const fn layer4(self) -> u8 {
        self.0 & !Self::V6
    }
}

/// The reply tuple of a flow without translation, which is how the kernel inverts the original one.
pub(crate) fn inverted(original: &Tuple, reply_zone: u16) -> Tuple {
    let layer4 = match original.layer4 {
        Layer4::Ports { src, dst } => Layer4::Ports { src: dst, dst: src },
        Layer4::Icmp { kind, code, id } => {
            Layer4::Icmp { kind: inverted_icmp_type(original.family(), kind), code, id }
        }
        Layer4::None => Layer4::None,
    };
    Tuple { src: original.dst, dst: original.src, protocol: original.protocol, layer4, zone: reply_zone }
}

/// `invmap` of nf_conntrack_proto_icmp.c and nf_conntrack_proto_icmpv6.c: what answers a request.
fn inverted_icmp_type(family: Family, kind: u8) -> u8 {
    match (family, kind) {
        (Family::Ipv4, 8) => 0,
        (Family::Ipv4, 0) => 8,
        (Family::Ipv4, 13 | 15 | 17) | (Family::Ipv6, 128 | 139) => kind + 1,
        (Family::Ipv4, 14 | 16 | 18) | (Family::Ipv6, 129 | 140) => kind - 1,
        _ => kind,
    }
}

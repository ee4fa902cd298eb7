//! `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_TUPLE_MASTER`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::attribute::{Attribute, Attributes, Unknown};
use crate::{DecodeError, Layer4, Tuple};

/// `enum ctattr_tuple`.
pub(super) const CTA_TUPLE_IP: u16 = 1;
pub(super) const CTA_TUPLE_PROTO: u16 = 2;
pub(super) const CTA_TUPLE_ZONE: u16 = 3;

/// `enum ctattr_ip`.
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

/// `enum ctattr_l4proto`.
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMP_CODE: u16 = 6;
const CTA_PROTO_ICMPV6_ID: u16 = 7;
const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
const CTA_PROTO_ICMPV6_CODE: u16 = 9;

/// The tuple that `attribute`, called `name`, holds.
#[inline(always)]
pub(super) fn decode(
    attribute: Attribute<'_>,
    name: &'static str,
    unknown: &mut Unknown,
) -> Result<Tuple, DecodeError> {
    let mut attributes = attribute.nested(name);
    let (mut addresses, mut protocol, mut zone) = (None, None, 0);
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            CTA_TUPLE_IP => addresses = Some(decode_addresses(attribute.nested("CTA_TUPLE_IP"), unknown)?),
            CTA_TUPLE_PROTO => {
                protocol = Some(decode_protocol(attribute.nested("CTA_TUPLE_PROTO"), unknown)?);
            }
            CTA_TUPLE_ZONE => zone = attribute.u16("CTA_TUPLE_ZONE")?,
            kind => unknown.skip(kind),
        }
    }
    let Some((src, dst)) = addresses else {
        return Err(DecodeError::Missing { within: name, attribute: "CTA_TUPLE_IP" });
    };
    let Some((protocol, layer4)) = protocol else {
        return Err(DecodeError::Missing { within: name, attribute: "CTA_TUPLE_PROTO" });
    };
    Ok(Tuple { src, dst, protocol, layer4, zone })
}

/// Source and destination.
#[inline(always)]
fn decode_addresses(
    mut attributes: Attributes<'_>,
    unknown: &mut Unknown,
) -> Result<(IpAddr, IpAddr), DecodeError> {
    let (mut src, mut dst) = (None, None);
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            CTA_IP_V4_SRC => src = Some(IpAddr::V4(Ipv4Addr::from(attribute.bytes::<4>("CTA_IP_V4_SRC")?))),
            CTA_IP_V4_DST => dst = Some(IpAddr::V4(Ipv4Addr::from(attribute.bytes::<4>("CTA_IP_V4_DST")?))),
            CTA_IP_V6_SRC => src = Some(IpAddr::V6(Ipv6Addr::from(attribute.bytes::<16>("CTA_IP_V6_SRC")?))),
            CTA_IP_V6_DST => dst = Some(IpAddr::V6(Ipv6Addr::from(attribute.bytes::<16>("CTA_IP_V6_DST")?))),
            kind => unknown.skip(kind),
        }
    }
    match (src, dst) {
        (Some(src), Some(dst)) if src.is_ipv4() == dst.is_ipv4() => Ok((src, dst)),
        (Some(_), Some(_)) => Err(DecodeError::MixedFamilies { within: "CTA_TUPLE_IP" }),
        (None, _) => Err(DecodeError::Missing { within: "CTA_TUPLE_IP", attribute: "CTA_IP_*_SRC" }),
        (_, None) => Err(DecodeError::Missing { within: "CTA_TUPLE_IP", attribute: "CTA_IP_*_DST" }),
    }
}

/// The protocol number and what it is matched by: what the attributes say, whatever the protocol, so that one
/// this crate has never heard of is decoded as well.
#[inline(always)]
fn decode_protocol(
    mut attributes: Attributes<'_>,
    unknown: &mut Unknown,
) -> Result<(u8, Layer4), DecodeError> {
    let (mut protocol, mut src, mut dst) = (None, None, None);
    let (mut id, mut kind, mut code) = (None, None, None);
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            CTA_PROTO_NUM => protocol = Some(attribute.u8("CTA_PROTO_NUM")?),
            CTA_PROTO_SRC_PORT => src = Some(attribute.u16("CTA_PROTO_SRC_PORT")?),
            CTA_PROTO_DST_PORT => dst = Some(attribute.u16("CTA_PROTO_DST_PORT")?),
            CTA_PROTO_ICMP_ID => id = Some(attribute.u16("CTA_PROTO_ICMP_ID")?),
            CTA_PROTO_ICMP_TYPE => kind = Some(attribute.u8("CTA_PROTO_ICMP_TYPE")?),
            CTA_PROTO_ICMP_CODE => code = Some(attribute.u8("CTA_PROTO_ICMP_CODE")?),
            CTA_PROTO_ICMPV6_ID => id = Some(attribute.u16("CTA_PROTO_ICMPV6_ID")?),
            CTA_PROTO_ICMPV6_TYPE => kind = Some(attribute.u8("CTA_PROTO_ICMPV6_TYPE")?),
            CTA_PROTO_ICMPV6_CODE => code = Some(attribute.u8("CTA_PROTO_ICMPV6_CODE")?),
            kind => unknown.skip(kind),
        }
    }
    let missing = |attribute| Err(DecodeError::Missing { within: "CTA_TUPLE_PROTO", attribute });
    let Some(protocol) = protocol else { return missing("CTA_PROTO_NUM") };
    let layer4 = match (src, dst, kind, code, id) {
        (None, None, None, None, None) => Layer4::None,
        (Some(src), Some(dst), None, None, None) => Layer4::Ports { src, dst },
        (None, None, Some(kind), Some(code), Some(id)) => Layer4::Icmp { kind, code, id },
        (_, None, None, None, None) => return missing("CTA_PROTO_DST_PORT"),
        (None, _, None, None, None) => return missing("CTA_PROTO_SRC_PORT"),
        _ => return missing("ports, or ICMP type, code and id"),
    };
    Ok((protocol, layer4))
}

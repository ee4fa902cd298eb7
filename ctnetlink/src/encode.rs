//! Requests with attributes, as bytes: what `attribute` and `decode/tuple` read, written.

use std::net::IpAddr;

use crate::attribute::align;
use crate::request::request;
use crate::{Family, Layer4, Tuple};

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// The zone of both directions, `CTA_ZONE` and `CTA_EXPECT_ZONE`, is told beside the tuple.
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;

/// A request that is being written.
#[derive(Debug)]
pub(crate) struct Encoder(Vec<u8>);

impl Encoder {
    /// The headers are those of [`request`]; its `nlmsg_len` becomes right by [`Encoder::finish`].
    pub(crate) fn new(kind: u16, flags: u16, sequence: u32, family: Option<Family>) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(request(kind, flags, sequence, family));
        Self(bytes)
    }

    /// `nfgenmsg.version`: 1 makes a flush respect the family.
    pub(crate) fn version(&mut self, version: u8) {
        if let Some(byte) = self.0.get_mut(17) {
            *byte = version;
        }
    }

    /// One attribute; a payload that no attribute can hold is cut.
    pub(crate) fn bytes(&mut self, kind: u16, payload: &[u8]) {
        let payload = &payload[..payload.len().min(usize::from(u16::MAX) - 4)];
        self.0.extend(u16::try_from(payload.len() + 4).unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(payload);
        self.0.resize(align(self.0.len()), 0);
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    pub(crate) fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A C string.
    pub(crate) fn text(&mut self, kind: u16, text: &[u8]) {
        self.bytes(kind, &[text, &[0]].concat());
    }

    /// An attribute that holds those that `inner` writes.
    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.bytes(kind | NESTED, &[]);
        inner(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        if let Some(place) = self.0.get_mut(start..start + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Addresses and protocol of a tuple; its zone is another attribute's matter.
    pub(crate) fn tuple(&mut self, kind: u16, tuple: &Tuple) {
        self.nest(kind, |nest| {
            nest.nest(CTA_TUPLE_IP, |nest| {
                // CTA_IP_V4_SRC 1, CTA_IP_V4_DST 2, CTA_IP_V6_SRC 3, CTA_IP_V6_DST 4.
                for (v4, address) in [(1, tuple.src), (2, tuple.dst)] {
                    match address {
                        IpAddr::V4(address) => nest.bytes(v4, &address.octets()),
                        IpAddr::V6(address) => nest.bytes(v4 + 2, &address.octets()),
                    }
                }
            });
            nest.nest(CTA_TUPLE_PROTO, |nest| {
                nest.u8(1, tuple.protocol); // CTA_PROTO_NUM
                match tuple.layer4 {
                    Layer4::Ports { src, dst } => {
                        nest.u16(2, src); // CTA_PROTO_SRC_PORT
                        nest.u16(3, dst); // CTA_PROTO_DST_PORT
                    }
                    Layer4::Icmp { kind, code, id } => {
                        // CTA_PROTO_ICMP_ID 4, TYPE 5, CODE 6; CTA_PROTO_ICMPV6_ID 7, TYPE 8, CODE 9.
                        let first = match tuple.family() {
                            Family::Ipv4 => 4,
                            Family::Ipv6 => 7,
                        };
                        nest.u16(first, id);
                        nest.u8(first + 1, kind);
                        nest.u8(first + 2, code);
                    }
                    Layer4::None => {}
                }
            });
        });
    }

    /// A zone, which is not told where it is the default one.
    pub(crate) fn zone(&mut self, kind: u16, zone: u16) {
        if zone != 0 {
            self.u16(kind, zone);
        }
    }

    /// The request.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        if let Some(place) = self.0.get_mut(..4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        self.0
    }
}

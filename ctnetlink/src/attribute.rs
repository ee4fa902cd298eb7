//! Netlink attributes (`struct nlattr`, linux/netlink.h): the header in host order, what conntrack puts into it
//! in network order.

use crate::DecodeError;

/// `NLA_HDRLEN`.
pub(crate) const HEADER: usize = 4;
/// `NLA_TYPE_MASK`: the type without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`, which some kernels set and some do not.
const TYPE_MASK: u16 = 0x3fff;

/// `NLMSG_ALIGN` and `NLA_ALIGN`: messages and attributes start at multiples of four.
pub(crate) const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// A length as the kernel's 32 bits, for what is always shorter than 4 GiB: an option, what is left of a datagram.
#[expect(clippy::cast_possible_truncation, reason = "the caller's length fits")]
pub(crate) const fn length_u32(length: usize) -> u32 {
    length as u32
}

/// One attribute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attribute<'a> {
    /// `nla_type`, without the type bits.
    pub(crate) kind: u16,
    payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes inside this one.
    pub(crate) const fn nested(self, name: &'static str) -> Attributes<'a> {
        Attributes::new(self.payload, name)
    }

    /// The first `N` bytes. More is no error: the kernel's own rule for attributes that grow.
    pub(crate) fn bytes<const N: usize>(self, name: &'static str) -> Result<[u8; N], DecodeError> {
        match self.payload.first_chunk() {
            Some(bytes) => Ok(*bytes),
            None => Err(DecodeError::Truncated { attribute: name, need: N, got: self.payload.len() }),
        }
    }

    /// A byte.
    pub(crate) fn u8(self, name: &'static str) -> Result<u8, DecodeError> {
        self.bytes(name).map(u8::from_be_bytes)
    }

    /// `__be16`.
    pub(crate) fn u16(self, name: &'static str) -> Result<u16, DecodeError> {
        self.bytes(name).map(u16::from_be_bytes)
    }

    /// `__be32`.
    pub(crate) fn u32(self, name: &'static str) -> Result<u32, DecodeError> {
        self.bytes(name).map(u32::from_be_bytes)
    }

    /// `__be64`.
    pub(crate) fn u64(self, name: &'static str) -> Result<u64, DecodeError> {
        self.bytes(name).map(u64::from_be_bytes)
    }

    /// A C string, without the terminating zero.
    pub(crate) fn text(self) -> &'a [u8] {
        self.payload.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// The bytes as they are.
    pub(crate) const fn payload(self) -> &'a [u8] {
        self.payload
    }
}

/// The attributes of a message or of a nested attribute, in their order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
    within: &'static str,
}

impl<'a> Attributes<'a> {
    /// The attributes in `bytes`, which are what `within` holds.
    pub(crate) const fn new(bytes: &'a [u8], within: &'static str) -> Self {
        Self { rest: bytes, within }
    }

    /// The next attribute, `None` at the end. Not an `Iterator`, so that an error ends the caller by `?`.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Result<Option<Attribute<'a>>, DecodeError> {
        let Some(&[low, high, kind_low, kind_high]) = self.rest.first_chunk::<HEADER>() else {
            return match self.rest.len() {
                0 => Ok(None),
                got => Err(DecodeError::Truncated { attribute: self.within, need: HEADER, got }),
            };
        };
        let length = u16::from_ne_bytes([low, high]);
        let Some(payload) = self.rest.get(HEADER..usize::from(length)) else {
            return Err(DecodeError::AttributeLength {
                within: self.within,
                length,
                available: self.rest.len(),
            });
        };
        // The padding behind the last attribute may be missing.
        self.rest = self.rest.get(align(usize::from(length))..).unwrap_or_default();
        Ok(Some(Attribute { kind: u16::from_ne_bytes([kind_low, kind_high]) & TYPE_MASK, payload }))
    }
}

/// How many attributes were skipped because this crate does not know them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unknown(pub(crate) u16);

impl Unknown {
    /// Counts `kind` unless it is 0, which the kernel uses for padding.
    #[cold]
    pub(crate) const fn skip(&mut self, kind: u16) {
        if kind != 0 {
            self.0 = self.0.saturating_add(1);
        }
    }
}

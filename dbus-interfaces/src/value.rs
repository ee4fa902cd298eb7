//! A value of a flow's dictionary, borrowed, and how it is written.

use std::collections::HashMap;
use std::marker::PhantomData;

use ctnetlink::Status;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, SerializeStruct, Serializer};
use zbus::Variant;

use crate::Owner;

/// A value as [`Flow::visit`](crate::Flow::visit) hands it out. Numbers are in host order.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// `b`
    Bool(bool),
    /// `y`
    U8(u8),
    /// `q`
    U16(u16),
    /// `u`
    U32(u32),
    /// `t`
    U64(u64),
    /// `s`
    Text(&'a str),
    /// `as`: the names of the bits that are set.
    Status(Status),
    /// `ay`
    Bytes(&'a [u8]),
    /// `a{sv}`
    Owner(&'a Owner<'a>),
}

impl Value<'_> {
    /// The D-Bus signature.
    pub const fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::U8(_) => "y",
            Self::U16(_) => "q",
            Self::U32(_) => "u",
            Self::U64(_) => "t",
            Self::Text(_) => "s",
            Self::Status(_) => "as",
            Self::Bytes(_) => "ay",
            Self::Owner(_) => "a{sv}",
        }
    }
}

impl Owner<'_> {
    /// Hands every field that has a value to `sink`, by name.
    pub fn visit(&self, mut sink: impl FnMut(&'static str, Value<'_>)) {
        let values = [
            ("pid", self.pid.map(Value::U32)),
            ("comm", self.comm.map(Value::Text)),
            ("leader_comm", self.leader_comm.map(Value::Text)),
            ("uid", self.uid.map(Value::U32)),
            ("unit", self.unit.map(Value::Text)),
            ("cgroup", self.cgroup.map(Value::Text)),
            ("container", self.container.map(Value::Text)),
            ("pod", self.pod.map(Value::Text)),
            ("exe", self.exe.map(Value::Text)),
            ("network_namespace", self.network_namespace.map(Value::U32)),
            ("opened", self.opened.map(Value::Bool)),
            ("confidence", self.confidence.map(Value::Text)),
        ];
        for (name, value) in values {
            if let Some(value) = value {
                sink(name, value);
            }
        }
    }
}

/// The value in an answer that is put together at run time. This allocates, which listings do not.
impl From<Value<'_>> for Variant<'static> {
    fn from(value: Value<'_>) -> Self {
        match value {
            Value::Bool(value) => value.into(),
            Value::U8(value) => value.into(),
            Value::U16(value) => value.into(),
            Value::U32(value) => value.into(),
            Value::U64(value) => value.into(),
            Value::Text(value) => value.to_owned().into(),
            Value::Status(value) => status_names(value).map(str::to_owned).collect::<Vec<_>>().into(),
            Value::Bytes(value) => value.to_vec().into(),
            Value::Owner(value) => {
                let mut fields = HashMap::new();
                value.visit(|name, value| drop(fields.insert(name.to_owned(), Self::from(value))));
                fields.into()
            }
        }
    }
}

/// `enum ip_conntrack_status`, as `status` names the bits; later kernels' bits are shown as numbers.
pub(crate) const STATUS_NAMES: [&str; 32] = [
    "expected",
    "seen-reply",
    "assured",
    "confirmed",
    "src-nat",
    "dst-nat",
    "seq-adjust",
    "src-nat-done",
    "dst-nat-done",
    "dying",
    "fixed-timeout",
    "template",
    "nat-clash",
    "helper",
    "offload",
    "hw-offload",
    "0x10000",
    "0x20000",
    "0x40000",
    "0x80000",
    "0x100000",
    "0x200000",
    "0x400000",
    "0x800000",
    "0x1000000",
    "0x2000000",
    "0x4000000",
    "0x8000000",
    "0x10000000",
    "0x20000000",
    "0x40000000",
    "0x80000000",
];

/// The names of the bits that are set, lowest first.
pub fn status_names(status: Status) -> impl Iterator<Item = &'static str> {
    let bits = status.bits();
    STATUS_NAMES.iter().enumerate().filter(move |(bit, _)| bits >> bit & 1 != 0).map(|(_, name)| *name)
}

/// The bit of a name, without regard to case.
pub fn status_bit(name: &str) -> Option<u32> {
    STATUS_NAMES.iter().position(|known| known.eq_ignore_ascii_case(name)).map(|bit| 1 << bit)
}

/// How values are written.
pub(crate) trait Encoding {
    fn serialize<S: Serializer>(value: Value<'_>, serializer: S) -> Result<S::Ok, S::Error>;
}

/// A value, to be written in an encoding.
pub(crate) struct Encoded<'a, F>(Value<'a>, PhantomData<F>);

impl<'a, F: Encoding> Encoded<'a, F> {
    pub(crate) const fn new(value: Value<'a>) -> Self {
        Self(value, PhantomData)
    }
}

impl<F: Encoding> Serialize for Encoded<'_, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        F::serialize(self.0, serializer)
    }
}

/// Signature and value, as D-Bus has it in a dictionary. zbus writes a struct of this shape where the signature
/// says `v`, as its own `Variant` does; nothing is allocated.
pub(crate) enum VariantEncoding {}

impl Encoding for VariantEncoding {
    fn serialize<S: Serializer>(value: Value<'_>, serializer: S) -> Result<S::Ok, S::Error> {
        let mut variant = serializer.serialize_struct("Variant", 2)?;
        variant.serialize_field("signature", value.signature())?;
        match value {
            Value::Bool(value) => variant.serialize_field("value", &value)?,
            Value::U8(value) => variant.serialize_field("value", &value)?,
            Value::U16(value) => variant.serialize_field("value", &value)?,
            Value::U32(value) => variant.serialize_field("value", &value)?,
            Value::U64(value) => variant.serialize_field("value", &value)?,
            Value::Text(value) => variant.serialize_field("value", value)?,
            Value::Status(value) => variant.serialize_field("value", &StatusNames(value))?,
            Value::Bytes(value) => variant.serialize_field("value", &Bytes(value))?,
            Value::Owner(value) => {
                variant.serialize_field("value", &EncodedOwner::<Self>(value, PhantomData))?
            }
        }
        variant.end()
    }
}

/// JSON; bytes are hexadecimal.
pub(crate) enum JsonEncoding {}

impl Encoding for JsonEncoding {
    fn serialize<S: Serializer>(value: Value<'_>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Value::Bool(value) => serializer.serialize_bool(value),
            Value::U8(value) => serializer.serialize_u8(value),
            Value::U16(value) => serializer.serialize_u16(value),
            Value::U32(value) => serializer.serialize_u32(value),
            Value::U64(value) => serializer.serialize_u64(value),
            Value::Text(value) => serializer.serialize_str(value),
            Value::Status(value) => StatusNames(value).serialize(serializer),
            Value::Bytes(value) => serializer.collect_str(&Hexadecimal(value)),
            Value::Owner(value) => EncodedOwner::<Self>(value, PhantomData).serialize(serializer),
        }
    }
}

struct StatusNames(Status);

impl Serialize for StatusNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut names = serializer.serialize_seq(Some(self.0.bits().count_ones() as usize))?;
        for name in status_names(self.0) {
            names.serialize_element(name)?;
        }
        names.end()
    }
}

/// Bytes in one piece: zbus takes nine times as long for a sequence of numbers.
struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Two digits a byte, in order.
pub(crate) struct Hexadecimal<'a>(pub(crate) &'a [u8]);

impl std::fmt::Display for Hexadecimal<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An owner, to be written in an encoding.
struct EncodedOwner<'a, F>(&'a Owner<'a>, PhantomData<F>);

impl<F: Encoding> Serialize for EncodedOwner<'_, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut result = Ok(());
        self.0.visit(|name, value| {
            if result.is_ok() {
                result = map.serialize_entry(name, &Encoded::<F>::new(value));
            }
        });
        result?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_bits_have_names_and_unknown_ones_numbers() {
        let status = Status::SEEN_REPLY | Status::HW_OFFLOAD | Status::from_bits_retain(1 << 31);
        assert_eq!(status_names(status).collect::<Vec<_>>(), ["seen-reply", "hw-offload", "0x80000000"]);
        assert_eq!(status_names(Status::empty()).count(), 0);
        for (bit, name) in STATUS_NAMES.iter().enumerate().skip(16) {
            assert_eq!(*name, format!("{:#x}", 1_u32 << bit));
        }
    }
}

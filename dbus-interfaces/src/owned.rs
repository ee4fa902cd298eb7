//! A flow as a client has it, read from a D-Bus dictionary or a JSON line.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use zbus::{Signature, Type, Variant};

use crate::dictionary::DICTIONARY;
use crate::value::Hexadecimal;
use crate::{Key, Value, status_names};

/// A flow: its fields by key. Keys that this version does not know are left out, so that a client works with a
/// later service. It serialises as the JSON object that it can be read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedFlow {
    values: BTreeMap<Key, OwnedValue>,
}

/// A value of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedValue {
    /// `b`
    Bool(bool),
    /// `y`, `q`, `u` or `t`
    Number(u64),
    /// `s`
    Text(String),
    /// `as`
    Names(Vec<String>),
    /// `ay`
    Bytes(Vec<u8>),
    /// `a{sv}`
    Dictionary(BTreeMap<String, OwnedValue>),
}

/// Why a line or a dictionary is no flow.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// Not a JSON object.
    #[error("not a JSON object: {0}")]
    Json(#[from] serde_json::Error),
    /// A value of another type than its key has.
    #[error("{key} must be {expected} and is {found}")]
    Type {
        /// The key.
        key: Key,
        /// The D-Bus signature of the key, or what JSON has for it.
        expected: &'static str,
        /// What was found.
        found: String,
    },
}

impl OwnedFlow {
    /// The value of a field, if the flow has it.
    pub fn get(&self, key: Key) -> Option<&OwnedValue> {
        self.values.get(&key)
    }

    /// The value of a field that is text.
    pub fn text(&self, key: Key) -> Option<&str> {
        match self.get(key)? {
            OwnedValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value of a field that is a number.
    pub fn number(&self, key: Key) -> Option<u64> {
        match self.get(key)? {
            OwnedValue::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// Whether a field is true.
    pub fn is(&self, key: Key) -> bool {
        self.get(key) == Some(&OwnedValue::Bool(true))
    }

    /// The names of a field that has several; none if it is absent.
    pub fn names(&self, key: Key) -> &[String] {
        match self.get(key) {
            Some(OwnedValue::Names(names)) => names,
            _ => &[],
        }
    }

    /// All fields in the order of [`Key`].
    pub fn iter(&self) -> impl Iterator<Item = (Key, &OwnedValue)> {
        self.values.iter().map(|(&key, value)| (key, value))
    }

    /// Reads a JSON object, such as a line of a stream.
    ///
    /// # Errors
    /// If the text is no JSON object or a key has a value of another type than it should.
    pub fn from_json(line: &str) -> Result<Self, FlowError> {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line)?;
        let known = object.into_iter().filter_map(|(name, value)| Some((Key::parse(&name)?, value)));
        known.map(|(key, value)| Ok((key, OwnedValue::from_json(key, value)?))).collect()
    }
}

/// Puts a flow together from fields, as [`Flow::visit`](crate::Flow::visit) hands them out.
impl FromIterator<(Key, OwnedValue)> for OwnedFlow {
    fn from_iter<T: IntoIterator<Item = (Key, OwnedValue)>>(values: T) -> Self {
        Self { values: values.into_iter().collect() }
    }
}

impl From<Value<'_>> for OwnedValue {
    fn from(value: Value<'_>) -> Self {
        match value {
            Value::Bool(value) => Self::Bool(value),
            Value::U8(value) => Self::Number(value.into()),
            Value::U16(value) => Self::Number(value.into()),
            Value::U32(value) => Self::Number(value.into()),
            Value::U64(value) => Self::Number(value),
            Value::Text(value) => Self::Text(value.to_owned()),
            Value::Status(value) => Self::Names(status_names(value).map(str::to_owned).collect()),
            Value::Bytes(value) => Self::Bytes(value.to_vec()),
            Value::Owner(owner) => {
                let mut fields = BTreeMap::new();
                owner.visit(|name, value| {
                    fields.insert(name.to_owned(), value.into());
                });
                Self::Dictionary(fields)
            }
        }
    }
}

/// The value for people to read: names with commas between, bytes hexadecimal.
impl fmt::Display for OwnedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => f.write_str(if *value { "yes" } else { "no" }),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(value) => f.write_str(value),
            Self::Names(names) => f.write_str(&names.join(",")),
            Self::Bytes(bytes) => write!(f, "{}", Hexadecimal(bytes)),
            Self::Dictionary(fields) => {
                let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
                f.write_str(&fields.join(" "))
            }
        }
    }
}

impl Serialize for OwnedFlow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.values.len()))?;
        for (key, value) in &self.values {
            map.serialize_entry(key.name(), value)?;
        }
        map.end()
    }
}

impl Serialize for OwnedValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(value) => serializer.serialize_u64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::Names(names) => names.serialize(serializer),
            Self::Bytes(bytes) => serializer.collect_str(&Hexadecimal(bytes)),
            Self::Dictionary(fields) => fields.serialize(serializer),
        }
    }
}

impl Type for OwnedFlow {
    const SIGNATURE: &'static Signature = DICTIONARY;
}

impl<'de> Deserialize<'de> for OwnedFlow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DictionaryVisitor)
    }
}

struct DictionaryVisitor;

impl<'de> Visitor<'de> for DictionaryVisitor {
    type Value = OwnedFlow;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a flow, a{sv}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OwnedFlow, A::Error> {
        let mut values = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<&str, Variant<'_>>()? {
            let Some(key) = Key::parse(name) else { continue };
            let found = value.value_signature().to_string();
            let value = Some(value)
                .filter(|_| found == key.signature())
                .and_then(from_variant)
                .ok_or_else(|| A::Error::custom(FlowError::Type { key, expected: key.signature(), found }))?;
            values.insert(key, value);
        }
        Ok(OwnedFlow { values })
    }
}

/// The value in a variant; `None` for a type that no field has.
pub(crate) fn from_variant(value: Variant<'_>) -> Option<OwnedValue> {
    Some(match value {
        Variant::Bool(value) => OwnedValue::Bool(value),
        Variant::U8(value) => OwnedValue::Number(value.into()),
        Variant::U16(value) => OwnedValue::Number(value.into()),
        Variant::U32(value) => OwnedValue::Number(value.into()),
        Variant::U64(value) => OwnedValue::Number(value),
        Variant::Str(value) => OwnedValue::Text(value.into()),
        Variant::Array(array) if *array.element_signature() == Signature::U8 => {
            OwnedValue::Bytes(array.try_into().ok()?)
        }
        Variant::Array(array) => OwnedValue::Names(array.try_into().ok()?),
        Variant::Dict(fields) => {
            let fields: BTreeMap<String, Variant<'_>> = fields.try_into().ok()?;
            let known = fields.into_iter().filter_map(|(name, value)| Some((name, from_variant(value)?)));
            OwnedValue::Dictionary(known.collect())
        }
        _ => return None,
    })
}

impl OwnedValue {
    /// Reads what JSON has for a key.
    pub(crate) fn from_json(key: Key, value: serde_json::Value) -> Result<Self, FlowError> {
        use serde_json::Value as Json;
        let wrong = |expected, found: &Json| FlowError::Type { key, expected, found: found.to_string() };
        match (key.signature(), value) {
            ("b", Json::Bool(value)) => Ok(OwnedValue::Bool(value)),
            ("b", other) => Err(wrong("true or false", &other)),
            ("s", Json::String(value)) => Ok(OwnedValue::Text(value)),
            ("s", other) => Err(wrong("a string", &other)),
            ("as", Json::Array(names)) => {
                let name = |name| match name {
                    Json::String(name) => Ok(name),
                    other => Err(wrong("an array of strings", &other)),
                };
                Ok(OwnedValue::Names(names.into_iter().map(name).collect::<Result<_, _>>()?))
            }
            ("as", other) => Err(wrong("an array of strings", &other)),
            ("ay", other) => {
                let bytes = other.as_str().and_then(from_hexadecimal);
                bytes.map(OwnedValue::Bytes).ok_or_else(|| wrong("hexadecimal digits", &other))
            }
            ("a{sv}", Json::Object(fields)) => {
                let field = |(name, value)| match value {
                    Json::String(text) => Ok((name, OwnedValue::Text(text))),
                    Json::Bool(value) => Ok((name, OwnedValue::Bool(value))),
                    other => match other.as_u64() {
                        Some(number) => Ok((name, OwnedValue::Number(number))),
                        None => Err(wrong("an object of strings, numbers and booleans", &other)),
                    },
                };
                Ok(OwnedValue::Dictionary(fields.into_iter().map(field).collect::<Result<_, _>>()?))
            }
            ("a{sv}", other) => Err(wrong("an object", &other)),
            (_, other) => other.as_u64().map(OwnedValue::Number).ok_or_else(|| wrong("a number", &other)),
        }
    }
}

fn from_hexadecimal(digits: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = digits.chars().map(|digit| digit.to_digit(16)).collect();
    let (pairs, []) = digits.as_deref()?.as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| u8::try_from(high << 4 | low).ok()).collect()
}

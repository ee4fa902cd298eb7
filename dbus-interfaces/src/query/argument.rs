//! A query as it comes over the wire: a list of pairs, not a map, so that a repeated key is seen.

use std::cell::Cell;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use zbus::{Signature, Type};

use crate::dictionary::DICTIONARY;

/// The most pairs and list elements kept of a query. There are fewer keys than that, so a longer query is wrong
/// by a pair that is kept; the rest is skipped, so that a caller cannot make a service hold much.
const MAXIMUM: usize = 256;

/// The most values of a query altogether, those that are skipped included. Reading ends with an error at the next one, because what a
/// caller sends must not cost more than the refusal is worth; and each flow and event may be compared with all of them.
const VALUES: usize = 1_024;

const TOO_LONG: Argument = Argument::Other("an array of more than 256");

/// The `a{sv}` of a query, in the order of the message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawQuery(pub(super) Vec<(String, Argument)>);

/// A value of a query, without regard to the width of integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// `b`
    Bool(bool),
    /// `n`, `i` or `x`
    Signed(i64),
    /// `y`, `q`, `u` or `t`
    Unsigned(u64),
    /// `s`, `o` or `g`
    Text(String),
    /// An array of values.
    List(Vec<Argument>),
    /// A value of another type, or a list of too many elements, in words: valid for no key.
    Other(&'static str),
}

impl<K: Into<String>> FromIterator<(K, Argument)> for RawQuery {
    fn from_iter<T: IntoIterator<Item = (K, Argument)>>(pairs: T) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }
}

impl RawQuery {
    /// The keys, in the order of the message.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }
}

impl Argument {
    /// The values that a flow has to have, and those after `!`, which it must not have.
    pub(super) fn split(&self) -> (Option<Self>, Option<Self>) {
        let excluded = |value: &Self| match value {
            Self::Text(text) => text.strip_prefix('!').map(|rest| Self::Text(rest.to_owned())),
            _ => None,
        };
        let gathered =
            |mut values: Vec<Self>| if values.len() > 1 { Some(Self::List(values)) } else { values.pop() };
        match self {
            Self::List(values) if values.iter().any(|value| excluded(value).is_some()) => {
                let included = values.iter().filter(|value| excluded(value).is_none()).cloned().collect();
                (gathered(included), gathered(values.iter().filter_map(excluded).collect()))
            }
            value => match excluded(value) {
                Some(excluded) => (None, Some(excluded)),
                None => (Some(value.clone()), None),
            },
        }
    }
}

impl Type for RawQuery {
    const SIGNATURE: &'static Signature = DICTIONARY;
}

/// The value as error messages quote it, cut after 64 characters.
impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Signed(value) => write!(f, "{value}"),
            Self::Unsigned(value) => write!(f, "{value}"),
            Self::Text(text) => match text.char_indices().nth(64) {
                Some((end, _)) => write!(f, "{:?}...", &text[..end]),
                None => write!(f, "{text:?}"),
            },
            Self::List(list) => write!(f, "an array of {}", list.len()),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl<'de> Deserialize<'de> for RawQuery {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Pairs)
    }
}

struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = RawQuery;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a query, a{sv}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawQuery, A::Error> {
        let mut pairs = Vec::new();
        let left = Cell::new(VALUES);
        while let Some(key) = map.next_key::<&str>()? {
            let value = map.next_value_seed(Plain(&Signature::Variant, &left))?;
            if pairs.len() < MAXIMUM {
                pairs.push((key.to_owned(), value));
            }
        }
        Ok(RawQuery(pairs))
    }
}

/// A value in a variant: zbus hands out the signature, then the value.
struct VariantVisitor<'a>(&'a Cell<usize>);

impl<'de> Visitor<'de> for VariantVisitor<'_> {
    type Value = Argument;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a variant")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Argument, A::Error> {
        let signature =
            parts.next_element::<Signature>()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        let value = parts.next_element_seed(Plain(&signature, self.0))?;
        value.ok_or_else(|| A::Error::invalid_length(1, &self))
    }
}

/// A value of this signature, and how many more values the query may have.
#[derive(Clone, Copy)]
struct Plain<'a>(&'a Signature, &'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Plain<'_> {
    type Value = Argument;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Argument, D::Error> {
        let left = self.1.get().checked_sub(1);
        self.1.set(left.ok_or_else(|| D::Error::custom(format_args!("more than {VALUES} values")))?);
        match self.0 {
            Signature::Variant => deserializer.deserialize_any(VariantVisitor(self.1)),
            // In one piece, whatever its length.
            Signature::Array(element) if *element.signature() == Signature::U8 => {
                deserializer.deserialize_bytes(self)
            }
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Plain<'_> {
    type Value = Argument;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of type {}", self.0)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Argument, E> {
        Ok(Argument::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Argument, E> {
        Ok(match self.0 {
            Signature::Fd => Argument::Other("a file descriptor"),
            _ => Argument::Signed(value),
        })
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Argument, E> {
        Ok(Argument::Unsigned(value))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Argument, E> {
        Ok(Argument::Other("a floating-point number"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Argument, E> {
        Ok(Argument::Text(text.to_owned()))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Argument, E> {
        Ok(match bytes.len() {
            0..=MAXIMUM => {
                Argument::List(bytes.iter().map(|&byte| Argument::Unsigned(byte.into())).collect())
            }
            _ => TOO_LONG,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Argument, A::Error> {
        let Signature::Array(element) = self.0 else {
            if let Signature::Structure(fields) = self.0 {
                for field in fields.iter() {
                    elements.next_element_seed(Plain(field, self.1))?;
                }
            }
            return Ok(Argument::Other("a structure"));
        };
        let mut list = Vec::new();
        let mut too_long = false;
        while let Some(value) = elements.next_element_seed(Plain(element.signature(), self.1))? {
            too_long = list.len() == MAXIMUM;
            if !too_long {
                list.push(value);
            }
        }
        Ok(if too_long { TOO_LONG } else { Argument::List(list) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Argument, A::Error> {
        if let Signature::Dict { key, value } = self.0 {
            while map.next_key_seed(Plain(key.signature(), self.1))?.is_some() {
                map.next_value_seed(Plain(value.signature(), self.1))?;
            }
        }
        Ok(Argument::Other("a dictionary"))
    }
}

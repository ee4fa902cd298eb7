//! A query as it comes over the wire: a list of pairs, not a map, so that a repeated key is seen.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use zbus::{Signature, Type};

use crate::dictionary::DICTIONARY;

/// The most pairs and list elements kept of a query. There are fewer keys than that, so a longer query is wrong
/// by a pair that is kept; the rest is skipped, so that a caller cannot make a service hold much.
const MAXIMUM: usize = 256;

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
    /// An array of one of these.
    List(Vec<Argument>),
    /// Another type, or a list of too many elements: valid for no key. What it is, in words.
    Other(&'static str),
}

impl<K: Into<String>> FromIterator<(K, Argument)> for RawQuery {
    fn from_iter<T: IntoIterator<Item = (K, Argument)>>(pairs: T) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }
}

impl Type for RawQuery {
    const SIGNATURE: &'static Signature = DICTIONARY;
}

/// As an error message quotes it, cut after 64 characters.
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
        while let Some(key) = map.next_key::<&str>()? {
            let Variant(value) = map.next_value()?;
            if pairs.len() < MAXIMUM {
                pairs.push((key.to_owned(), value));
            }
        }
        Ok(RawQuery(pairs))
    }
}

/// A value in a variant: zbus hands out the signature, then the value.
struct Variant(Argument);

impl<'de> Deserialize<'de> for Variant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VariantVisitor).map(Self)
    }
}

struct VariantVisitor;

impl<'de> Visitor<'de> for VariantVisitor {
    type Value = Argument;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a variant")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Argument, A::Error> {
        let signature =
            parts.next_element::<Signature>()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        let value = parts.next_element_seed(Plain(&signature))?;
        value.ok_or_else(|| A::Error::invalid_length(1, &self))
    }
}

/// A value of this signature.
#[derive(Clone, Copy)]
struct Plain<'a>(&'a Signature);

impl<'de> DeserializeSeed<'de> for Plain<'_> {
    type Value = Argument;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Argument, D::Error> {
        if *self.0 == Signature::Variant {
            return deserializer.deserialize_any(VariantVisitor);
        }
        deserializer.deserialize_any(self)
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

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Argument, A::Error> {
        let Signature::Array(element) = self.0 else {
            while elements.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Argument::Other("a structure"));
        };
        let mut list = Vec::new();
        let mut too_long = false;
        while let Some(value) = elements.next_element_seed(Plain(element.signature()))? {
            too_long = list.len() == MAXIMUM;
            if !too_long {
                list.push(value);
            }
        }
        Ok(if too_long { Argument::Other("an array of more than 256") } else { Argument::List(list) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Argument, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Argument::Other("a dictionary"))
    }
}

//! A flow as a line of a stream has it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::{FlowError, Key, OwnedFlow, OwnedValue};

/// A flow that borrows from its line of JSON. Its values are read when they are asked for, which makes it the fast
/// way through a large table; [`OwnedFlow`] is what can be kept.
#[derive(Clone, Copy)]
pub struct FlowRef<'a> {
    line: &'a str,
    pub(super) kind: &'a str,
    pub(super) matches: bool,
    /// The JSON text of each value by key; empty where the flow does not have it.
    values: [&'a str; Key::ALL.len()],
}

impl<'a> FlowRef<'a> {
    /// Reads a JSON object. Keys that this version does not know are passed over.
    ///
    /// # Errors
    /// If the text is no JSON object.
    pub fn parse(line: &'a str) -> Result<Self, serde_json::Error> {
        let flow: Self = serde_json::from_str(line)?;
        Ok(Self { line, ..flow })
    }

    /// The JSON text of a value.
    pub fn json(&self, key: Key) -> Option<&'a str> {
        Some(self.values[key as usize]).filter(|value| !value.is_empty())
    }

    /// The value of a field that is text.
    pub fn text(&self, key: Key) -> Option<Cow<'a, str>> {
        let value = self.json(key)?;
        match value.strip_prefix('"')?.strip_suffix('"')? {
            plain if !plain.contains('\\') => Some(Cow::Borrowed(plain)),
            _ => serde_json::from_str(value).ok().map(Cow::Owned),
        }
    }

    /// The value of a field that is a number.
    pub fn number(&self, key: Key) -> Option<u64> {
        self.json(key)?.parse().ok()
    }

    /// Whether a field is true.
    pub fn is(&self, key: Key) -> bool {
        self.json(key) == Some("true")
    }

    /// The names of a field that has several, such as `status`; none if it is absent. No name has a character that
    /// JSON escapes.
    pub fn names(&self, key: Key) -> impl Iterator<Item = &'a str> {
        self.json(key).unwrap_or_default().split('"').skip(1).step_by(2)
    }

    /// The value of a field; `None` also where its type is not the key's.
    pub fn value(&self, key: Key) -> Option<OwnedValue> {
        OwnedValue::from_json(key, serde_json::from_str(self.json(key)?).ok()?).ok()
    }

    /// The keys that the flow has, in order.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        Key::ALL.iter().copied().filter(|&key| self.json(key).is_some())
    }

    /// The members of the JSON object as the daemon wrote them, without the `type` and `matches` of a stream: put
    /// between braces they are the flow's object. The text has no line's end.
    pub fn members(&self) -> &'a str {
        let object = self.line.trim_ascii();
        let members = object.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(object);
        let member = |rest: &'a str| rest.strip_prefix("\"type\":\"")?.split_once('"').map(|(_, rest)| rest);
        let members = member(members).unwrap_or(members);
        let members = members.strip_prefix(",\"matches\":false").unwrap_or(members);
        members.strip_prefix(',').unwrap_or(members)
    }

    /// This flow, to be kept.
    ///
    /// # Errors
    /// If a key has a value of another type than it should.
    pub fn to_owned_flow(&self) -> Result<OwnedFlow, FlowError> {
        OwnedFlow::from_json(self.line)
    }
}

/// The line that it was read from.
impl fmt::Debug for FlowRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FlowRef").field(&self.line).finish()
    }
}

impl<'de> Deserialize<'de> for FlowRef<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FlowVisitor)
    }
}

struct FlowVisitor;

impl<'de> Visitor<'de> for FlowVisitor {
    type Value = FlowRef<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a flow, a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FlowRef<'de>, A::Error> {
        let mut flow = FlowRef { line: "", kind: "", matches: true, values: [""; Key::ALL.len()] };
        // Fields come in the order of the keys: each is found a few places after the one before.
        let mut next = 0;
        while let Some(Name(name)) = map.next_key()? {
            let value = map.next_value::<&RawValue>()?.get();
            let key = Key::ALL[next..].iter().copied().find(|key| key.name() == name);
            match key.or_else(|| Key::parse(&name)) {
                Some(key) => {
                    flow.values[key as usize] = value;
                    next = key as usize + 1;
                }
                None if name == "type" => flow.kind = value.trim_matches('"'),
                None if name == "matches" => flow.matches = value != "false",
                None => {}
            }
        }
        Ok(flow)
    }
}

/// The name of a member, which may have escapes where a later version is strange.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

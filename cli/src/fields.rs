//! The fields of a flow, whichever way it came: as a line of a stream, or from a method call.

use std::borrow::Cow;

use flowbus_interfaces::{FlowRef, Key, OwnedFlow, OwnedValue};

/// What is read of a flow to show it.
pub(crate) trait Fields {
    /// A field that is text.
    fn text(&self, key: Key) -> Option<Cow<'_, str>>;
    /// A field that is a number.
    fn number(&self, key: Key) -> Option<u64>;
    /// Whether a field of several names has this one.
    fn has(&self, key: Key, name: &str) -> bool;
    /// Whether the flow has a field.
    fn contains(&self, key: Key) -> bool;
    /// Any field.
    fn value(&self, key: Key) -> Option<Cow<'_, OwnedValue>>;
    /// The members of its JSON object, without the braces.
    fn members(&self) -> Cow<'_, str>;
    /// Where it was recorded, of a flow of the log.
    fn recorded(&self) -> Option<Recorded<'_>> {
        None
    }
}

/// Where a flow was recorded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recorded<'a> {
    /// The machine's id.
    pub(crate) machine: &'a str,
    /// The machine as people call it.
    pub(crate) name: &'a str,
    /// The epoch of its id.
    pub(crate) epoch: &'a str,
    /// Whether a flow without an end was alive when the record ended: else its end is missing.
    pub(crate) is_alive: Option<bool>,
}

impl Fields for FlowRef<'_> {
    fn text(&self, key: Key) -> Option<Cow<'_, str>> {
        FlowRef::text(self, key)
    }

    fn number(&self, key: Key) -> Option<u64> {
        FlowRef::number(self, key)
    }

    fn has(&self, key: Key, name: &str) -> bool {
        self.names(key).any(|known| known == name)
    }

    fn contains(&self, key: Key) -> bool {
        self.json(key).is_some()
    }

    fn value(&self, key: Key) -> Option<Cow<'_, OwnedValue>> {
        FlowRef::value(self, key).map(Cow::Owned)
    }

    fn members(&self) -> Cow<'_, str> {
        Cow::Borrowed(FlowRef::members(self))
    }
}

impl Fields for OwnedFlow {
    fn text(&self, key: Key) -> Option<Cow<'_, str>> {
        OwnedFlow::text(self, key).map(Cow::Borrowed)
    }

    fn number(&self, key: Key) -> Option<u64> {
        OwnedFlow::number(self, key)
    }

    fn has(&self, key: Key, name: &str) -> bool {
        self.names(key).iter().any(|known| known == name)
    }

    fn contains(&self, key: Key) -> bool {
        self.get(key).is_some()
    }

    fn value(&self, key: Key) -> Option<Cow<'_, OwnedValue>> {
        self.get(key).map(Cow::Borrowed)
    }

    fn members(&self) -> Cow<'_, str> {
        // A map of text and numbers can always be written.
        let object = flowbus_interfaces::json_text(self).unwrap_or_default();
        let members = object.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        Cow::Owned(members.unwrap_or_default().to_owned())
    }
}

//! A flow as it is written: a D-Bus dictionary or a JSON object. Both come from the one visitor.

use serde::ser::{Serialize, SerializeMap, Serializer};
use zbus::{Signature, Type};

use crate::flow::visit_mark_fields;
use crate::value::{Encoded, Encoding, JsonEncoding, VariantEncoding};
use crate::{FieldSet, Flow, Mark, SourceNames, Value, status_names};

/// A flow as `a{sv}`, written straight into the message.
#[derive(Clone, Copy, Debug)]
pub struct Dictionary<'a> {
    flow: Flow<'a>,
    names: &'a SourceNames,
    fields: FieldSet,
}

/// A flow as a JSON object.
#[derive(Clone, Copy, Debug)]
pub struct Json<'a> {
    flow: Flow<'a>,
    names: &'a SourceNames,
    fields: FieldSet,
}

impl<'a> Flow<'a> {
    /// This flow as a D-Bus dictionary.
    pub const fn dictionary(self, names: &'a SourceNames, fields: FieldSet) -> Dictionary<'a> {
        Dictionary { flow: self, names, fields }
    }

    /// This flow as a JSON object.
    pub const fn json(self, names: &'a SourceNames, fields: FieldSet) -> Json<'a> {
        Json { flow: self, names, fields }
    }

    /// How many bytes the dictionary takes in an array of them, at most 15 too many: what a page is measured by.
    pub fn dictionary_size(&self, names: &SourceNames, fields: FieldSet) -> usize {
        let mut size = Size::new();
        self.visit(names, fields, |key, value| size.entry(key.name(), value));
        size.end()
    }
}

/// Where D-Bus's alignment puts the end of what is written, counted from a multiple of 8.
pub(crate) struct Size(usize);

impl Size {
    /// The size of an empty dictionary in an array: its length; the first entry begins at a multiple of 8.
    pub(crate) const fn new() -> Self {
        Self(8)
    }

    /// Where the next dictionary begins.
    pub(crate) const fn end(&self) -> usize {
        self.0.next_multiple_of(8)
    }

    fn add(&mut self, alignment: usize, length: usize) {
        self.0 = self.0.next_multiple_of(alignment) + length;
    }

    /// Length and terminating zero go with the text.
    fn text(&mut self, text: &str) {
        self.add(4, 4 + text.len() + 1);
    }

    pub(crate) fn entry(&mut self, name: &str, value: Value<'_>) {
        self.add(8, 0);
        self.text(name);
        self.add(1, 1 + value.signature().len() + 1);
        match value {
            Value::U8(_) => self.add(1, 1),
            Value::U16(_) => self.add(2, 2),
            Value::Bool(_) | Value::U32(_) => self.add(4, 4),
            Value::U64(_) => self.add(8, 8),
            Value::Text(text) => self.text(text),
            Value::Bytes(bytes) => self.add(4, 4 + bytes.len()),
            Value::Status(status) => {
                self.add(4, 4);
                status_names(status).for_each(|name| self.text(name));
            }
            Value::Owner(owner) => {
                self.add(4, 4);
                self.add(8, 0);
                owner.visit(|name, value| self.entry(name, value));
            }
        }
    }
}

impl Type for Dictionary<'_> {
    const SIGNATURE: &'static Signature = DICTIONARY;
}

/// `a{sv}`
pub(crate) const DICTIONARY: &Signature = &Signature::static_dict(&Signature::Str, &Signature::Variant);

impl Serialize for Dictionary<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write::<VariantEncoding, _>(serializer, |sink| {
            self.flow.visit(self.names, self.fields, |key, value| sink(key.name(), value));
        })
    }
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write::<JsonEncoding, _>(serializer, |sink| {
            self.flow.visit(self.names, self.fields, |key, value| sink(key.name(), value));
        })
    }
}

/// The fields of a mark as `a{sv}`: the answer of `DecodeMark`.
#[derive(Clone, Copy, Debug)]
pub struct MarkDictionary<'a> {
    /// The mark.
    pub mark: Mark,
    /// The interface with index [`Mark::interface_index`], also when it is gone, until the
    /// index is used again.
    pub interface: Option<&'a str>,
    /// The names of sources.
    pub names: &'a SourceNames,
}

impl Type for MarkDictionary<'_> {
    const SIGNATURE: &'static Signature = DICTIONARY;
}

impl Serialize for MarkDictionary<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write::<VariantEncoding, _>(serializer, |sink| {
            visit_mark_fields(self.mark, self.interface, self.names, |key, value| sink(key.name(), value));
        })
    }
}

/// Serialises what `visit` hands out as a map, until the first error.
pub(crate) fn write<F: Encoding, S: Serializer>(
    serializer: S,
    visit: impl FnOnce(&mut dyn FnMut(&'static str, Value<'_>)),
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    let mut result = Ok(());
    visit(&mut |name, value| {
        if result.is_ok() {
            result = map.serialize_entry(name, &Encoded::<F>::new(value));
        }
    });
    result?;
    map.end()
}

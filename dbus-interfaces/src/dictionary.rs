//! A flow as it is written: a D-Bus dictionary or a JSON object. Both come from the one visitor.

use serde::ser::{Serialize, SerializeMap, Serializer};
use zbus::{Signature, Type};

use crate::flow::visit_mark_fields;
use crate::value::{Form, In, JsonForm, VariantForm};
use crate::{FieldSet, Flow, Key, Mark, SourceNames, Value};

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

    /// At most how many bytes the dictionary takes in a message: what a page is measured by.
    pub fn dictionary_size(&self, names: &SourceNames, fields: FieldSet) -> usize {
        // The length of the array, and the alignment of its first entry.
        let mut size = 8;
        self.visit(names, fields, |key, value| size += entry_size(key.name(), value));
        size
    }
}

/// An entry begins at a multiple of 8; its parts are at most: key length 4, zero 1, signature length 1, zero 1,
/// alignment of the value 7, and the value.
fn entry_size(name: &str, value: Value<'_>) -> usize {
    let value_size = match value {
        Value::Bool(_) | Value::U8(_) | Value::U16(_) | Value::U32(_) => 4,
        Value::U64(_) => 8,
        Value::Text(text) => text.len() + 5,
        Value::Bytes(bytes) => bytes.len() + 4,
        // A name has at most 13 letters, a length, a zero and its alignment.
        Value::Status(status) => 4 + 24 * status.bits().count_ones() as usize,
        Value::Owner(owner) => {
            let mut size = 8;
            owner.visit(|name, value| size += entry_size(name, value));
            size
        }
    };
    7 + name.len() + value.signature().len() + 14 + value_size
}

impl Type for Dictionary<'_> {
    const SIGNATURE: &'static Signature = DICTIONARY;
}

/// `a{sv}`
pub(crate) const DICTIONARY: &Signature = &Signature::static_dict(&Signature::Str, &Signature::Variant);

impl Serialize for Dictionary<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write::<VariantForm, _>(serializer, |sink| self.flow.visit(self.names, self.fields, sink))
    }
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write::<JsonForm, _>(serializer, |sink| self.flow.visit(self.names, self.fields, sink))
    }
}

/// The fields of a mark as `a{sv}`: the answer of `DecodeMark`.
#[derive(Clone, Copy, Debug)]
pub struct MarkDictionary<'a> {
    /// The mark.
    pub mark: Mark,
    /// The interface with index [`Mark::interface_index`], while it exists.
    pub interface: Option<&'a str>,
    /// The names of sources.
    pub names: &'a SourceNames,
}

impl Type for MarkDictionary<'_> {
    const SIGNATURE: &'static Signature = DICTIONARY;
}

impl Serialize for MarkDictionary<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write::<VariantForm, _>(serializer, |sink| {
            visit_mark_fields(self.mark, self.interface, self.names, sink)
        })
    }
}

/// Serialises what `visit` hands out as a map, until the first error.
fn write<F: Form, S: Serializer>(
    serializer: S,
    visit: impl FnOnce(&mut dyn FnMut(Key, Value<'_>)),
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    let mut result = Ok(());
    visit(&mut |key, value| {
        if result.is_ok() {
            result = map.serialize_entry(key.name(), &In::<F>::new(value));
        }
    });
    result?;
    map.end()
}

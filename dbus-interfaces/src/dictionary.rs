//! A flow as it is written: a D-Bus dictionary or a JSON object. Both come from the one visitor.

use serde::ser::{Serialize, SerializeMap, Serializer};
use zbus::{Signature, Type};

use crate::flow::visit_mark_fields;
use crate::value::{Encoded, Encoding, JsonEncoding, VariantEncoding};
use crate::{FieldSet, Flow, Mark, SourceNames, Value};

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

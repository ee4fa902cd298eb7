//! Hundreds of dictionaries, as pages and signals have them.

use std::ops::Range;

use serde::ser::{Serialize, Serializer};
use zbus::wire::Endian;
use zbus::{Signature, Type};

use crate::dictionary::DICTIONARY;
use crate::{Connection, FieldSet, Flow, SourceNames, Value, fit, status_names};

/// Dictionaries as `aa{sv}`, laid out for the message as they are added.
///
/// zbus looks up signature, nesting and alignment for each value, which takes several times as long; it writes what is one
/// dictionary ([`Dictionary`](crate::Dictionary)). The array has to begin at a multiple of 8 of a message's body, as it does where
/// it comes first or after a `t`.
///
/// The layout is that of the D-Bus specification, "Marshaling (Wire Format)".
#[derive(Clone, Debug)]
pub struct DictionaryArray {
    endian: Endian,
    /// The array; the place of its length is left free, so that what follows is aligned as in the message.
    bytes: Vec<u8>,
    /// Where each dictionary is, with the padding before it; nowhere (`0..0`) if it was removed.
    places: Vec<Range<usize>>,
    /// How many of the bytes belong to removed dictionaries.
    removed: usize,
}

/// How many bytes the length of an array has.
const LENGTH: usize = 4;
/// The most bytes of removed dictionaries that are kept in any case.
const UNPACKED: usize = 64 * 1024;
/// The alignment of an array, and so of a dictionary among others.
const ARRAY: usize = 4;
/// The alignment of a dictionary's entries.
const ENTRY: usize = 8;

impl DictionaryArray {
    /// No dictionaries yet, in the byte order of the message that they are for: a reply has that of the call.
    pub fn new(endian: Endian) -> Self {
        Self::with_capacity(endian, LENGTH)
    }

    /// No dictionaries yet, and room for this many bytes.
    pub fn with_capacity(endian: Endian, bytes: usize) -> Self {
        let mut array = Self { endian, bytes: Vec::with_capacity(bytes), places: Vec::new(), removed: 0 };
        array.bytes.resize(LENGTH, 0);
        array
    }

    /// Adds a flow. Returns how many bytes it takes in the message, at most 15 too many: what a page is measured by.
    pub fn push_flow(&mut self, flow: &Flow<'_>, names: &SourceNames, fields: FieldSet) -> usize {
        self.push(|layout| flow.visit(names, fields, |key, value| layout.entry(key.name(), value)))
    }

    /// Adds a connection event. Returns how many bytes it takes in the message, at most 15 too many.
    pub fn push_connection(&mut self, connection: &Connection<'_>) -> usize {
        self.push(|layout| connection.visit(|name, value| layout.entry(name, value)))
    }

    /// Removes the dictionary that was added as number `index`, counted from 0. The others keep their numbers; the next one that is added has
    /// a new number, unless the last was removed.
    pub fn remove(&mut self, index: usize) {
        if index + 1 == self.places.len() {
            let last = self.places.pop().unwrap_or_default();
            self.bytes.truncate(if last.is_empty() { self.bytes.len() } else { last.start });
            return;
        }
        let place = self.places.get_mut(index).map(std::mem::take).unwrap_or_default();
        self.removed += place.len();
        // So rarely that packing takes less than adding.
        if self.removed > UNPACKED.max(self.bytes.len() / 2) {
            *self = self.packed();
        }
    }

    fn push(&mut self, write: impl FnOnce(&mut Layout<'_>)) -> usize {
        let start = self.bytes.len();
        let mut layout = Layout { endian: self.endian, bytes: &mut self.bytes };
        let entries = layout.array(ENTRY, write);
        self.places.push(start..self.bytes.len());
        (LENGTH + ARRAY + entries).next_multiple_of(ENTRY)
    }

    /// This array without the bytes of removed dictionaries.
    fn packed(&self) -> Self {
        let mut packed = Self::with_capacity(self.endian, self.bytes.capacity());
        for place in &self.places {
            if place.is_empty() {
                packed.places.push(0..0);
                continue;
            }
            let start = (place.start.next_multiple_of(ARRAY) + LENGTH).next_multiple_of(ENTRY);
            packed.push(|layout| layout.bytes.extend_from_slice(&self.bytes[start..place.end]));
        }
        packed
    }
}

impl Type for DictionaryArray {
    const SIGNATURE: &'static Signature = &Signature::static_array(DICTIONARY);
}

/// zbus takes bytes for an array of any kind, and puts their number before them.
impl Serialize for DictionaryArray {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.removed > 0 {
            return self.packed().serialize(serializer);
        }
        serializer.serialize_bytes(&self.bytes[LENGTH..])
    }
}

/// Writes values as D-Bus lays them out.
struct Layout<'a> {
    endian: Endian,
    bytes: &'a mut Vec<u8>,
}

impl Layout<'_> {
    fn entry(&mut self, name: &str, value: Value<'_>) {
        self.align(ENTRY);
        self.text(name);
        self.signature(value.signature());
        match value {
            Value::U8(value) => self.bytes.push(value),
            Value::U16(value) => self.number(value.to_le_bytes(), value.to_be_bytes()),
            Value::Bool(value) => self.u32(value.into()),
            Value::U32(value) => self.u32(value),
            Value::U64(value) => self.number(value.to_le_bytes(), value.to_be_bytes()),
            Value::Text(text) => self.text(text),
            Value::Bytes(bytes) => drop(self.array(1, |layout| layout.bytes.extend_from_slice(bytes))),
            Value::Status(status) => {
                self.array(ARRAY, |layout| status_names(status).for_each(|name| layout.text(name)));
            }
            Value::Owner(owner) => {
                self.array(ENTRY, |layout| owner.visit(|name, value| layout.entry(name, value)));
            }
        }
    }

    /// An array of elements with this alignment. Returns its length, as D-Bus counts it: without padding before the first.
    fn array(&mut self, alignment: usize, write: impl FnOnce(&mut Self)) -> usize {
        self.u32(0);
        let length_at = self.bytes.len() - LENGTH;
        self.align(alignment);
        let start = self.bytes.len();
        write(self);
        let length = self.bytes.len() - start;
        let number: u32 = fit(length);
        let bytes = self.ordered(number.to_le_bytes(), number.to_be_bytes());
        self.bytes[length_at..][..LENGTH].copy_from_slice(&bytes);
        length
    }

    /// `s`
    fn text(&mut self, text: &str) {
        self.u32(fit(text.len()));
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    /// `g`, which begins a variant.
    fn signature(&mut self, signature: &str) {
        self.bytes.push(fit(signature.len()));
        self.bytes.extend_from_slice(signature.as_bytes());
        self.bytes.push(0);
    }

    fn u32(&mut self, value: u32) {
        self.number(value.to_le_bytes(), value.to_be_bytes());
    }

    /// A number in both orders; it is aligned to its own size.
    fn number<const N: usize>(&mut self, little: [u8; N], big: [u8; N]) {
        self.align(N);
        let bytes = self.ordered(little, big);
        self.bytes.extend_from_slice(&bytes);
    }

    /// Which of these the message has.
    const fn ordered<const N: usize>(&self, little: [u8; N], big: [u8; N]) -> [u8; N] {
        match self.endian {
            Endian::Little => little,
            Endian::Big => big,
        }
    }

    /// Zeros up to the next multiple, of 8 at most.
    fn align(&mut self, alignment: usize) {
        let end = self.bytes.len().next_multiple_of(alignment);
        self.bytes.extend_from_slice(&[0; 8]); // A constant number: one store.
        self.bytes.truncate(end);
    }
}

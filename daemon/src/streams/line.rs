//! The lines of a stream.

use flowbus_interfaces::{Connection, FieldSet, Flow, SourceNames, StreamItem, event_name, write_json};
use serde::Serialize;

use crate::expectation::ExpectationEvent;

/// Lines that are written with one system call.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<u8>);

impl Lines {
    /// Adds a line without a flow, a connection or an expectation.
    pub(super) fn push(&mut self, item: &StreamItem<'_>) {
        // Writing to a vector cannot fail, and none of these has a key that is not text.
        let _ = write_json(&mut self.0, item);
        self.0.push(b'\n');
    }

    /// Adds a flow of the snapshot, or one that had ended before.
    pub(crate) fn push_flow(&mut self, flow: &Flow<'_>, names: &SourceNames, fields: FieldSet) {
        let kind = if flow.end.is_some() { "closed" } else { "flow" };
        self.push_object(kind, flow, names, fields, true);
    }

    /// Adds an event; `matches` is false where its flow does not pass the filter any more.
    pub(super) fn push_event(
        &mut self,
        flow: Flow<'_>,
        names: &SourceNames,
        fields: FieldSet,
        matches: bool,
    ) {
        let kind = flow.event.map_or("update", event_name);
        // The type says what happened.
        self.push_object(kind, &Flow { event: None, ..flow }, names, fields, matches);
    }

    /// Adds what became of an expectation.
    pub(super) fn push_expectation(&mut self, event: &ExpectationEvent) {
        let mut object = event.expectation.to_json();
        object["type"] = "expectation".into();
        object["event"] = event_name(event.kind).into();
        let _ = write_json(&mut self.0, &object);
        self.0.push(b'\n');
    }

    /// Adds what a connection did.
    pub(super) fn push_connection(&mut self, connection: &Connection<'_>) {
        self.push_members(connection.kind.name(), &connection.json(), true);
    }

    fn push_object(
        &mut self,
        kind: &str,
        flow: &Flow<'_>,
        names: &SourceNames,
        fields: FieldSet,
        matches: bool,
    ) {
        self.push_members(kind, &flow.json(names, fields), matches);
    }

    fn push_members(&mut self, kind: &str, object: &impl Serialize, matches: bool) {
        self.0.extend_from_slice(b"{\"type\":\"");
        self.0.extend_from_slice(kind.as_bytes());
        self.0.push(b'"');
        if !matches {
            self.0.extend_from_slice(b",\"matches\":false");
        }
        let brace = self.0.len();
        let _ = write_json(&mut self.0, object);
        // The object goes on after the type: its brace becomes a comma, unless there is nothing in it.
        if self.0.get(brace + 1) == Some(&b'}') {
            self.0.remove(brace);
        } else if let Some(brace) = self.0.get_mut(brace) {
            *brace = b',';
        }
        self.0.push(b'\n');
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

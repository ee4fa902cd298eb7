//! A connection of the record, as it is shown.

use std::borrow::Cow;
use std::fmt::Write as _;

use flowbus_interfaces::{FlowRef, Key, Mark, OwnedValue, SourceNames};

use super::line::is_compact;
use crate::field::{Field, Title};
use crate::fields::{Fields, Recorded};

/// A flow of the record, by the last line that there is of it.
pub(super) struct Row<'a> {
    pub(super) flow: FlowRef<'a>,
    pub(super) line: &'a str,
    pub(super) recorded: Recorded<'a>,
    /// The fields that were chosen; none for all.
    pub(super) chosen: &'a [Field],
    /// Whether the reply direction is completed, for forms that cannot do without.
    pub(super) both_directions: bool,
}

impl Row<'_> {
    /// The first of the keys that have a value where the flow does not have it itself.
    fn substitute(&self, key: Key) -> Key {
        let others = if self.both_directions { key.substitutes() } else { &[] };
        let has = |key: &Key| self.flow.json(*key).is_some();
        [key].iter().chain(others).copied().find(has).unwrap_or(key)
    }

    fn mark(&self) -> Option<Mark> {
        self.flow.number(Key::Mark)?.try_into().ok().map(Mark)
    }

    /// The members of the line but its type.
    fn all_members(&self) -> Cow<'_, str> {
        let members = || {
            let (before, rest) = self.line.strip_prefix('{')?.split_once("\"type\":\"")?;
            let (_, rest) = rest.strip_suffix('}')?.split_once('"')?;
            let rest = rest.strip_prefix(",\"matches\":false").unwrap_or(rest);
            Some([before.trim_end_matches(','), rest].concat())
        };
        // In another form of JSON the type may stand elsewhere, or within a text.
        let any_form = || {
            let mut members: serde_json::Map<_, _> = serde_json::from_str(self.line).ok()?;
            members.remove("type");
            members.remove("matches");
            let object = flowbus_interfaces::json_text(&members).ok()?;
            Some(object.strip_prefix('{')?.strip_suffix('}')?.to_owned())
        };
        let members = if is_compact(self.line.as_bytes()) { members() } else { any_form() };
        members.map_or_else(|| Cow::Borrowed(self.flow.members()), Cow::Owned)
    }

    fn chosen_members(&self) -> String {
        let mut text = String::new();
        let mut add = |name: &str, json: &str| {
            // Text is always written.
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}\"{name}\":{json}");
        };
        let mut keys = Vec::new();
        for field in self.chosen {
            let quoted = |text: &str| flowbus_interfaces::json_text(&text).unwrap_or_default();
            match field {
                Field::Title(Title::Machine) => add("machine", &quoted(self.recorded.machine)),
                Field::Title(Title::Epoch) => add("epoch", &quoted(self.recorded.epoch)),
                Field::Title(Title::Alive) => {
                    if let Some(alive) = self.recorded.is_alive {
                        add("alive", if alive { "true" } else { "false" });
                    }
                }
                field => keys.extend(field.keys(false, false)),
            }
        }
        for (place, key) in keys.iter().enumerate() {
            if let Some(json) = self.flow.json(*key).filter(|_| !keys[..place].contains(key)) {
                add(key.name(), json);
            }
        }
        text
    }
}

impl Fields for Row<'_> {
    fn text(&self, key: Key) -> Option<Cow<'_, str>> {
        // The log has the mark, and the source is a part of it.
        let source = |mark: Mark| Cow::Owned(SourceNames::default().name(mark.source_id()).to_owned());
        match self.flow.text(self.substitute(key)) {
            None if key == Key::Source => self.mark().map(source),
            text => text,
        }
    }

    fn number(&self, key: Key) -> Option<u64> {
        match self.flow.number(self.substitute(key)) {
            None if key == Key::SourceId => self.mark().map(|mark| mark.source_id().into()),
            number => number,
        }
    }

    fn has(&self, key: Key, name: &str) -> bool {
        Fields::has(&self.flow, key, name)
    }

    fn contains(&self, key: Key) -> bool {
        self.flow.json(self.substitute(key)).is_some()
    }

    fn value(&self, key: Key) -> Option<Cow<'_, OwnedValue>> {
        self.flow.value(self.substitute(key)).map(Cow::Owned)
    }

    fn members(&self) -> Cow<'_, str> {
        if !self.chosen.is_empty() {
            return flowbus_interfaces::printing_json(self.chosen_members().into());
        }
        match (flowbus_interfaces::printing_json(self.all_members()), self.recorded.is_alive) {
            (members, None) => members,
            (members, Some(alive)) => Cow::Owned(format!("{members},\"alive\":{alive}")),
        }
    }

    fn recorded(&self) -> Option<Recorded<'_>> {
        Some(self.recorded)
    }
}

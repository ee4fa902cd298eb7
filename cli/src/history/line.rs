//! What a line of the log is, found out without reading all of it.
//!
//! Lines are as compact as flowbusd writes them, and those of a file begin alike: `{"machine":"...","epoch":"...","type":"`. So a line
//! that a condition rules out costs a comparison and a search. Lines in any other form are read as JSON.

use memchr::memmem;
use serde::Deserialize;
use std::borrow::Cow;

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A flow that ended while nobody wrote.
    Closed,
    /// A flow that is alive where the file begins.
    Flow,
    SnapshotEnd,
    /// A flow that began, or changed.
    Begun,
    Destroy,
    Gap,
    Resync,
    Reached,
    End,
    Other,
}

impl Kind {
    fn parse(name: &[u8]) -> Self {
        match name {
            b"closed" => Self::Closed,
            b"flow" => Self::Flow,
            b"snapshot-end" => Self::SnapshotEnd,
            b"new" | b"update" => Self::Begun,
            b"destroy" => Self::Destroy,
            b"gap" => Self::Gap,
            b"resync" => Self::Resync,
            b"reached" => Self::Reached,
            b"end" => Self::End,
            _ => Self::Other,
        }
    }
}

/// Whether a line begins as flowbus-export writes it.
pub(super) fn is_compact(line: &[u8]) -> bool {
    line.starts_with(b"{\"machine\":\"") || line.starts_with(b"{\"epoch\":\"")
}

/// How the lines of a file begin.
pub(super) struct Prefix(Vec<u8>);

impl Prefix {
    /// The prefix of the lines of a file that begins with this line.
    pub(super) fn of(begin: &[u8]) -> Self {
        const TYPE: &[u8] = b"\"type\":\"";
        let place = memmem::find(begin, TYPE).filter(|_| is_compact(begin));
        let length = place.map_or(0, |place| place + TYPE.len());
        Self(begin[..length].to_vec())
    }

    /// What a line is, and whether it has the compact form; `None` for what is no object.
    pub(super) fn kind(&self, line: &[u8]) -> Option<(Kind, bool)> {
        #[derive(Deserialize)]
        struct Typed<'a> {
            #[serde(rename = "type", borrow, default)]
            kind: Cow<'a, str>,
        }
        let rest = line.strip_prefix(&self.0[..]).filter(|_| !self.0.is_empty() && line.ends_with(b"}"));
        if let Some(rest) = rest {
            let name = rest.split(|byte| *byte == b'"').next().unwrap_or_default();
            return Some((Kind::parse(name), true));
        }
        let typed: Typed<'_> = serde_json::from_slice(line).ok()?;
        Some((Kind::parse(typed.kind.as_bytes()), false))
    }
}

/// The number that a member of a line is. A name in quotation marks stands in no text of JSON, which escapes them.
pub(super) struct Number {
    name: String,
    finder: memmem::Finder<'static>,
}

impl Number {
    pub(super) fn named(name: &str) -> Self {
        let name = format!("\"{name}\":");
        Self { finder: memmem::Finder::new(&name).into_owned(), name }
    }

    pub(super) fn of(&self, line: &[u8]) -> Option<u64> {
        let place = self.finder.find(line)? + self.name.len();
        let digits = line[place..].trim_ascii_start();
        let length = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
        std::str::from_utf8(&digits[..length]).ok()?.parse().ok()
    }
}

/// The numbers that are looked for.
pub(super) struct Numbers {
    pub(super) id: Number,
    pub(super) sequence: Number,
    pub(super) last: Number,
    pub(super) lost: Number,
    pub(super) records: Number,
    pub(super) event_usec: Number,
    pub(super) start_usec: Number,
    pub(super) end_usec: Number,
}

impl Numbers {
    pub(super) fn new() -> Self {
        Self {
            id: Number::named("id"),
            sequence: Number::named("sequence"),
            last: Number::named("last"),
            lost: Number::named("lost"),
            records: Number::named("records"),
            event_usec: Number::named("event_usec"),
            start_usec: Number::named("start_usec"),
            end_usec: Number::named("end_usec"),
        }
    }

    /// The latest time that a line has.
    pub(super) fn latest_usec(&self, line: &[u8]) -> u64 {
        let times = [&self.event_usec, &self.end_usec, &self.start_usec];
        times.iter().filter_map(|number| number.of(line)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_known_by_how_its_file_begins() {
        let prefix = Prefix::of(br#"{"machine":"m","epoch":"e","type":"begin","sequence":1}"#);
        assert_eq!(prefix.0, br#"{"machine":"m","epoch":"e","type":""#);
        for (line, kind) in [
            (r#"{"machine":"m","epoch":"e","type":"new","id":1}"#, Some((Kind::Begun, true))),
            (r#"{"machine":"m","epoch":"e","type":"snapshot-end"}"#, Some((Kind::SnapshotEnd, true))),
            (r#"{"machine":"m","epoch":"e","type":"later"}"#, Some((Kind::Other, true))),
            // Another program writes it like this.
            (r#"{ "type": "destroy", "machine": "m" }"#, Some((Kind::Destroy, false))),
            (r#"{"machine":"other","epoch":"e","type":"new","id":1}"#, Some((Kind::Begun, false))),
            ("{}", Some((Kind::Other, false))),
            (r#"{"machine":"m","epoch":"e","type":"new","id":1"#, None),
            ("[1]", None),
            ("\0\0\0", None),
            ("", None),
            ("7", None),
        ] {
            assert_eq!(prefix.kind(line.as_bytes()), kind, "{line}");
        }
        let other = Prefix::of(br#"{ "machine": "m", "type": "begin" }"#);
        assert_eq!(other.kind(br#"{"type":"new"}"#), Some((Kind::Begun, false)));
    }

    #[test]
    fn a_number_is_found_where_no_text_can_be_taken_for_it() {
        let numbers = Numbers::new();
        let line = br#"{"comm":"\"id\":9,","conntrack_id":8,"id":7,"end_usec": 5,"start_usec":3}"#;
        assert_eq!(numbers.id.of(line), Some(7));
        assert_eq!(numbers.latest_usec(line), 5);
        assert_eq!(numbers.id.of(br#"{"id":"7"}"#), None);
        assert_eq!(numbers.id.of(br#"{"id":"#), None);
    }
}

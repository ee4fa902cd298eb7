//! Where a stream is, so that another can go on there.

use std::fmt;
use std::str::FromStr;

use zbus::Variant;

use super::{FlowRef, StreamItem};
use crate::Key;

/// The place that a reader of streams has come to. A fresh one has seen nothing.
///
/// A cursor is kept as text from one life to the next: `epoch=E;sequence=S;id=I`, or nothing while it is fresh. Of
/// two of an epoch the greater one is further.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    epoch: String,
    /// Every end up to this change was seen, or is known to be lost.
    sequence: u64,
    /// Every flow up to this one was seen.
    id: u64,
    /// The last change before the stream that is read: reached when its closed flows have been.
    begin: u64,
}

/// A text is not a cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a cursor, which is epoch=E;sequence=S;id=I")]
pub struct CursorError(String);

impl Cursor {
    /// The cursor of a reader that wants nothing of what was before a stream, of which `begin` says this.
    pub fn after(epoch: &str, sequence: u64, id: u64) -> Self {
        Self { epoch: epoch.to_owned(), sequence, id, begin: sequence }
    }

    /// Takes note of an item that was read and is done with.
    pub fn advance(&mut self, item: &StreamItem<'_>) {
        match item {
            StreamItem::Begin { epoch, sequence, .. } => {
                if !self.goes_on(epoch, *sequence) {
                    *self = Self { epoch: (**epoch).to_owned(), ..Self::default() };
                }
                self.begin = *sequence;
            }
            StreamItem::Closed(flow) => self.reach(flow.number(Key::Sequence)),
            StreamItem::Flow(flow) => {
                self.reach(Some(self.begin));
                self.see(flow);
            }
            StreamItem::SnapshotEnd { .. } => self.reach(Some(self.begin)),
            StreamItem::Event { flow, .. } => {
                self.reach(flow.number(Key::Sequence));
                self.see(flow);
            }
            StreamItem::Reached { sequence } => self.reach(Some(*sequence)),
            StreamItem::Gap { last, .. } => self.reach(Some(*last)),
            _ => {}
        }
    }

    /// Whether a stream that begins like this goes on where this one was.
    pub fn goes_on(&self, epoch: &str, sequence: u64) -> bool {
        self.epoch == epoch && self.sequence <= sequence
    }

    /// Whether the begin of this flow was seen, or the flow in a snapshot.
    pub fn has_seen(&self, flow: &FlowRef<'_>) -> bool {
        flow.number(Key::Id).is_some_and(|id| id <= self.id)
    }

    /// True of a cursor that has seen nothing.
    pub fn is_fresh(&self) -> bool {
        self.epoch.is_empty()
    }

    /// The keys of `OpenStream` that make a stream go on here.
    pub(super) fn keys<'a>(&'a self) -> impl Iterator<Item = (&'a str, Variant<'a>)> {
        let keys = [("epoch", self.epoch.as_str().into()), ("after", self.sequence.into())];
        keys.into_iter().filter(|_| !self.is_fresh())
    }

    fn reach(&mut self, sequence: Option<u64>) {
        self.sequence = self.sequence.max(sequence.unwrap_or(0));
    }

    /// Notes a flow of a stream. Flows come with ascending ids, but for those that had ended, which say nothing of those alive.
    fn see(&mut self, flow: &FlowRef<'_>) {
        self.id = self.id.max(flow.number(Key::Id).unwrap_or(0));
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_fresh() {
            return Ok(());
        }
        write!(f, "epoch={};sequence={};id={}", self.epoch, self.sequence, self.id)
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let parse = || {
            let mut parts = text.split(';');
            let mut part = |name: &str| parts.next()?.strip_prefix(name)?.strip_prefix('=');
            let (epoch, sequence, id) = (part("epoch")?, part("sequence")?, part("id")?);
            let (epoch, sequence, id) = (parse_epoch(epoch)?, sequence.parse().ok()?, id.parse().ok()?);
            parts.next().is_none().then_some(Self { epoch, sequence, id, begin: 0 })
        };
        match text {
            "" => Ok(Self::default()),
            text => parse().ok_or_else(|| CursorError(text.chars().take(64).collect())),
        }
    }
}

/// The epoch that a text is: 32 hexadecimal digits, in lower case.
pub(crate) fn parse_epoch(text: &str) -> Option<String> {
    let is_epoch = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_epoch.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: &str = "00112233445566778899aabbccddeeff";

    fn advanced(cursor: &mut Cursor, lines: &[&str]) -> String {
        for line in lines {
            let line = line.replace("EPOCH", EPOCH);
            cursor.advance(&StreamItem::parse(line.as_bytes()).unwrap());
        }
        cursor.to_string().replace(EPOCH, "EPOCH")
    }

    #[test]
    fn a_cursor_is_behind_the_ends_and_begins_that_were_read() {
        let mut cursor = Cursor::default();
        let mut at = |lines: &[&str]| advanced(&mut cursor, lines);
        assert_eq!(at(&[]), "");
        let begin = r#"{"type":"begin","epoch":"EPOCH","sequence":20}"#;
        assert_eq!(at(&[begin]), "epoch=EPOCH;sequence=0;id=0");
        // What has ended says nothing of what is alive.
        assert_eq!(at(&[r#"{"type":"closed","sequence":7,"id":9}"#]), "epoch=EPOCH;sequence=7;id=0");
        assert_eq!(at(&[r#"{"type":"flow","id":5}"#]), "epoch=EPOCH;sequence=20;id=5");
        // What ended up to 23 comes later, as events.
        assert_eq!(at(&[r#"{"type":"snapshot-end","sequence":23}"#]), "epoch=EPOCH;sequence=20;id=5");
        assert_eq!(at(&[r#"{"type":"new","sequence":24,"id":11}"#]), "epoch=EPOCH;sequence=24;id=11");
        assert_eq!(at(&[r#"{"type":"destroy","sequence":25,"id":5}"#]), "epoch=EPOCH;sequence=25;id=11");
        let gap = r#"{"type":"gap","first":26,"last":40,"lost":15,"reason":"slow-reader"}"#;
        assert_eq!(at(&[gap]), "epoch=EPOCH;sequence=40;id=11");
        assert_eq!(at(&[r#"{"type":"reached","sequence":45}"#]), "epoch=EPOCH;sequence=45;id=11");
        // Another stream goes on there, whatever it begins with; where it cannot, all is new.
        assert_eq!(at(&[&begin.replace("20", "50")]), "epoch=EPOCH;sequence=45;id=11");
        assert_eq!(at(&[begin]), "epoch=EPOCH;sequence=0;id=0", "before where we were");
    }

    #[test]
    fn a_flow_was_seen_up_to_the_id_of_the_cursor() {
        let cursor: Cursor = format!("epoch={EPOCH};sequence=4;id=7").parse().unwrap();
        let seen = |line| cursor.has_seen(&FlowRef::parse(line).unwrap());
        assert!(seen(r#"{"id":7}"#) && !seen(r#"{"id":8}"#) && !seen("{}"));
        assert!(cursor.goes_on(EPOCH, 4) && !cursor.goes_on(EPOCH, 3) && !cursor.goes_on("other", 9));
    }

    #[test]
    fn a_cursor_is_read_as_it_is_written() {
        for text in ["".to_owned(), format!("epoch={EPOCH};sequence=18446744073709551615;id=0")] {
            assert_eq!(text.parse::<Cursor>().unwrap().to_string(), text);
        }
        assert!("".parse::<Cursor>().unwrap().is_fresh());
        for wrong in ["x", "epoch=1;sequence=1;id=1", "epoch=;sequence=1;id=1"] {
            assert!(wrong.parse::<Cursor>().is_err(), "{wrong}");
        }
        let cut = format!("epoch={EPOCH};sequence=1");
        assert!(cut.parse::<Cursor>().unwrap_err().to_string().contains("is not a cursor"));
        assert!(format!("epoch={EPOCH};sequence=1;id=2;").parse::<Cursor>().is_err());
    }
}

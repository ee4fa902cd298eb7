//! `flowctl list --sort`: every flow is read before the first is printed.

use clap::ValueEnum;
use flowbus_interfaces::{FlowRef, Key, QueryMap};
use zbus::Variant;

use crate::format::names_of;

/// What connections are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// Most bytes of both directions first
    Bytes,
    /// Most bytes a second over the connection's whole life first; `flowctl top` shows those of now
    Rate,
    /// Oldest first
    Age,
}

impl Sort {
    /// The fields that ranks are computed of.
    const KEYS: [Key; 3] = [Key::OrigBytes, Key::ReplyBytes, Key::StartUsec];

    /// Adds the fields that ranks are computed of to a query, with counters of now. Returns the fields that were asked for
    /// before, if not all were.
    pub(crate) fn extend(self, query: &mut QueryMap<'_>) -> Vec<Key> {
        if self != Self::Age {
            query.entry("refresh").or_insert_with(|| true.into());
        }
        let Some(Variant::Array(names)) = query.get("fields") else { return Vec::new() };
        let name = |name: &Variant<'_>| match name {
            Variant::Str(name) => Key::parse(name),
            _ => None,
        };
        let fields: Vec<_> = names.iter().filter_map(name).collect();
        query.insert("fields", names_of(&[&fields[..], &Self::KEYS].concat()).into());
        fields
    }

    /// How far up a flow belongs. One without counters or a start comes last.
    fn rank(self, flow: &FlowRef<'_>, now: u64) -> u64 {
        let number = |key| flow.number(key);
        let bytes =
            [Key::OrigBytes, Key::ReplyBytes].into_iter().filter_map(number).fold(0, u64::saturating_add);
        let age = number(Key::StartUsec).map(|start| now.saturating_sub(start).max(1));
        match self {
            Self::Bytes => bytes,
            Self::Age => age.unwrap_or(0),
            Self::Rate => age.map_or(0, |age| {
                u64::try_from(u128::from(bytes) * 1_000_000 / u128::from(age)).unwrap_or(u64::MAX)
            }),
        }
    }
}

/// The flows of a list, as lines of JSON.
pub(crate) struct Sorted {
    sort: Sort,
    now: u64,
    /// How many are kept.
    most: usize,
    /// The fields that are kept; none for all.
    fields: Vec<Key>,
    lines: Vec<(u64, Box<str>)>,
}

impl Sorted {
    pub(crate) const fn new(sort: Sort, now: u64, most: usize, fields: Vec<Key>) -> Self {
        Self { sort, now, most, fields, lines: Vec::new() }
    }

    pub(crate) fn push(&mut self, flow: &FlowRef<'_>) {
        let line = if self.fields.is_empty() {
            format!("{{{}}}", flow.members())
        } else {
            let member = |key: &Key| Some(format!("\"{key}\":{}", flow.json(*key)?));
            format!("{{{}}}", self.fields.iter().filter_map(member).collect::<Vec<_>>().join(","))
        };
        self.lines.push((self.sort.rank(flow, self.now), line.into()));
        // Twice as many as asked for are enough to hold; a bit more, so that it is not done for each.
        if self.lines.len() > self.most.saturating_mul(2).saturating_add(1000) {
            self.cut();
        }
    }

    /// The lines, first those that belong there.
    pub(crate) fn lines(mut self) -> impl Iterator<Item = Box<str>> {
        self.cut();
        self.lines.into_iter().map(|(_, line)| line)
    }

    fn cut(&mut self) {
        self.lines.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        self.lines.truncate(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_comes_first_and_what_is_not_known_last() {
        let flows = [
            r#"{"id":1,"orig_bytes":10,"reply_bytes":5,"start_usec":9000000}"#,
            r#"{"id":2,"orig_bytes":100,"start_usec":1000000}"#,
            r#"{"id":3,"start_usec":5000000}"#,
            r#"{"id":4,"orig_bytes":12}"#,
        ];
        let ids = |sort, most| {
            let mut sorted = Sorted::new(sort, 10_000_000, most, vec![Key::Id]);
            for _ in 0..600 {
                flows.iter().for_each(|flow| sorted.push(&FlowRef::parse(flow).unwrap()));
            }
            let mut lines: Vec<_> = sorted.lines().collect();
            assert_eq!(lines.len(), most.min(2400));
            lines.dedup();
            lines
                .iter()
                .map(|line| line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap())
                .collect()
        };
        let expect = |ids: Vec<u64>, expected: &[u64]| assert_eq!(ids, expected);
        expect(ids(Sort::Bytes, usize::MAX), &[2, 1, 4, 3]);
        expect(ids(Sort::Rate, 1200), &[1, 2]);
        expect(ids(Sort::Age, usize::MAX), &[2, 3, 1, 4]);
    }
}

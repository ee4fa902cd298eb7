//! What the screen is asked to show: which flows, grouped by what, in which order.

use clap::ValueEnum;
use flowbus_interfaces::{Key, QueryError, QueryKey, QueryPart, RawQuery, SourceNames, StreamQuery};
use jiff::Zoned;

use crate::query::add_word;

/// What the feed asks the daemon for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) filter: RawQuery,
    pub(super) grouping: Grouping,
    pub(super) order: Order,
}

/// What a row stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Grouping {
    /// One connection
    #[default]
    Flow,
    /// The connections of a traffic source
    Source,
    /// The connections of a process
    Process,
    /// The connections with a remote address
    Remote,
    /// The connections of an interface
    Interface,
    /// The connections of a container
    Container,
}

impl Grouping {
    const ALL: [Self; 6] =
        [Self::Flow, Self::Source, Self::Process, Self::Remote, Self::Interface, Self::Container];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Source => "source",
            Self::Process => "process",
            Self::Remote => "remote address",
            Self::Interface => "interface",
            Self::Container => "container",
        }
    }

    /// The word that `--group` takes.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Remote => "remote",
            other => other.name(),
        }
    }

    pub(super) fn next(self) -> Self {
        step(&Self::ALL, self, 1)
    }

    pub(super) fn previous(self) -> Self {
        step(&Self::ALL, self, Self::ALL.len() - 1)
    }

    /// The fields that say which group a flow is in, besides its owners.
    pub(super) const fn fields(self) -> &'static [Key] {
        match self {
            Self::Flow | Self::Process | Self::Container => &[],
            Self::Source => &[Key::Source],
            Self::Remote => &[Key::Src, Key::Dst],
            Self::Interface => &[Key::Interface],
        }
    }
}

/// Which rows come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Order {
    /// Most bytes a second of both directions
    Rate,
    /// Most bytes of both directions
    Bytes,
    /// Latest begin; among groups, most new connections
    New,
    /// Earliest begin
    Age,
}

impl Order {
    const ALL: [Self; 4] = [Self::Rate, Self::Bytes, Self::New, Self::Age];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Bytes => "bytes",
            Self::New => "new",
            Self::Age => "age",
        }
    }

    pub(super) fn next(self) -> Self {
        step(&Self::ALL, self, 1)
    }
}

fn step<T: Copy + PartialEq>(all: &[T], current: T, steps: usize) -> T {
    let index = all.iter().position(|&item| item == current).unwrap_or(0);
    all[(index + steps) % all.len()]
}

/// Reads the words of the filter line.
pub(super) fn parse_filter(text: &str) -> Result<RawQuery, String> {
    let (mut raw, now) = (RawQuery::default(), Zoned::now());
    for word in text.split_whitespace() {
        add_word(&mut raw, word, &now).map_err(|error| error.to_string())?;
    }
    let not_of_filters = |key: &&QueryKey| key.part() != QueryPart::Filter && raw.get(**key).is_some();
    if let Some(key) = QueryKey::ALL.iter().find(not_of_filters) {
        return Err(format!("{key} says nothing of a connection: no filter has it"));
    }
    match StreamQuery::parse(&raw, &SourceNames::default()) {
        // The daemon's configuration may name more sources: it has the last word.
        Err(QueryError::Value { key, .. }) if key == QueryKey::Source.name() => Ok(raw),
        other => other.map(|_| raw).map_err(|error| error.to_string()),
    }
}

/// The filter line with this condition in place of one of the same key.
pub(super) fn with_condition(text: &str, condition: &str) -> String {
    let (key, _) = condition.split_once('=').unwrap_or((condition, ""));
    let others =
        text.split_whitespace().filter(|word| word.split_once('=').is_none_or(|(other, _)| other != key));
    others.chain([condition]).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grouping_and_order_can_be_reached() {
        for (index, grouping) in Grouping::ALL.into_iter().enumerate() {
            assert_eq!(grouping.next(), Grouping::ALL[(index + 1) % Grouping::ALL.len()]);
            assert_eq!(grouping.next().previous(), grouping);
        }
        assert_eq!(Order::Age.next(), Order::Rate);
    }

    #[test]
    fn a_filter_is_the_query_language_and_says_what_is_wrong() {
        assert_eq!(parse_filter("  "), Ok(RawQuery::default()));
        assert!(parse_filter("source=chrome dport=80,443").unwrap().get(QueryKey::Dport).is_some());
        assert_eq!(parse_filter("since=1970-01-01T00:00:01Z"), parse_filter("since=1000000"));
        assert!(parse_filter("source=GUEST").is_ok(), "a source that only the daemon's configuration names");
        assert!(parse_filter("sou").unwrap_err().contains("write KEY=VALUE"));
        assert!(parse_filter("dport=x").unwrap_err().contains("a port from 0 to 65535"));
        assert!(parse_filter("dport=1 dport=2").unwrap_err().contains("twice"));
        for other in ["refresh=true", "fields=id", "limit=5", "follow=true"] {
            assert!(parse_filter(other).unwrap_err().contains("no filter has it"), "{other}");
        }
    }

    #[test]
    fn a_condition_replaces_that_of_its_key() {
        assert_eq!(with_condition("", "source=USER"), "source=USER");
        assert_eq!(with_condition("source=CHROME dport=443", "source=USER"), "dport=443 source=USER");
    }
}

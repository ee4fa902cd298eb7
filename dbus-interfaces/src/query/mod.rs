//! The query language: the `a{sv}` that chooses what a listing, a stream or a report answers.
//!
//! Keys are AND-ed, the values of one key OR-ed: a single value, or an array of them. A text that begins with `!`
//! excludes: a flow must match none of a key's excluded values and, where there are others, one of those. An integer is
//! of any D-Bus integer type or a decimal string. Names are matched without regard to case. Networks may have bits behind
//! their prefix, which are ignored, as conntrack and iptables do; an IPv4-mapped address is the IPv4 address inside. A
//! flow that does not have what a key asks about matches no value, and is therefore not excluded. [`QueryKey`] has the
//! list.

mod argument;
mod clue;
mod condition;
mod control;
mod error;
mod filter;
mod key;
mod parse;
mod record;
mod recorded;
mod report;
mod stream;
mod text;

pub use argument::{Argument, RawQuery};
pub use clue::Clue;
pub use control::{ChangeOptions, Subject};
pub use error::QueryError;
pub use filter::{Filter, Lookup};
pub use key::{QueryKey, QueryPart};
pub use recorded::RecordError;
pub use report::ReportOptions;
pub use stream::{EventSet, Resume, StreamQuery};

use crate::{FieldSet, Key, SourceNames};

/// The most flows that a page has.
pub const LIMIT_MAXIMUM: u16 = 1000;
/// How many flows a page has where the query does not say.
pub const LIMIT_DEFAULT: u16 = 500;

/// The query of `ListActive` and `ListClosed`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Where the page begins: after the flow with this number, the `next` of the page before. `None` begins at the
    /// first.
    pub after: Option<u64>,
    /// How many flows the page has at most, 1 to [`LIMIT_MAXIMUM`].
    pub limit: u16,
    /// Which fields of each flow are shown.
    pub fields: FieldSet,
    /// Whether a dump brings counters up to date first.
    pub refresh: bool,
    /// Which flows.
    pub filter: Filter,
}

/// The first page, of the default length, of all flows with all fields.
impl Default for Query {
    fn default() -> Self {
        Self {
            after: None,
            limit: LIMIT_DEFAULT,
            fields: FieldSet::ALL,
            refresh: false,
            filter: Filter::default(),
        }
    }
}

impl Query {
    /// Checks a query. `names` are those that `source` knows.
    ///
    /// # Errors
    /// For a key that is unknown, repeated or one of streams, and for a value of the wrong type or range.
    pub fn parse(raw: &RawQuery, names: &SourceNames) -> Result<Self, QueryError> {
        let mut query = Self::default();
        let takes = |key: QueryKey| key.part() != QueryPart::Stream;
        for (key, value) in raw.query_pairs(takes)? {
            let (name, takes) = (key.name(), key.takes());
            match key {
                QueryKey::After => query.after = Some(parse::one(name, takes, value, parse::integer)?),
                QueryKey::Limit => {
                    query.limit = parse::one(name, takes, value, parse::within(1..=LIMIT_MAXIMUM))?;
                }
                QueryKey::Fields => query.fields = parse::fields(value, Key::is_of_listings)?,
                QueryKey::Refresh => query.refresh = parse::one(name, takes, value, parse::boolean)?,
                _ => {
                    if !query.filter.add(key, value, names)? {
                        return Err(QueryError::NotOfListings(name));
                    }
                }
            }
        }
        Ok(query)
    }
}

impl RawQuery {
    /// The pairs by key, each of which is one of a query and occurs once. An unknown one is answered with those that the
    /// method `takes`.
    fn query_pairs(
        &self,
        takes: impl Fn(QueryKey) -> bool,
    ) -> Result<Vec<(QueryKey, &Argument)>, QueryError> {
        let known = || QueryKey::ALL.iter().filter(|&&key| takes(key)).map(|key| key.name());
        self.pairs(QueryKey::parse, QueryKey::name, |text| QueryError::unknown(text, known()))
    }

    /// The pairs by name, each of which is one of these options and occurs once.
    fn option_pairs(&self, known: &[&'static str]) -> Result<Vec<(&'static str, &Argument)>, QueryError> {
        let find = |text: &str| known.iter().copied().find(|key| *key == text);
        self.pairs(find, |key| key, |text| QueryError::unknown(text, known.iter().copied()))
    }

    fn pairs<K: Copy>(
        &self,
        find: impl Fn(&str) -> Option<K>,
        name: impl Fn(K) -> &'static str,
        unknown: impl Fn(&str) -> QueryError,
    ) -> Result<Vec<(K, &Argument)>, QueryError> {
        let mut pairs: Vec<(K, &Argument)> = Vec::new();
        for (text, value) in &self.0 {
            let key = find(text).ok_or_else(|| unknown(text))?;
            if pairs.iter().any(|&(other, _)| name(other) == text) {
                return Err(QueryError::Repeated(name(key)));
            }
            pairs.push((key, value));
        }
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests;

//! What changes of the kernel's table are asked for: which flows or expectations, and how far to go.

use super::parse::{self, one};
use super::{Filter, QueryError, QueryKey, QueryPart, RawQuery};
use crate::SourceNames;

/// The keys that only flowbusd's table knows besides those of owners, and the names of interfaces, which the mark only
/// has by number.
const OF_THE_TABLE: [QueryKey; 4] = [QueryKey::Id, QueryKey::Since, QueryKey::Until, QueryKey::Interface];

/// The keys that an expectation has.
const OF_EXPECTATIONS: [QueryKey; 8] = [
    QueryKey::Family,
    QueryKey::Protocol,
    QueryKey::Src,
    QueryKey::Dst,
    QueryKey::Sport,
    QueryKey::Dport,
    QueryKey::Zone,
    QueryKey::Helper,
];

/// What the query of a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Flows of the kernel's table.
    Flows,
    /// Expectations.
    Expectations,
}

impl Filter {
    /// Reads the query of `DeleteFlows`, `SetMark` or `SetTimeout` (flows), `DeleteExpectations` or, where it may be empty,
    /// `ListExpectations`. Sources are known by patchpanel's names and by number.
    ///
    /// # Errors
    /// For a key that is unknown, repeated, not one of a filter or not known to the kernel, and for a value of the wrong
    /// type or range.
    pub fn of_kernel(raw: &RawQuery, subject: Subject) -> Result<Self, QueryError> {
        let names = SourceNames::default();
        let mut filter = Self::default();
        let takes = |key: QueryKey| match subject {
            Subject::Flows => {
                key.part() == QueryPart::Filter
                    && !OF_THE_TABLE.contains(&key)
                    && !QueryKey::OF_OWNERS.contains(&key)
            }
            Subject::Expectations => OF_EXPECTATIONS.contains(&key),
        };
        for (key, value) in raw.query_pairs(takes)? {
            if !takes(key) || !filter.add(key, value, &names)? {
                return Err(match subject {
                    Subject::Flows => QueryError::NotOfKernel(key.name()),
                    Subject::Expectations => QueryError::NotOfExpectations(key.name()),
                });
            }
        }
        Ok(filter)
    }

    /// Reads the query of a call that changes something, where an empty query is no way to say "all".
    ///
    /// # Errors
    /// For an empty query, and for what [`Filter::of_kernel`] refuses.
    pub fn of_change(raw: &RawQuery, subject: Subject) -> Result<Self, QueryError> {
        let filter = Self::of_kernel(raw, subject)?;
        if filter.is_empty() { Err(QueryError::Empty) } else { Ok(filter) }
    }
}

/// The options of `DeleteFlows`, `SetMark`, `SetTimeout` and `DeleteExpectations`, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeOptions {
    /// Whether nothing is to be changed, and what would be is to be shown.
    pub dry_run: bool,
    /// How many entries are changed at most, 1 to [`ChangeOptions::MOST`].
    pub limit: u32,
}

/// A real change, of few enough entries that a mistake can be survived.
impl Default for ChangeOptions {
    fn default() -> Self {
        Self { dry_run: false, limit: Self::LIMIT }
    }
}

impl ChangeOptions {
    /// The default of `limit`.
    pub const LIMIT: u32 = 10_000;
    /// The greatest value of `limit`.
    pub const MOST: u32 = 1_000_000;

    /// Checks options: `dry_run` and `limit`.
    ///
    /// # Errors
    /// For a key that is unknown or repeated, and for a value of the wrong type or range.
    pub fn parse(raw: &RawQuery) -> Result<Self, QueryError> {
        let mut options = Self::default();
        for (key, value) in raw.option_pairs(&["dry_run", "limit"])? {
            if key == "dry_run" {
                options.dry_run = one(key, "true or false", value, parse::boolean)?;
            } else {
                let takes = format!("an integer from 1 to {}", Self::MOST);
                options.limit = one(key, &takes, value, parse::within(1..=Self::MOST))?;
            }
        }
        Ok(options)
    }
}

//! What is asked of the record.

use flowbus_interfaces::{
    Argument, Filter, Query as ParsedQuery, QueryError, QueryKey, RawQuery, SourceNames,
};
use memchr::memmem::Finder;

use super::files::{Log, LogFile};
use super::incomplete::Incomplete;
use crate::error::Error;
use crate::query::Query;

/// Which flows, and of which time.
pub(super) struct Asked {
    pub(super) filter: Filter,
    /// The begin of the time, in microseconds since 1970; 0 where the record's begin is meant.
    pub(super) since: u64,
    /// The end of the time; the greatest number where the record's end is meant.
    pub(super) until: u64,
    /// Lists of texts: a line that the filter lets pass has one of each.
    texts: Vec<Vec<Finder<'static>>>,
}

impl Asked {
    /// The conditions of a command line; `at` is one instant.
    pub(super) fn of(query: &Query, at: Option<u64>) -> Result<Self, Error> {
        let mut raw = query.raw().clone();
        if let Some(at) = at {
            for key in [QueryKey::Since, QueryKey::Until] {
                raw.add(key, &at.to_string())
                    .map_err(|_| Error::Usage("--at does not go with since or until".to_owned()))?;
            }
        }
        let query = ParsedQuery::parse(&raw, &SourceNames::default()).map_err(wrong)?;
        let texts = query.filter.texts();
        let finders = |texts: Vec<String>| texts.iter().map(|text| Finder::new(text).into_owned()).collect();
        Ok(Self {
            filter: query.filter,
            since: time(&raw, QueryKey::Since).unwrap_or(0),
            until: time(&raw, QueryKey::Until).unwrap_or(u64::MAX),
            texts: texts.into_iter().map(finders).collect(),
        })
    }

    /// Whether the flow of a compact line cannot pass, from its begin to its end.
    pub(super) fn rules_out(&self, line: &[u8]) -> bool {
        !self.texts.iter().all(|texts| texts.iter().any(|text| text.find(line).is_some()))
    }

    /// Whether a file that cannot be read could have what is asked about.
    pub(super) fn concerns(&self, what: &Incomplete, log: &Log) -> bool {
        let begins = log.machines.iter().flat_map(|machine| &machine.files).map(LogFile::begin_usec);
        let first = begins.filter(|begin| *begin <= self.since).max().unwrap_or(0);
        what.begin_usec().is_none_or(|begin| begin >= first && begin <= self.until)
    }

    /// Whether something that went on from `from` to `to` was in the time that is asked about.
    pub(super) fn is_about(&self, from: u64, to: Option<u64>) -> bool {
        from <= self.until && to.is_none_or(|to| to >= self.since)
    }
}

/// A time that flows are bounded by; one that excludes says nothing of the files.
fn time(raw: &RawQuery, key: QueryKey) -> Option<u64> {
    match raw.get(key)? {
        Argument::Text(text) => text.parse().ok(),
        _ => None,
    }
}

fn wrong(error: QueryError) -> Error {
    let hint = match &error {
        QueryError::Value { key, .. } if *key == QueryKey::Source.name() => {
            ".\nNames that the configuration of flowbusd adds are not known here: give the number"
        }
        _ => "",
    };
    Error::Usage(format!("{error}{hint}"))
}

//! What is asked of the record.

use flowbus_interfaces::{
    Argument, FieldSet, Filter, Query as ParsedQuery, QueryError, QueryKey, RawQuery, SourceNames,
};
use memchr::memmem::Finder;

use super::files::{Log, LogFile, Machine};
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
}

/// What rules out lines of a file without reading them.
pub(super) struct Clues(Vec<Clue>);

struct Clue {
    needs: Vec<Finder<'static>>,
    texts: Vec<Finder<'static>>,
}

impl Clues {
    /// Whether the flow of a compact line cannot pass, from its begin to its end.
    pub(super) fn rule_out(&self, line: &[u8]) -> bool {
        let has = |text: &Finder<'_>| text.find(line).is_some();
        self.0.iter().any(|clue| !clue.texts.iter().any(has) && clue.needs.iter().all(has))
    }
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
        Ok(Self {
            filter: query.filter,
            since: time(&raw, QueryKey::Since).unwrap_or(0),
            until: time(&raw, QueryKey::Until).unwrap_or(u64::MAX),
        })
    }

    /// What rules out lines of a file that has these fields.
    pub(super) fn clues(&self, recorded: FieldSet) -> Clues {
        let finder = |text: &str| Finder::new(text).into_owned();
        let clues = self.filter.clues(recorded).into_iter().map(|clue| Clue {
            needs: clue.needs.iter().copied().map(finder).collect(),
            texts: clue.texts.iter().map(|text| finder(text)).collect(),
        });
        Clues(clues.collect())
    }

    /// Whether a file that cannot be read could have what is asked about.
    pub(super) fn concerns(&self, what: &Incomplete, log: &Log) -> bool {
        // Whose it is cannot be read: it may be of any machine that has no later file before the time.
        let has_later = |machine: &Machine, begin| {
            machine.files.iter().map(LogFile::begin_usec).any(|other| other > begin && other <= self.since)
        };
        what.begin_usec().is_none_or(|begin| {
            let machines = &log.machines;
            let is_of_one = machines.is_empty() || machines.iter().any(|machine| !has_later(machine, begin));
            begin <= self.until && is_of_one
        })
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

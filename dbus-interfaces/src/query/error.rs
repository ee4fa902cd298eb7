//! What is wrong with a query.

use super::argument::Argument;
use crate::Error;

/// What is wrong with a query. Nothing wrong is ever taken for "matches everything".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// There is no such key.
    #[error("unknown key {key}; there are {known}")]
    Unknown {
        /// What was given, quoted.
        key: String,
        /// The keys that there are.
        known: String,
    },
    /// The key is one of a stream.
    #[error("{0} is a key of streams; listings do not take it")]
    NotOfListings(&'static str),
    /// The key is one of a page.
    #[error("{0} is a key of listings; streams have no pages")]
    NotOfStreams(&'static str),
    /// A stream is to be resumed, and something is missing for that.
    #[error(
        "a stream is resumed with after, epoch and closed true: give all three, or neither after nor epoch"
    )]
    Resume,
    /// The key does not choose flows, or asks for what only flowbusd's table knows.
    #[error(
        "{0} is not known to the kernel, which is asked here; choose the flows by addresses, ports, mark, zone, state, \
         status, helper, labels, conntrack_id and the like"
    )]
    NotOfKernel(&'static str),
    /// The key is not one of expectations.
    #[error(
        "{0} is not known of expectations; there are family, protocol, src, dst, sport, dport, zone and helper"
    )]
    NotOfExpectations(&'static str),
    /// The query is empty where that must not mean everything.
    #[error(
        "the query is empty and would change everything; name at least one key (FlushFlows deletes all flows)"
    )]
    Empty,
    /// A key occurs twice.
    #[error("{0} is given twice; give it once, with an array of values (on a command line: with commas)")]
    Repeated(&'static str),
    /// A value has the wrong type or is out of range.
    #[error("{key} takes {takes}, not {value}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it takes, in words.
        takes: String,
        /// What it was given, quoted.
        value: String,
    },
    /// A command-line argument is not of the form `key=value`.
    #[error("{0} is not a condition; write KEY=VALUE, such as dport=443")]
    Word(String),
}

impl QueryError {
    pub(super) fn unknown(key: &str, known: impl IntoIterator<Item = &'static str>) -> Self {
        let known: Vec<_> = known.into_iter().collect();
        Self::Unknown { key: Argument::Text(key.to_owned()).to_string(), known: known.join(", ") }
    }

    /// The error of a value that stood behind `!`.
    pub(super) fn of(self, excluded: bool) -> Self {
        match self {
            Self::Value { key, takes, value } if excluded => {
                Self::Value { key, takes, value: value.replacen('"', "\"!", 1) }
            }
            other => other,
        }
    }
}

impl From<QueryError> for Error {
    fn from(error: QueryError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

//! The query language: the `a{sv}` that chooses what a listing answers.

mod argument;
mod parse;

pub use argument::{Argument, RawQuery};

use crate::{Error, FieldSet};

/// The most flows that a page has.
pub const LIMIT_MAXIMUM: u16 = 1000;
/// How many flows a page has where the query does not say.
pub const LIMIT_DEFAULT: u16 = 500;

/// A query, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Where the page begins: after the flow with this number, the `next` of the page before. `None` begins at the
    /// first.
    pub after: Option<u64>,
    /// How many flows the page has at most, 1 to [`LIMIT_MAXIMUM`].
    pub limit: u16,
    /// Which fields of each flow are shown.
    pub fields: FieldSet,
}

/// The first page, of the default length, with all fields.
impl Default for Query {
    fn default() -> Self {
        Self { after: None, limit: LIMIT_DEFAULT, fields: FieldSet::ALL }
    }
}

/// What is wrong with a query. Nothing wrong is ever taken for "matches everything".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// No version of this interface has the key.
    #[error("unknown query key {0}; this version takes after, limit and fields")]
    Unknown(String),
    /// The interface has the key, this version does not do it yet.
    #[error("query key {0} is not supported yet; this version takes after, limit and fields")]
    Unsupported(&'static str),
    /// A key occurs twice.
    #[error("query key {0} is repeated; give it once, with an array of values where it takes several")]
    Repeated(&'static str),
    /// A value has the wrong type or is out of range.
    #[error("query key {key} takes {takes}, not {value}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it takes, in words.
        takes: String,
        /// What it was given, quoted.
        value: String,
    },
}

impl From<QueryError> for Error {
    fn from(error: QueryError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

/// The keys of this version.
const SUPPORTED: [&str; 3] = ["after", "limit", "fields"];

/// The keys that later versions take: they are refused by name, so that nobody believes that they filter.
const PLANNED: [&str; 43] = [
    "family",
    "protocol",
    "src",
    "dst",
    "reply_src",
    "reply_dst",
    "nat_src",
    "nat_dst",
    "address",
    "sport",
    "dport",
    "reply_sport",
    "reply_dport",
    "nat_sport",
    "nat_dport",
    "port",
    "icmp_type",
    "icmp_code",
    "icmp_id",
    "nat",
    "mark",
    "source",
    "vpn",
    "qos",
    "routing_table",
    "interface",
    "zone",
    "orig_zone",
    "reply_zone",
    "state",
    "helper",
    "labels",
    "status",
    "id",
    "conntrack_id",
    "pid",
    "comm",
    "uid",
    "unit",
    "min_bytes",
    "since",
    "until",
    "refresh",
];

impl Query {
    /// Checks a query.
    ///
    /// # Errors
    /// For a key that is unknown, not supported yet or repeated, and for a value of the wrong type or range.
    pub fn parse(raw: &RawQuery) -> Result<Self, QueryError> {
        let mut query = Self::default();
        let mut seen = Vec::new();
        for (name, value) in &raw.0 {
            let Some(&key) = SUPPORTED.iter().chain(&PLANNED).find(|known| *known == name) else {
                return Err(QueryError::Unknown(Argument::Text(name.clone()).to_string()));
            };
            if seen.contains(&key) {
                return Err(QueryError::Repeated(key));
            }
            seen.push(key);
            match key {
                "after" => query.after = Some(parse::integer(key, value, 0..=u64::MAX)?),
                "limit" => query.limit = parse::integer(key, value, 1..=LIMIT_MAXIMUM)?,
                "fields" => query.fields = parse::fields(key, value)?,
                _ => return Err(QueryError::Unsupported(key)),
            }
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests;

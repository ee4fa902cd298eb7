//! A query as it is written on a command line: `key=value`, with commas between the values of one key.

use zbus::Variant;

use super::{Argument, QueryError, QueryKey, RawQuery};
use crate::QueryMap;

impl RawQuery {
    /// Adds a word `key=value` or `key=value,value`.
    ///
    /// # Errors
    /// For a word without a key and `=`, and for a key that is unknown or was there already. Values are checked by
    /// [`Query::parse`](super::Query::parse).
    pub fn add_word(&mut self, word: &str) -> Result<(), QueryError> {
        let (name, values) = word
            .split_once('=')
            .ok_or_else(|| QueryError::Word(Argument::Text(word.to_owned()).to_string()))?;
        let key =
            QueryKey::parse(name).ok_or_else(|| QueryError::unknown(name, QueryKey::ALL, QueryKey::name))?;
        self.add(key, values)
    }

    /// Adds a key with its values. Keys that are true or false take these words.
    ///
    /// # Errors
    /// For a key that was there already.
    pub fn add(&mut self, key: QueryKey, values: &str) -> Result<(), QueryError> {
        if self.get(key).is_some() {
            return Err(QueryError::Repeated(key.name()));
        }
        let mut values: Vec<_> = values.split(',').map(|value| argument(key, value)).collect();
        let value = if values.len() == 1 { values.pop() } else { None };
        self.0.push((key.name().to_owned(), value.unwrap_or(Argument::List(values))));
        Ok(())
    }

    /// The value of a key.
    pub fn get(&self, key: QueryKey) -> Option<&Argument> {
        self.0.iter().find(|(name, _)| name == key.name()).map(|(_, value)| value)
    }

    /// The query in the form that the proxies take. Of a repeated key the last value counts.
    pub fn to_map(&self) -> QueryMap<'_> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.into())).collect()
    }
}

fn argument(key: QueryKey, value: &str) -> Argument {
    match (key, value) {
        (QueryKey::Refresh, "true") => Argument::Bool(true),
        (QueryKey::Refresh, "false") => Argument::Bool(false),
        _ => Argument::Text(value.to_owned()),
    }
}

/// Values of different types become an array of variants.
impl<'a> From<&'a Argument> for Variant<'a> {
    fn from(argument: &'a Argument) -> Self {
        match argument {
            Argument::Bool(value) => (*value).into(),
            Argument::Signed(value) => (*value).into(),
            Argument::Unsigned(value) => (*value).into(),
            Argument::Text(text) => text.as_str().into(),
            Argument::List(list) => list.iter().map(Self::from).collect::<Vec<_>>().into(),
            Argument::Other(what) => (*what).into(),
        }
    }
}

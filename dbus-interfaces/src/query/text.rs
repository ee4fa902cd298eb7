//! A query as it is written on a command line: `key=value` or `key!=value`, with commas between the values of one key.

use zbus::Variant;

use super::{Argument, QueryError, QueryKey, RawQuery};
use crate::QueryMap;

impl RawQuery {
    /// Adds a word `key=value`, `key=value,value` or `key!=value`, which excludes each of its values.
    ///
    /// # Errors
    /// For a word without a key and `=`, and for a key that is unknown or was there already. Values are checked by
    /// [`Query::parse`](super::Query::parse).
    pub fn add_word(&mut self, word: &str) -> Result<(), QueryError> {
        let (name, values) = word
            .split_once('=')
            .ok_or_else(|| QueryError::Word(Argument::Text(word.to_owned()).to_string()))?;
        let (name, excluded) = match name.strip_suffix('!') {
            Some(name) => (name, true),
            None => (name, false),
        };
        let known = || QueryKey::ALL.iter().map(|key| key.name());
        let key = QueryKey::parse(name).ok_or_else(|| QueryError::unknown(name, known()))?;
        if excluded { self.exclude(key, values) } else { self.add(key, values) }
    }

    /// Adds a key with its values. Keys that are true or false take these words.
    ///
    /// # Errors
    /// For a key that was there already.
    pub fn add(&mut self, key: QueryKey, values: &str) -> Result<(), QueryError> {
        self.insert(key, values.split(',').map(|value| argument(key, value)).collect())
    }

    /// Adds values that exclude, also to a key that has values that do not.
    ///
    /// # Errors
    /// For a key with excluded values already.
    pub fn exclude(&mut self, key: QueryKey, values: &str) -> Result<(), QueryError> {
        self.insert(key, values.split(',').map(|value| Argument::Text(format!("!{value}"))).collect())
    }

    /// Adds values to those of the other sense, if there are any.
    fn insert(&mut self, key: QueryKey, mut values: Vec<Argument>) -> Result<(), QueryError> {
        let place = self.0.iter().position(|(name, _)| name == key.name());
        if let Some((_, before)) = place.map(|place| self.0.remove(place)) {
            let (old, new) = (before.split(), Argument::List(values.clone()).split());
            if old.0.is_some() == new.0.is_some() || old.1.is_some() == new.1.is_some() {
                return Err(QueryError::Repeated(key.name()));
            }
            match before {
                Argument::List(before) => values.splice(..0, before),
                single => values.splice(..0, vec![single]),
            };
        }
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

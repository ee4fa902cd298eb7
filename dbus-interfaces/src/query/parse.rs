//! Values of a query, by what they are.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::{Argument, QueryError};
use crate::{FieldSet, Key};

/// An integer of any D-Bus type, or a decimal string.
pub(super) fn integer<T>(
    key: &'static str,
    argument: &Argument,
    range: RangeInclusive<T>,
) -> Result<T, QueryError>
where
    T: TryFrom<u64> + PartialOrd + Display,
{
    let number = match argument {
        Argument::Unsigned(number) => Some(*number),
        Argument::Signed(number) => u64::try_from(*number).ok(),
        // from_str takes a sign, which a port or a mark has not.
        Argument::Text(text) if text.bytes().all(|digit| digit.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    };
    number.and_then(|number| T::try_from(number).ok()).filter(|number| range.contains(number)).ok_or_else(
        || {
            let takes = format!("an integer from {} to {}", range.start(), range.end());
            wrong(key, &takes, argument)
        },
    )
}

/// Names of a flow's fields: an array, or a single one.
pub(super) fn fields(key: &'static str, argument: &Argument) -> Result<FieldSet, QueryError> {
    const TAKES: &str = "names of fields, at least one";
    let names = match argument {
        Argument::List(names) if !names.is_empty() => names.as_slice(),
        Argument::Text(_) => std::slice::from_ref(argument),
        _ => return Err(wrong(key, TAKES, argument)),
    };
    let field = |name: &Argument| match name {
        Argument::Text(text) => Key::parse(text).ok_or_else(|| wrong(key, TAKES, name)),
        _ => Err(wrong(key, TAKES, name)),
    };
    names.iter().map(field).collect()
}

fn wrong(key: &'static str, takes: &str, value: &Argument) -> QueryError {
    QueryError::Value { key, takes: takes.to_owned(), value: value.to_string() }
}

use std::collections::HashMap;

use zbus::wire::serialized::{Context, Data};
use zbus::wire::{LE, to_bytes};
use zbus::{Structure, Variant};

use super::*;
use crate::Key;

fn on_the_wire(pairs: &[(&str, Variant<'_>)]) -> RawQuery {
    struct Pairs<'a>(&'a [(&'a str, Variant<'a>)]);
    impl serde::Serialize for Pairs<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
        }
    }
    impl zbus::Type for Pairs<'_> {
        const SIGNATURE: &'static zbus::Signature = <HashMap<&str, Variant<'_>>>::SIGNATURE;
    }
    let data: Data<'_, '_> = to_bytes(Context::new(LE, 0), &Pairs(pairs)).unwrap();
    let (raw, length) = data.deserialize().unwrap();
    assert_eq!(length, data.len());
    raw
}

fn parse(pairs: &[(&str, Variant<'_>)]) -> Result<Query, QueryError> {
    Query::parse(&on_the_wire(pairs))
}

fn refusal(pairs: &[(&str, Variant<'_>)]) -> String {
    parse(pairs).unwrap_err().to_string()
}

#[test]
fn an_empty_query_is_the_first_page_with_all_fields() {
    assert_eq!(parse(&[]).unwrap(), Query { after: None, limit: 500, fields: FieldSet::ALL });
}

#[test]
fn integers_come_as_any_type_or_as_a_decimal_string() {
    let values: [Variant<'_>; 8] = [
        7_u8.into(),
        7_u16.into(),
        7_u32.into(),
        7_u64.into(),
        7_i16.into(),
        7_i32.into(),
        7_i64.into(),
        "7".into(),
    ];
    for value in values {
        let query = parse(&[("limit", value.try_clone().unwrap()), ("after", value)]).unwrap();
        assert_eq!((query.after, query.limit), (Some(7), 7));
    }
    assert_eq!(parse(&[("after", u64::MAX.into())]).unwrap().after, Some(u64::MAX));
    let nested = Variant::new(Variant::new(7_u8));
    assert_eq!(parse(&[("after", nested)]).unwrap().after, Some(7));
}

#[test]
fn fields_are_an_array_of_names_or_one_name() {
    let query = parse(&[("fields", vec!["src", "dst", "src"].into())]).unwrap();
    assert_eq!(query.fields, [Key::Src, Key::Dst].into_iter().collect());
    let query = parse(&[("fields", "id".into())]).unwrap();
    assert_eq!(query.fields, FieldSet::EMPTY.with(Key::Id));
}

#[test]
fn a_wrong_value_is_refused_with_the_key_the_value_and_what_it_takes() {
    let range = "query key limit takes an integer from 1 to 1000, not";
    let long = "x".repeat(1000);
    let values: [(Variant<'_>, &str); 10] = [
        (0_u32.into(), "0"),
        (1001_u32.into(), "1001"),
        ((-1_i32).into(), "-1"),
        ("+5".into(), "\"+5\""),
        ("0x5".into(), "\"0x5\""),
        ("".into(), "\"\""),
        (true.into(), "true"),
        (5.0.into(), "a floating-point number"),
        (vec![5_u32].into(), "an array of 1"),
        (long.as_str().into(), &format!("\"{}\"...", "x".repeat(64))),
    ];
    for (value, quoted) in values {
        assert_eq!(refusal(&[("limit", value)]), format!("{range} {quoted}"));
    }
    assert_eq!(
        refusal(&[("fields", "bogus".into())]),
        "query key fields takes names of fields, at least one, not \"bogus\""
    );
    assert_eq!(
        refusal(&[("fields", Vec::<&str>::new().into())]),
        "query key fields takes names of fields, at least one, not an array of 0"
    );
    assert!(refusal(&[("fields", vec!["src", "SRC"].into())]).ends_with("not \"SRC\""));
    assert!(refusal(&[("fields", vec![1_u8].into())]).ends_with("not 1"));
}

#[test]
fn values_of_other_types_are_read_past() {
    let structure: Variant<'_> = Structure::from((1_u8, vec!["a"], 2_u64)).into();
    let dictionary: Variant<'_> = HashMap::from([("a", Variant::from(vec![1_u8]))]).into();
    let long: Variant<'_> = vec!["src"; 257].into();
    for (value, what) in
        [(structure, "a structure"), (dictionary, "a dictionary"), (long, "an array of more than 256")]
    {
        let raw = on_the_wire(&[("fields", value), ("after", 9_u8.into())]);
        assert_eq!(raw.0[0].1, Argument::Other(what));
        assert_eq!(raw.0[1], ("after".to_owned(), Argument::Unsigned(9)));
        assert!(Query::parse(&raw).unwrap_err().to_string().ends_with(what));
    }
}

#[test]
fn a_repeated_key_is_seen_on_the_wire() {
    let error = parse(&[("limit", 5_u8.into()), ("limit", 5_u8.into())]).unwrap_err();
    assert_eq!(error, QueryError::Repeated("limit"));
    // What does not fit is skipped, and cannot hide a repetition.
    let many: Vec<_> = (0..1000).map(|_| ("after", 1_u8.into())).collect();
    assert_eq!(on_the_wire(&many).0.len(), 256);
    assert_eq!(parse(&many).unwrap_err(), QueryError::Repeated("after"));
}

#[test]
fn unknown_and_future_keys_are_refused_by_name() {
    assert_eq!(
        refusal(&[("sorce", "CHROME".into())]),
        "unknown query key \"sorce\"; this version takes after, limit and fields"
    );
    assert_eq!(parse(&[("Limit", 5_u8.into())]).unwrap_err(), QueryError::Unknown("\"Limit\"".into()));
    for key in PLANNED {
        assert_eq!(parse(&[(key, 1_u8.into())]).unwrap_err(), QueryError::Unsupported(key));
    }
    let error = Error::from(parse(&[("source", 1_u8.into())]).unwrap_err());
    assert!(
        matches!(error, Error::InvalidArgument(text) if text.contains("query key source is not supported yet"))
    );
}

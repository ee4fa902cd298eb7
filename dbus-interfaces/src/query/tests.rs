use std::collections::HashMap;

use ctnetlink::EventKind;
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{LE, to_bytes};
use zbus::{Structure, Variant};

use super::*;
use crate::Error;
use crate::{Connection, ConnectionKind, Key, Owner};

fn from_the_wire(pairs: &[(&str, Variant<'_>)]) -> Result<RawQuery, zbus::wire::Error> {
    struct Written<'a>(&'a [(&'a str, Variant<'a>)]);
    impl serde::Serialize for Written<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
        }
    }
    impl zbus::Type for Written<'_> {
        const SIGNATURE: &'static zbus::Signature = <HashMap<&str, Variant<'_>>>::SIGNATURE;
    }
    let data: Data<'_, '_> = to_bytes(Context::new(LE, 0), &Written(pairs)).unwrap();
    let (raw, length) = data.deserialize()?;
    assert_eq!(length, data.len());
    Ok(raw)
}

fn on_the_wire(pairs: &[(&str, Variant<'_>)]) -> RawQuery {
    from_the_wire(pairs).unwrap()
}

fn parse(pairs: &[(&str, Variant<'_>)]) -> Result<Query, QueryError> {
    Query::parse(&on_the_wire(pairs), &SourceNames::default())
}

fn refusal(pairs: &[(&str, Variant<'_>)]) -> String {
    parse(pairs).unwrap_err().to_string()
}

#[test]
fn an_empty_query_is_the_first_page_with_all_fields() {
    let query = parse(&[]).unwrap();
    assert_eq!((query.after, query.limit, query.fields, query.refresh), (None, 500, FieldSet::ALL, false));
    assert!(query.filter.is_empty() && query == Query::default());
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
    let range = "limit takes an integer from 1 to 1000, not";
    assert_eq!(LIMIT_MAXIMUM, 1000);
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
        format!(
            "fields takes names of fields, at least one of {}, not \"bogus\"",
            Key::ALL
                .iter()
                .filter(|key| !matches!(key, Key::Event | Key::EventUsec))
                .map(|key| key.name())
                .collect::<Vec<_>>()
                .join(", ")
        )
    );
    let text = refusal(&[("fields", Vec::<&str>::new().into())]);
    assert!(
        text.starts_with("fields takes names of fields, at least one of ")
            && text.ends_with(", not an array of 0"),
        "{text}"
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
        assert!(Query::parse(&raw, &SourceNames::default()).unwrap_err().to_string().ends_with(what));
    }
}

#[test]
fn bytes_are_read_in_one_piece_and_reading_other_values_ends_at_a_bound() {
    let of_bytes =
        |count: usize| on_the_wire(&[("labels", vec![7_u8; count].into()), ("after", 9_u8.into())]);
    assert_eq!(of_bytes(256).0[0].1, Argument::List(vec![Argument::Unsigned(7); 256]));
    for count in [257, 4 << 20] {
        let raw = of_bytes(count);
        assert_eq!(raw.0[0].1, Argument::Other("an array of more than 256"));
        assert_eq!(raw.0[1], ("after".to_owned(), Argument::Unsigned(9)));
    }
    // Whatever they are in: a list, a structure, a dictionary, an array in an array, variants in variants.
    let many = 20_000_u32;
    let texts = vec!["a"; 20_000];
    let dictionary: HashMap<u32, bool> = (0..many).map(|key| (key, true)).collect();
    let variants: Vec<Variant<'_>> = (0..many).map(Variant::from).collect();
    let values: [Variant<'_>; 6] = [
        (0..many).collect::<Vec<u32>>().into(),
        texts.clone().into(),
        Structure::from((1_u8, texts)).into(),
        dictionary.into(),
        vec![vec![1_u16]; 20_000].into(),
        variants.into(),
    ];
    for value in values {
        let error = from_the_wire(&[("fields", value), ("after", 9_u8.into())]).unwrap_err();
        assert!(error.to_string().contains("more than 1024 values"), "{error}");
    }
}

#[test]
fn a_repeated_key_is_seen_on_the_wire() {
    let error = parse(&[("limit", 5_u8.into()), ("limit", 5_u8.into())]).unwrap_err();
    assert_eq!(error, QueryError::Repeated("limit"));
    // What does not fit is skipped, and cannot hide a repetition.
    let many: Vec<_> = (0..400).map(|_| ("after", 1_u8.into())).collect();
    assert_eq!(on_the_wire(&many).0.len(), 256);
    assert_eq!(parse(&many).unwrap_err(), QueryError::Repeated("after"));
}

#[test]
fn unknown_keys_and_those_of_streams_are_refused_by_name() {
    let text = refusal(&[("sorce", "CHROME".into())]);
    assert!(text.starts_with("unknown key \"sorce\"; there are family, protocol, src, "), "{text}");
    assert!(refusal(&[("Limit", 5_u8.into())]).starts_with("unknown key \"Limit\""));
    // An error names the keys of its method: a listing would refuse the keys of a stream, a stream those of a page.
    let of_a_stream = stream(&[("sorce", "CHROME".into())]).unwrap_err().to_string();
    assert!(text.contains("limit") && !text.contains("snapshot"), "{text}");
    assert!(of_a_stream.contains("snapshot") && !of_a_stream.contains("limit"), "{of_a_stream}");
    let change = |subject| {
        Filter::of_change(&on_the_wire(&[("sorce", 1_u8.into())]), subject).unwrap_err().to_string()
    };
    assert!(!change(Subject::Flows).contains("pid") && change(Subject::Flows).contains("conntrack_id"));
    assert!(
        change(Subject::Expectations)
            .ends_with("there are family, protocol, src, dst, sport, dport, zone, helper")
    );
    let of_events = stream(&[("fields", "bogus".into())]).unwrap_err().to_string();
    assert!(of_events.contains("event_usec"), "{of_events}");
    for key in QueryKey::ALL.iter().filter(|key| key.part() == QueryPart::Stream) {
        assert_eq!(parse(&[(key.name(), true.into())]).unwrap_err(), QueryError::NotOfListings(key.name()));
    }
    let error = Error::from(parse(&[("snapshot", true.into())]).unwrap_err());
    assert!(
        matches!(error, Error::InvalidArgument(text) if text.starts_with("snapshot is a key of streams"))
    );
}

#[test]
fn every_key_says_what_it_is() {
    for &key in QueryKey::ALL {
        assert_eq!(QueryKey::parse(key.name()), Some(key));
        assert!(key.description().ends_with('.') && !key.takes().ends_with('.'), "{key}");
    }
}

#[test]
fn an_interval_has_an_order_whichever_key_comes_first() {
    for [first, second] in [[("since", 9_u8), ("until", 8)], [("until", 8), ("since", 9)]] {
        let text = refusal(&[(first.0, first.1.into()), (second.0, second.1.into())]);
        assert_eq!(text, "until takes a time from since (9) on, not 8");
    }
    assert!(parse(&[("since", 9_u8.into()), ("until", 9_u8.into())]).is_ok());
}

fn stream(pairs: &[(&str, Variant<'_>)]) -> Result<StreamQuery, QueryError> {
    StreamQuery::parse(&on_the_wire(pairs), &SourceNames::default())
}

#[test]
fn a_stream_takes_its_own_keys_and_no_page() {
    let query = stream(&[]).unwrap();
    assert_eq!((query.snapshot, query.follow, query.closed, query.refresh), (true, true, false, false));
    let query = stream(&[
        ("follow", false.into()),
        ("closed", true.into()),
        ("events", vec!["destroy", "NEW"].into()),
        ("connections", true.into()),
        ("dport", 443_u16.into()),
        ("fields", "id".into()),
        ("refresh", true.into()),
    ])
    .unwrap();
    assert_eq!((query.snapshot, query.follow, query.closed, query.refresh), (true, false, true, true));
    assert!(query.connections && !StreamQuery::default().connections);
    assert_eq!(query.fields, FieldSet::EMPTY.with(Key::Id));
    assert!(query.events.contains(EventKind::New) && !query.events.contains(EventKind::Update));
    assert!(StreamQuery::default().events.contains(EventKind::Update));
    assert!(query.filter.has(QueryKey::Dport) && !query.filter.has(QueryKey::Sport));

    assert!(stream(&[("expectations", true.into())]).unwrap().expectations);
    assert_eq!(stream(&[("limit", 5_u8.into())]).unwrap_err(), QueryError::NotOfStreams("limit"));
    assert!(stream(&[("snapshot", 1_u8.into())]).unwrap_err().to_string().ends_with("true or false, not 1"));
    assert!(stream(&[("events", "renew".into())]).unwrap_err().to_string().ends_with("not \"renew\""));
    assert!(stream(&[("events", Vec::<&str>::new().into())]).is_err());
    assert!(!stream(&[("events", "none".into())]).unwrap().events.contains(EventKind::New));
}

#[test]
fn a_stream_is_resumed_with_three_keys_together() {
    const EPOCH: &str = "00112233445566778899aabbccddeeff";
    let upper = EPOCH.to_ascii_uppercase();
    let query = stream(&[("after", 5_u8.into()), ("epoch", upper.into()), ("closed", true.into())]).unwrap();
    assert_eq!(query.resume, Some(Resume { epoch: EPOCH.to_owned(), after: 5 }));
    let missing: [&[(&str, Variant<'_>)]; 4] = [
        &[("after", 5_u8.into())],
        &[("after", 5_u8.into()), ("closed", true.into())],
        &[("epoch", EPOCH.into()), ("closed", true.into())],
        &[("after", 5_u8.into()), ("epoch", EPOCH.into())],
    ];
    for pairs in missing {
        assert_eq!(stream(pairs).unwrap_err(), QueryError::Resume);
    }
    for (key, value) in
        [("after", "x".into()), ("after", true.into()), ("epoch", 5_u8.into()), ("epoch", "12".into())]
    {
        let error = stream(&[(key, value)]).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{key} takes ")), "{error}");
    }
    assert!(stream(&[("bogus", true.into())]).unwrap_err().to_string().contains(", after, "));
}

#[test]
fn a_connection_event_passes_a_filter_of_what_it_has() {
    let owner = Owner { pid: Some(42), comm: Some("worker"), leader_comm: Some("nginx"), ..Owner::default() };
    let event = Connection {
        kind: ConnectionKind::Accept,
        sequence: 1,
        flow: Some(7),
        protocol: 6,
        local: "198.18.0.2:443".parse().unwrap(),
        remote: "198.18.0.1:40000".parse().unwrap(),
        network_namespace: None,
        monotonic_nsec: 0,
        time_usec: 0,
        owner: Some(owner),
        tid: None,
        error: None,
        reset: None,
        sent_bytes: None,
        received_bytes: None,
        rtt_usec: None,
        retransmissions: None,
        connect_usec: None,
    };
    let passes =
        |key: &str, value: Variant<'_>| stream(&[(key, value)]).unwrap().filter.matches_connection(&event);
    assert!(stream(&[]).unwrap().filter.matches_connection(&event));
    assert!(passes("pid", 42_u32.into()) && !passes("pid", 43_u32.into()));
    assert!(
        passes("comm", "nginx".into()) && passes("comm", "WORKER".into()) && !passes("comm", "curl".into())
    );
    assert!(
        passes("sport", 443_u16.into())
            && passes("port", 40_000_u16.into())
            && !passes("dport", 443_u16.into())
    );
    assert!(
        passes("address", "198.18.0.0/24".into())
            && passes("id", 7_u64.into())
            && !passes("id", 8_u64.into())
    );
    assert!(passes("protocol", "tcp".into()) && passes("family", "ipv4".into()));
    // What only the table knows of a flow.
    assert!(!passes("mark", 0_u32.into()) && !passes("nat", "none".into()) && !passes("zone", 0_u16.into()));
    assert!(!passes("since", 0_u64.into()));
}

#[test]
fn a_report_takes_its_options() {
    let parse = |pairs: &[(&str, Variant<'_>)]| ReportOptions::parse(&on_the_wire(pairs));
    assert_eq!(parse(&[]).unwrap(), ReportOptions::default());
    assert_eq!(
        ReportOptions::default(),
        ReportOptions { max_bytes: 524_288, redact: true, processes: false, flows: true, since: 0 }
    );
    let all = parse(&[
        ("max_bytes", 4096_u32.into()),
        ("redact", false.into()),
        ("processes", true.into()),
        ("flows", false.into()),
        ("since", 1_u64.into()),
    ])
    .unwrap();
    assert_eq!(
        all,
        ReportOptions { max_bytes: 4096, redact: false, processes: true, flows: false, since: 1 }
    );
    for (key, value, text) in [
        ("max_bytes", Variant::from(4095_u32), "max_bytes takes an integer from 4096 to 524288, not 4095"),
        ("redact", "no".into(), "redact takes true or false, not \"no\""),
        ("limit", 1_u8.into(), "unknown key \"limit\"; there are max_bytes, redact, processes, flows, since"),
    ] {
        assert_eq!(parse(&[(key, value)]).unwrap_err().to_string(), text);
    }
}

#[test]
fn words_of_a_command_line_say_the_same_as_a_dictionary() {
    let mut words = RawQuery::default();
    for word in
        ["src=198.18.0.0/15,2001:2::1", "dport=443", "refresh=true", "mark=0x100/0x3f00", "fields=id,src"]
    {
        words.add_word(word).unwrap();
    }
    let names = SourceNames::default();
    let from_words = Query::parse(&words, &names).unwrap();
    let dictionary = parse(&[
        ("src", vec!["198.18.0.0/15", "2001:2::1"].into()),
        ("dport", 443_u16.into()),
        ("refresh", true.into()),
        ("mark", "256/16128".into()),
        ("fields", vec!["id", "src"].into()),
    ]);
    assert_eq!(from_words, dictionary.unwrap());
    // What flowctl sends arrives as it was meant.
    let map = words.to_map();
    let sent: Vec<_> = map.iter().map(|(key, value)| (*key, value.try_clone().unwrap())).collect();
    assert_eq!(parse(&sent).unwrap(), from_words);

    let refusal = |word: &str| words.clone().add_word(word).unwrap_err().to_string();
    assert_eq!(refusal("443"), "\"443\" is not a condition; write KEY=VALUE, such as dport=443");
    assert!(refusal("sorce=CHROME").starts_with("unknown key \"sorce\""));
    assert!(refusal("dport=80").starts_with("dport is given twice"));
    words.add_word("dport!=444,445").unwrap();
    words.add_word("source!=chrome").unwrap();
    assert_eq!(
        words.get(QueryKey::Dport).map(|value| value.split()),
        Some((
            Some(Argument::Text("443".to_owned())),
            Some(Argument::List(vec![Argument::Text("444".to_owned()), Argument::Text("445".to_owned())]))
        ))
    );
    let repeated = words.add_word("dport!=446").unwrap_err().to_string();
    assert!(repeated.starts_with("dport is given twice"), "{repeated}");
    let mut empty = RawQuery::default();
    empty.add_word("src=").unwrap();
    assert_eq!(
        Query::parse(&empty, &names).unwrap_err().to_string(),
        "src takes an address or CIDR, not \"\""
    );
}

#[test]
fn every_name_that_a_key_offers_is_taken_and_told() {
    let offering: Vec<_> = QueryKey::ALL.iter().filter(|key| !key.names().is_empty()).collect();
    let filters = [
        QueryKey::Family,
        QueryKey::Protocol,
        QueryKey::Nat,
        QueryKey::Vpn,
        QueryKey::Qos,
        QueryKey::State,
        QueryKey::Status,
        QueryKey::Events,
    ];
    assert_eq!(offering, filters.iter().collect::<Vec<_>>());
    for key in offering {
        for name in key.names() {
            let raw = on_the_wire(&[(key.name(), name.into())]);
            StreamQuery::parse(&raw, &SourceNames::default()).unwrap();
            let told: Vec<_> = key.takes().split([' ', ',', ':']).collect();
            // There are too many states for a sentence.
            let is_told = *key == QueryKey::State || told.contains(&name);
            assert!(is_told, "{key} takes {}, also {name}", key.takes());
        }
    }
}

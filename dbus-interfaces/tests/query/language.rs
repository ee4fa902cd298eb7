//! Any query lets through of any flow what the text of the language says, asked of the flow as the bus shows it. Flows and
//! values are of small domains, so that they meet.

use std::net::IpAddr;

use ctnetlink::{Counters, Layer4, Status, Tuple};
use flowbus_interfaces::{
    FieldSet, Flow, Key, Lookup, OwnedFlow, OwnedValue, Owner, QueryKey, QueryPart, SourceNames, Time,
    TimeSource,
};
use proptest::prelude::*;

use super::{address, filter};

fn any_address() -> impl Strategy<Value = IpAddr> {
    let some = ["198.18.0.1", "198.18.0.2", "198.19.0.1", "2001:2::1", "2001:2::2", "::ffff:198.18.0.1"];
    prop::sample::select(some.map(address).to_vec())
}

fn any_layer4() -> impl Strategy<Value = Layer4> {
    prop_oneof![
        4 => (0..4_u16, 0..4_u16).prop_map(|(src, dst)| Layer4::Ports { src, dst }),
        1 => (0..3_u8, 0..2_u8, 0..3_u16).prop_map(|(kind, code, id)| Layer4::Icmp { kind, code, id }),
        1 => Just(Layer4::None),
    ]
}

prop_compose! {
    fn any_tuple()(
        src in any_address(), dst in any_address(), protocol in prop::sample::select(vec![6_u8, 17, 1, 99]),
        layer4 in any_layer4(), zone in 0..2_u16,
    ) -> Tuple {
        Tuple { src, dst, protocol, layer4, zone }
    }
}

prop_compose! {
    fn any_owner()(pid in prop::option::of(0..3_u32), uid in prop::option::of(0..3_u32),
        comm in prop::option::of(prop::sample::select(vec!["curl", "Curl", "sh"])),
        unit in prop::option::of(prop::sample::select(vec!["a.service", "b.scope"]))) -> Owner<'static> {
        Owner {
            pid,
            uid,
            comm,
            unit,
            container: unit.map(|_| "box"),
            exe: comm.map(|_| "/bin/a"),
            ..Owner::default()
        }
    }
}

prop_compose! {
    fn any_times()(start in prop::option::of(0..5_u64), end in prop::option::of(0..5_u64)) -> [Option<Time>; 2] {
        [start, end].map(|usec| usec.map(|usec| Time { usec, source: TimeSource::Event }))
    }
}

/// A flow without what it borrows, and its owners.
fn any_flow() -> impl Strategy<Value = (Flow<'static>, [Option<Owner<'static>>; 2])> {
    let tuples = (any_tuple(), any_tuple(), any::<bool>()).prop_map(|(original, reply, plain)| {
        let inverted = Tuple {
            src: original.dst,
            dst: original.src,
            layer4: match original.layer4 {
                Layer4::Ports { src, dst } => Layer4::Ports { src: dst, dst: src },
                other => other,
            },
            ..original
        };
        (original, if plain { inverted } else { reply })
    });
    let mark = (0..3_u32, 0..3_u32, 0..4_u32, 999..1002_u32)
        .prop_map(|(source, qos, vpn, table)| source << 8 | qos << 5 | vpn << 14 | table << 16);
    let names = (
        prop::option::of(prop::sample::select(vec!["SYN_SENT", "ESTABLISHED"])),
        prop::option::of(prop::sample::select(vec!["wlan0", "eth0"])),
        prop::option::of(prop::sample::select(vec!["ftp", "sip"])),
        prop::option::of(prop::sample::select(vec![&[][..], &[3], &[0, 0, 0, 0, 0, 0, 0, 0, 1]])),
    );
    let counters = || prop::option::of((0..3_u64).prop_map(|bytes| Counters { packets: 9, bytes }));
    let numbers = (0..4_u64, prop::option::of(0..3_u32), prop::option::of(0..16_u32), counters(), counters());
    let owners = [prop::option::of(any_owner()), prop::option::of(any_owner())];
    (tuples, mark, names, numbers, any_times(), owners).prop_map(
        |((original, reply), mark, (state, interface, helper, labels), numbers, [start, end], owners)| {
            let (id, conntrack_id, status, original_counters, reply_counters) = numbers;
            let flow = Flow {
                conntrack_id,
                state,
                status: status.map(Status::from_bits_retain),
                mark,
                interface,
                labels,
                helper,
                original_counters,
                reply_counters,
                start,
                end,
                ..Flow::new(id, original, reply)
            };
            (flow, owners)
        },
    )
}

/// Values that are right for each key.
fn values(key: QueryKey) -> &'static [&'static str] {
    match key {
        QueryKey::Family => &["ipv4", "IPV6"],
        QueryKey::Protocol => &["tcp", "17", "icmp", "99"],
        QueryKey::Src
        | QueryKey::Dst
        | QueryKey::ReplySrc
        | QueryKey::ReplyDst
        | QueryKey::NatSrc
        | QueryKey::NatDst
        | QueryKey::Address => {
            &["198.18.0.1", "198.18.0.9/24", "198.18.0.0/15", "2001:2::1", "2001:2::/64", "::/0", "0.0.0.0/0"]
        }
        QueryKey::Sport
        | QueryKey::Dport
        | QueryKey::ReplySport
        | QueryKey::ReplyDport
        | QueryKey::NatSport
        | QueryKey::NatDport
        | QueryKey::Port => &["0", "1", "1-2", "3"],
        QueryKey::IcmpType | QueryKey::IcmpCode | QueryKey::IcmpId => &["0", "1", "2"],
        QueryKey::Nat => &["source", "destination", "any", "none"],
        QueryKey::Mark => &["0x100/0x3f00", "65536000", "0/0xe0"],
        QueryKey::Source => &["UNKNOWN", "CHROME", "2"],
        QueryKey::Vpn => &["none", "route", "bypass", "route+bypass"],
        QueryKey::Qos => &["default", "1", "multimedia-conferencing"],
        QueryKey::RoutingTable => &["1000", "1001"],
        QueryKey::Interface => &["wlan0", "ETH0"],
        QueryKey::Zone | QueryKey::OrigZone | QueryKey::ReplyZone => &["0", "1"],
        QueryKey::State => &["SYN_SENT", "established"],
        QueryKey::Status => &["assured", "seen-reply", "expected"],
        QueryKey::Helper => &["ftp", "SIP"],
        QueryKey::Labels => &["0", "1", "0x3", "64", "0x10000000000000000"],
        QueryKey::Comm => &["curl", "sh"],
        QueryKey::Unit => &["a.service", "B.scope"],
        QueryKey::Container => &["box", "BOX-2"],
        QueryKey::Exe => &["/bin/a", "/bin/b"],
        _ => &["0", "1", "2", "3"],
    }
}

/// Keys, each with its values and whether these are excluded.
fn any_query() -> impl Strategy<Value = Vec<(QueryKey, Vec<&'static str>, bool)>> {
    let keys: Vec<_> = QueryKey::ALL.iter().copied().filter(|key| key.part() == QueryPart::Filter).collect();
    prop::sample::subsequence(keys, 0..4).prop_flat_map(|keys| {
        keys.into_iter()
            .map(|key| {
                let most =
                    if matches!(key, QueryKey::MinBytes | QueryKey::Since | QueryKey::Until) { 1 } else { 2 };
                (Just(key), prop::sample::subsequence(values(key), 1..=most), any::<bool>())
            })
            .collect::<Vec<_>>()
    })
}

/// The query language as its text says, asked of the flow as the bus shows it.
fn naive(flow: &OwnedFlow, key: QueryKey, value: &str) -> bool {
    use Key::{
        Dport, Dst, NatDport, NatDst, NatSport, NatSrc, ReplyDport, ReplyDst, ReplySport, ReplySrc, Sport,
        Src,
    };
    let in_network = |field| flow.text(field).is_some_and(|shown| naive_network(shown, value));
    let in_range = |field| {
        let (low, high) = value.split_once('-').unwrap_or((value, value));
        flow.number(field).is_some_and(|port| (low.parse().unwrap()..=high.parse().unwrap()).contains(&port))
    };
    let is = |field| flow.number(field).is_some_and(|number| number.to_string() == value);
    let named = |field| flow.text(field).is_some_and(|name| name.eq_ignore_ascii_case(value));
    let owned = |name: &str| {
        [Key::Initiator, Key::Responder].iter().any(|&end| match flow.get(end) {
            Some(OwnedValue::Dictionary(owner)) => match owner.get(name) {
                Some(OwnedValue::Number(number)) => number.to_string() == value,
                Some(OwnedValue::Text(text)) => text.eq_ignore_ascii_case(value),
                _ => false,
            },
            _ => false,
        })
    };
    let (source, destination) = (flow.get(NatSrc).is_some(), flow.get(NatDst).is_some());
    // Zones are shown where they are not the default one.
    let zones = || match flow.number(Key::Zone) {
        Some(zone) => (zone, zone),
        None => (flow.number(Key::OrigZone).unwrap_or(0), flow.number(Key::ReplyZone).unwrap_or(0)),
    };
    match key {
        QueryKey::Family => named(Key::Family),
        QueryKey::Protocol => {
            named(Key::Protocol) || value.parse() == Ok(flow.number(Key::ProtocolNumber).unwrap())
        }
        QueryKey::Src => in_network(Src),
        QueryKey::Dst => in_network(Dst),
        QueryKey::ReplySrc => in_network(ReplySrc),
        QueryKey::ReplyDst => in_network(ReplyDst),
        QueryKey::NatSrc => in_network(NatSrc),
        QueryKey::NatDst => in_network(NatDst),
        QueryKey::Address => [Src, Dst, ReplySrc, ReplyDst].into_iter().any(in_network),
        QueryKey::Sport => in_range(Sport),
        QueryKey::Dport => in_range(Dport),
        QueryKey::ReplySport => in_range(ReplySport),
        QueryKey::ReplyDport => in_range(ReplyDport),
        QueryKey::NatSport => in_range(NatSport),
        QueryKey::NatDport => in_range(NatDport),
        QueryKey::Port => [Sport, Dport, ReplySport, ReplyDport].into_iter().any(in_range),
        QueryKey::IcmpType => is(Key::IcmpType),
        QueryKey::IcmpCode => is(Key::IcmpCode),
        QueryKey::IcmpId => is(Key::IcmpId),
        QueryKey::Nat => match value {
            "source" => source,
            "destination" => destination,
            "any" => source || destination,
            _ => !source && !destination,
        },
        QueryKey::Mark => {
            let mark = flow.number(Key::Mark).unwrap();
            match value {
                "0x100/0x3f00" => flow.number(Key::SourceId) == Some(1),
                "65536000" => mark == 65_536_000,
                "0/0xe0" => flow.text(Key::Qos) == Some("default"),
                other => panic!("{other}"),
            }
        }
        QueryKey::Source => named(Key::Source) || value.parse() == Ok(flow.number(Key::SourceId).unwrap()),
        QueryKey::Vpn => named(Key::Vpn),
        QueryKey::Qos => {
            named(Key::Qos) || value == "1" && flow.text(Key::Qos) == Some("realtime-interactive")
        }
        QueryKey::RoutingTable => is(Key::RoutingTable),
        QueryKey::Interface => named(Key::Interface),
        QueryKey::Zone => zones().0 == zones().1 && zones().0.to_string() == value,
        QueryKey::OrigZone => zones().0.to_string() == value,
        QueryKey::ReplyZone => zones().1.to_string() == value,
        QueryKey::State => named(Key::State),
        QueryKey::Status => {
            let has = |name: &str| flow.names(Key::Status).iter().any(|status| status == name);
            has(value)
        }
        QueryKey::Helper => named(Key::Helper),
        QueryKey::Labels => match flow.get(Key::Labels) {
            Some(OwnedValue::Bytes(bytes)) => {
                let bit = |bit: usize| bytes.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 != 0);
                match value {
                    "0x3" => bit(0) && bit(1),
                    "0x10000000000000000" => bit(64),
                    number => bit(number.parse().unwrap()),
                }
            }
            _ => false,
        },
        QueryKey::Id => is(Key::Id),
        QueryKey::ConntrackId => is(Key::ConntrackId),
        QueryKey::Pid => owned("pid"),
        QueryKey::Comm => owned("comm"),
        QueryKey::Uid => owned("uid"),
        QueryKey::Unit => owned("unit"),
        QueryKey::Container => owned("container"),
        QueryKey::Pod => owned("pod"),
        QueryKey::Exe => owned("exe"),
        QueryKey::MinBytes => {
            let bytes = [Key::OrigBytes, Key::ReplyBytes].map(|key| flow.number(key));
            bytes.iter().any(Option::is_some) && bytes.iter().flatten().sum::<u64>() >= value.parse().unwrap()
        }
        QueryKey::Since => flow.number(Key::EndUsec).is_none_or(|end| end >= value.parse().unwrap()),
        QueryKey::Until => flow.number(Key::StartUsec).is_none_or(|start| start <= value.parse().unwrap()),
        other => panic!("{other}"),
    }
}

/// Compares networks by the text of their addresses: all of them are written in full where they differ.
fn naive_network(shown: &str, value: &str) -> bool {
    let shown = match value.contains('.') {
        true => shown.strip_prefix("::ffff:").unwrap_or(shown),
        false => shown,
    };
    match value {
        "198.18.0.9/24" => shown.starts_with("198.18.0."),
        "198.18.0.0/15" => shown.starts_with("198.18.") || shown.starts_with("198.19."),
        "2001:2::/64" => shown.starts_with("2001:2::"),
        "::/0" => shown.contains(':'),
        "0.0.0.0/0" => !shown.contains(':'),
        exact => shown == exact,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_filter_agrees_with_the_text_of_the_language((flow, owners) in any_flow(), query in any_query()) {
        let flow = Flow { initiator: owners[0].as_ref(), responder: owners[1].as_ref(), ..flow };
        let word = |(key, values, excluded): &(QueryKey, Vec<&str>, bool)| {
            format!("{key}{}={}", if *excluded { "!" } else { "" }, values.join(","))
        };
        let words: Vec<_> = query.iter().map(word).collect();
        let Ok(filter) = filter(&words) else {
            let value = |key| query.iter().find(|(other, ..)| *other == key).map(|(_, values, _)| values[0]);
            prop_assert!(value(QueryKey::Since) > value(QueryKey::Until), "{:?} is right", words);
            return Ok(());
        };
        let mut shown = Vec::new();
        flow.visit(&SourceNames::default(), FieldSet::ALL, |key, value| shown.push((key, value.into())));
        let shown: OwnedFlow = shown.into_iter().collect();
        let expected = query.iter().all(|(key, values, excluded)| {
            values.iter().any(|value| naive(&shown, *key, value)) != *excluded
        });
        prop_assert_eq!(filter.matches(&flow), expected, "{:?}", words);
        // An index would have found it.
        if let (true, Some(lookup)) = (expected, filter.lookup()) {
            let ports = |tuple: &Tuple| match tuple.layer4 {
                Layer4::Ports { src, dst } => vec![src, dst],
                _ => vec![],
            };
            let ends = [ports(&flow.original), ports(&flow.reply)].concat();
            let found = match lookup {
                Lookup::Ids(ids) => ids.contains(&flow.id),
                Lookup::Port(port) => ends.contains(&port),
            };
            prop_assert!(found, "{:?}", lookup);
        }
    }
}

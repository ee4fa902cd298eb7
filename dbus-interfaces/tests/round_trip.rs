//! A flow survives the bus and JSON, and each value has the type that its key promises.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::IpAddr;

use ctnetlink::{Counters, EventKind, Layer4, Status, Tuple};
use flowbus_interfaces::{
    DictionaryArray, EndReason, FieldSet, Flow, Key, Mark, MarkDictionary, OwnedFlow, Owner, Page,
    SourceNames, Time, TimeSource,
};
use proptest::prelude::*;
use zbus::wire::serialized::Context;
use zbus::wire::{BE, LE, to_bytes};

/// What the visitor says, without serialising.
fn visited(flow: &Flow<'_>, fields: FieldSet) -> OwnedFlow {
    let mut values = Vec::new();
    flow.visit(&SourceNames::default(), fields, |key, value| {
        assert_eq!(value.signature(), key.signature(), "{key}");
        values.push((key, value.into()));
    });
    assert!(values.is_sorted_by_key(|(key, _)| *key), "fields come in the order of Key");
    values.into_iter().collect()
}

/// Through a single dictionary and through arrays: as a reply has them, and in both byte orders.
fn over_the_bus(flow: &Flow<'_>, fields: FieldSet) -> OwnedFlow {
    let names = SourceNames::default();
    let data = to_bytes(Context::new(LE, 0), &flow.dictionary(&names, fields)).unwrap();
    let (single, length): (OwnedFlow, usize) = data.deserialize().unwrap();
    assert_eq!(length, data.len());
    for endian in [LE, BE] {
        let context = Context::new(endian, 0);
        for count in 0..4 {
            let mut array = DictionaryArray::new(endian);
            let size: usize = (0..count).map(|_| array.push_flow(flow, &names, fields)).sum();
            let data = to_bytes(context, &(1_u64, array, 2_u64)).unwrap();
            let by_zbus =
                to_bytes(context, &(1_u64, vec![flow.dictionary(&names, fields); count], 2_u64)).unwrap();
            assert_eq!(data.bytes(), by_zbus.bytes());
            let taken = data.len() - 8 - 8 - 4; // Two numbers and the length of the array.
            assert!(taken <= size + 7 && size <= taken + 15 * count, "{count}: {size} for {taken} bytes");
        }
    }
    single
}

fn over_json(flow: &Flow<'_>, fields: FieldSet) -> OwnedFlow {
    let line = serde_json::to_string(&flow.json(&SourceNames::default(), fields)).unwrap();
    let read = OwnedFlow::from_json(&line).unwrap();
    let object: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), object, "what was read is written alike");
    read
}

fn owner() -> Owner<'static> {
    Owner {
        pid: Some(42),
        comm: Some("curl"),
        leader_comm: None,
        uid: Some(0),
        unit: Some("a \"quoted\".service"),
        cgroup: Some("/system.slice"),
        container: Some("3f2a"),
        pod: Some("d7b1c2ab"),
        exe: Some("/usr/bin/curl"),
        network_namespace: Some(4_026_532_000),
        opened: Some(true),
        confidence: Some("exact"),
    }
}

fn tuple(src: &str, sport: u16, dst: &str, dport: u16) -> Tuple {
    Tuple {
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        protocol: 6,
        layer4: Layer4::Ports { src: sport, dst: dport },
        zone: 0,
    }
}

fn plain() -> Flow<'static> {
    let original = tuple("198.18.0.2", 40000, "198.18.1.2", 443);
    Flow::new(7, original, tuple("198.18.1.2", 443, "198.18.0.2", 40000))
}

fn full<'a>(owner: &'a Owner<'_>) -> Flow<'a> {
    Flow {
        event: Some(EventKind::Destroy),
        sequence: Some(u64::MAX),
        event_usec: Some(u64::MAX),
        conntrack_id: Some(u32::MAX),
        original: Tuple { zone: 1, ..tuple("198.18.0.2", 40000, "198.18.1.2", 443) },
        reply: Tuple { zone: 2, ..tuple("198.18.2.2", 8443, "198.18.3.2", 1024) },
        state: Some("TIME_WAIT"),
        status: Some(Status::all()),
        timeout: Some(0),
        use_count: Some(1),
        mark: 0x040c_0100,
        interface: Some("wlan0"),
        labels: Some(&[0, 255, 16]),
        helper: Some("ftp"),
        security_context: Some("system_u:object_r"),
        original_counters: Some(Counters { packets: 1, bytes: u64::MAX }),
        reply_counters: Some(Counters { packets: 0, bytes: 0 }),
        start: Some(Time { usec: 1_000, source: TimeSource::Kernel }),
        end: Some(Time { usec: 3_500, source: TimeSource::Estimated }),
        duration_usec: Some(2500),
        end_reason: Some(EndReason::Replaced),
        initiator: Some(owner),
        responder: Some(owner),
        ..plain()
    }
}

#[test]
fn a_flow_with_every_field_survives_bus_and_json() {
    let owner = owner();
    let flow = full(&owner);
    let expected = visited(&flow, FieldSet::ALL);
    assert_eq!(over_the_bus(&flow, FieldSet::ALL), expected);
    assert_eq!(over_json(&flow, FieldSet::ALL), expected);
    let absent: Vec<_> = Key::ALL.iter().filter(|&&key| expected.get(key).is_none()).collect();
    assert_eq!(
        absent,
        [
            &Key::IcmpType,
            &Key::IcmpCode,
            &Key::IcmpId,
            &Key::ReplyIcmpType,
            &Key::ReplyIcmpCode,
            &Key::ReplyIcmpId,
            &Key::Zone
        ]
    );
    assert_eq!(expected.text(Key::NatSrc), Some("198.18.3.2"));
    assert_eq!(expected.number(Key::NatSport), Some(1024));
    assert_eq!(expected.text(Key::NatDst), Some("198.18.2.2"));
    assert_eq!(expected.number(Key::NatDport), Some(8443));
    assert_eq!(expected.number(Key::DurationUsec), Some(2_500));
    assert_eq!(expected.text(Key::Source), Some("CHROME"));
    assert_eq!(expected.number(Key::RoutingTable), Some(1036));
    assert_eq!(expected.get(Key::Labels).unwrap().to_string(), "00ff10");
}

#[test]
fn what_is_not_known_is_absent_and_mark_zero_is_known() {
    let flow = visited(&plain(), FieldSet::ALL);
    let present: Vec<_> = flow.iter().map(|(key, _)| key.name()).collect();
    let expected = "id family protocol protocol_number src sport dst dport reply_src reply_sport reply_dst \
                    reply_dport mark source source_id vpn qos legacy_snat";
    assert_eq!(present.join(" "), expected);
    assert_eq!(flow.number(Key::Mark), Some(0));
    assert_eq!(flow.text(Key::Source), Some("UNKNOWN"));
}

#[test]
fn only_the_chosen_fields_are_written() {
    let fields = FieldSet::EMPTY.with(Key::Dport).with(Key::NatDport).with(Key::Src);
    let owner = owner();
    for flow in [plain(), full(&owner)] {
        let chosen = over_the_bus(&flow, fields);
        assert!(chosen.iter().all(|(key, _)| fields.contains(key)));
        assert_eq!(over_json(&flow, fields), chosen);
    }
    assert_eq!(over_the_bus(&plain(), FieldSet::EMPTY), OwnedFlow::default());
}

#[test]
fn translation_of_a_port_alone_shows_the_whole_endpoint() {
    let original = tuple("198.18.0.2", 40000, "198.18.1.2", 443);
    let source =
        visited(&Flow::new(1, original, tuple("198.18.1.2", 443, "198.18.0.2", 1024)), FieldSet::ALL);
    assert_eq!(source.text(Key::NatSrc), Some("198.18.0.2"));
    assert_eq!(source.number(Key::NatSport), Some(1024));
    assert_eq!((source.get(Key::NatDst), source.get(Key::NatDport)), (None, None));
    let dest =
        visited(&Flow::new(1, original, tuple("198.18.1.2", 8443, "198.18.0.2", 40000)), FieldSet::ALL);
    assert_eq!(dest.text(Key::NatDst), Some("198.18.1.2"));
    assert_eq!(dest.number(Key::NatDport), Some(8443));
    assert_eq!((dest.get(Key::NatSrc), dest.get(Key::NatSport)), (None, None));
}

#[test]
fn icmp_has_types_instead_of_ports() {
    let mut flow = plain();
    (flow.original.protocol, flow.reply.protocol) = (1, 1);
    flow.original.layer4 = Layer4::Icmp { kind: 8, code: 0, id: 77 };
    flow.reply.layer4 = Layer4::Icmp { kind: 0, code: 0, id: 77 };
    let ping = visited(&flow, FieldSet::ALL);
    assert_eq!(ping.text(Key::Protocol), Some("icmp"));
    assert_eq!((ping.number(Key::IcmpType), ping.number(Key::ReplyIcmpType)), (Some(8), Some(0)));
    assert_eq!((ping.get(Key::Sport), ping.get(Key::NatSrc)), (None, None));

    flow.reply.layer4 = Layer4::Icmp { kind: 0, code: 0, id: 78 };
    let translated = visited(&flow, FieldSet::ALL);
    assert_eq!(translated.number(Key::ReplyIcmpId), Some(78));
    assert_eq!(translated.text(Key::NatSrc), Some("198.18.0.2"));
    assert_eq!((translated.get(Key::NatSport), translated.get(Key::NatDst)), (None, None));
}

#[test]
fn zones_show_once_where_both_directions_share_one() {
    let zones = |original, reply| {
        let mut flow = plain();
        (flow.original.zone, flow.reply.zone) = (original, reply);
        let flow = visited(&flow, FieldSet::ALL);
        [Key::Zone, Key::OrigZone, Key::ReplyZone].map(|key| flow.number(key))
    };
    assert_eq!(zones(0, 0), [None, None, None]);
    assert_eq!(zones(5, 5), [Some(5), None, None]);
    assert_eq!(zones(5, 0), [None, Some(5), None]);
    assert_eq!(zones(0, 5), [None, None, Some(5)]);
    assert_eq!(zones(5, 6), [None, Some(5), Some(6)]);
}

#[test]
fn a_protocol_without_a_name_is_its_number() {
    let mut flow = plain();
    flow.original.protocol = 50;
    flow.original.layer4 = Layer4::None;
    flow.reply.layer4 = Layer4::None;
    let flow = visited(&flow, FieldSet::ALL);
    assert_eq!((flow.text(Key::Protocol), flow.number(Key::ProtocolNumber)), (Some("50"), Some(50)));
}

#[test]
fn a_mark_decodes_alone() {
    let names = SourceNames::default();
    let dictionary = MarkDictionary { mark: Mark(0x040c_2900), interface: Some("eth0"), names: &names };
    let data = to_bytes(Context::new(LE, 0), &dictionary).unwrap();
    let fields: OwnedFlow = data.deserialize().unwrap().0;
    let json = serde_json::to_string(&fields).unwrap();
    assert_eq!(
        json,
        r#"{"mark":67905792,"source":"0x29","source_id":41,"vpn":"none","qos":"default","routing_table":1036,"interface":"eth0","legacy_snat":false}"#
    );
}

#[test]
fn keys_of_a_later_version_are_left_out_and_wrong_types_refused() {
    use std::collections::HashMap;
    use zbus::Variant;
    let read = |pairs: [(&str, Variant<'_>); 2]| {
        let data = to_bytes(Context::new(LE, 0), &HashMap::from(pairs)).unwrap();
        data.deserialize::<OwnedFlow>().map(|(flow, _)| flow).map_err(|error| error.to_string())
    };
    let flow = read([("id", 7_u64.into()), ("colour", "red".into())]).unwrap();
    assert_eq!(serde_json::to_string(&flow).unwrap(), r#"{"id":7}"#);
    assert!(
        read([("id", 7_u32.into()), ("mark", 0_u32.into())]).unwrap_err().contains("id must be t and is u")
    );

    let json = |line| OwnedFlow::from_json(line).map_err(|error| error.to_string());
    assert_eq!(json(r#"{"type":"new","id":7}"#).unwrap(), flow);
    assert_eq!(json(r#"{"id":"7"}"#).unwrap_err(), "id must be a number and is \"7\"");
    assert_eq!(json(r#"{"labels":"0g"}"#).unwrap_err(), "labels must be hexadecimal digits and is \"0g\"");
    assert!(json("[]").unwrap_err().starts_with("not a JSON object"));
}

#[test]
fn a_page_without_next_is_the_last() {
    for next in [None, Some(5)] {
        let page = Page { next, sequence: 3, epoch: "e".into(), synchronized: true };
        let data = to_bytes(Context::new(LE, 0), &page).unwrap();
        assert_eq!(data.deserialize::<Page>().unwrap().0, page);
        assert_eq!(data.bytes().windows(4).any(|bytes| bytes == b"next"), next.is_some());
    }
}

fn any_tuple(v6: bool) -> impl Strategy<Value = Tuple> {
    let address = move || {
        any::<(u32, u128)>().prop_map(move |(v4, six)| match v6 {
            true => IpAddr::V6(six.into()),
            false => IpAddr::V4(v4.into()),
        })
    };
    let layer4 = prop_oneof![
        any::<(u16, u16)>().prop_map(|(src, dst)| Layer4::Ports { src, dst }),
        any::<(u8, u8, u16)>().prop_map(|(kind, code, id)| Layer4::Icmp { kind, code, id }),
        Just(Layer4::None),
    ];
    (address(), address(), any::<u8>(), layer4, any::<u16>())
        .prop_map(|(src, dst, protocol, layer4, zone)| Tuple { src, dst, protocol, layer4, zone })
}

/// Flows whose dictionaries end at all alignments: with a text of 0 to 7 bytes, or with nothing, or with everything.
fn flow_of_length(number: u8) -> (Flow<'static>, FieldSet) {
    let fields = match number % 10 {
        8 => FieldSet::EMPTY,
        9 => FieldSet::ALL,
        _ => FieldSet::EMPTY.with(Key::Helper),
    };
    (Flow { id: number.into(), helper: Some(&"tftp-20"[..usize::from(number % 8)]), ..plain() }, fields)
}

proptest! {
    #[test]
    fn what_is_removed_from_an_array_was_never_there(
        steps in proptest::collection::vec(any::<(u8, Option<proptest::sample::Index>)>(), 0..400),
        is_big: bool,
    ) {
        let names = SourceNames::default();
        let endian = if is_big { BE } else { LE };
        let mut array = DictionaryArray::new(endian);
        let mut left = Vec::new();
        for (number, removed) in steps {
            let (flow, fields) = flow_of_length(number);
            array.push_flow(&flow, &names, fields);
            left.push(Some(number));
            if let Some(index) = removed.map(|index| index.index(left.len())) {
                array.remove(index);
                left[index] = None;
                if index + 1 == left.len() {
                    left.pop();
                }
            }
        }
        let kept: Vec<_> = left.into_iter().flatten().map(flow_of_length).collect();
        let expected: Vec<_> = kept.iter().map(|(flow, fields)| flow.dictionary(&names, *fields)).collect();
        let context = Context::new(endian, 0);
        let (data, expected) = (to_bytes(context, &array).unwrap(), to_bytes(context, &expected).unwrap());
        prop_assert_eq!(data.bytes(), expected.bytes());
    }

    #[test]
    fn any_flow_survives_bus_and_json(
        (original, reply) in any::<bool>().prop_flat_map(|v6| (any_tuple(v6), any_tuple(v6))),
        id: u64,
        status: Option<u32>,
        mark: u32,
        timeout: Option<u32>,
        times: Option<(u64, u64)>,
        labels: Option<Vec<u8>>,
        helper: Option<String>,
        chosen: u64,
    ) {
        // D-Bus text has no zero bytes; the service takes names from C strings.
        let helper = helper.map(|name| name.replace('\0', ""));
        let time = |usec| Time { usec, source: TimeSource::Observed };
        let flow = Flow {
            status: status.map(Status::from_bits_retain),
            mark,
            timeout,
            labels: labels.as_deref(),
            helper: helper.as_deref(),
            start: times.map(|(start, _)| time(start)),
            end: times.map(|(_, end)| time(end)),
            ..Flow::new(id, original, reply)
        };
        let chosen: FieldSet = Key::ALL.iter().copied().filter(|&key| chosen >> key as u8 & 1 != 0).collect();
        for fields in [FieldSet::ALL, chosen] {
            let expected = visited(&flow, fields);
            prop_assert_eq!(&over_the_bus(&flow, fields), &expected);
            prop_assert_eq!(&over_json(&flow, fields), &expected);
        }
    }
}

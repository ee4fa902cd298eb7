//! Every request, byte for byte: `fixtures/requests.txt` has what the hand-written encoders sent that the builders on top of
//! netlink-packet-netfilter replaced, and that the kernel was tested with.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

use std::fmt::Write as _;

use ctnetlink::{
    DccpInfo, Expectation, ExpectationFlags, Family, Flow, Layer4, ProtocolInfo, SctpInfo, Status, TcpInfo,
    Tuple, Update, cpu_stats_request, create_request, delete_request, dump_request,
    expectation_create_request, expectation_delete_request, expectation_dump_request,
    expectation_flush_request, flush_request, get_request, stats_request, update_request,
};

/// `nlmsg_seq` of every request.
const SEQUENCE: u32 = 0x2026_1126;
const V4: [&str; 2] = ["198.18.0.1", "198.18.0.2"];
const V6: [&str; 2] = ["2001:2::1", "2001:2::2"];

fn tuple([src, dst]: [&str; 2], protocol: u8, layer4: Layer4, zone: u16) -> Tuple {
    Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap(), protocol, layer4, zone }
}

fn ports(src: u16, dst: u16) -> Layer4 {
    Layer4::Ports { src, dst }
}

fn tcp() -> Tuple {
    tuple(V4, 6, ports(40_000, 443), 0)
}

fn reply(original: &Tuple) -> Tuple {
    let layer4 = match original.layer4 {
        Layer4::Ports { src, dst } => ports(dst, src),
        other => other,
    };
    Tuple { src: original.dst, dst: original.src, layer4, ..*original }
}

/// Gets, ends and makes flows of every kind of tuple.
fn tuples(requests: &mut Vec<(String, Vec<u8>)>) {
    let kinds = [
        ("tcp4", tcp()),
        ("tcp6", tuple(V6, 6, ports(40_000, 443), 0)),
        ("udp4-zone", tuple(V4, 17, ports(40_000, 53), 7)),
        ("icmp", tuple(V4, 1, Layer4::Icmp { kind: 8, code: 1, id: 0x1234 }, 0)),
        ("icmpv6-zone", tuple(V6, 58, Layer4::Icmp { kind: 128, code: 2, id: 0x5678 }, 0xfedc)),
        ("gre", tuple(V4, 47, ports(1, 2), 0)),
        ("protocol-253", tuple(V4, 253, Layer4::None, 0)),
        ("protocol-0", tuple(V6, 0, Layer4::None, 0)),
    ];
    for (name, original) in &kinds {
        requests.push((format!("get-{name}"), get_request(SEQUENCE, original)));
        requests.push((format!("delete-{name}"), delete_request(SEQUENCE, original, None)));
        let id = Some(0x0102_0304);
        requests.push((format!("delete-id-{name}"), delete_request(SEQUENCE, original, id)));
        let flow = Flow::new(*original, reply(original));
        requests.push((format!("create-{name}"), create_request(SEQUENCE, &flow)));
        let id = (*name == "tcp4").then_some(0x0506_0708);
        requests
            .push((format!("expectation-delete-{name}"), expectation_delete_request(SEQUENCE, original, id)));
    }
}

/// What protocols know of a flow.
fn protocol_infos() -> [(&'static str, ProtocolInfo); 6] {
    let tcp = TcpInfo {
        state: 3,
        wscale_original: None,
        wscale_reply: None,
        flags_original: None,
        flags_reply: None,
    };
    let whole = TcpInfo {
        wscale_original: Some(7),
        wscale_reply: Some(14),
        flags_original: Some((0x22, 0x33)),
        flags_reply: Some((0x44, 0x55)),
        ..tcp
    };
    [
        ("tcp-state", ProtocolInfo::Tcp(tcp)),
        ("tcp", ProtocolInfo::Tcp(whole)),
        ("sctp-state", ProtocolInfo::Sctp(SctpInfo { state: 4, vtag_original: None, vtag_reply: None })),
        (
            "sctp",
            ProtocolInfo::Sctp(SctpInfo { state: 4, vtag_original: Some(0x0a0b_0c0d), vtag_reply: Some(2) }),
        ),
        ("dccp-state", ProtocolInfo::Dccp(DccpInfo { state: 5, role: None, handshake_sequence: Some(9) })),
        ("dccp", ProtocolInfo::Dccp(DccpInfo { state: 5, role: Some(1), handshake_sequence: None })),
    ]
}

fn updates(requests: &mut Vec<(String, Vec<u8>)>) {
    let labels: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let whole = Update {
        timeout: Some(600),
        mark: Some((0x040c_01ff, 0xffff_ff00)),
        status: Some(Status::ASSURED | Status::FIXED_TIMEOUT | Status::from_bits_retain(1 << 31)),
        labels: Some((labels, &[0xff; 16])),
        protocol_info: Some(protocol_infos()[1].1),
        helper: Some(b"ftp"),
    };
    let nothing = Update::default();
    let mut updates = vec![
        ("nothing", nothing),
        ("timeout", Update { timeout: whole.timeout, ..nothing }),
        ("mark", Update { mark: whole.mark, ..nothing }),
        ("status", Update { status: whole.status, ..nothing }),
        ("labels", Update { labels: whole.labels, ..nothing }),
        ("labels-of-5-bytes", Update { labels: Some((&labels[..5], &labels[..3])), ..nothing }),
        ("labels-of-none", Update { labels: Some((&[], &[])), ..nothing }),
        ("helper", Update { helper: Some(b"netbios-ns"), ..nothing }),
        ("no-helper", Update { helper: Some(b""), ..nothing }),
        ("everything", whole),
    ];
    for (name, info) in protocol_infos() {
        updates.push((name, Update { protocol_info: Some(info), ..nothing }));
    }
    for (name, update) in updates {
        requests.push((format!("update-{name}"), update_request(SEQUENCE, &tcp(), &update)));
    }
    let zoned = tuple(V6, 17, ports(5353, 5353), 9);
    requests.push(("update-zone-everything".into(), update_request(SEQUENCE, &zoned, &whole)));
}

fn creates(requests: &mut Vec<(String, Vec<u8>)>) {
    let original = tuple(V6, 6, ports(40_000, 443), 7);
    let mut whole = Flow::new(original, reply(&original));
    whole.timeout = Some(432_000);
    whole.mark = Some(0);
    whole.status = Some(Status::EXPECTED | Status::SEEN_REPLY | Status::ASSURED | Status::DYING);
    whole.labels = Some(&[1, 0, 0, 0, 0, 0, 0, 0x80]);
    whole.helper = Some(b"sip");
    whole.master = Some(tuple(V6, 17, ports(5060, 5061), 7));
    whole.protocol_info = Some(protocol_infos()[0].1);
    // What the kernel sets itself is not sent.
    whole.id = Some(5);
    whole.use_count = Some(2);
    whole.start_nsec = Some(1);
    requests.push(("create-everything".into(), create_request(SEQUENCE, &whole)));
    let mut icmp_master = Flow::new(tcp(), reply(&tcp()));
    icmp_master.master = Some(tuple(V4, 1, Layer4::Icmp { kind: 8, code: 0, id: 1 }, 0));
    icmp_master.mark = Some(0xffff_ffff);
    requests.push(("create-icmp-master".into(), create_request(SEQUENCE, &icmp_master)));
}

fn expectations(requests: &mut Vec<(String, Vec<u8>)>) {
    let (master, expected) = (tcp(), tuple(V4, 6, ports(0, 20), 0));
    let mask = tuple(["255.255.255.255", "0.0.0.0"], 6, ports(0, 0), 0);
    let least = Expectation::new(master, expected, mask);
    requests.push(("expectation-create".into(), expectation_create_request(SEQUENCE, &least)));
    let whole = Expectation {
        tuple: Tuple { zone: 3, ..expected },
        timeout: Some(300),
        flags: Some(ExpectationFlags::PERMANENT | ExpectationFlags::USERSPACE),
        class: Some(1),
        helper: Some(b"ftp"),
        function: Some(b"nat-follow-master"),
        ..least
    };
    requests.push(("expectation-create-everything".into(), expectation_create_request(SEQUENCE, &whole)));
    requests.push(("expectation-flush".into(), expectation_flush_request(SEQUENCE)));
}

fn requests() -> Vec<(String, Vec<u8>)> {
    let mut requests =
        vec![("stats".into(), stats_request(SEQUENCE)), ("cpu-stats".into(), cpu_stats_request(SEQUENCE))];
    for (name, family) in [("all", None), ("ipv4", Some(Family::Ipv4)), ("ipv6", Some(Family::Ipv6))] {
        requests.push((format!("dump-{name}"), dump_request(SEQUENCE, family)));
        requests.push((format!("flush-{name}"), flush_request(SEQUENCE, family)));
        let expectations = expectation_dump_request(SEQUENCE, family);
        requests.push((format!("expectation-dump-{name}"), expectations));
    }
    tuples(&mut requests);
    updates(&mut requests);
    creates(&mut requests);
    expectations(&mut requests);
    requests
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[test]
#[cfg(target_endian = "little")] // as the fixtures are
fn every_request_is_sent_as_it_always_was() {
    let fixtures: Vec<_> = include_str!("../fixtures/requests.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once(' ').expect("a name and its bytes"))
        .collect();
    let requests = requests();
    for ((name, bytes), (known, expected)) in requests.iter().zip(&fixtures) {
        assert_eq!((name.as_str(), hex(bytes).as_str()), (*known, *expected));
    }
    assert_eq!(requests.len(), fixtures.len());
}

/// The crate names some protocols and numbers the others.
#[test]
fn every_protocol_number_is_sent_as_it_is() {
    for protocol in 0..=u8::MAX {
        let numbered = |protocol| get_request(SEQUENCE, &tuple(V4, protocol, ports(1, 2), 0));
        let (request, other) = (numbered(protocol), numbered(!protocol));
        let differing: Vec<_> = (0..request.len()).filter(|at| request[*at] != other[*at]).collect();
        assert_eq!(differing.len(), 1, "{protocol}");
        assert_eq!(request[differing[0]], protocol);
    }
}

/// A length that its field cannot hold would make the rest of the message something else.
#[test]
fn what_no_attribute_can_hold_is_cut() {
    let long = vec![b'x'; 70_000];
    for length in [32_766, 32_767, 32_768, 65_523, 65_531, 65_532, 65_536, 70_000] {
        let long = &long[..length];
        let update = Update { labels: Some((long, long)), helper: Some(long), ..Update::default() };
        let request = update_request(SEQUENCE, &tcp(), &update);
        assert_eq!(u32::from_ne_bytes(*request.first_chunk().unwrap()) as usize, request.len());
        let mut kinds = Vec::new();
        for attribute in netlink_packet_core::NlasIterator::new(&request[20..]) {
            kinds.push(attribute.expect("the lengths are right").kind());
        }
        assert_eq!(kinds, [1, 22, 23, 5], "CTA_TUPLE_ORIG, CTA_LABELS, CTA_LABELS_MASK, CTA_HELP");
    }
}

//! Each key of a query lets through what it should, and nothing else.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod language;

use std::net::IpAddr;

use ctnetlink::{Counters, Layer4, Status, Tuple};
use flowbus_interfaces::{
    EndReason, Filter, Flow, Lookup, Owner, Query, QueryError, QueryKey, QueryPart, RawQuery, SourceNames,
    Time, TimeSource,
};

fn filter(words: &[String]) -> Result<Filter, QueryError> {
    let mut raw = RawQuery::default();
    for word in words {
        raw.add_word(word)?;
    }
    Query::parse(&raw, &SourceNames::default()).map(|query| query.filter)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn tuple(src: &str, dst: &str, layer4: Layer4) -> Tuple {
    Tuple { src: address(src), dst: address(dst), protocol: 6, layer4, zone: 0 }
}

fn owner(pid: u32, comm: &'static str, unit: &'static str) -> Owner<'static> {
    Owner { pid: Some(pid), comm: Some(comm), uid: Some(pid + 1), unit: Some(unit), ..Owner::default() }
}

/// TCP, both ends translated, with all there is.
fn full<'a>(owners: &'a [Owner<'_>; 2]) -> Flow<'a> {
    let original = tuple("198.18.0.2", "198.18.1.2", Layer4::Ports { src: 40000, dst: 443 });
    let reply = tuple("198.18.2.2", "198.18.3.2", Layer4::Ports { src: 8443, dst: 1024 });
    Flow {
        conntrack_id: Some(77),
        original: Tuple { zone: 3, ..original },
        reply: Tuple { zone: 3, ..reply },
        state: Some("TIME_WAIT"),
        status: Some(Status::SEEN_REPLY | Status::SRC_NAT),
        // Table 1036, routed through the VPN, source CHROME, QoS WebRTC.
        mark: 0x040c_8180,
        interface: Some("wlan0"),
        labels: Some(&[0, 0, 0x10, 0, 0, 0, 0, 0, 0x01]),
        helper: Some("ftp"),
        original_counters: Some(Counters { packets: 1, bytes: 1000 }),
        reply_counters: Some(Counters { packets: 1, bytes: 500 }),
        start: Some(Time { usec: 1000, source: TimeSource::Observed }),
        end: Some(Time { usec: 2000, source: TimeSource::Kernel }),
        end_reason: Some(EndReason::Destroyed),
        initiator: Some(&owners[0]),
        responder: Some(&owners[1]),
        ..Flow::new(7, original, reply)
    }
}

fn ping() -> Flow<'static> {
    let icmp = |kind| Layer4::Icmp { kind, code: 0, id: 99 };
    let mut original = tuple("2001:2::1", "2001:2::2", icmp(128));
    let mut reply = tuple("2001:2::2", "2001:2::1", icmp(129));
    (original.protocol, reply.protocol) = (58, 58);
    Flow::new(8, original, reply)
}

/// For each key: what the flow has, what it does not have, what is no value. Several are apart by blanks.
const FULL: &[(&str, &str, &str, &str)] = &[
    ("family", "ipv4 IPv4,ipv6", "ipv6", "4 inet ipv4, "),
    ("protocol", "tcp TCP 6 udp,tcp", "udp 17 0 255", "tpc 256 -1 6.0"),
    (
        "src",
        "198.18.0.2 198.18.0.0/24 198.18.0.255/24 0.0.0.0/0 ::ffff:198.18.0.2 ::ffff:198.18.0.0/120 2001:2::1,198.18.0.2",
        "198.18.1.2 198.18.0.3 198.18.0.0/31 ::/0 ::198.18.0.2",
        "198.18.0 198.18.0.2/33 198.18.0.2/ 2001:2::1/129 fe80::1%eth0 host 198.18.0.2/255.255.0.0 198.18.0.2-198.18.0.3",
    ),
    ("dst", "198.18.1.2", "198.18.0.2", "x"),
    ("reply_src", "198.18.2.2", "198.18.1.2", "x"),
    ("reply_dst", "198.18.3.2", "198.18.0.2", "x"),
    ("nat_src", "198.18.3.2", "198.18.0.2", "x"),
    ("nat_dst", "198.18.2.2", "198.18.1.2", "x"),
    ("address", "198.18.0.2 198.18.1.2 198.18.2.2 198.18.3.2", "198.18.4.2", "x"),
    (
        "sport",
        "40000 0-65535 40000-40000 39999-40001 1,40000",
        "39999 443 0",
        "65536 -1 2-1 1- -2 1-2-3 http 0x10",
    ),
    ("dport", "443", "40000", "x"),
    ("reply_sport", "8443", "443", "x"),
    ("reply_dport", "1024", "40000", "x"),
    ("nat_sport", "1024", "40000", "x"),
    ("nat_dport", "8443", "443", "x"),
    ("port", "40000 443 8443 1024", "22", "9-8"),
    ("nat", "source destination any ANY none,source", "none", "snat"),
    (
        "mark",
        "0x040c8180 67928448 0x100/0x3f00 0/1 0/0",
        "1 0 0x200/0x3f00",
        "0x1_0 010 1/0 0x4000/0x3f00 4294967296 1/",
    ),
    ("source", "chrome CHROME 1 0x1 user,chrome", "USER UNKNOWN 2 0x29", "CHROMIUM 64 0x40"),
    ("vpn", "route Route none,route", "none bypass route+bypass", "yes 0 bypass+route"),
    ("qos", "webrtc 4 0x4 default,WebRTC", "default 0x5 7", "voice 8"),
    ("routing_table", "1036", "1037 1000", "999 65536 main"),
    ("interface", "wlan0 WLAN0 eth0,wlan0", "eth0 wlan", "sixteen-letters-"),
    ("zone", "3", "0 4", "65536"),
    ("orig_zone", "3", "0", "x"),
    ("reply_zone", "3", "0", "x"),
    (
        "state",
        "TIME_WAIT time_wait SYN_SENT,TIME_WAIT",
        "SYN_SENT ESTABLISHED COOKIE_WAIT REPLIED UNREPLIED ASSURED",
        "TIMEWAITING seen-reply",
    ),
    (
        "status",
        "seen-reply SEEN_REPLY !assured assured,src-nat src_nat src_nat,!assured",
        "assured !seen-reply !SRC-NAT hw-offload src_nat,!seen-reply !assured,!seen-reply",
        "unreplied ! !!assured",
    ),
    ("helper", "ftp FTP", "sip", "sixteen-letters-"),
    (
        "labels",
        "20 64 0x100000 0x10000000000100000 5,20",
        "0 21 127 0x3",
        "128 0x 0x0 -1 0xg 0x100000000000000000000000000000000",
    ),
    ("id", "7 1,7 007", "8 0 18446744073709551615", "18446744073709551616 0x7"),
    ("conntrack_id", "77", "78", "4294967296"),
    ("pid", "100 200", "101 0", "-1"),
    ("comm", "curl CURL nginx", "cur", "a-long-name-of-a-process"),
    ("uid", "101 201", "100", "root"),
    ("unit", "curl.service NGINX.service", "curl", ""),
    (
        "container",
        "3f2a 3F2A 3 3f2a90b1c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f70819203a4b5c6d7e box",
        "3f2b f2a bo boxes 3f2a90b1c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f70819203a4b5c6d7e0",
        "",
    ),
    ("pod", "d7b1c2ab-1f2e-4a5b-9c8d-0a1b2c3d4e5f", "d7b1c2ab", ""),
    ("exe", "/usr/bin/curl /usr/sbin/nginx", "/usr/bin/CURL /usr/bin curl", ""),
    ("min_bytes", "0 1500", "1501", "1,2 1k"),
    ("since", "0 2000", "2001", "yesterday 1,2"),
    ("until", "1000 18446744073709551615", "999 0", "now"),
];

const PING: &[(&str, &str, &str, &str)] = &[
    ("icmp_type", "128", "0 129", "256 echo"),
    ("icmp_code", "0", "1", "256"),
    ("icmp_id", "99", "0 98", "65536"),
];

#[test]
fn each_key_has_values_that_match_that_do_not_and_that_are_refused() {
    let [curl, nginx] = [owner(100, "curl", "curl.service"), owner(200, "nginx", "nginx.service")];
    let owners = [
        Owner {
            container: Some("3f2a90b1c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f70819203a4b5c6d7e"),
            pod: Some("d7b1c2ab-1f2e-4a5b-9c8d-0a1b2c3d4e5f"),
            exe: Some("/usr/bin/curl"),
            ..curl
        },
        Owner { container: Some("box"), exe: Some("/usr/sbin/nginx"), ..nginx },
    ];
    let (full, ping) = (full(&owners), ping());
    let cases = FULL.iter().map(|case| (&full, case)).chain(PING.iter().map(|case| (&ping, case)));
    let mut keys = Vec::new();
    for (flow, (key, positive, negative, refused)) in cases {
        keys.push(*key);
        for (values, matches) in [(positive, true), (negative, false)] {
            for value in values.split_whitespace() {
                let filter = filter(&[format!("{key}={value}")]).unwrap();
                assert_eq!(filter.matches(flow), matches, "{key}={value}");
                assert!(!filter.is_empty() && filter.has(QueryKey::parse(key).unwrap()));
            }
        }
        for (values, matches) in [(positive, false), (negative, true)] {
            // An exclusion is the opposite, of each value and of all together.
            let words = values.split_whitespace().filter(|value| !value.contains([',', '!']));
            for value in words {
                let filter = filter(&[format!("{key}=!{value}")]).unwrap();
                assert_eq!(filter.matches(flow), matches, "{key}=!{value}");
            }
        }
        for value in refused.split(' ') {
            let error = filter(&[format!("{key}={value}")]).expect_err(value);
            let QueryError::Value { key: named, takes, value: quoted } = error else { panic!("{error}") };
            assert_eq!(named, *key);
            assert!(!takes.is_empty() && (value.contains(',') || quoted == format!("{value:?}")), "{quoted}");
        }
    }
    let filters = QueryKey::ALL.iter().filter(|key| key.part() == QueryPart::Filter);
    for key in filters {
        assert!(keys.contains(&key.name()), "{key} has examples");
    }
}

#[test]
fn what_a_flow_does_not_have_matches_nothing() {
    let bare = Flow { start: Some(Time { usec: 5, source: TimeSource::Observed }), ..ping() };
    for word in [
        "sport=0-65535",
        "port=0-65535",
        "nat=any",
        "nat_src=::/0",
        "nat_dst=::/0",
        "routing_table=1000",
        "interface=wlan0",
        "state=NONE",
        "status=assured",
        "helper=ftp",
        "labels=0",
        "conntrack_id=0",
        "pid=0",
        "comm=curl",
        "uid=0",
        "unit=a.service",
        "min_bytes=0",
    ] {
        assert!(!filter(&words(word)).unwrap().matches(&bare), "{word}");
        let excluded = word.replacen('=', "!=", 1);
        assert!(filter(&words(&excluded)).unwrap().matches(&bare), "{excluded}");
    }
    // An active flow has no end: it is alive from its start on.
    for word in
        ["since=6", "since=0", "until=5", "since=9 until=9", "nat=none", "zone=0", "mark=0", "source=UNKNOWN"]
    {
        assert!(filter(&words(word)).unwrap().matches(&bare), "{word}");
    }
    assert!(!filter(&words("until=4")).unwrap().matches(&bare));
    assert!(filter(&[]).unwrap().matches(&bare) && Filter::default().is_empty());
}

#[test]
fn keys_are_and_ed_and_their_values_or_ed() {
    let owners = [owner(100, "curl", "curl.service"), owner(200, "nginx", "nginx.service")];
    let flow = full(&owners);
    for (text, matches) in [
        ("src=198.18.0.2 dport=443 source=CHROME state=TIME_WAIT", true),
        ("src=198.18.0.2 dport=443 source=USER", false),
        ("dport=80,443 protocol=udp,tcp", true),
        ("dport=80,443 protocol=udp", false),
        ("dport!=80,22 protocol!=udp", true),
        ("dport!=80,443", false),
        ("dport=1-1023 dport!=443", false),
        ("dport=1-1023 dport!=80", true),
        ("src=198.18.0.0/15,!198.18.0.2", false),
        ("src=!198.18.0.3,198.18.0.0/15", true),
    ] {
        assert_eq!(filter(&words(text)).unwrap().matches(&flow), matches, "{text}");
    }
}

#[test]
fn a_state_is_also_what_is_known_of_replies_where_a_protocol_has_none() {
    let seen = [Status::empty(), Status::SEEN_REPLY, Status::SEEN_REPLY | Status::ASSURED];
    for (index, status) in seen.into_iter().enumerate() {
        let flow = Flow { status: Some(status), ..ping() };
        for (other, state) in ["UNREPLIED", "replied", "Assured"].iter().enumerate() {
            let filter = filter(&[format!("state={state}")]).unwrap();
            assert_eq!(filter.matches(&flow), index == other, "{state} {status:?}");
            assert!(!filter.matches(&Flow { state: Some("SYN_SENT"), ..flow }), "{state}");
        }
    }
}

#[test]
fn a_name_of_traffic_counters_may_be_two_sources() {
    let query = filter(&words("source=vpn,tethering")).unwrap();
    let matching = (0..64).filter(|source| query.matches(&Flow { mark: source << 8, ..ping() }));
    assert_eq!(matching.collect::<Vec<_>>(), [0x05, 0x23, 0x24]);
    let others = filter(&words("source!=VPN")).unwrap();
    assert!(!others.matches(&Flow { mark: 0x2400, ..ping() }) && others.matches(&ping()));
}

#[test]
fn a_mapped_address_is_the_address_inside_and_an_address_of_its_own() {
    let layer4 = Layer4::Ports { src: 1, dst: 2 };
    let original = tuple("::ffff:198.18.0.2", "2001:2::1", layer4);
    let flow = Flow::new(1, original, tuple("2001:2::1", "::ffff:198.18.0.2", layer4));
    for (word, matches) in [
        ("src=198.18.0.2", true),
        ("src=::ffff:198.18.0.2", true),
        ("src=::/0", true),
        ("src=::ffff:0:0/95", true),
        ("dst=0.0.0.0/0", false),
    ] {
        assert_eq!(filter(&words(word)).unwrap().matches(&flow), matches, "{word}");
    }
}

#[test]
fn an_index_finds_what_the_filter_asks_for() {
    let port = |port| Some(Lookup::Port(port));
    for (text, lookup) in [
        ("", None),
        ("source=CHROME", None),
        ("src=198.18.0.2", None),
        ("sport=80-81", None),
        ("port=80,81", None),
        ("port=!80", None),
        ("id!=3", None),
        ("dport=80,!81", port(80)),
        ("id=3,4 port=80", Some(Lookup::Ids(&[3, 4]))),
        ("port=80", port(80)),
        ("nat_sport=80-80 nat_src=198.18.0.0/15", port(80)),
        ("src=198.18.0.2 dport=80", port(80)),
        ("src=::ffff:198.18.0.2 sport=80", port(80)),
        ("nat_src=2001:2::1/128 nat_sport=80 until=5", port(80)),
    ] {
        assert_eq!(filter(&words(text)).unwrap().lookup(), lookup, "{text}");
    }
}

use std::net::IpAddr;

use ctnetlink::{Counters, Layer4, Status, Tuple};

use super::*;
use crate::Clue;
use crate::{EndReason, Owner, Query, RawQuery, SourceNames, Time, TimeSource};

fn filter(words: &str) -> Filter {
    let mut raw = RawQuery::default();
    words.split_whitespace().for_each(|word| raw.add_word(word).unwrap());
    Query::parse(&raw, &SourceNames::default()).unwrap().filter
}

fn tuple(protocol: u8, src: &str, dst: &str, layer4: Layer4) -> Tuple {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    Tuple { src: address(src), dst: address(dst), protocol, layer4, zone: 0 }
}

fn ports(src: u16, dst: u16) -> Layer4 {
    Layer4::Ports { src, dst }
}

const fn at(usec: u64) -> Option<Time> {
    Some(Time { usec, source: TimeSource::Kernel })
}

/// Flows of each kind: translated and not, with owners, labels, zones, ended and alive.
fn flows<'a>(curl: &'a Owner<'a>) -> Vec<Flow<'a>> {
    let plain = Flow::new(
        1,
        tuple(6, "198.18.0.2", "198.18.1.2", ports(40_000, 443)),
        tuple(6, "198.18.1.2", "198.18.0.2", ports(443, 40_000)),
    );
    let masqueraded = Flow {
        conntrack_id: Some(77),
        state: Some("ESTABLISHED"),
        status: Some(Status::SEEN_REPLY | Status::ASSURED),
        mark: 0x040c_0100,
        interface: Some("wan\"0"),
        labels: Some(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        helper: Some("ftp"),
        original_counters: Some(Counters { packets: 3, bytes: 900 }),
        reply_counters: Some(Counters { packets: 3, bytes: 200 }),
        start: at(1_000),
        end: at(2_000),
        duration_usec: Some(1_000),
        end_reason: Some(EndReason::Destroyed),
        initiator: Some(curl),
        ..Flow::new(
            2,
            tuple(6, "198.18.0.3", "198.18.1.2", ports(40_000, 80)),
            tuple(6, "198.18.1.2", "198.18.3.2", ports(80, 32_768)),
        )
    };
    let mut redirected = Flow::new(
        3,
        tuple(17, "2001:2::1", "2001:2::2", ports(1, 53)),
        tuple(17, "2001:2::3", "2001:2::1", ports(5_353, 1)),
    );
    redirected.original.zone = 7;
    redirected.status = Some(Status::SEEN_REPLY);
    let echo = |kind, id| Layer4::Icmp { kind, code: 0, id };
    let ping = Flow::new(
        4,
        tuple(1, "198.18.0.2", "198.18.1.2", echo(8, 9)),
        tuple(1, "198.18.1.2", "198.18.3.2", echo(0, 10)),
    );
    let mapped = Flow::new(
        5,
        tuple(50, "::ffff:198.18.0.2", "2001:2::2", Layer4::None),
        tuple(50, "2001:2::2", "::ffff:198.18.0.2", Layer4::None),
    );
    vec![plain, masqueraded, redirected, ping, mapped]
}

#[test]
fn a_line_is_compared_as_the_flow_that_it_was_written_from() {
    let curl = Owner {
        pid: Some(9),
        comm: Some("cu\"rl"),
        leader_comm: Some("curl"),
        uid: Some(0),
        unit: Some("a.service"),
        exe: Some("/usr/bin/curl"),
        container: Some("box"),
        pod: Some("p"),
        ..Owner::default()
    };
    let queries = "family=ipv6 protocol=6 protocol=icmp,esp src=198.18.0.2 src=198.18.0.0/24 dst=2001:2::2 dst!=2001:2::2 \
        address=198.18.3.2 address=198.18.0.2 reply_src=2001:2::3 reply_dst=198.18.3.2 nat_src=198.18.3.2 nat_src!=198.18.3.2 \
        nat_dst=2001:2::3 sport=40000 dport=443,80 dport=1-100 reply_sport=5353 reply_dport=32768 nat_sport=32768 nat_dport=5353 \
        port=32768 port!=53 icmp_type=8 icmp_code=0 icmp_id=9 nat=none nat=source nat=any nat!=any mark=0x040c0100 \
        mark=0x100/0x3f00 source=CHROME vpn=none qos=default routing_table=1036 interface=wan\"0 zone=0 orig_zone=7 reply_zone=0 \
        state=ESTABLISHED state=REPLIED state!=ESTABLISHED status=assured status!=assured helper=ftp labels=2 labels=0x5 labels=1 \
        id=2,4 id!=2 conntrack_id=77 pid=9 comm=curl comm=cu\"rl uid=0 unit=a.service exe=/usr/bin/curl container=box pod=p \
        min_bytes=1100 min_bytes=1101 since=2000 since=2001 until=999 until=1000";
    let names = SourceNames::default();
    let mut passed = 0;
    for words in queries.split_whitespace() {
        let filter = filter(words);
        let clues = filter.clues(FieldSet::ALL);
        for flow in flows(&curl) {
            let line = serde_json::to_string(&flow.json(&names, FieldSet::ALL)).unwrap();
            let matches = filter.matches(&flow);
            let read = filter.matches_line(&FlowRef::parse(&line).unwrap(), FieldSet::ALL);
            match read {
                // Neither the flow nor its line has what the kernel did not report.
                Err(RecordError::NotRecorded(_)) => {
                    assert!(flow.status.is_none() || flow.conntrack_id.is_none(), "{words} {line}");
                }
                read => assert_eq!(read, Ok(matches), "{words} {line}"),
            }
            if matches {
                passed += 1;
                assert!(!clues.iter().any(|clue| rules_out(clue, &line)), "{words} {line} {clues:?}");
            }
        }
    }
    assert!(passed > 100, "{passed}");
}

/// What the default fields of the log say of a translated flow.
const RECORD: &str = r#"{"id":2,"family":"ipv4","protocol":"tcp","protocol_number":6,"src":"198.18.0.3","sport":40000,
    "dst":"198.18.1.2","dport":80,"nat_src":"198.18.3.2","nat_sport":32768,"mark":0,"start_usec":1000}"#;

fn asked(words: &str, line: &str) -> Result<bool, RecordError> {
    filter(words).matches_line(&FlowRef::parse(line).unwrap(), FieldSet::ALL)
}

fn rules_out(clue: &Clue, line: &str) -> bool {
    clue.needs.iter().all(|name| line.contains(name)) && !clue.texts.iter().any(|text| line.contains(text))
}

/// Whatever a log leaves out, the answer is that of the flow, or `NotRecorded`; a line without an answer is not ruled out.
#[test]
fn a_log_without_a_field_gives_no_wrong_answer() {
    let sshd = Owner { pid: Some(9), comm: Some("sshd"), ..Owner::default() };
    let mut flows = flows(&sshd);
    flows.push(Flow { initiator: None, responder: Some(&sshd), ..flows[1] });
    let tuples = [("198.18.0.3", 1, "198.18.1.2", 2), ("198.18.1.2", 3, "198.18.0.3", 32_768)]
        .map(|(src, sport, dst, dport)| tuple(17, src, dst, ports(sport, dport)));
    flows.push(Flow::new(7, tuples[0], tuples[1]));
    let queries = "src=198.18.0.3 dst=198.18.1.2 dst!=198.18.1.2 address=198.18.1.2 address=198.18.3.2 address!=198.18.3.2 \
        reply_src=198.18.1.2 reply_src=2001:2::3 reply_dst=198.18.3.2 reply_dst!=198.18.3.2 nat_src=198.18.3.2 \
        nat_src!=198.18.3.2 nat_dst=2001:2::3 nat_dst!=2001:2::3 sport=40000 dport=443 dport!=443 reply_sport=80 reply_sport=5353 \
        reply_dport=32768 nat_sport=32768 nat_sport!=32768 nat_dport=5353 port=32768 port=443 port!=443 nat=none nat=source \
        nat=destination nat=any nat!=any nat=source,destination icmp_type=8 mark=0x040c0100 source=CHROME interface=wan\"0 \
        interface!=wan\"0 zone=7 zone=0 orig_zone=7 reply_zone=7 state=ESTABLISHED status=assured helper=ftp helper!=ftp labels=2 labels!=2 \
        comm=sshd comm!=sshd pid=9 min_bytes=1100 min_bytes=900 since=2001 since=2000 until=999 until=1000 family=ipv6 protocol=udp";
    let names = SourceNames::default();
    let mut unknown = 0;
    for words in queries.split_whitespace() {
        let filter = filter(words);
        for &left_out in Key::ALL.iter().filter(|&&key| key != Key::Id) {
            let fields = FieldSet::ALL.without(left_out);
            let clues = filter.clues(fields);
            for flow in &flows {
                let line = serde_json::to_string(&flow.json(&names, fields)).unwrap();
                let context = format!("{words} without {left_out}: {line}");
                match filter.matches_line(&FlowRef::parse(&line).unwrap(), fields) {
                    Ok(matches) => assert_eq!(matches, filter.matches(flow), "{context}"),
                    Err(RecordError::NotRecorded(_)) => unknown += 1,
                    Err(error) => panic!("{context}: {error}"),
                }
                let is_ruled_out = clues.iter().any(|clue| rules_out(clue, &line));
                assert!(!is_ruled_out || !filter.matches(flow), "{context}");
            }
        }
    }
    assert!(unknown > 100, "{unknown}");
}

#[test]
fn the_reply_direction_follows_from_the_original_one_and_its_translation() {
    for words in [
        "reply_src=198.18.1.2 reply_sport=80 reply_dst=198.18.3.2 reply_dport=32768",
        "nat=source nat_src=198.18.3.2 nat_sport=32768",
        "address=198.18.3.2 port=32768",
        "zone=0 pid!=9",
    ] {
        assert_eq!(asked(words, RECORD), Ok(true), "{words}");
    }
    for words in ["nat=destination", "nat_dst=198.18.1.2", "nat_sport=80", "comm=curl"] {
        assert_eq!(asked(words, RECORD), Ok(false), "{words}");
    }
}

#[test]
fn what_the_log_leaves_out_is_not_known() {
    let unknown = |key| Err(RecordError::NotRecorded(key));
    assert_eq!(asked("status=assured", RECORD), unknown(QueryKey::Status));
    assert_eq!(asked("state=ESTABLISHED", RECORD), unknown(QueryKey::State));
    assert_eq!(asked("state=ESTABLISHED dport=81", RECORD), Ok(false), "whatever its state was");
    let without = RECORD.replace(r#""dst":"198.18.1.2","dport":80,"#, "");
    assert_eq!(asked("dst=198.18.1.2", &without), unknown(QueryKey::Dst));
    assert_eq!(asked("dst!=198.18.1.2", &without), unknown(QueryKey::Dst));
    assert_eq!(asked("dport=80", &without), unknown(QueryKey::Dport));
    assert_eq!(asked("nat_src=198.18.3.2 nat_sport=32768 src=198.18.0.3", &without), Ok(true));
    assert_eq!(asked("address=198.18.0.3 nat!=destination", &without), Ok(true));
    assert_eq!(asked("address=198.18.9.9", &without), unknown(QueryKey::Address));
    assert_eq!(asked("protocol=tcp", r#"{"id":1,"src":"198.18.0.1"}"#), unknown(QueryKey::Protocol));
    assert_eq!(asked("family=ipv6", r#"{"id":1,"dst":"2001:2::1"}"#), Ok(true));
}

#[test]
fn a_value_of_another_type_is_an_error() {
    for (line, key) in [
        ("{}", Key::Id),
        (r#"{"id":"7"}"#, Key::Id),
        (r#"{"id":7,"src":"x"}"#, Key::Src),
        (r#"{"id":7,"src":9}"#, Key::Src),
        (r#"{"id":7,"sport":65536}"#, Key::Sport),
        (r#"{"id":7,"start_usec":-1}"#, Key::StartUsec),
        (r#"{"id":7,"labels":"xyz"}"#, Key::Labels),
    ] {
        assert_eq!(asked("id=7", line), Err(RecordError::Invalid(key)), "{line}");
    }
    assert_eq!(asked("pid=7", r#"{"id":7,"initiator":7}"#), Err(RecordError::Invalid(Key::Initiator)));
}

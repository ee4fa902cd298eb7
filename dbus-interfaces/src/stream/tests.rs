use std::io::{PipeWriter, Write};

use ctnetlink::{EventKind, ExpectationFlags, Layer4, Tuple};

use super::{FlowRef, FlowStream, StreamError, StreamItem};
use crate::{Expectation, Key, OwnedValue};

const FLOW: &str = r#"{"type":"flow","id":7,"protocol":"udp","sport":53,"future":{"x":[1]},"status":["seen-reply","assured"],"legacy_snat":true,"helper":"a\"b","initiator":{"pid":9,"comm":"dig"}}"#;

fn stream() -> (FlowStream, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    (FlowStream::from_fd(reader.into()).unwrap(), writer)
}

#[test]
fn a_flow_is_read_from_its_line() {
    let flow = FlowRef::parse(FLOW).unwrap();
    assert_eq!((flow.number(Key::Id), flow.number(Key::Sport)), (Some(7), Some(53)));
    assert_eq!((flow.text(Key::Protocol).as_deref(), flow.number(Key::Protocol)), (Some("udp"), None));
    assert_eq!(flow.text(Key::Helper).as_deref(), Some("a\"b"));
    assert_eq!((flow.text(Key::Src), flow.is(Key::LegacySnat)), (None, true));
    assert_eq!(flow.names(Key::Status).collect::<Vec<_>>(), ["seen-reply", "assured"]);
    assert_eq!(flow.names(Key::Labels).count(), 0);
    assert!(matches!(flow.value(Key::Initiator), Some(OwnedValue::Dictionary(owner)) if owner.len() == 2));
    assert_eq!(flow.keys().count(), 7, "what a later daemon adds is passed over");
    let owned = flow.to_owned_flow().unwrap();
    assert_eq!(flow.keys().collect::<Vec<_>>(), owned.iter().map(|(key, _)| key).collect::<Vec<_>>());
    assert!(flow.keys().all(|key| flow.value(key).as_ref() == owned.get(key)));
}

#[test]
fn the_members_of_a_line_are_the_flow() {
    for (line, members) in [
        (r#"{"type":"flow","id":7}"#, r#""id":7"#),
        (r#"{"type":"update","matches":false,"sequence":1}"#, r#""sequence":1"#),
        (r#"{"type":"flow"}"#, ""),
        (r#"{"id":7,"src":"::"}"#, r#""id":7,"src":"::""#),
        ("{}", ""),
    ] {
        assert_eq!(FlowRef::parse(line).unwrap().members(), members);
    }
}

#[test]
fn every_kind_of_line_is_an_item() {
    let item = |line: &'static str| StreamItem::parse(line.as_bytes()).unwrap();
    assert!(matches!(item(FLOW), StreamItem::Flow(_)));
    assert!(matches!(item(r#"{"type":"closed","id":1}"#), StreamItem::Closed(_)));
    let event = item(r#"{"type":"destroy","matches":false,"sequence":4,"id":1}"#);
    assert!(matches!(event, StreamItem::Event { kind: EventKind::Destroy, matches: false, .. }), "{event:?}");
    let event = item(r#"{"type":"new","sequence":4,"id":1}"#);
    assert!(matches!(event, StreamItem::Event { kind: EventKind::New, matches: true, .. }), "{event:?}");
    let begin = item(r#"{"type":"begin","epoch":"e","sequence":3}"#);
    assert!(
        matches!(&begin, StreamItem::Begin { epoch, sequence: 3, newest_id: None, machine: None } if epoch == "e"),
        "{begin:?}"
    );
    let begin = item(r#"{"type":"begin","epoch":"e","sequence":3,"newest_id":5,"machine":"m"}"#);
    assert!(
        matches!(&begin, StreamItem::Begin { newest_id: Some(5), machine: Some(machine), .. } if machine == "m"),
        "{begin:?}"
    );
    let gap = item(r#"{"type":"gap","first":4,"last":6,"lost":3,"reason":"slow-reader","new":1}"#);
    assert!(matches!(gap, StreamItem::Gap { first: 4, last: 6, lost: 3, .. }), "{gap:?}");
    let resync = item(r#"{"type":"resync","reason":"start","lost":0,"closed":2,"added":1}"#);
    assert!(matches!(resync, StreamItem::Resync { closed: 2, added: 1, .. }), "{resync:?}");
    assert!(matches!(
        item(r#"{"type":"snapshot-end","sequence":9}"#),
        StreamItem::SnapshotEnd { sequence: 9 }
    ));
    assert!(matches!(item(r#"{"type":"end","reason":"complete"}"#), StreamItem::End { .. }));
    let gap = item(r#"{"type":"connection-gap","first":4,"last":6,"lost":3,"reason":"slow-reader"}"#);
    assert!(
        matches!(&gap, StreamItem::ConnectionGap { first: 4, last: 6, lost: 3, reason } if reason == "slow-reader"),
        "{gap:?}"
    );
    let gap = item(r#"{"type":"expectation-gap","lost":3,"reason":"slow-reader"}"#);
    assert!(
        matches!(&gap, StreamItem::ExpectationGap { lost: 3, reason } if reason == "slow-reader"),
        "{gap:?}"
    );
    assert!(matches!(item(r#"{"type":"later","pid":1}"#), StreamItem::Other));
    assert!(matches!(item(r#"{"type":"expectation","event":"later"}"#), StreamItem::Other));
    for wrong in ["", "[]", "{", r#"{"type":"gap"}"#, r#"{"id":1}"#] {
        assert!(StreamItem::parse(wrong.as_bytes()).is_err(), "{wrong}");
    }
    assert!(StreamItem::parse(b"{\"type\":\"\xff\"}").is_err());
}

#[test]
fn an_expectation_is_read_as_it_is_written() {
    let tuple = |src: &str, dst: &str, ports: (u16, u16)| Tuple {
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        protocol: 6,
        layer4: Layer4::Ports { src: ports.0, dst: ports.1 },
        zone: 0,
    };
    let written = Expectation::from(&ctnetlink::Expectation {
        timeout: Some(300),
        helper: Some(b"ftp"),
        flags: Some(ExpectationFlags::PERMANENT),
        ..ctnetlink::Expectation::new(
            tuple("198.18.0.1", "198.18.0.2", (4000, 21)),
            tuple("198.18.0.2", "198.18.0.1", (0, 5000)),
            tuple("255.255.255.255", "255.255.255.255", (0, 0xffff)),
        )
    });
    let mut object = written.to_json();
    object["type"] = "expectation".into();
    for (event, expected) in [("new", EventKind::New), ("destroy", EventKind::Destroy)] {
        object["event"] = event.into();
        let line = object.to_string();
        match StreamItem::parse(line.as_bytes()).unwrap() {
            StreamItem::Expectation { kind, expectation } => {
                assert_eq!((kind, *expectation), (expected, written.clone()));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn lines_are_read_as_they_are_written() {
    let (mut stream, mut writer) = stream();
    writer.write_all(b"{\"type\":\"flow\",\"id\":1}\n{\"type\":\"fl").unwrap();
    assert!(
        matches!(stream.next().await.unwrap(), Some(StreamItem::Flow(flow)) if flow.number(Key::Id) == Some(1))
    );
    assert!(!stream.has_line());
    writer
        .write_all(b"ow\",\"id\":2}\n{}\n{\"type\":\"end\",\"reason\":\"complete\"}\n{\"type\":\"cut")
        .unwrap();
    assert!(
        matches!(stream.next().await.unwrap(), Some(StreamItem::Flow(flow)) if flow.number(Key::Id) == Some(2))
    );
    assert!(stream.has_line());
    assert!(matches!(stream.next().await, Err(StreamError::Line { line, .. }) if line == "{}"));
    assert!(matches!(stream.next().await.unwrap(), Some(StreamItem::End { .. })));
    drop(writer);
    assert!(stream.next().await.unwrap().is_none(), "what was cut off is no line");
}

#[tokio::test]
async fn a_line_without_end_is_refused() {
    let (mut stream, mut writer) = stream();
    let endless = std::thread::spawn(move || while writer.write_all(&[b'x'; 64 * 1024]).is_ok() {});
    assert!(matches!(stream.next().await, Err(StreamError::TooLong)));
    drop(stream);
    endless.join().unwrap();
}

#[tokio::test]
async fn only_a_pipe_is_a_stream() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(FlowStream::from_fd(file.into()), Err(StreamError::Read(_))));
}

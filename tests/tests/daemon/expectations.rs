//! Expectations of the kernel's helpers in the stream: made by real traffic, used, taken back and expired.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use ctnetlink::{Conntrack, Expectation, Flow};
use flowbus_interfaces::{EventKind, QueryMap, StreamItem};
use flowbus_tests::client::Stream;
use flowbus_tests::inject::tuple;
use flowbus_tests::{Bus, Client, Daemon, Helper, Namespace};
use serde_json::Value;

/// Connections to port 21 get the helper that reads FTP.
const FTP: &str = "
table inet ftp {
    ct helper standard {
        type \"ftp\" protocol tcp
    }
    chain begin {
        type filter hook output priority 0
        tcp dport 21 ct helper set \"standard\"
    }
}
";

fn follow(client: &Client, more: &[(&'static str, bool)]) -> Stream {
    let mut query = QueryMap::from([("snapshot", false.into())]);
    query.extend(more.iter().map(|&(key, value)| (key, value.into())));
    let mut stream = client.open_stream(&query).unwrap();
    assert_eq!(stream.line().unwrap()["type"], "begin");
    stream
}

/// The next line about an expectation.
fn expectation(stream: &mut Stream) -> Value {
    stream.until(|line| line["type"] == "expectation").pop().unwrap()
}

#[test]
fn what_an_ftp_client_announces_is_told_with_master_and_helper() {
    let (namespace, bus) = (Namespace::tracked("host"), Bus::start());
    namespace.nft(FTP);
    let daemon = Daemon::start(&namespace, &bus);
    let client = Client::connect(&bus);
    let (mut stream, mut plain) = (follow(&client, &[("expectations", true)]), follow(&client, &[]));

    let server = namespace.enter(|| TcpListener::bind("127.0.0.1:21").unwrap());
    let mut control = namespace.enter(|| TcpStream::connect("127.0.0.1:21").unwrap());
    let mut server = BufReader::new(server.accept().unwrap().0);
    // A command a packet, each read before the next is sent: the helper reads packets.
    let port = 20_000;
    for command in ["USER nobody\r\n".to_owned(), format!("PORT 127,0,0,1,{},{}\r\n", port / 256, port % 256)]
    {
        control.write_all(command.as_bytes()).unwrap();
        let mut line = String::new();
        server.read_line(&mut line).unwrap();
        assert_eq!(line, command);
    }
    let new = expectation(&mut stream);
    assert_eq!(
        (&new["event"], &new["helper"], &new["protocol"]),
        (&"new".into(), &"ftp".into(), &"tcp".into())
    );
    assert_eq!((&new["dst"], &new["dport"]), (&"127.0.0.1".into(), &port.into()));
    assert_eq!((&new["master_dst"], &new["master_dport"]), (&"127.0.0.1".into(), &21.into()));
    assert_eq!(new["master_sport"], control.local_addr().unwrap().port());
    assert_eq!((&new["sport"], &new["mask_sport"]), (&0.into(), &0.into()));
    assert!(new["timeout"].as_u64().unwrap() > 0 && new["expectation_id"].is_u64(), "{new}");

    let read = match StreamItem::parse(new.to_string().as_bytes()).unwrap() {
        StreamItem::Expectation { kind: EventKind::New, expectation } => expectation,
        other => panic!("{other:?}"),
    };
    assert!(read.to_json().as_object().unwrap().iter().all(|(key, value)| new[key] == *value), "{read:?}");

    // The connection comes, and nothing is waited for any more.
    let listener = namespace.enter(|| TcpListener::bind(("127.0.0.1", port)).unwrap());
    let data = namespace.enter(|| TcpStream::connect(("127.0.0.1", port)).unwrap());
    let gone = expectation(&mut stream);
    assert_eq!((&gone["event"], &gone["expectation_id"]), (&"destroy".into(), &new["expectation_id"]));
    let flow = stream.until(|line| line["dport"] == port && line["type"] == "new").pop().unwrap();
    assert!(flow["status"].as_array().unwrap().contains(&"expected".into()), "{flow}");
    drop((data, listener));

    // A reader that did not ask receives none of it, and the daemon counts no event that it could not read.
    let lines = plain.until(|line| line["dport"] == port);
    assert!(lines.iter().all(|line| line["type"] != "expectation"), "{lines:?}");
    let statistics = bus.monitor_call("GetStatistics", &[]).unwrap();
    assert_eq!(statistics[0]["events_invalid"], 0);
    daemon.stop();
}

#[test]
fn an_expectation_that_expires_is_told_and_filters_hold() {
    // The helper of NetBIOS waits the shortest of all: 3 s. The kernel's helpers let nobody else say how long.
    let helper = Helper::start(&["--user", "nobody"]);
    let daemon = Daemon::start(&helper.namespace, &helper.bus);
    let client = Client::connect(&helper.bus);
    let mut stream = follow(&client, &[("expectations", true)]);
    let filtered = QueryMap::from([
        ("snapshot", false.into()),
        ("expectations", true.into()),
        ("dport", 5_001_u16.into()),
        ("events", "destroy".into()),
    ]);
    let mut filtered = client.open_stream(&filtered).unwrap();
    let mut table: Conntrack = helper.table();
    let sent = |sport, dport| tuple("198.18.0.1", "198.18.0.2", 17, sport, dport);
    for (sport, dport) in [(4_000, 5_000), (4_001, 5_001)] {
        let (master, reply) = (sent(sport, 137), tuple("198.18.0.2", "198.18.0.1", 17, 137, sport));
        let helper = Some(&b"netbios-ns"[..]);
        table.create(&Flow { helper, timeout: Some(600), ..Flow::new(master, reply) }).unwrap();
        let mask = tuple("255.255.255.255", "255.255.255.255", 17, 0, 0xffff);
        let expected =
            Expectation { timeout: Some(1), helper, ..Expectation::new(master, sent(0, dport), mask) };
        table.create_expectation(&expected).unwrap();
    }
    let mut told: Vec<_> = (0..4).map(|_| expectation(&mut stream)).collect();
    told.sort_by_key(|line| (line["dport"].as_u64(), line["event"] == "destroy"));
    let told: Vec<_> = told.iter().map(|line| (line["dport"].as_u64(), line["event"].as_str())).collect();
    let (new, destroy) = (Some("new"), Some("destroy"));
    assert_eq!(
        told,
        [(Some(5_000), new), (Some(5_000), destroy), (Some(5_001), new), (Some(5_001), destroy)]
    );
    let only = expectation(&mut filtered);
    assert_eq!((&only["dport"], &only["event"]), (&5_001.into(), &"destroy".into()));
    daemon.stop();
}

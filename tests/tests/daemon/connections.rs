//! What connections do, as signals, in streams and by flowctl.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use flowbus_interfaces::QueryMap;
use flowbus_tests::client::Client;
use flowbus_tests::daemon::binary;
use flowbus_tests::{Bus, Daemon, Monitor, Namespace};
use serde_json::Value;

/// Makes a connection of this process to itself: the port that it is to, and the one that it is from.
fn converse(namespace: &Namespace, address: &str) -> (u16, u16) {
    namespace.enter(|| {
        let listener = TcpListener::bind(address).unwrap();
        let to = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(to).unwrap();
        let from = client.local_addr().unwrap().port();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"question").unwrap();
        server.read_exact(&mut [0; 8]).unwrap();
        server.write_all(b"an answer").unwrap();
        client.read_exact(&mut [0; 9]).unwrap();
        drop(client);
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        (to.port(), from)
    })
}

fn inode(namespace: &Namespace) -> u64 {
    std::fs::metadata(namespace.path()).unwrap().ino()
}

/// The events of connections of this namespace, until `count` of them ended.
fn told(monitor: &Monitor, namespace: &Namespace, count: usize) -> Vec<Value> {
    let (mut events, mut last) = (Vec::new(), None);
    while events.iter().filter(|event: &&Value| event["event"] == "close").count() < count {
        let signal = monitor.signal("ConnectionEvents");
        assert_eq!(signal[2], 0, "none is lost");
        for event in signal[1].as_array().unwrap() {
            let sequence = event["sequence"].as_u64().unwrap();
            assert!(
                last.is_none_or(|last| sequence == last + 1),
                "numbers have no holes: {last:?} {event:#}"
            );
            last = Some(sequence);
            if event["network_namespace"] == inode(namespace) {
                events.push(event.clone());
            }
        }
    }
    events
}

#[test]
fn connect_accept_and_close_are_signalled_with_their_process_and_flow() {
    let namespace = Namespace::tracked("signals");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let monitor = Monitor::start(&bus, "org.flowbus.FlowEvents1");
    for (address, family) in [("127.0.0.1:0", "ipv4"), ("[::1]:0", "ipv6")] {
        let (to, from) = converse(&namespace, address);
        let events = told(&monitor, &namespace, 2);
        let one = |kind: &str, sport: u16| {
            let found: Vec<_> =
                events.iter().filter(|event| event["event"] == kind && event["sport"] == sport).collect();
            assert_eq!(found.len(), 1, "{kind}: {events:#?}");
            found[0]
        };
        let (connect, accept) = (one("connect", from), one("accept", to));
        let closes = [one("close", from), one("close", to)];
        assert_eq!(events.len(), 4, "{events:#?}");
        let flows = bus.list("ListActive", &[["dport", "q", &to.to_string()]]).unwrap();
        for event in [connect, accept, closes[0], closes[1]] {
            assert_eq!(event["pid"], std::process::id(), "{event:#}");
            assert_eq!(
                (event["uid"].as_u64(), event["family"].as_str()),
                (Some(0), Some(family)),
                "{event:#}"
            );
            assert_eq!(
                (event["protocol"].as_str(), event["confidence"].as_str()),
                (Some("tcp"), Some("exact"))
            );
            assert_eq!(event["flow"], flows[0]["id"], "{event:#}");
            assert!(event["tid"].is_u64() && event["comm"].is_string() && event["leader_comm"].is_string());
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            let age = now.as_micros().abs_diff(event["time_usec"].as_u64().unwrap().into());
            assert!(age < 600_000_000, "the wall clock's time, {age} us ago");
        }
        assert_eq!(connect["dport"], to);
        assert_eq!((closes[0]["reset"].as_bool(), closes[1]["reset"].as_bool()), (Some(false), Some(false)));
        let bytes = |close: &Value| [&close["sent_bytes"], &close["received_bytes"]].map(Value::as_u64);
        assert_eq!(bytes(closes[0]), [Some(8), Some(9)], "payload: {:#}", closes[0]);
        assert_eq!(bytes(closes[1]), [Some(9), Some(8)], "payload: {:#}", closes[1]);
        assert!(closes[0]["rtt_usec"].is_u64() && closes[0]["retransmissions"] == 0, "{:#}", closes[0]);
        assert!(connect["connect_usec"].is_u64() && connect["connect_usec"] == closes[0]["connect_usec"]);
        let opened = [connect, accept, closes[0], closes[1]].map(|event| event["opened"].as_bool());
        assert_eq!(opened, [true, false, true, false].map(Some));
        assert!(connect["monotonic_nsec"].as_u64() < closes[0]["monotonic_nsec"].as_u64());
    }
    daemon.stop();
}

#[test]
fn a_refused_connection_is_told_with_its_error() {
    let namespace = Namespace::tracked("refusal");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let client = Client::connect(&bus);
    let query = QueryMap::from([
        ("connections", true.into()),
        ("snapshot", false.into()),
        ("events", "none".into()),
        ("dport", 1_u16.into()),
    ]);
    let mut stream = client.open_stream(&query).unwrap();
    let error = namespace.enter(|| TcpStream::connect("127.0.0.1:1").unwrap_err());
    assert_eq!(error.raw_os_error(), Some(111));
    let lines = stream.until(|line| line["type"] == "connect-failed");
    let failed = lines.last().unwrap();
    assert_eq!(
        (failed["error"].as_str(), failed["pid"].as_u64()),
        (Some("ECONNREFUSED"), Some(std::process::id().into()))
    );
    assert_eq!(failed["network_namespace"], inode(&namespace), "{failed:#}");
    assert!(lines.iter().all(|line| line["type"] != "new" && line["type"] != "update"), "{lines:#?}");
    daemon.stop();
}

#[test]
fn connections_of_other_namespaces_are_told_without_a_flow() {
    let (ours, other) = (Namespace::tracked("ours"), Namespace::tracked("other"));
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&ours, &bus);
    let monitor = Monitor::start(&bus, "org.flowbus.FlowEvents1");
    let _ = converse(&other, "127.0.0.1:0");
    for event in told(&monitor, &other, 2) {
        assert!(event["flow"].is_null() && event["pid"] == std::process::id(), "{event:#}");
    }
    daemon.stop();
}

#[test]
fn flowctl_prints_the_lines_of_tcptracer() {
    let namespace = Namespace::tracked("tracer");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let pid = std::process::id().to_string();
    let namespace_inode = inode(&namespace).to_string();
    let flowctl = |options: &[&str]| {
        let mut child = Command::new(binary("flowctl"))
            .args(["--bus", &bus.address(), "connections", "-p", &pid, "-N", &namespace_inode])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        (child, lines)
    };
    let (mut table, mut lines) = flowctl(&[]);
    let (mut json, mut objects) = flowctl(&["--json"]);
    let (mut pretty, mut lines_of_objects) = flowctl(&["--json=pretty"]);
    let header = lines.next().unwrap();
    assert_eq!(
        header.split_whitespace().collect::<Vec<_>>(),
        ["T", "PID", "COMM", "IP", "SADDR", "DADDR", "SPORT", "DPORT", "DETAILS"]
    );
    // The header comes when the stream is open; that of JSON has none, so its first line is waited for.
    let texts = std::thread::scope(|scope| {
        let until_brace = |line: &String| line != "}";
        let waiting = scope.spawn(move || {
            let object = objects.next().unwrap();
            let pretty: Vec<_> = lines_of_objects.by_ref().take_while(until_brace).collect();
            // Nobody stops reading: flowctl would end.
            (object, format!("{}\n}}", pretty.join("\n")), objects, lines_of_objects)
        });
        while !waiting.is_finished() {
            let _ = converse(&namespace, "127.0.0.1:0");
        }
        let (object, pretty, ..) = waiting.join().unwrap();
        [object, pretty]
    });
    assert!(texts[1].starts_with("{\n  \"type\": "), "{}", texts[1]);
    for text in texts {
        let object: Value = serde_json::from_str(&text).unwrap();
        assert!(["connect", "accept", "close"].contains(&object["type"].as_str().unwrap()), "{object:#}");
    }
    let line = lines.next().unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(
        (words[0], words[1], words[words.len() - 6], words[words.len() - 5]),
        ("C", &*pid, "4", "127.0.0.1"),
        "{line}"
    );
    for child in [&mut table, &mut json, &mut pretty] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let program = Command::new(binary("flowctl")).args(["connections", "--print-program"]).output().unwrap();
    assert!(program.status.success());
    assert!(String::from_utf8(program.stdout).unwrap().contains("SEC(\"tp_btf/inet_sock_set_state\")"));
    daemon.stop();
}

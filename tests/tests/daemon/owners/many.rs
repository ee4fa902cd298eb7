//! Many owners at once, most of them gone at once.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::net::{TcpStream, UdpSocket};
use std::process::Stdio;
use std::thread;

use flowbus_interfaces::QueryMap;
use flowbus_tests::client::Client;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Namespace};
use serde_json::Value;

use super::{flows, listen, on_thread, this_process, who};

#[test]
fn a_hundred_processes_that_send_one_datagram_each_own_their_flows() {
    let namespace = Namespace::tracked("one-shot");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let server = namespace.enter(|| UdpSocket::bind("0.0.0.0:5300").unwrap());
    let mut pids = Vec::new();
    for port in 20_000..20_100 {
        // Left to itself, the kernel gives one process the port of another now and then, and both have one flow.
        namespace.sysctl("net.ipv4.ip_local_port_range", &format!("{port} {port}"));
        let mut child = namespace
            .command("bash")
            .args(["-c", "echo $$ >/dev/udp/127.0.0.1/5300"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        assert!(child.wait().unwrap().success());
        let mut text = [0; 32];
        let (length, from) = server.recv_from(&mut text).unwrap();
        server.send_to(b"y", from).ok();
        let pid: u64 = std::str::from_utf8(&text[..length]).unwrap().trim().parse().unwrap();
        assert_eq!(from.port(), port);
        pids.push((port, pid));
    }
    let flows = wait_for("all flows", || Some(flows(&bus)).filter(|flows| flows.len() == 100));
    let flows: HashMap<u64, &Value> =
        flows.iter().map(|flow| (flow["sport"].as_u64().unwrap(), flow)).collect();
    for (port, pid) in pids {
        let flow = flows[&port.into()];
        let initiator = &flow["initiator"];
        assert_eq!(
            (initiator["pid"].as_u64(), initiator["comm"].as_str()),
            (Some(pid), Some("bash")),
            "{flow:#}"
        );
        assert_eq!(flow["responder"]["pid"].as_u64(), Some(this_process()), "{flow:#}");
    }
    daemon.stop();
}

#[test]
fn a_burst_of_15000_connections_has_the_right_owner_at_both_ends_of_each() {
    // On a machine that has no time for the daemon, records and events are lost, and counted: then it is no test of owners.
    assert!((0..5).any(|_| burst_was_read()), "five bursts overran the ring or the event socket");
}

/// Makes 15,000 connections as fast as they go. False when some of what the kernel reported was lost; else every flow has had its
/// owners, those too whose ports were used again at once.
fn burst_was_read() -> bool {
    const CONNECTIONS: usize = 15_000;
    let namespace = Namespace::tracked("burst");
    namespace.sysctl("net.ipv4.ip_local_port_range", "10000 65000");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let listener = listen(&namespace, "127.0.0.1:9000");
    let server = thread::spawn(move || {
        for _ in 0..CONNECTIONS {
            drop(listener.accept().unwrap());
        }
    });
    on_thread(&namespace, "bursts", || {
        for _ in 0..CONNECTIONS {
            let mut client = TcpStream::connect("127.0.0.1:9000").unwrap();
            let _ = client.read(&mut [0]);
        }
    });
    server.join().unwrap();
    let client = Client::connect(&bus);
    // The kernel uses some of the ports again before the end: their first flows are closed by then.
    let query = QueryMap::from([
        ("follow", false.into()),
        ("closed", true.into()),
        ("fields", vec!["id", "sport", "initiator", "responder"].into()),
    ]);
    let lost = || {
        let statistics = bus.monitor_call("GetStatistics", &[]).unwrap()[0].clone();
        ["bpf_dropped", "events_lost"].into_iter().any(|key| statistics[key] != 0)
    };
    let owned = |flow: &Value| {
        ["initiator", "responder"].iter().all(|key| flow[key].is_object() && who(&flow[key]).2 == "exact")
    };
    let flows = wait_for("all flows with their owners", || {
        let lines = client.open_stream(&query).unwrap().rest();
        let flows: Vec<Value> = lines.into_iter().filter(|line| line["id"].is_u64()).collect();
        (flows.len() == CONNECTIONS && flows.iter().all(owned) || lost()).then_some(flows)
    });
    // The owners that are named are right even then.
    for (key, name) in [("initiator", "bursts"), ("responder", "")] {
        for owner in flows.iter().map(|flow| &flow[key]).filter(|owner| owner.is_object()) {
            let (pid, comm, _) = who(owner);
            assert_eq!(pid, this_process(), "{owner}");
            assert!(name.is_empty() || comm == name, "{owner}");
        }
    }
    let was_read = !lost();
    let ports: HashSet<u64> = flows.iter().map(|flow| flow["sport"].as_u64().unwrap()).collect();
    assert!(!was_read || ports.len() < CONNECTIONS, "no port was used again");
    daemon.stop();
    was_read
}

//! Which process is behind a flow, on the real kernel: through translations, for what is older than the daemon, in bursts,
//! over a restart.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::thread;

use flowbus_interfaces::QueryMap;
use flowbus_tests::client::Client;
use flowbus_tests::daemon::UNATTRIBUTED;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Kept, Machine, Namespace, SystemBus};
use rustix::process::Signal;
use serde_json::Value;

/// Every configuration option has its default.
const DEFAULT: &str = "/dev/null";

/// Runs `work` in the namespace on a thread of this name.
fn on_thread<T: Send>(namespace: &Namespace, name: &str, work: impl FnOnce() -> T + Send) -> T {
    namespace.enter(|| {
        thread::scope(|scope| {
            thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work).unwrap().join().unwrap()
        })
    })
}

fn this_process() -> u64 {
    std::process::id().into()
}

/// A connection of a thread named client to one named server, both of this process.
fn connect(namespace: &Namespace, listener: &TcpListener, to: SocketAddr) -> (TcpStream, TcpStream) {
    let client = on_thread(namespace, "client", || TcpStream::connect(to).unwrap());
    let (server, _) = on_thread(namespace, "server", || listener.accept().unwrap());
    (client, server)
}

fn listen(namespace: &Namespace, address: &str) -> TcpListener {
    namespace.enter(|| TcpListener::bind(address).unwrap())
}

fn flows(bus: &Bus) -> Vec<Value> {
    bus.list("ListActive", &[]).unwrap()
}

/// The flow with this destination port, once both of its ends have an owner.
fn owned(bus: &Bus, dport: u16) -> Value {
    wait_for("a flow with both owners", || {
        let mut flows = flows(bus);
        flows.retain(|flow| {
            flow["dport"] == dport && flow["initiator"].is_object() && flow["responder"].is_object()
        });
        flows.pop()
    })
}

/// Process, thread and confidence of an owner.
fn who(owner: &Value) -> (u64, String, String) {
    let text = |key: &str| owner[key].as_str().unwrap_or_default().to_owned();
    (owner["pid"].as_u64().unwrap_or(0), text("comm"), text("confidence"))
}

fn exact(name: &str) -> (u64, String, String) {
    (this_process(), name.to_owned(), "exact".to_owned())
}

#[test]
fn a_connection_within_the_machine_has_both_owners_and_is_found_by_them() {
    let namespace = Namespace::tracked("both");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let mut held = Vec::new();
    for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
        let listener = listen(&namespace, address);
        let port = listener.local_addr().unwrap().port();
        // To the socket of both families by IPv4.
        let to = if address.starts_with("[::]") {
            format!("127.0.0.1:{port}")
        } else {
            address.replace(":0", &format!(":{port}"))
        };
        held.push((connect(&namespace, &listener, to.parse().unwrap()), listener));
        let flow = owned(&bus, port);
        assert_eq!(who(&flow["initiator"]), exact("client"), "{flow:#}");
        assert_eq!(who(&flow["responder"]), exact("server"), "{flow:#}");
        for owner in [&flow["initiator"], &flow["responder"]] {
            let name = std::fs::read_to_string("/proc/self/comm").unwrap();
            assert_eq!(
                (owner["uid"].as_u64(), owner["leader_comm"].as_str()),
                (Some(0), Some(name.trim())),
                "{flow:#}"
            );
            assert!(owner["cgroup"].as_str().is_some_and(|path| path.starts_with('/')), "{flow:#}");
        }
    }
    let count = |query: &[[&str; 3]]| bus.list("ListActive", query).unwrap().len();
    let pid = this_process().to_string();
    assert_eq!(count(&[["pid", "u", &pid]]), 3);
    assert_eq!(count(&[["pid", "u", "1"]]), 0);
    assert_eq!(count(&[["comm", "s", "CLIENT"], ["uid", "u", "0"]]), 3);
    assert_eq!(count(&[["comm", "s", "client"], ["family", "s", "ipv6"]]), 1);
    assert_eq!(count(&[["uid", "u", "1000"]]), 0);
    assert_eq!(count(&[["unit", "s", "no-such.service"]]), 0);
    assert_eq!(bus.property("Attribution").unwrap(), "bpf");
    daemon.stop();
}

#[test]
fn owners_are_found_through_translations_of_both_ends() {
    let namespace = Namespace::tracked("nat");
    for address in ["198.18.7.1", "198.18.7.2", "198.18.7.9"] {
        namespace.run(&format!("ip address add {address}/32 dev lo"));
    }
    // What goes to port 80 of the first address comes to port 8080 of the second, from yet another address.
    namespace.nft(
        "table ip translate {
           chain output { type nat hook output priority -100; ip daddr 198.18.7.1 tcp dport 80 dnat to 198.18.7.2:8080; };
           chain postrouting { type nat hook postrouting priority 100; tcp dport 8080 snat to 198.18.7.9; };
         }",
    );
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let listener = listen(&namespace, "198.18.7.2:8080");
    let held = connect(&namespace, &listener, "198.18.7.1:80".parse().unwrap());
    let flow = owned(&bus, 80);
    assert_eq!(
        (flow["nat_dst"].as_str(), flow["nat_src"].as_str()),
        (Some("198.18.7.2"), Some("198.18.7.9")),
        "{flow:#}"
    );
    assert_eq!(who(&flow["initiator"]), exact("client"), "{flow:#}");
    assert_eq!(who(&flow["responder"]), exact("server"), "{flow:#}");
    drop(held);
    daemon.stop();
}

#[test]
fn sockets_that_are_older_than_the_daemon_have_their_owners() {
    let namespace = Namespace::tracked("older");
    let bus = Bus::start();
    let listener = listen(&namespace, "127.0.0.1:0");
    let held = connect(&namespace, &listener, listener.local_addr().unwrap());
    let udp = namespace.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let flow = owned(&bus, listener.local_addr().unwrap().port());
    for owner in [&flow["initiator"], &flow["responder"]] {
        assert_eq!(
            (owner["pid"].as_u64(), owner["confidence"].as_str()),
            (Some(this_process()), Some("snapshot")),
            "{flow:#}"
        );
    }
    // A server without an address of its own that was bound before, and never answers.
    let port = udp.local_addr().unwrap().port();
    on_thread(&namespace, "asks", || {
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", ("127.0.0.1", port)).unwrap();
    });
    let flow = owned(&bus, port);
    assert_eq!(who(&flow["initiator"]), exact("asks"), "{flow:#}");
    assert_eq!(
        (flow["responder"]["pid"].as_u64(), flow["responder"]["confidence"].as_str()),
        (Some(this_process()), Some("snapshot"))
    );
    drop(held);
    daemon.stop();
}

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

/// Makes 15,000 connections as fast as they go. False when some of what the kernel told was lost; else every flow has had its
/// owners.
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
        ("fields", vec!["id", "initiator", "responder"].into()),
    ]);
    let lost = || {
        let statistics = bus.monitor_call("GetStatistics", &[]).unwrap()[0].clone();
        ["bpf_dropped", "events_lost"].into_iter().any(|key| statistics[key] != 0)
    };
    let flows = wait_for("all flows with their owners", || {
        let lines = client.open_stream(&query).unwrap().rest();
        let flows: Vec<Value> = lines.into_iter().filter(|line| line["id"].is_u64()).collect();
        let whole = flows.iter().filter(|flow| flow["responder"].is_object()).count();
        (whole == CONNECTIONS || lost()).then_some(flows)
    });
    // What is told is right even then.
    for (key, name) in [("initiator", "bursts"), ("responder", "")] {
        for owner in flows.iter().map(|flow| &flow[key]).filter(|owner| owner.is_object()) {
            let (pid, comm, confidence) = who(owner);
            assert_eq!(pid, this_process(), "{owner}");
            assert!(confidence == "exact" || lost(), "{owner}");
            assert!(name.is_empty() || comm == name, "{owner}");
        }
    }
    let whole =
        flows.iter().filter(|flow| flow["initiator"].is_object() && flow["responder"].is_object()).count();
    let was_read = !lost();
    assert!(!was_read || whole == CONNECTIONS, "{whole} of {CONNECTIONS} have both owners");
    daemon.stop();
    was_read
}

#[test]
fn owners_survive_a_daemon_that_is_killed() {
    let namespace = Namespace::tracked("killed");
    let bus = Bus::start();
    let kept = Kept::open(&namespace, 1 << 20);
    let mut daemon = kept.spawn_with(&namespace, &bus, DEFAULT);
    daemon.wait_until_attributed(&bus);
    let listener = listen(&namespace, "127.0.0.1:0");
    let port = listener.local_addr().unwrap().port();
    let held = connect(&namespace, &listener, listener.local_addr().unwrap());
    let before = owned(&bus, port);
    let ended = on_thread(&namespace, "ends", || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", "127.0.0.1:9").unwrap();
        socket.local_addr().unwrap().port()
    });
    wait_for("the flow", || flows(&bus).into_iter().find(|flow| flow["sport"] == ended));
    namespace.run("conntrack -D -p udp --dport 9");
    let closed = |bus: &Bus| {
        let closed = bus.list("ListClosed", &[]).unwrap();
        closed.into_iter().find(|flow| flow["sport"] == ended)
    };
    let closed_before = wait_for("its end", || closed(&bus));
    assert_eq!(who(&closed_before["initiator"]), exact("ends"), "{closed_before:#}");

    daemon.signal(Signal::KILL);
    let _ = daemon.ended();
    // The next life has no programs: what it shows it has from the one before.
    let mut daemon = kept.spawn_with(&namespace, &bus, UNATTRIBUTED);
    daemon.wait_until_synchronized(&bus);
    assert_eq!(bus.property("Attribution").unwrap(), "none");
    let after = owned(&bus, port);
    for key in ["id", "initiator", "responder"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    assert_eq!(closed(&bus).unwrap()["initiator"], closed_before["initiator"]);
    drop(held);
    daemon.stop();
}

#[test]
fn without_bpf_the_daemon_runs_says_so_and_looks_into_proc() {
    let namespace = Namespace::tracked("refused");
    let bus = Bus::start();
    let mut command = Daemon::command(&namespace, &bus);
    let program = command.get_program().to_owned();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    command = std::process::Command::new("setpriv");
    command.args(["--bounding-set", "-bpf,-perfmon,-sys_admin", "--inh-caps", "-bpf,-perfmon,-sys_admin"]);
    // The namespace is entered by a program that needs CAP_SYS_ADMIN: the powers go after it.
    let (enter, flowbusd) = arguments
        .split_at(arguments.iter().position(|word| word.to_string_lossy().ends_with("/flowbusd")).unwrap());
    let mut entered = std::process::Command::new(program);
    entered.args(enter).arg("setpriv").args(command.get_args()).args(flowbusd).args(["--config", DEFAULT]);
    let mut daemon = Daemon::spawn(&mut entered);
    daemon.wait_until_synchronized(&bus);
    wait_for("the log to say so", || daemon.log().contains("BPF is refused").then_some(()));
    assert_eq!(daemon.log().matches("BPF is refused").count(), 1, "{}", daemon.log());
    wait_for("the lesser way", || (bus.property("Attribution").unwrap() == "procfs").then_some(()));
    // A connection that lasts is found in /proc.
    let listener = listen(&namespace, "127.0.0.1:0");
    let held = connect(&namespace, &listener, listener.local_addr().unwrap());
    let flow = owned(&bus, listener.local_addr().unwrap().port());
    for owner in [&flow["initiator"], &flow["responder"]] {
        assert_eq!(
            (owner["pid"].as_u64(), owner["uid"].as_u64()),
            (Some(this_process()), Some(0)),
            "{flow:#}"
        );
        assert_eq!(owner["confidence"], "procfs", "{flow:#}");
    }
    drop(held);
    daemon.stop();
}

#[test]
fn the_same_ends_in_two_namespaces_are_kept_apart() {
    let (ours, other) = (Namespace::tracked("ours"), Namespace::tracked("other"));
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&ours, &bus);
    // The same ports at both ends; those of the other namespace are told last.
    let ends = |namespace: &Namespace, client: &str| {
        let listener = listen(namespace, "127.0.0.1:9100");
        let socket = on_thread(namespace, client, || {
            use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            bind(&socket, &"127.0.0.1:9101".parse::<SocketAddr>().unwrap()).unwrap();
            connect(&socket, &"127.0.0.1:9100".parse::<SocketAddr>().unwrap()).unwrap();
            socket
        });
        let (accepted, _) = on_thread(namespace, client, || listener.accept().unwrap());
        (listener, socket, accepted)
    };
    let first = ends(&other, "theirs");
    let second = ends(&ours, "ours");
    let flow = owned(&bus, 9100);
    assert_eq!(who(&flow["initiator"]), exact("ours"), "{flow:#}");
    assert_eq!(who(&flow["responder"]), exact("ours"), "{flow:#}");
    drop((first, second));
    daemon.stop();
}

#[test]
fn an_owner_that_comes_late_is_told_as_an_update() {
    let namespace = Namespace::tracked("late");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let client = Client::connect(&bus);
    let query = QueryMap::from([("comm", "accepts-late".into()), ("snapshot", false.into())]);
    let mut stream = client.open_stream(&query).unwrap();
    let listener = listen(&namespace, "127.0.0.1:0");
    let mut socket =
        on_thread(&namespace, "opens", || TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    wait_for("the flow", || flows(&bus).pop());
    let (accepted, _) = on_thread(&namespace, "accepts-late", || listener.accept().unwrap());
    let line = stream.until(|line| line["type"] == "update").pop().unwrap();
    assert_eq!(who(&line["responder"]), exact("accepts-late"), "{line:#}");
    assert_eq!(who(&line["initiator"]), exact("opens"), "{line:#}");
    socket.write_all(b"x").unwrap();
    drop(accepted);
    daemon.stop();
}

#[test]
fn the_service_gets_its_programs_from_the_loader_and_keeps_them_over_a_restart() {
    let machine = Machine::installed_with_bpf(SystemBus::Daemon);
    let attribution = || {
        let value = machine.run("busctl get-property org.flowbus.FlowMonitor1 /org/flowbus/FlowMonitor1 org.flowbus.FlowMonitor1 Attribution");
        (value.trim() == "s \"bpf\"").then_some(())
    };
    wait_for("the loader to hand its programs over", attribution);
    machine.namespace().nft(
        "table inet track { chain output { type filter hook output priority 0; ct state new accept; }; }",
    );
    // The machine's control groups lie below one of ours, and the kernel names them by the whole path.
    let flow = |unit: &str, port: u16| {
        machine.shell(&format!("systemd-run --wait --unit={unit} bash -c 'echo >/dev/udp/127.0.0.1/{port}'"));
        let flow = wait_for("a flow of that process", || {
            let listed = machine.run(&format!("flowctl list --json comm=bash dport={port}"));
            listed.lines().next().map(|line| serde_json::from_str::<Value>(line).unwrap())
        });
        let path = flow["initiator"]["cgroup"].as_str().unwrap().to_owned();
        assert!(path.ends_with(&format!("/system.slice/{unit}.service")), "{flow:#}");
        flow
    };
    let before = flow("asks-before", 5300);
    let programs = || machine.shell("ls -l /proc/$(systemctl show -P MainPID flowbusd)/fd | grep -c bpf");
    let count = programs();
    machine.run("systemctl kill --signal=KILL flowbusd.service");
    wait_for("the next life", || {
        machine.command("flowctl").arg("status").output().unwrap().status.success().then_some(())
    });
    wait_for("the programs to be there", attribution);
    assert_eq!(programs(), count, "the same programs, not others");
    let _ = flow("asks-after", 5301);
    let kept = machine.run("flowctl list --json comm=bash dport=5300");
    let kept: Value = serde_json::from_str(kept.lines().next().unwrap()).unwrap();
    assert_eq!((&kept["id"], &kept["initiator"]), (&before["id"], &before["initiator"]));
}

//! Which process is behind a flow, on the real kernel: through translations, for what is older than the daemon, in bursts,
//! over a restart.

mod containers;
mod forwarded;
mod life;
mod many;
mod reuse;
mod shared;
mod workers;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use flowbus_interfaces::QueryMap;
use flowbus_tests::client::Client;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Namespace};
use serde_json::Value;

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
fn the_same_ends_in_two_namespaces_are_kept_apart() {
    let (ours, other) = (Namespace::tracked("ours"), Namespace::tracked("other"));
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&ours, &bus);
    // The same ports at both ends; those of the other namespace are reported last.
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
fn after_an_exec_a_process_has_the_other_program() {
    let namespace = Namespace::tracked("exec");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let listener = listen(&namespace, "127.0.0.1:0");
    let port = listener.local_addr().unwrap().port();
    // One process: bash connects, and so does perl.
    let perl = format!(
        "use Socket; socket(S, PF_INET, SOCK_STREAM, 0); connect(S, sockaddr_in({port}, inet_aton(\"127.0.0.1\"))); sysread(S, $x, 1)"
    );
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; exec perl -e '{perl}'");
    let mut process = namespace.command("bash").args(["-c", &script]).spawn().unwrap();
    let accepted = [listener.accept().unwrap(), listener.accept().unwrap()];
    let exe = |from: u16| {
        wait_for("its owner", || {
            let flow = flows(&bus).into_iter().find(|flow| flow["sport"] == from)?;
            assert!(flow["initiator"].is_null() || flow["initiator"]["pid"] == process.id(), "{flow:#}");
            Some(flow["initiator"]["exe"].as_str()?.to_owned())
        })
    };
    for ((_, peer), program) in accepted.iter().zip(["/bin/bash", "/usr/bin/perl"]) {
        let real = std::fs::canonicalize(program).unwrap();
        assert_eq!(exe(peer.port()), real.to_str().unwrap());
    }
    drop(accepted);
    process.wait().unwrap();
    daemon.stop();
}

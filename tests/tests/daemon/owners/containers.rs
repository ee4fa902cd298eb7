//! Processes as containers have them: in namespaces of their own, on a bridge, with sockets that were handed on.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use flowbus_tests::network::{PLAIN, SERVER_V4, socket_address};
use flowbus_tests::process::{output_of, unique, wait_for};
use flowbus_tests::{Bus, ControlGroup, Daemon, Namespace, Network};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;

use super::forwarded::{assert_between, forwarded, inode, udp};
use super::{flows, listen, on_thread, owned, who};

/// A program in namespaces of its own, as a container has them.
fn contained(namespace: &Namespace, script: &str) -> Command {
    let mut command = namespace.command("unshare");
    command.args(["--pid", "--cgroup", "--mount", "--fork", "--mount-proc", "sh", "-c", script]);
    command
}

#[test]
fn a_process_in_namespaces_of_its_own_is_known_by_its_number_outside_also_when_it_is_gone() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    let listener = listen(&network.server, &format!("{SERVER_V4}:{PLAIN}"));
    let script = format!("exec bash -c 'exec 3<>/dev/tcp/{SERVER_V4}/{PLAIN}; cat <&3'");
    let mut container = contained(&network.client, &script).stdin(Stdio::null()).spawn().unwrap();
    let accepted = listener.accept().unwrap();
    let flow = owned(&bus, PLAIN);
    let pid = flow["initiator"]["pid"].as_u64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(
        status.lines().any(|line| line.starts_with("NSpid:") && line.split_whitespace().count() == 3),
        "{status}"
    );
    assert_eq!(flow["initiator"]["confidence"], "forwarded", "{flow:#}");
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    let exe = flow["initiator"]["exe"].as_str().unwrap_or_else(|| panic!("{flow:#}")).to_owned();
    assert_eq!(Some(&*exe), program.to_str(), "{flow:#}");
    for (asked, found) in [(&*exe, 1), ("/usr/bin/other", 0)] {
        let answer = bus.list("ListActive", &[["exe", "s", asked]]).unwrap();
        assert_eq!(answer.len(), found, "{asked}: {answer:#?}");
    }
    drop(accepted);
    container.wait().unwrap();
    let ended = wait_for("the flow is over", || {
        flows(&bus).into_iter().find(|flow| flow["dport"] == PLAIN && flow["state"] == "TIME_WAIT")
    });
    assert_eq!(ended["initiator"]["pid"].as_u64(), Some(pid), "{ended:#}");
    assert_eq!(ended["initiator"]["exe"], *exe, "{ended:#}");
    daemon.stop();
}

#[test]
fn a_container_of_systemd_is_known_by_its_name() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    let listener = listen(&network.server, &format!("{SERVER_V4}:{PLAIN}"));
    let name = unique("box");
    let group = ControlGroup::of_container(&name);
    let root = output_of(&mut Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/test-root")));
    let script = format!("exec 3<>/dev/tcp/{SERVER_V4}/{PLAIN}; read -u 3");
    let mut container = group
        .command("systemd-nspawn")
        .arg(format!("--directory={}", root.trim()))
        .arg(format!("--network-namespace-path={}", network.client.path()))
        .arg(format!("--machine={name}"))
        .args(["--read-only", "--register=no", "--keep-unit", "--quiet", "--pipe", "bash", "-c", &script])
        .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let accepted = listener.accept().unwrap();
    let flow = owned(&bus, PLAIN);
    let initiator = &flow["initiator"];
    assert_eq!((&initiator["container"], &initiator["comm"]), (&name.into(), &"bash".into()), "{flow:#}");
    assert_eq!(initiator["exe"], "/usr/bin/bash", "within the container's root: {flow:#}");
    assert_eq!(initiator["confidence"], "forwarded", "{flow:#}");
    assert_eq!(initiator["network_namespace"], inode(&network.client), "{flow:#}");
    drop(accepted);
    container.wait().unwrap();
    daemon.stop();
}

/// A machine with a bridge, and two namespaces with an address each behind it.
fn bridged() -> (Namespace, [Namespace; 2]) {
    let router = Namespace::tracked("bridge");
    router.run("ip link add br0 type bridge");
    router.run("ip link set br0 up");
    router.run("ip address add 198.18.6.1/24 dev br0");
    let hosts = [2, 3].map(|number| {
        let host = Namespace::new("bridged");
        router.run(&format!("ip link add port{number} type veth peer name up0 netns {}", host.path()));
        router.run(&format!("ip link set port{number} master br0 up"));
        router.run(&format!("ip link set port{number} type bridge_slave hairpin on"));
        host.run("ip link set up0 up");
        host.run(&format!("ip address add 198.18.6.{number}/24 dev up0"));
        host.run("ip route add default via 198.18.6.1");
        host
    });
    router.sysctl("net.ipv4.ip_forward", "1");
    (router, hosts)
}

#[test]
fn two_namespaces_on_one_bridge_speak_by_the_published_port_of_one() {
    let (router, [one, two]) = bridged();
    router.nft(
        "table ip hairpin {
           chain destination { type nat hook prerouting priority dstnat; ip daddr 198.18.6.1 tcp dport 8080 dnat to 198.18.6.3:80; };
           chain output { type nat hook output priority -100; ip daddr 198.18.6.1 tcp dport 8080 dnat to 198.18.6.3:80; };
           chain source { type nat hook postrouting priority srcnat; ip daddr 198.18.6.3 masquerade; };
         }",
    );
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&router, &bus);
    let listener = listen(&two, "198.18.6.3:80");
    let to: SocketAddr = "198.18.6.1:8080".parse().unwrap();
    // From the other one, from itself by way of the router, and from the router's own namespace.
    for (from, source) in [(&one, "198.18.6.2"), (&two, "198.18.6.3"), (&router, "198.18.6.1")] {
        let client = on_thread(from, "client", || TcpStream::connect(to).unwrap());
        let server = on_thread(&two, "server", || listener.accept().unwrap());
        let flow = wait_for("both owners", || {
            let mut flows = flows(&bus);
            flows.retain(|flow| flow["src"] == source && flow["dport"] == 8080);
            flows.pop().filter(|flow| flow["initiator"].is_object() && flow["responder"].is_object())
        });
        if source == "198.18.6.1" {
            assert_eq!(who(&flow["initiator"]), super::exact("client"), "{flow:#}");
            assert!(flow["initiator"]["network_namespace"].is_null(), "{flow:#}");
            assert_eq!(flow["responder"]["network_namespace"], inode(&two), "{flow:#}");
        } else {
            assert_between(&flow, from, &two);
        }
        drop((client, server));
    }
    daemon.stop();
}

#[test]
fn what_passes_within_a_bridge_has_both_owners_where_the_bridge_is_tracked() {
    let (router, [one, two]) = bridged();
    router.sysctl("net.bridge.bridge-nf-call-iptables", "1");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&router, &bus);
    let listener = listen(&two, "0.0.0.0:80");
    let client = on_thread(&one, "client", || TcpStream::connect("198.18.6.3:80").unwrap());
    let server = on_thread(&two, "server", || listener.accept().unwrap());
    assert_between(&owned(&bus, 80), &one, &two);
    drop((client, server));

    let [client, server] = [(&one, "client", "0.0.0.0:0"), (&two, "server", "0.0.0.0:53")]
        .map(|(namespace, name, bound)| udp(namespace, name, bound));
    on_thread(&one, "client", || client.send_to(b"question", "198.18.6.3:53").unwrap());
    on_thread(&two, "server", || {
        let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
        server.send_to(b"answer", from).unwrap();
    });
    assert_between(&owned(&bus, 53), &one, &two);
    daemon.stop();
}

#[test]
fn a_namespace_that_has_the_number_of_one_that_is_gone_has_its_own_owners() {
    const TURNS: u8 = 100;
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    let router = &network.router;
    let server = udp(&network.server, "server", &format!("0.0.0.0:{PLAIN}"));
    let to = socket_address(SERVER_V4, PLAIN);
    let mut numbers = std::collections::HashSet::new();
    // The kernel gives the lowest number that is free, so that of a namespace that is gone comes again: not at once, as the kernel takes
    // namespaces down later, and others make some meanwhile.
    for turn in 0..TURNS {
        let host = Namespace::new("again");
        router.run(&format!("ip link add again{turn} type veth peer name up0 netns {}", host.path()));
        router.run(&format!("ip link set again{turn} up"));
        router.run(&format!("ip address add 198.18.{}.1/24 dev again{turn}", 10 + turn));
        host.run("ip link set up0 up");
        host.run(&format!("ip address add 198.18.{}.2/24 dev up0", 10 + turn));
        host.run(&format!("ip route add default via 198.18.{}.1", 10 + turn));
        let name = format!("turn{turn}");
        let client = udp(&host, &name, "0.0.0.0:4000");
        on_thread(&host, &name, || client.send_to(b"x", to).unwrap());
        server.recv_from(&mut [0; 16]).unwrap();
        let source = format!("198.18.{}.2", 10 + turn);
        let flow = wait_for("the client", || {
            flows(&bus)
                .into_iter()
                .find(|flow| flow["src"] == source.as_str() && flow["initiator"].is_object())
        });
        assert_eq!(who(&flow["initiator"]), forwarded(&name), "{flow:#}");
        assert_eq!(flow["initiator"]["network_namespace"], inode(&host), "{flow:#}");
        let is_again = !numbers.insert(inode(&host));
        drop((client, host));
        let of_gone = flows(&bus).into_iter().find(|flow| flow["src"] == source.as_str()).unwrap();
        assert_eq!(of_gone["initiator"], flow["initiator"]);
        if is_again {
            return daemon.stop();
        }
    }
    panic!("each of {TURNS} namespaces has a number of its own");
}

/// A process that does with sockets what it is asked to, by the messages that they come with.
const HANDED: &str = r#"
import os, socket
orders = socket.socket(fileno=0)
while True:
    order, descriptors, _, _ = socket.recv_fds(orders, 100, 1)
    if not order:
        break
    handed = socket.socket(fileno=descriptors[0])
    what, host, port = order.decode().split()
    if what == "write":
        handed.send(b"x")
    else:
        handed.sendto(b"x", (host, int(port)))
    handed.close()
    orders.send(b"y")
"#;

/// Hands a socket to the process at the other end, and waits until it has done what it was asked to.
fn hand_on(orders: &mut UnixStream, socket: BorrowedFd<'_>, what: &str) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [socket];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(&*orders, &[IoSlice::new(what.as_bytes())], &mut control, SendFlags::empty()).unwrap();
    orders.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_socket_that_is_handed_to_a_process_of_another_namespace_is_never_of_a_third() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    let (mut orders, theirs) = UnixStream::pair().unwrap();
    // The process runs in the server's namespace, and its sockets are of the client's.
    let mut process = network.server.command("python3");
    let mut process: Child = process.args(["-c", HANDED]).stdin(OwnedFd::from(theirs)).spawn().unwrap();

    // Connected before: it stays with the process that connected.
    let listener = listen(&network.server, &format!("{SERVER_V4}:{PLAIN}"));
    let client = on_thread(&network.client, "client", || {
        TcpStream::connect(socket_address(SERVER_V4, PLAIN)).unwrap()
    });
    let (mut accepted, _) = on_thread(&network.server, "server", || listener.accept().unwrap());
    hand_on(&mut orders, client.as_fd(), "write - 0");
    drop(client);
    assert_eq!(accepted.read(&mut [0; 2]).unwrap(), 1);
    assert_between(&owned(&bus, PLAIN), &network.client, &network.server);

    // The owner of a datagram is the process that sends, or nobody: which addresses a socket of another namespace than the
    // process's can have is not known.
    let server = udp(&network.server, "server", &format!("{SERVER_V4}:{PLAIN}"));
    for (bound, is_known) in [("198.18.0.2:0", true), ("0.0.0.0:0", false)] {
        let socket = udp(&network.client, "client", bound);
        let port = socket.local_addr().unwrap().port();
        hand_on(&mut orders, socket.as_fd(), &format!("send {SERVER_V4} {PLAIN}"));
        server.recv_from(&mut [0; 16]).unwrap();
        let initiator = wait_for("the flow", || {
            let flow = flows(&bus).into_iter().find(|flow| flow["sport"] == port)?;
            (flow["initiator"].is_object() || !is_known).then(|| flow["initiator"].clone())
        });
        assert!(!is_known || initiator["pid"] == process.id(), "{initiator:#}");
        assert!(initiator.is_null() || initiator["pid"] == process.id(), "{initiator:#}");
        assert!(
            initiator.is_null() || initiator["network_namespace"] == inode(&network.client),
            "{initiator:#}"
        );
    }
    drop(orders);
    process.wait().unwrap();
    daemon.stop();
}

#[test]
fn in_a_storm_of_forks_no_flow_has_a_process_that_is_not_its_own() {
    const COUNT: usize = 600;
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    let listener = listen(&network.server, &format!("{SERVER_V4}:{PLAIN}"));
    // Each turn is a process that connects in a child of its own, and a child that does nothing: all at once.
    let script = format!(
        "for i in {{1..{COUNT}}}; do ( (exec 3<>/dev/tcp/{SERVER_V4}/{PLAIN}; echo $BASHPID >&3; read -u 3) & (:) & ) & done; wait"
    );
    let mut storm =
        network.client.command("bash").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
    let mut expected = Vec::new();
    for _ in 0..COUNT {
        let (stream, peer) = listener.accept().unwrap();
        let mut pid = String::new();
        BufReader::new(stream).read_line(&mut pid).unwrap();
        expected.push((u64::from(peer.port()), pid.trim().parse::<u64>().unwrap()));
    }
    storm.wait().unwrap();
    let all = wait_for("all flows", || {
        let flows = ["ListActive", "ListClosed"].map(|list| bus.list(list, &[]).unwrap()).concat();
        (flows.len() >= COUNT).then_some(flows)
    });
    let mut unknown = 0;
    for flow in &all {
        // A port that is free again has been that of several processes.
        let port = flow["sport"].as_u64().unwrap();
        let pids: Vec<_> = expected.iter().filter(|(of, _)| *of == port).map(|(_, pid)| *pid).collect();
        let owner = &flow["initiator"];
        assert!(
            owner.is_null() || pids.iter().any(|pid| owner["pid"] == *pid),
            "{port}: none of {pids:?} is {owner:#}"
        );
        // Where a port was used again at once, time may not tell one process from the other.
        unknown += usize::from(owner.is_null() && pids.len() == 1);
    }
    // The ring is the whole machine's: what it could not hold is not known.
    let statistics = &bus.monitor_call("GetStatistics", &[]).unwrap()[0];
    let is_lost = ["bpf_dropped", "events_lost"].into_iter().any(|key| statistics[key] != 0);
    assert!(unknown == 0 || is_lost, "{unknown} of {COUNT} flows have no owner: {statistics:#}");
    daemon.stop();
}

/// Which end opened a connection is known of both.
fn opened(flow: &Value) -> [Option<bool>; 2] {
    ["initiator", "responder"].map(|end| flow[end]["opened"].as_bool())
}

#[test]
fn after_a_flush_the_client_is_known_though_the_kernel_sees_the_server_speak_first() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    // A connection in the middle makes a flow again.
    network.router.sysctl("net.netfilter.nf_conntrack_tcp_loose", "1");
    let listener = listen(&network.server, &format!("{SERVER_V4}:{PLAIN}"));
    let mut client = on_thread(&network.client, "client", || {
        TcpStream::connect(socket_address(SERVER_V4, PLAIN)).unwrap()
    });
    let (mut server, _) = on_thread(&network.server, "server", || listener.accept().unwrap());
    let port = client.local_addr().unwrap().port();
    let before = owned(&bus, PLAIN);
    assert_eq!(opened(&before), [Some(true), Some(false)], "{before:#}");

    network.router.run("conntrack -F");
    // The flow is established once packets have passed both ways, and one more.
    for _ in 0..2 {
        server.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        client.write_all(b"y").unwrap();
        server.read_exact(&mut [0]).unwrap();
    }
    let after = owned(&bus, port);
    assert_eq!(opened(&after), [Some(false), Some(true)], "{after:#}");
    for (end, name, namespace) in
        [("initiator", "server", &network.server), ("responder", "client", &network.client)]
    {
        assert_eq!(who(&after[end]), forwarded(name), "{after:#}");
        assert_eq!(after[end]["network_namespace"], inode(namespace), "{after:#}");
    }
    daemon.stop();
}

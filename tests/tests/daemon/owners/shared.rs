//! Sockets that several processes have, or that none has: which process may be named, and how surely.

use std::os::fd::OwnedFd;
use std::process::Stdio;

use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Namespace};
use serde_json::Value;

use super::workers::Worker;
use super::{flows, on_thread, this_process};

/// The only flow to this port.
fn flow(bus: &Bus, dport: u16) -> Value {
    wait_for("the flow", || flows(bus).into_iter().find(|flow| flow["dport"] == dport))
}

#[test]
fn of_servers_with_the_same_port_none_is_named_as_if_it_were_alone() {
    let namespace = Namespace::tracked("group");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    for (address, port) in [("127.0.0.1", 5300), ("::1", 5301)] {
        let mut servers = [0; 3].map(|_| Worker::start(&namespace));
        let mut client = Worker::start(&namespace);
        for server in &mut servers {
            server.run(&format!("$s = udp('{address}', {port}, SO_REUSEPORT)"));
        }
        client.run(&format!("to(udp('{address}', $_), '{address}', {port}) for 20000 .. 20029; 1"));
        let of_port = || flows(&bus).into_iter().filter(|flow| flow["dport"] == port);
        let all = wait_for("the flows", || Some(of_port().collect::<Vec<_>>()).filter(|all| all.len() == 30));
        for flow in &all {
            assert_eq!(flow["initiator"]["pid"], client.pid(), "{flow:#}");
            assert!(flow["responder"].is_null() || flow["responder"]["confidence"] == "shared", "{flow:#}");
        }
        // The process that answers a flow is the one that has it.
        servers[1].run(&format!("to($s, '{address}', 20007)"));
        wait_for("the answer's owner", || {
            let flow = of_port().find(|flow| flow["sport"] == 20_007).unwrap();
            let responder = &flow["responder"];
            (responder["pid"] == servers[1].pid() && responder["confidence"] == "exact").then_some(())
        });
    }
    daemon.stop();
}

#[test]
fn where_the_last_server_that_bound_a_port_has_gone_the_one_before_has_its_flows() {
    let namespace = Namespace::tracked("before");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    for (bound, address, port) in [("0.0.0.0", "127.0.0.1", 5300), ("::", "::1", 5301)] {
        let [mut stays, mut goes, mut client] = [0; 3].map(|_| Worker::start(&namespace));
        stays.run(&format!("$s = udp('{bound}', {port}, SO_REUSEADDR)"));
        goes.run(&format!("$s = udp('{bound}', {port}, SO_REUSEADDR)"));
        client.run(&format!("to(udp('{address}', 20000), '{address}', {port})"));
        wait_for("one of both", || {
            let responder = flow(&bus, port)["responder"].clone();
            (responder["confidence"] == "shared").then_some(())
        });
        goes.run("close $s");
        // Both of the flow that is there and of the next.
        client.run(&format!("to(udp('{address}', 20001), '{address}', {port})"));
        wait_for("the server that is there", || {
            let flows = flows(&bus).into_iter().filter(|flow| flow["dport"] == port);
            let pids: Vec<_> = flows.map(|flow| flow["responder"]["pid"].as_u64()).collect();
            (pids == [Some(stays.pid()); 2]).then_some(())
        });
    }
    daemon.stop();
}

#[test]
fn a_socket_that_two_processes_send_by_is_shared() {
    let namespace = Namespace::tracked("forked");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    for (address, family) in [("127.0.0.1", "ipv4"), ("::1", "ipv6")] {
        let send = format!("to($s, '{address}', 9)");
        let mut parent = Worker::start(&namespace);
        parent.run(&format!("$s = udp('{address}', 5400)"));
        let child = parent.run(&format!(
            "pipe(R, W); if (!($child = fork)) {{ close W; while (sysread(R, $x, 1)) {{ {send} }} exit }} $child"
        ));
        let child: u64 = child.parse().unwrap();
        let mut senders = Vec::new();
        // The programs report each of them once in ten seconds.
        for turn in 0..6 {
            let (pid, line) =
                if turn % 2 == 0 { (parent.pid(), send.as_str()) } else { (child, "syswrite(W, 'x')") };
            parent.run(line);
            let initiator = wait_for("the flow with its sender", || {
                let flow = flows(&bus).into_iter().find(|flow| flow["dport"] == 9)?;
                flow["initiator"].is_object().then(|| flow["initiator"].clone())
            });
            senders.push((pid, initiator));
            namespace.run(&format!("conntrack -D -f {family} -p udp --dport 9"));
            wait_for("its end", || flows(&bus).is_empty().then_some(()));
        }
        for (pid, initiator) in &senders {
            assert!(initiator["pid"] == *pid || initiator["confidence"] == "shared", "{pid}: {senders:#?}");
        }
        assert_eq!(senders[0].1["confidence"], "exact", "nobody else has sent yet");
    }
    daemon.stop();
}

#[test]
fn a_socket_that_was_handed_on_is_of_the_process_that_answers() {
    let namespace = Namespace::tracked("handed");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    // Bound here and read there, as of a unit that is started by its socket.
    let socket = namespace.enter(|| std::net::UdpSocket::bind("127.0.0.1:5300").unwrap());
    let mut server = namespace
        .command("perl")
        .args([
            "-e",
            "open($s, '+<&=', 0); while ($from = recv($s, $x, 9, 0)) { send($s, 'y', 0, $from) if $x eq 'answer' }",
        ])
        .stdin(OwnedFd::from(socket.try_clone().unwrap()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let client = on_thread(&namespace, "asks", || {
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"x", "127.0.0.1:5300").unwrap();
        client
    });
    let responder = |pid: u64, confidence: &str| {
        wait_for(confidence, || {
            let responder = flow(&bus, 5300)["responder"].clone();
            (responder["pid"] == pid && responder["confidence"] == confidence).then_some(())
        });
    };
    responder(this_process(), "inherited");
    client.send_to(b"answer", "127.0.0.1:5300").unwrap();
    responder(server.id().into(), "exact");
    server.kill().unwrap();
    server.wait().unwrap();
    daemon.stop();
}

#[test]
fn a_thread_of_the_kernel_owns_nothing() {
    let namespace = Namespace::tracked("subflow");
    namespace.run("ip mptcp limits set subflow 2 add_addr_accepted 2");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    for [first, second] in [["198.18.7.1", "198.18.7.2"], ["2001:2::71", "2001:2::72"]] {
        for address in [first, second] {
            let length = if address.contains(':') { "128 nodad" } else { "32" };
            namespace.run(&format!("ip address add dev lo {address}/{length}"));
        }
        namespace.run(&format!("ip mptcp endpoint add {second} dev lo subflow"));
        let [mut server, mut client] = [0; 2].map(|_| Worker::start(&namespace));
        server.run(&format!("$l = opened(SOCK_STREAM, 262, '{first}', 9000); listen($l, 5) or die"));
        client.run(&format!(
            "$c = opened(SOCK_STREAM, 262, '{first}', 0); connect($c, at('{first}', 9000)) or die; 1"
        ));
        server.run("accept($a, $l) or die; syswrite($a, 'x')");
        client.run("sysread($c, $x, 1) == 1 or die; syswrite($c, 'y')");
        let from = |address: &str| flows(&bus).into_iter().find(|flow| flow["src"] == address);
        let other = wait_for("the other path, established", || {
            from(second).filter(|flow| flow["state"] == "ESTABLISHED")
        });
        // Nobody is named, or who has the connection.
        assert!(other["initiator"].is_null() || other["initiator"]["pid"] == client.pid(), "{other:#}");
        let main = from(first).unwrap();
        assert_eq!(main["initiator"]["pid"], client.pid(), "{main:#}");
    }
    daemon.stop();
}

#[test]
fn sockets_of_other_kinds_and_packets_made_by_hand_have_no_owner_of_the_same_port() {
    let namespace = Namespace::tracked("raw");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    for (address, domain, port, icmp, [number, request]) in
        [("127.0.0.1", "PF_INET", 9, "icmp", [1, 8]), ("::1", "PF_INET6", 10, "icmpv6", [58, 128])]
    {
        let [mut bound, mut forger] = [0; 2].map(|_| Worker::start(&namespace));
        bound.run(&format!("$s = udp('{address}', 5600)"));
        forger.run(&format!(
            "socket($r, {domain}, SOCK_RAW, 17) or die; defined send($r, pack('nnnn', 5600, {port}, 9, 9) . 'x', 0, at('{address}', 0)) or die"
        ));
        let forged = flow(&bus, port);
        assert!(forged["initiator"].is_null(), "{forged:#}");
        forger.run(&format!(
            "socket($p, {domain}, SOCK_DGRAM, {number}) or die; defined send($p, pack('CCnnn', {request}, 0, 0, 0, 1), 0, at('{address}', 0)) or die"
        ));
        let ping = wait_for("the ping", || flows(&bus).into_iter().find(|flow| flow["protocol"] == icmp));
        assert!(ping["initiator"].is_null() && ping["responder"].is_null(), "{ping:#}");
    }
    daemon.stop();
}

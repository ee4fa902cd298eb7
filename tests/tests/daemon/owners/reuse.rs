//! Ends that one process has after another: an owner may be absent, and is never somebody else.

use std::cell::RefCell;
use std::io::Write;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use flowbus_interfaces::QueryMap;
use flowbus_tests::client::Client;
use flowbus_tests::daemon::UNATTRIBUTED;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Kept, Namespace, inject};
use rustix::process::Signal;
use serde_json::Value;

use super::life::DEFAULT;
use super::workers::Worker;
use super::{flows, listen, this_process};

/// Ends of connections: where the client is, what it dials, and where the server listens.
struct Ends {
    client: &'static str,
    dialed: (&'static str, u16),
    listener: (&'static str, u16),
}

/// Each family, straight and through NAT.
const ENDS: [Ends; 4] = [
    Ends { client: "127.0.0.1", dialed: ("127.0.0.1", 9000), listener: ("127.0.0.1", 9000) },
    Ends { client: "::1", dialed: ("::1", 9001), listener: ("::1", 9001) },
    Ends { client: "127.0.0.1", dialed: ("198.18.7.1", 80), listener: ("127.0.0.1", 9002) },
    Ends { client: "::1", dialed: ("2001:2::71", 81), listener: ("::1", 9003) },
];

/// A namespace with the addresses and rules of [`ENDS`].
fn namespace(name: &str) -> Namespace {
    let namespace = Namespace::tracked(name);
    namespace.run("ip address add 198.18.7.1/32 dev lo");
    namespace.run("ip address add 2001:2::71/128 dev lo nodad");
    namespace.nft(
        "table inet translate {
           chain output { type nat hook output priority -100;
             ip daddr 198.18.7.1 tcp dport 80 dnat ip to 127.0.0.1:9002;
             ip6 daddr 2001:2::71 tcp dport 81 dnat ip6 to [::1]:9003; };
         }",
    );
    namespace
}

/// All flows with this destination port, oldest first.
fn all_flows(bus: &Bus, dport: u16) -> Vec<Value> {
    let query = QueryMap::from([("follow", false.into()), ("closed", true.into()), ("dport", dport.into())]);
    let lines = Client::connect(bus).open_stream(&query).unwrap().rest();
    let mut flows: Vec<Value> = lines.into_iter().filter(|line| line["id"].is_u64()).collect();
    flows.sort_by_key(|flow| flow["id"].as_u64());
    flows
}

fn flow(bus: &Bus, dport: u16) -> Value {
    wait_for("the flow", || flows(bus).into_iter().find(|flow| flow["dport"] == dport))
}

/// Accepts connections, and has each know that it was.
fn serve(namespace: &Namespace, (address, port): (&str, u16)) {
    let address = SocketAddr::new(address.parse().unwrap(), port);
    let listener = listen(namespace, &address.to_string());
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let _ = connection.write_all(b"x");
        }
    });
}

/// How often two processes take turns at each gap.
const TURNS: usize = 30;

/// Two processes connect by turns, from the same port to the same server, each some milliseconds after the one before. None of
/// the connections may have the other's owner. Returns how many of those at the last gap have an initiator and a responder.
fn take_turns(
    namespace: &Namespace,
    bus: &Bus,
    ends: &Ends,
    gaps: &[u64],
    meanwhile: impl Fn(bool),
) -> [usize; 2] {
    let (local, (remote, port)) = (ends.client, ends.dialed);
    let before = all_flows(bus, port).len();
    let mut workers = [Worker::start(namespace), Worker::start(namespace)];
    let mut expected = Vec::new();
    meanwhile(true);
    for gap in gaps {
        for turn in 0..TURNS {
            let worker = &mut workers[turn % 2];
            worker.run(&format!("once('{local}', 40000, '{remote}', {port})"));
            expected.push(worker.pid());
            thread::sleep(Duration::from_millis(*gap));
        }
    }
    meanwhile(false);
    let flows = wait_for("all flows", || {
        Some(all_flows(bus, port).split_off(before)).filter(|flows| flows.len() >= expected.len())
    });
    assert_eq!(flows.len(), expected.len(), "each connection is a flow of its own");
    for (flow, pid) in flows.iter().zip(&expected) {
        let (initiator, responder) = (&flow["initiator"], &flow["responder"]);
        assert!(initiator.is_null() || initiator["pid"] == *pid, "{pid} opened {flow:#}");
        assert!(responder.is_null() || responder["pid"] == this_process(), "{flow:#}");
    }
    let last = &flows[flows.len() - TURNS..];
    ["initiator", "responder"].map(|end| last.iter().filter(|flow| flow[end].is_object()).count())
}

#[test]
fn ports_that_another_process_uses_next_never_have_its_owner_however_soon_that_is() {
    let namespace = namespace("turns");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let gaps = [0, 1, 2, 5, 10, 20, 50];
    for ends in &ENDS {
        serve(&namespace, ends.listener);
        let mut known = take_turns(&namespace, &bus, ends, &gaps, |_| {});
        // Where there is time between them, the owners are known as a rule; a busy machine needs more of it.
        for gap in [50, 100, 200, 400, 800] {
            if known.iter().all(|known| 2 * known >= TURNS) {
                break;
            }
            known = take_turns(&namespace, &bus, ends, &[gap], |_| {});
        }
        assert!(known.iter().all(|known| 2 * known >= TURNS), "{known:?} of {TURNS} have an owner");
    }
    daemon.stop();
}

#[test]
fn what_a_stopped_daemon_reads_late_has_the_right_owner_or_none() {
    let namespace = namespace("stopped");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let stop = |begin| daemon.signal(if begin { Signal::STOP } else { Signal::CONT });
    for ends in &ENDS {
        serve(&namespace, ends.listener);
        take_turns(&namespace, &bus, ends, &[0, 5], stop);
        // It goes on as before.
        let mut worker = Worker::start(&namespace);
        let (remote, port) = ends.dialed;
        worker.run(&format!("once('{}', 40001, '{remote}', {port})", ends.client));
        wait_for("its owner", || {
            all_flows(&bus, port).pop().filter(|flow| flow["initiator"]["pid"] == worker.pid())
        });
    }
    daemon.stop();
}

#[test]
fn what_a_killed_daemon_left_in_the_socket_has_the_right_owner_or_none_in_the_next_life() {
    let namespace = namespace("killed-reuse");
    let bus = Bus::start();
    let kept = Kept::open(&namespace, 1 << 22);
    let start = || {
        let mut daemon = kept.spawn_with(&namespace, &bus, DEFAULT);
        daemon.wait_until_attributed(&bus);
        daemon
    };
    let daemon = RefCell::new(start());
    let restart = |begin| {
        if begin {
            daemon.borrow().signal(Signal::KILL);
            let _ = daemon.borrow_mut().ended();
        } else {
            daemon.replace(start());
        }
    };
    for ends in &ENDS {
        serve(&namespace, ends.listener);
        take_turns(&namespace, &bus, ends, &[0, 5], restart);
    }
    daemon.into_inner().stop();
}

/// Has a worker open a connection, `$s`, always from the same port, that the server has accepted.
fn open(ends: &Ends) -> String {
    let (local, (remote, port)) = (ends.client, ends.dialed);
    format!(
        "$s = opened(SOCK_STREAM, 0, '{local}', 40000, SO_REUSEADDR); connect($s, at('{remote}', {port})) or die $!; sysread($s, my $byte, 1)"
    )
}

/// Ends it without a trace, so that the port is free.
const RESET: &str = "setsockopt($s, SOL_SOCKET, SO_LINGER, pack('II', 1, 0)); close $s";

/// A connection that the daemon knows; then the daemon is killed, and another process has the same ends. What the next life
/// says of the flow that is there, at first and when it knows the sockets: the process or nobody.
fn taken_over_while_nobody_runs(ends: &Ends, keep: bool, lost: bool) {
    let namespace = namespace("taken-over");
    let bus = Bus::start();
    let kept = Kept::open(&namespace, if lost { 1 << 16 } else { 1 << 22 });
    let mut daemon = kept.spawn_with(&namespace, &bus, DEFAULT);
    daemon.wait_until_attributed(&bus);
    serve(&namespace, ends.listener);
    let [mut first, mut second] = [Worker::start(&namespace), Worker::start(&namespace)];
    let (open, port) = (open(ends), ends.dialed.1);
    first.run(&open);
    wait_for("its owner", || (flow(&bus, port)["initiator"]["pid"] == first.pid()).then_some(()));
    daemon.signal(Signal::KILL);
    let _ = daemon.ended();
    if lost {
        inject::udp(&namespace, 1001, 1_000);
    }
    first.run(RESET);
    // The kernel uses the memory of one flow for the next, and makes CTA_ID of its address.
    let family = if ends.client.contains(':') { "ipv6" } else { "ipv4" };
    namespace.run(&format!("conntrack -D -f {family} -p tcp --orig-port-dst {port}"));
    second.run(&open);
    if !keep {
        second.run("close $s");
    }
    let is_right = |bus: &Bus| {
        let flow = flow(bus, port);
        let initiator = &flow["initiator"];
        assert!(initiator.is_null() || initiator["pid"] == second.pid(), "{lost} {keep}: {flow:#}");
    };
    let mut daemon = kept.spawn_with(&namespace, &bus, UNATTRIBUTED);
    daemon.wait_until_synchronized(&bus);
    is_right(&bus);
    daemon.signal(Signal::KILL);
    let _ = daemon.ended();
    let mut daemon = kept.spawn_with(&namespace, &bus, DEFAULT);
    daemon.wait_until_synchronized(&bus);
    is_right(&bus);
    daemon.wait_until_attributed(&bus);
    is_right(&bus);
    daemon.stop();
}

#[test]
fn a_connection_that_was_taken_over_while_nobody_ran_is_never_of_the_process_before() {
    for ends in &ENDS[..2] {
        for [keep, lost] in [[true, false], [true, true], [false, true]] {
            taken_over_while_nobody_runs(ends, keep, lost);
        }
    }
}

/// Where there is time, an owner is not only never wrong: each is there, also of the next connection with the same ends.
#[test]
fn connections_with_the_same_ends_one_after_another_have_each_its_own_client_and_server() {
    let namespace = namespace("successors");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    for ends in &ENDS {
        let (address, listening) = ends.listener;
        let mut expected = Vec::new();
        for _ in 0..4 {
            let [mut server, mut client] = [Worker::start(&namespace), Worker::start(&namespace)];
            server.run(&format!(
                "$l = opened(SOCK_STREAM, 0, '{address}', {listening}, SO_REUSEADDR); listen($l, 5) or die $!; 1"
            ));
            thread::scope(|scope| {
                scope.spawn(|| server.run("accept($a, $l) or die $!; syswrite($a, 'x')"));
                client.run(&open(ends));
            });
            expected.push([client.pid(), server.pid()]);
            let owners = |flow: &Value| {
                ["initiator", "responder"].map(|end| {
                    let exact = flow[end]["confidence"] == "exact";
                    flow[end]["pid"].as_u64().filter(|_| exact).unwrap_or(0)
                })
            };
            wait_for("each connection with its own ends", || {
                let all: Vec<_> = all_flows(&bus, ends.dialed.1).iter().map(owners).collect();
                (all == expected).then_some(())
            });
            client.run(RESET);
            server.run("close $a; close $l");
        }
    }
    daemon.stop();
}

#[test]
fn a_connection_that_was_refused_has_no_responder_whoever_accepts_the_next_one() {
    let namespace = Namespace::tracked("refused-ends");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    // Both are read in one go, and the same process opens them.
    let mut worker = Worker::start(&namespace);
    for (address, port) in [("127.0.0.1", 9000), ("::1", 9001)] {
        daemon.signal(Signal::STOP);
        worker.run(&format!("refused('{address}', 40000, '{address}', {port})"));
        serve(&namespace, (address, port));
        worker.run(&format!("once('{address}', 40000, '{address}', {port})"));
        daemon.signal(Signal::CONT);
        let flows = wait_for("both flows", || Some(all_flows(&bus, port)).filter(|flows| flows.len() == 2));
        assert!(flows[0]["responder"].is_null(), "nobody listened: {:#}", flows[0]);
        for flow in &flows {
            assert!(flow["initiator"].is_null() || flow["initiator"]["pid"] == worker.pid(), "{flow:#}");
        }
        let accepted = &flows[1]["responder"];
        assert!(accepted.is_null() || accepted["pid"] == this_process(), "{:#}", flows[1]);
    }
    daemon.stop();
}

#[test]
fn a_datagram_flow_goes_to_the_process_that_takes_its_port_over() {
    let namespace = Namespace::tracked("takeover");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let [mut first, mut second] = [Worker::start(&namespace), Worker::start(&namespace)];
    for (port, local, remote) in [(9, "127.0.0.1", "127.0.0.1"), (10, "::1", "::1")] {
        let initiator = |pid: u64| {
            wait_for("the sender", || (flow(&bus, port)["initiator"]["pid"] == pid).then_some(()));
        };
        first.run(&format!("$s = udp('{local}', 5500); to($s, '{remote}', {port})"));
        initiator(first.pid());
        let before = flow(&bus, port)["id"].clone();
        first.run("close $s");
        second.run(&format!("$s = udp('{local}', 5500); to($s, '{remote}', {port})"));
        initiator(second.pid());
        let after = flow(&bus, port);
        assert_eq!(after["id"], before, "the flow is the same");
        assert_eq!(after["initiator"]["confidence"], "exact", "{after:#}");
    }
    daemon.stop();
}

#[test]
fn a_datagram_flow_goes_to_the_server_that_is_started_again() {
    let namespace = Namespace::tracked("restarted");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let mut client = Worker::start(&namespace);
    for (port, bound, address) in
        [(5300, "127.0.0.1", "127.0.0.1"), (5301, "0.0.0.0", "127.0.0.1"), (5302, "::", "::1")]
    {
        let responder = |pid: u64, confidence: &str| {
            wait_for(confidence, || {
                let flow = flow(&bus, port);
                let responder = &flow["responder"];
                (responder["pid"] == pid && responder["confidence"] == confidence).then_some(())
            });
        };
        let client_end = format!("$c = udp('{address}', 5400); to($c, '{address}', {port})");
        let bind = format!("$s = udp('{bound}', {port})");
        let answer = format!("to($s, '{address}', 5400)");
        let mut servers = [0; 3].map(|_| Worker::start(&namespace));
        servers[0].run(&bind);
        client.run(&client_end);
        responder(servers[0].pid(), "inherited");
        servers[0].run(&answer);
        responder(servers[0].pid(), "exact");
        // The next one waits, and the next after it answers.
        servers[0].run("close $s");
        servers[1].run(&bind);
        client.run(&format!("to($c, '{address}', {port})"));
        responder(servers[1].pid(), "inherited");
        servers[1].run("close $s");
        servers[2].run(&bind);
        servers[2].run(&answer);
        responder(servers[2].pid(), "exact");
        client.run("close $c");
    }
    daemon.stop();
}

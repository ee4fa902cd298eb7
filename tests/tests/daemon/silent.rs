//! Flows that do not send all their events: whatever rules mask and settings turn off, the table is the kernel's.

use std::collections::HashMap;
use std::hint;
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use flowbus_tests::flow::agreed;
use flowbus_tests::network::{MASQUERADED, PLAIN, SERVER_V4, socket_address};
use flowbus_tests::process::wait_for;
use flowbus_tests::traffic::{Connection, TcpService, UdpService};
use flowbus_tests::{Bus, Daemon, Namespace, Network};
use rustix::process::Signal;
use serde_json::Value;

/// A port on which nobody listens.
const REFUSED: u16 = 7999;

const MASKS: [&str; 5] = ["new", "new,destroy", "destroy", "assured,destroy", "new,related,destroy,label"];

/// A rule by which the events of new flows are masked.
fn mask(router: &Namespace, events: &str) {
    let rule = format!("ct state new ct event set {events}\n");
    router.nft(&format!(
        "table inet masking {{\nchain mask {{\ntype filter hook prerouting priority mangle\n{rule}}}\n}}\n"
    ));
}

fn statistics(bus: &Bus) -> Value {
    bus.monitor_call("GetStatistics", &[]).unwrap()[0].clone()
}

/// The table is the kernel's, and so is what is said of it.
fn agree(bus: &Bus, network: &Network, what: &str) {
    let (flows, table) = agreed(bus, &network.router);
    assert_eq!(flows.len(), table.len(), "{what}");
    assert_eq!(bus.property("Synchronized").unwrap(), Value::Bool(true), "{what}");
    wait_for(&format!("counts to agree: {what}"), || {
        let statistics = statistics(bus);
        (statistics["kernel_count"] == statistics["active"]).then_some(())
    });
}

/// Every id that was ever active has ended exactly once.
fn ended_once(bus: &Bus, what: &str) {
    let closed = bus.list("ListClosed", &[]).unwrap();
    let mut ends = HashMap::<u64, u32>::new();
    for flow in &closed {
        *ends.entry(flow["id"].as_u64().unwrap()).or_default() += 1;
        let (reason, source) = (flow["end_reason"].as_str().unwrap(), flow["end_source"].as_str().unwrap());
        // An end that nobody reported is flagged.
        assert_eq!(reason != "destroyed", source == "estimated", "{what}: {flow}");
    }
    assert!(ends.values().all(|count| *count == 1), "{what}: {ends:?}");
    let newest = closed.iter().map(|flow| flow["id"].as_u64().unwrap()).max().unwrap_or(0);
    assert_eq!(ends.len() as u64, newest, "{what}: every flow has ended");
}

fn services(network: &Network) -> (TcpService, UdpService) {
    (network.tcp_service(SERVER_V4, PLAIN), network.udp_service(SERVER_V4, PLAIN))
}

/// How the flows that are born get their masks.
type Born<'a> = &'a dyn Fn(&mut dyn FnMut());

/// What flows do: each step is compared with the kernel.
fn live(bus: &Bus, network: &Network, (tcp, udp): &(TcpService, UdpService), born: Born<'_>, what: &str) {
    let step = |name: &str| agree(bus, network, &format!("{what}: {name}"));
    let (mut connections, mut sockets) = (Vec::new(), Vec::new());
    born(&mut || connections = tcp.connect(&network.client, socket_address(SERVER_V4, PLAIN), 3));
    step("TCP is open");
    connections.iter_mut().for_each(Connection::exchange);
    step("TCP carries data");
    connections.pop().unwrap().close();
    step("TCP is closed");
    born(&mut || sockets = udp.exchange(&network.client, socket_address(SERVER_V4, PLAIN), 3));
    step("UDP");
    born(&mut || {
        network.client.enter(|| TcpStream::connect(socket_address(SERVER_V4, REFUSED))).unwrap_err();
    });
    step("TCP is refused");
    network.router.run("conntrack -F");
    step("flushed");
    ended_once(bus, what);
}

fn under_mask(events: &str) {
    let (network, bus) = (Network::new(), Bus::start());
    let daemon = Daemon::start(&network.router, &bus);
    mask(&network.router, events);
    live(&bus, &network, &services(&network), &|births| births(), events);
    assert_eq!(statistics(&bus)["event_masks"], "table masking, chain mask");
    wait_for("the mask to be in the journal", || {
        daemon.log().contains("table masking, chain mask").then_some(())
    });
    daemon.stop();
}

#[test]
fn a_table_whose_flows_tell_only_their_birth_is_the_kernels() {
    under_mask(MASKS[0]);
}

#[test]
fn a_table_whose_flows_tell_birth_and_end_is_the_kernels() {
    under_mask(MASKS[1]);
}

#[test]
fn a_table_whose_flows_tell_only_their_end_is_the_kernels() {
    under_mask(MASKS[2]);
}

#[test]
fn a_table_whose_flows_tell_when_they_are_assured_is_the_kernels() {
    under_mask(MASKS[3]);
}

#[test]
fn a_table_whose_flows_do_not_tell_their_states_is_the_kernels() {
    under_mask(MASKS[4]);
}

/// The rule is gone before flowbusd can look, and its masks stay with their flows: as those of iptables-legacy and Open
/// vSwitch, which flowbusd does not see.
fn under_unseen_mask(events: &str) {
    let (network, bus) = (Network::new(), Bus::start());
    let daemon = Daemon::start(&network.router, &bus);
    let born: Born<'_> = &|births| {
        daemon.signal(Signal::STOP);
        mask(&network.router, events);
        births();
        network.router.run("nft delete table inet masking");
        daemon.signal(Signal::CONT);
    };
    live(&bus, &network, &services(&network), born, events);
    assert!(!daemon.log().contains("table masking"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn a_mask_that_nobody_sees_and_that_lets_the_birth_pass_leaves_the_table_right() {
    under_unseen_mask(MASKS[0]);
}

#[test]
fn a_mask_that_nobody_sees_and_that_lets_birth_and_end_pass_leaves_the_table_right() {
    under_unseen_mask(MASKS[1]);
}

#[test]
fn a_mask_that_nobody_sees_and_that_lets_the_end_pass_leaves_the_table_right() {
    under_unseen_mask(MASKS[2]);
}

#[test]
fn a_mask_that_nobody_sees_and_that_lets_flows_tell_when_they_are_assured_leaves_the_table_right() {
    under_unseen_mask(MASKS[3]);
}

#[test]
fn a_mask_that_nobody_sees_and_that_lets_no_state_pass_leaves_the_table_right() {
    under_unseen_mask(MASKS[4]);
}

#[test]
fn a_mask_that_nobody_sees_and_that_hides_the_answer_leaves_the_table_right() {
    under_unseen_mask("new,assured,destroy");
}

#[test]
fn a_mask_that_nobody_sees_and_that_hides_what_follows_the_answer_leaves_the_table_right() {
    under_unseen_mask("new,reply,destroy");
}

#[test]
fn a_table_is_the_kernels_while_events_are_off_and_on_again() {
    const EVENTS: &str = "net.netfilter.nf_conntrack_events";
    let (network, bus) = (Network::new(), Bus::start());
    network.router.sysctl(EVENTS, "0");
    let daemon = Daemon::start(&network.router, &bus);
    let services = services(&network);
    let born: Born<'_> = &|births| births();
    live(&bus, &network, &services, born, "off before the start");
    for value in ["1", "2", "0"] {
        network.router.sysctl(EVENTS, value);
        live(&bus, &network, &services, born, value);
    }
    assert_eq!(statistics(&bus)["kernel_events"], 0);
    wait_for("the setting to be in the journal", || {
        daemon.log().contains("nf_conntrack_events is 0").then_some(())
    });
    daemon.stop();
}

#[test]
fn masks_that_come_and_go_leave_the_table_right() {
    let (network, bus) = (Network::new(), Bus::start());
    let daemon = Daemon::start(&network.router, &bus);
    let tcp = network.tcp_service(SERVER_V4, PLAIN);
    let open = |count| tcp.connect(&network.client, socket_address(SERVER_V4, PLAIN), count);
    let before = open(2);
    mask(&network.router, "new");
    let masked = open(2);
    agree(&bus, &network, "masked and not");
    network.router.run("nft delete table inet masking");
    wait_for("the mask to be gone", || statistics(&bus).get("event_masks").is_none().then_some(()));
    // The mask stays with its flows.
    for connection in masked.into_iter().chain(before) {
        connection.close();
    }
    agree(&bus, &network, "closed");
    network.router.run("conntrack -F");
    agree(&bus, &network, "flushed");
    ended_once(&bus, "masks that come and go");
    daemon.stop();
}

#[test]
fn a_flush_of_45000_flows_that_tell_only_their_birth_is_noticed() {
    const FLOWS: u16 = 45_000;
    let (network, bus) = (Network::new(), Bus::start());
    let daemon = Daemon::start(&network.router, &bus);
    mask(&network.router, "new");
    network.client.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in 10_000..10_000 + FLOWS {
            // The server may say that nobody listens on a port that came before.
            while socket.send_to(b"x", socket_address(SERVER_V4, port)).is_err() {}
        }
    });
    wait_for("all flows", || (bus.property("ActiveCount").unwrap() == u64::from(FLOWS)).then_some(()));
    network.router.run("conntrack -F");
    agree(&bus, &network, "flushed");
    assert_eq!(bus.property("ActiveCount").unwrap(), 0);
    assert_eq!(statistics(&bus)["events_destroy"], 0, "no event has said it");
    daemon.stop();
}

/// Sockets of which two threads send the first packets at the same time.
fn race(sockets: &[UdpSocket]) {
    let arrivals: Vec<AtomicU32> = sockets.iter().map(|_| AtomicU32::new(0)).collect();
    let send = || {
        for (socket, arrived) in sockets.iter().zip(&arrivals) {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 {
                hint::spin_loop();
            }
            socket.send(b"x").unwrap();
        }
    };
    thread::scope(|scope| {
        scope.spawn(send);
        scope.spawn(send);
    });
}

/// Two packets of one socket at once, as two DNS queries are: each makes a flow, and NAT gives each a reply tuple of its own. It takes
/// two processors.
#[test]
fn the_loser_of_a_nat_clash_is_named_and_the_table_stays_the_kernels() {
    let (network, bus) = (Network::new(), Bus::start());
    let daemon = Daemon::start(&network.router, &bus);
    let _service = network.udp_service(SERVER_V4, MASQUERADED);
    // Rules that are passed between the making of a flow and its insertion: the two packets then meet in there.
    let rules = "udp dport 7100 counter\n".repeat(4000);
    network.router.nft(&format!(
        "table inet slow {{\nchain forward {{\ntype filter hook forward priority filter\n{rules}}}\n}}\n"
    ));
    let clash = [["status", "as", "1 nat-clash"]];
    let loser = wait_for("a NAT clash", || {
        network.client.enter(|| {
            let socket = || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect(socket_address(SERVER_V4, MASQUERADED)).unwrap();
                socket
            };
            race(&std::iter::repeat_with(socket).take(20).collect::<Vec<_>>());
        });
        let active = bus.list("ListActive", &clash).unwrap();
        active.into_iter().chain(bus.list("ListClosed", &clash).unwrap()).next()
    });
    let names = loser["status"].as_array().unwrap();
    assert!(names.contains(&"nat-clash".into()) && !names.contains(&"untracked".into()), "{loser}");
    assert_eq!(loser["dport"], MASQUERADED);
    network.router.run("conntrack -F");
    agree(&bus, &network, "after clashes");
    daemon.stop();
}

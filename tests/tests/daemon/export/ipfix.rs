//! IPFIX, as nfcapd and ipfixDump read it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use flowbus_tests::daemon::binary;
use flowbus_tests::network::{
    MASQUERADED, MASQUERADED_SERVER_V4, PLAIN, SERVER_V4, SERVER_V6, ZONED, socket_address,
};
use flowbus_tests::process::{Directory, output_of, signal, wait_for};
use flowbus_tests::traffic::ping;
use flowbus_tests::{Bus, Daemon, Namespace, Network, burst, companion};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::process::Signal;
use serde_json::Value;

/// The collector's address, in a namespace where nobody else has it.
const COLLECTOR: &str = "127.0.0.1:4739";

/// The row of the collector's socket in the namespace of a process, if it is bound.
fn socket_row(child: &Child) -> Option<String> {
    let table = fs::read_to_string(format!("/proc/{}/net/udp", child.id())).unwrap();
    table.lines().find(|row| row.contains(" 0100007F:1283 ")).map(str::to_owned)
}

/// nfcapd, with an empty directory.
fn nfcapd(namespace: &Namespace, directory: &Path) -> Child {
    let mut command = namespace.command("nfcapd");
    command.args(["-b", "127.0.0.1", "-p", "4739", "-t", "3600", "-w"]).arg(directory);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("nfcapd to listen", || socket_row(&child));
    child
}

/// The records that nfcapd has received, once it has ended, and what it says of their sequence.
fn received(mut nfcapd: Child, directory: &Path) -> (Vec<Value>, String) {
    // A signal ends it also where its socket holds messages, and the one that it has just read is lost.
    wait_for("nfcapd to read", || socket_row(&nfcapd).filter(|row| row.contains(" 00000000:00000000 ")));
    wait_for("nfcapd to wait for more", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", nfcapd.id())).unwrap();
        stat.contains(") S ").then_some(())
    });
    signal(&nfcapd, Signal::TERM);
    nfcapd.wait().unwrap();
    let text = output_of(Command::new("nfdump").args(["-o", "json", "-R"]).arg(directory));
    let records = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
    let totals = output_of(Command::new("nfdump").args(["-I", "-R"]).arg(directory));
    let failures = totals.lines().find(|line| line.starts_with("Sequence failures")).unwrap_or(&totals);
    (records, failures.to_owned())
}

/// flowbus-export with a log and a collector, which has read the table.
fn exporter(collecting: &Namespace, bus: &Bus, directory: &Directory) -> Daemon {
    let log = directory.path().join("log");
    fs::create_dir(&log).unwrap();
    let text = format!("[log]\ndirectory = {log:?}\n[ipfix]\ncollector = {COLLECTOR:?}\ntemplate_sec = 1\n");
    let config = directory.file("export.toml", &text);
    let mut command = collecting.command(binary("flowbus-export").to_str().unwrap());
    command.args(["--bus", &bus.address(), "--config"]).arg(config);
    let exporter = Daemon::spawn(&mut command);
    wait_for("the exporter to follow", || {
        let mut files = super::files(&log);
        let (_, lines) = files.pop()?;
        lines.iter().any(|line| line["type"] == "snapshot-end").then_some(())
    });
    exporter
}

struct World {
    network: Network,
    /// Where the exporter and its collector are.
    collecting: Namespace,
    bus: Bus,
    daemon: Daemon,
    directory: Directory,
}

impl World {
    fn new() -> Self {
        let (network, bus) = (Network::new(), Bus::start());
        let daemon = Daemon::start(&network.router, &bus);
        Self { network, collecting: Namespace::new("ipfix"), bus, daemon, directory: Directory::new("ipfix") }
    }

    fn exporter(&self) -> Daemon {
        exporter(&self.collecting, &self.bus, &self.directory)
    }

    /// Flows of every kind, which end again; how many.
    fn traffic(&self) -> usize {
        let network = &self.network;
        let services = [
            (SERVER_V4, MASQUERADED, 20),
            (SERVER_V6, MASQUERADED, 10),
            (SERVER_V4, PLAIN, 3),
            (SERVER_V4, ZONED, 2),
        ];
        for (address, port, count) in services {
            let service = network.udp_service(address, port);
            service.exchange(&network.client, socket_address(address, port), count);
        }
        ping(&network.client, MASQUERADED_SERVER_V4.parse().unwrap(), 77);
        let count = services.iter().map(|(.., count)| count).sum::<usize>() + 1;
        wait_for("the flows", || (self.bus.property("ActiveCount").ok()? == count).then_some(()));
        network.router.run("conntrack -F");
        wait_for("their ends", || (self.bus.property("ActiveCount").ok()? == 0).then_some(()));
        count
    }
}

/// What of an ended flow both sides know, in one line; times in milliseconds.
fn identity(flow: &Value) -> String {
    let number = |key: &str| flow[key].as_u64().unwrap_or(0);
    let address = |key: &str| flow[key].as_str().unwrap().parse::<IpAddr>().unwrap();
    // The original value where nothing is translated.
    let translated = |prefix: &str, side: &str| {
        if flow[format!("{prefix}_{side}")].is_null() {
            return (address(side), number(&format!("{}port", &side[..1])));
        }
        (address(&format!("{prefix}_{side}")), number(&format!("{prefix}_{}port", &side[..1])))
    };
    format!(
        "{} {}: {}:{} to {}:{}, {:?} to {:?}, {} to {}, {}/{} and {}/{}, type {}, zone {}",
        number("id"),
        number("protocol_number"),
        address("src"),
        number("sport"),
        address("dst"),
        number("dport"),
        translated("nat", "src"),
        translated("nat", "dst"),
        number("start_usec") / 1000,
        number("end_usec") / 1000,
        number("orig_packets"),
        number("orig_bytes"),
        number("reply_packets"),
        number("reply_bytes"),
        number("icmp_type"),
        number("zone"),
    )
}

/// The same of a record in the words of ipfixDump.
fn identity_of_record(record: &BTreeMap<String, String>) -> String {
    let field = |name: &str| record.get(name).unwrap_or_else(|| panic!("no {name} in {record:?}")).as_str();
    let of_family = |name: &str| {
        let key = record.keys().find(|key| {
            key.as_str() == name.replace("IP", "IPv4") || key.as_str() == name.replace("IP", "IPv6")
        });
        field(key.unwrap_or_else(|| panic!("no {name} in {record:?}")))
    };
    let address = |name: &str| of_family(name).parse::<IpAddr>().unwrap();
    let port = |name: &str| field(name).parse::<u64>().unwrap();
    let msec = |name: &str| {
        output_of(Command::new("date").args(["--utc", "+%s%3N", "--date", field(name)])).trim().to_owned()
    };
    assert_eq!(field("ingressVRFID"), field("egressVRFID"));
    format!(
        "{} {}: {}:{} to {}:{}, {:?} to {:?}, {} to {}, {}/{} and {}/{}, type {}, zone {}",
        field("flowId"),
        field("protocolIdentifier"),
        address("sourceIPAddress"),
        field("sourceTransportPort"),
        address("destinationIPAddress"),
        field("destinationTransportPort"),
        (address("postNATSourceIPAddress"), port("postNAPTSourceTransportPort")),
        (address("postNATDestinationIPAddress"), port("postNAPTDestinationTransportPort")),
        msec("flowStartMilliseconds"),
        msec("flowEndMilliseconds"),
        field("packetDeltaCount"),
        field("octetDeltaCount"),
        field("postPacketDeltaCount"),
        field("postOctetDeltaCount"),
        of_family("icmpTypeIP"),
        field("ingressVRFID"),
    )
}

/// The data records of messages, as ipfixDump reads them.
fn records(path: &Path) -> Vec<BTreeMap<String, String>> {
    let text = output_of(Command::new("ipfixDump").args(["-d", "-i"]).arg(path));
    let mut records = Vec::new();
    for line in text.lines() {
        if line.starts_with("--- data record") {
            records.push(BTreeMap::new());
        } else if let (Some(record), Some((name, value))) = (records.last_mut(), line.split_once(" : "))
            && let Some(name) = name.split_whitespace().last()
        {
            record.insert(name.to_owned(), value.trim().to_owned());
        }
    }
    records
}

fn is_create(event: &str) -> bool {
    event == "4" || event == "6"
}

#[test]
fn each_flow_is_a_create_and_a_delete_with_what_flowbusd_knows() {
    let world = World::new();
    let socket = world.collecting.enter(|| UdpSocket::bind(COLLECTOR)).unwrap();
    let exporter = world.exporter();
    let count = world.traffic();
    let path = world.directory.path().join("messages");
    let (mut bytes, mut message) = (Vec::new(), [0; 65_536]);
    let records = wait_for("all records", || {
        socket.set_nonblocking(true).unwrap();
        while let Ok(length) = socket.recv(&mut message) {
            assert!(length <= 1_420, "{length}");
            bytes.extend_from_slice(&message[..length]);
        }
        fs::write(&path, &bytes).unwrap();
        let records = if bytes.is_empty() { Vec::new() } else { records(&path) };
        (records.len() >= 2 * count).then_some(records)
    });
    let (creates, deletes): (Vec<_>, Vec<_>) =
        records.iter().partition(|record| is_create(&record["natEvent"]));
    assert_eq!((creates.len(), deletes.len()), (count, count));
    let ids = |records: &[&BTreeMap<String, String>]| {
        records.iter().map(|record| record["flowId"].clone()).collect::<BTreeSet<_>>()
    };
    assert!(ids(&creates) == ids(&deletes) && ids(&creates).len() == count);
    let closed: BTreeSet<_> = world.bus.list("ListClosed", &[]).unwrap().iter().map(identity).collect();
    let received: BTreeSet<_> = deletes.into_iter().map(identity_of_record).collect();
    assert_eq!(received, closed);
    exporter.stop();
    world.daemon.stop();
}

#[test]
fn the_begin_of_each_flow_is_sent_that_begins_while_the_table_is_first_read() {
    const BEFORE: u32 = 60_000;
    let (namespace, collecting) = (Namespace::tracked("ipfix"), Namespace::new("ipfix"));
    let (bus, directory) = (Bus::start(), Directory::new("ipfix"));
    burst::prepare(&namespace);
    let daemon = Daemon::start(&namespace, &bus);
    let socket = collecting.enter(|| UdpSocket::bind(COLLECTOR)).unwrap();
    set_socket_recv_buffer_size_force(&socket, 64 << 20).unwrap();
    burst::create(&namespace, 0, BEFORE);
    wait_for("the flows", || (bus.property("ActiveCount").ok()? == BEFORE).then_some(()));
    let (exporter, count) = companion::during(
        |stop| burst::Sender::open(&namespace).create_until(stop, BEFORE),
        || exporter(&collecting, &bus, &directory),
    );
    // Ids are given in the order of events, beginning with 1, as are the numbers of changes.
    let lines = super::lines(&directory.path().join("log"));
    let known = lines[0]["sequence"].as_u64().unwrap();
    let read = lines.iter().filter(|line| line["type"] == "flow").map(super::id).max().unwrap();
    assert!(known >= BEFORE.into() && read > known, "none began while the table was read: {read}, {known}");
    let path = directory.path().join("messages");
    let (mut bytes, mut message) = (Vec::new(), [0; 65_536]);
    socket.set_nonblocking(true).unwrap();
    let created = wait_for("the newest flow", || {
        while let Ok(length) = socket.recv(&mut message) {
            bytes.extend_from_slice(&message[..length]);
        }
        fs::write(&path, &bytes).unwrap();
        let created: Vec<u64> =
            records(&path).iter().map(|record| record["flowId"].parse().unwrap()).collect();
        (created.last() == Some(&count.into())).then_some(created)
    });
    assert_eq!(created, (known + 1..=count.into()).collect::<Vec<_>>());
    exporter.stop();
    daemon.stop();
}

#[test]
fn nfcapd_receives_every_record_also_after_it_was_started_again_and_from_the_log() {
    let world = World::new();
    let directories = ["first", "second", "replayed"].map(|name| world.directory.path().join(name));
    directories.iter().for_each(|directory| fs::create_dir(directory).unwrap());
    let [first, second, replayed] = &directories;
    let collector = nfcapd(&world.collecting, first);
    let exporter = world.exporter();
    let log = world.directory.path().join("log");
    let in_log = |ends: usize| {
        wait_for("the ends in the log", || {
            (super::count(&super::lines(&log), super::is_end).len() == ends).then_some(())
        });
    };
    let count = world.traffic();
    in_log(count);
    let receives = |collector: Child, directory: &Path, flows: usize| {
        let (records, failures) = received(collector, directory);
        let creates =
            records.iter().filter(|record| is_create(record["nat_event_id"].as_str().unwrap())).count();
        assert_eq!((records.len(), creates), (2 * flows, flows));
        assert_eq!(failures, "Sequence failures: 0");
    };
    receives(collector, first, count);
    // Nobody is there: the kernel says so to the exporter, and what it sends is lost.
    world.traffic();
    in_log(2 * count);
    let collector = nfcapd(&world.collecting, second);
    // The kernel limits how often it says that nobody is there. Without it the templates go after template_sec.
    thread::sleep(Duration::from_secs(1));
    world.traffic();
    in_log(3 * count);
    receives(collector, second, count);
    exporter.stop();
    world.daemon.stop();

    let collector = nfcapd(&world.collecting, replayed);
    let (name, _) = super::files(&log).pop().unwrap();
    let mut replay = world.collecting.command(binary("flowbus-export").to_str().unwrap());
    replay.arg("--replay").arg(log.join(name)).args(["--to", COLLECTOR]);
    output_of(&mut replay);
    receives(collector, replayed, 3 * count);
}

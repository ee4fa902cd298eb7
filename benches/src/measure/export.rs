//! The flow log and IPFIX: what an event costs flowbus-export, whether it keeps up, and how soon `flowctl history` has an answer.

use std::fs;
use std::hint::spin_loop;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, UNIX_EPOCH};

use ctnetlink::Socket;
use flowbus_interfaces::flow_log_files;
use flowbus_tests::burst::{Sender, tuple};
use flowbus_tests::daemon::binary;
use flowbus_tests::process::{Directory, wait_for};
use flowbus_tests::{Bus, Daemon, Namespace, burst};

use super::burst::{Peer, run as run_peer};
use crate::client::Client;
use crate::cpu;
use crate::document::Section;
use crate::figure::{Bar, Figure, show};
use crate::load::delete;
use crate::size::Size;
use crate::world::{World, namespace};

/// Flows that begin in a second, and then that end in one.
const RATE: u32 = 100_000;
/// Flows that are made at a time.
const BATCH: u32 = 100;
/// The programs that keep flows in files, which write a line for each event.
const PEERS: [(&str, Peer); 2] = [
    ("conntrack -E -b 32M", Peer::Conntrack(&["-E", "-o", "timestamp,id", "-b", "33554432"])),
    ("ulogd2", Peer::Ulogd),
];

/// What one round found.
#[derive(Debug, Default)]
struct Round {
    log: f64,
    compressed: f64,
    ipfix: f64,
    /// The rate that the burst came to.
    rate: f64,
    events: f64,
    gaps: f64,
    /// Of the compressed log, for each flow.
    bytes: f64,
    answers: [f64; 3],
}

/// The questions to a log, by what they ask.
const QUESTIONS: [&str; 3] = [
    "whose an address and port was at an instant",
    "what was alive at an instant",
    "what a process did in all the time",
];

pub(crate) fn measure(size: Size) -> Section {
    let rounds: Vec<Round> = (0..size.rounds).map(|_| round(size.flows)).collect();
    let events = f64::from(2 * size.flows);
    let mut section = Section::new(
        "The flow log",
        format!(
            "{} UDP flows made by real packets, {} a second, and deleted at the same rate; flowbusd knows the process behind them. CPU is that \
             of flowbus-export. The log is searched on one processor.",
            show(f64::from(size.flows)),
            show(f64::from(RATE)),
        ),
    );
    let figure = |what: &str, unit, of: &dyn Fn(&Round) -> f64| {
        Figure::new(what, unit, rounds.iter().map(of).collect())
    };
    section.figures.push(figure("CPU an event: the log", "µs", &|round| round.log));
    section
        .figures
        .push(figure("CPU an event: the log, and its compression", "µs", &|round| round.compressed));
    section.figures.push(figure("CPU an event: IPFIX", "µs", &|round| round.ipfix));
    for (name, peer) in PEERS {
        let each = (0..size.rounds).map(|_| of_peer(peer, size.flows)).collect();
        section.figures.push(Figure::new(format!("CPU an event: {name}"), "µs", each));
    }
    section.figures.push(figure("flows a second that the burst came to", "", &|round| round.rate));
    let kept = figure("events of the burst in the log", "events", &|round| round.events);
    section.figures.push(kept.bar(Bar::AtLeast(events)));
    section.figures.push(figure("gaps in the log", "", &|round| round.gaps).bar(Bar::AtMost(0.0)));
    section.figures.push(figure("the compressed log, a flow", "bytes", &|round| round.bytes));
    for (place, question) in QUESTIONS.iter().enumerate() {
        let what = format!("history in {} records: {question}", show(events));
        section.figures.push(figure(&what, "s", &|round| round.answers[place]).bar(Bar::AtMost(1.0)));
    }
    section
}

fn of_peer(peer: Peer, flows: u32) -> f64 {
    let namespace = namespace();
    let create = || {
        create(&namespace, flows);
    };
    run_peer(peer, &namespace, flows, &create, &|| end(&namespace, flows)).all().each()
}

fn round(flows: u32) -> Round {
    let namespace = namespace();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let client = Client::connect(&bus);
    let world = World { client, daemon, bus, namespace };
    let directory = Directory::new("log");
    let mut round = of_log(&world, flows, directory.path());
    round.ipfix = of_ipfix(&world, flows);
    world.daemon.stop();
    round
}

/// Makes the flows at their rate; the rate that it came to.
fn create(namespace: &Namespace, flows: u32) -> f64 {
    let sender = Sender::open(namespace);
    let begin = Instant::now();
    paced(flows, |first, count| sender.create(first, count));
    f64::from(flows) / begin.elapsed().as_secs_f64()
}

/// Ends the flows at their rate.
fn end(namespace: &Namespace, flows: u32) {
    let netlink = namespace.enter(|| Socket::open().expect("a netlink socket can be opened"));
    paced(flows, |first, count| delete(&netlink, first..first + count));
}

/// Does something with each batch of flows when it is due.
fn paced(flows: u32, act: impl Fn(u32, u32)) {
    let begin = Instant::now();
    for first in (0..flows).step_by(BATCH as usize) {
        let due = Duration::from_secs(1) * first / RATE;
        while begin.elapsed() < due {
            spin_loop();
        }
        act(first, BATCH.min(flows - first));
    }
}

/// The processor time of a program while all flows begin and end, and the rate at which they began; with what is to be done while all
/// are alive.
fn through_a_burst(world: &World, program: &Daemon, flows: u32, alive: impl FnOnce()) -> (Duration, f64) {
    let time = || cpu::of_process(program.pid());
    world.settle();
    let before = cpu::settled(time);
    let rate = create(&world.namespace, flows);
    world.client.wait_for_active(flows);
    alive();
    end(&world.namespace, flows);
    world.client.wait_for_active(0);
    world.settle();
    (cpu::settled(time) - before, rate)
}

fn exporter(namespace: &Namespace, bus: &Bus, configuration: &Path) -> Daemon {
    let mut command = namespace.command(&binary("flowbus-export").to_string_lossy());
    Daemon::spawn(command.args(["--bus", &bus.address(), "--config"]).arg(configuration))
}

fn of_log(world: &World, flows: u32, log: &Path) -> Round {
    let directory = Directory::new("export");
    let options =
        format!("[log]\ndirectory = {log:?}\nrotate_bytes = 4294967296\nmaximum_bytes = 17179869184\n");
    let configuration = directory.file("export.toml", &options);
    let started = exporter(&world.namespace, &world.bus, &configuration);
    let path = wait_for("the log to begin", || {
        let path = newest(log)?;
        count(&path, "\"type\":\"snapshot-end\"").gt(&0).then_some(path)
    });
    let mut at = 0;
    let (used, rate) = through_a_burst(world, &started, flows, || {
        at = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros());
    });
    started.stop();
    let events = ["new", "destroy"].map(|kind| count(&path, &format!("\"type\":\"{kind}\"")));
    let events = f64::from(events[0] + events[1]);
    let gaps = f64::from(count(&path, "\"type\":\"gap\""));
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(2 * flows);

    // The next one begins another file, and compresses this one on a thread that is gone when it is done.
    let started = exporter(&world.namespace, &world.bus, &configuration);
    let closed = path.with_extension("ndjson.zst");
    let mut compressing = Duration::ZERO;
    wait_for("the compressed file", || {
        // Its last time but for some milliseconds.
        for _ in 0..10 {
            compressing = compressing.max(cpu::of_thread(started.pid(), "keeper"));
            sleep(Duration::from_millis(2));
        }
        (closed.exists() && !path.exists()).then_some(())
    });
    started.stop();
    let bytes = fs::metadata(&closed).map_or(0, |data| data.len()) as f64 / f64::from(flows);
    let (_, destination) = tuple(flows / 2);
    let (address, port) = (format!("dst={}", destination.ip()), format!("dport={}", destination.port()));
    let at = at.to_string();
    let own = fs::read_to_string("/proc/self/comm").expect("/proc is there");
    let process = format!("comm={}", own.trim());
    // Of one socket without an address flowbusd remembers at most 131,072 destinations, and so the owners of as many flows.
    let asked: [(&[&str], RangeInclusive<u32>); 3] = [
        (&["--at", &at, &address, &port], 1..=1),
        (&["--at", &at], flows..=flows),
        (&[&process], flows.min(100_000)..=flows),
    ];
    let answers = asked.map(|(question, rows)| answered(log, question, rows));
    Round {
        log: each(used),
        compressed: each(used + compressing),
        rate,
        events,
        gaps,
        bytes,
        answers,
        ..Round::default()
    }
}

/// The seconds until `flowctl history` has answered with `rows` rows, on one processor.
fn answered(log: &Path, question: &[&str], rows: RangeInclusive<u32>) -> f64 {
    let directory = Directory::new("answer");
    let answer = directory.file("answer", "");
    let file = fs::File::create(&answer).expect("a directory of our own takes files");
    let mut command = Command::new("taskset");
    command
        .args(["--cpu-list", "0"])
        .arg(binary("flowctl"))
        .args(["history", "--json", "--directory"])
        .arg(log);
    command.args(question).stdout(file).stderr(Stdio::null());
    let begin = Instant::now();
    let status = command.status().expect("taskset is there");
    let elapsed = begin.elapsed();
    assert!(status.success(), "{command:?} ended with {status}");
    let answered = count(&answer, "\"id\":");
    assert!(rows.contains(&answered), "{answered} rows, not {rows:?}: {command:?}");
    elapsed.as_secs_f64()
}

/// The microseconds for each event that flowbus-export sends to a collector.
fn of_ipfix(world: &World, flows: u32) -> f64 {
    let collecting = Namespace::new("ipfix");
    let collector = collecting.enter(|| UdpSocket::bind("127.0.0.1:4739").expect("nobody else is there"));
    collector.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket takes the option");
    let directory = Directory::new("export");
    let configuration = directory.file("export.toml", "[ipfix]\ncollector = \"127.0.0.1:4739\"\n");
    let started = exporter(&collecting, &world.bus, &configuration);
    // A flow beside those that count shows that it follows.
    let (beside, mut message) = (flows.next_multiple_of(1 << 16), [0; 65_536]);
    let netlink = world.namespace.enter(|| Socket::open().expect("a netlink socket can be opened"));
    wait_for("a message of IPFIX", || {
        burst::create(&world.namespace, beside, 1);
        world.client.wait_for_active(1);
        delete(&netlink, std::iter::once(beside));
        world.client.wait_for_active(0);
        collector.recv(&mut message).ok()
    });
    let (used, _) = through_a_burst(world, &started, flows, || {});
    started.stop();
    used.as_secs_f64() * 1e6 / f64::from(2 * flows)
}

fn newest(log: &Path) -> Option<PathBuf> {
    Some(flow_log_files(log).ok()?.pop()?.1)
}

/// How many lines of a file have this text.
fn count(path: &Path, text: &str) -> u32 {
    let file = fs::File::open(path).expect("the log is there");
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    lines.filter(|line| line.contains(text)).fold(0, |count, _| count + 1)
}

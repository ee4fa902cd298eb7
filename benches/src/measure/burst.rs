//! A burst of flows made and flushed: how many of its events a reader gets, and what each costs it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flowbus_tests::daemon::BY_SOCKET;
use flowbus_tests::process::{Directory, wait_for};
use flowbus_tests::{Bus, Daemon, Namespace, burst};
use rustix::process::Signal;

use crate::client::Client;
use crate::cpu;
use crate::document::{Chart, Section};
use crate::figure::{Bar, Figure, show};
use crate::floor::{Done, Floor, Reader};
use crate::size::Size;
use crate::world::{flush, namespace, wait_for_listener};

/// What is compared in each round: CPU an event of one peer against that of another, and how much is allowed.
const RATIOS: [(&str, Peer, Peer, f64); 4] = [
    (
        "flowbusd from the socket against the blocking floor",
        Peer::FlowbusdBySocket,
        Peer::Floor(Floor::Blocking),
        0.8,
    ),
    ("flowbusd against the napping floor", Peer::Flowbusd, Peer::Floor(Floor::Napping), 0.9),
    (
        "flowbusd with attribution against the napping floor",
        Peer::FlowbusdAttributed,
        Peer::Floor(Floor::Napping),
        1.5,
    ),
    ("flowbusd's tracker thread against conntrack -E", Peer::Flowbusd, CONNTRACK, 0.11),
];

/// A reader of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Floor(Floor),
    /// Through a ring, as the service.
    Flowbusd,
    /// It receives events from the socket.
    FlowbusdBySocket,
    /// Through a ring, and with BPF programs that report sockets: its default configuration.
    FlowbusdAttributed,
    Conntrack(&'static [&'static str]),
    Ulogd,
}

const CONNTRACK: Peer = Peer::Conntrack(&["-E", "-o", "timestamp,id"]);

pub(super) const PEERS: [(&str, Peer); 10] = [
    ("floor: recv and count, blocking", Peer::Floor(Floor::Blocking)),
    ("floor: recv and count, napping", Peer::Floor(Floor::Napping)),
    ("floor: ring of a BPF socket filter, napping", Peer::Floor(Floor::Ring)),
    ("flowbusd", Peer::Flowbusd),
    ("flowbusd with attribution", Peer::FlowbusdAttributed),
    ("flowbusd from the socket", Peer::FlowbusdBySocket),
    ("conntrack -E", CONNTRACK),
    ("conntrack -E -b 32M", Peer::Conntrack(&["-E", "-o", "timestamp,id", "-b", "33554432"])),
    ("conntrack -E -o xml -b 32M", Peer::Conntrack(&["-E", "-o", "xml,timestamp,id", "-b", "33554432"])),
    ("ulogd2", Peer::Ulogd),
];

/// What a reader did with the events of one kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    received: u32,
    used: Duration,
}

impl Part {
    /// Microseconds for each event that it got.
    pub(super) fn each(self) -> f64 {
        self.used.as_secs_f64() * 1e6 / f64::from(self.received.max(1))
    }
}

/// What a reader did with a burst.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    new: Part,
    destroy: Part,
    /// What flowbusd did, with the threads that talk to the bus.
    process: Option<Part>,
    /// How often a floor was woken.
    woken: u64,
}

impl Outcome {
    pub(super) fn all(&self) -> Part {
        Part { received: self.new.received + self.destroy.received, used: self.new.used + self.destroy.used }
    }

    /// What the whole process did.
    pub(super) fn process(&self) -> Part {
        self.process.unwrap_or(self.all())
    }

    /// How many events a floor read each time it was woken.
    pub(super) fn events_a_wake(&self) -> f64 {
        f64::from(self.all().received) / self.woken.max(1) as f64
    }
}

/// What each of [`PEERS`] did in each round.
pub(super) struct Rounds([Vec<Outcome>; PEERS.len()]);

impl Rounds {
    /// Has the peers take turns, each in a namespace of its own.
    pub(super) fn run(size: Size, flows: u32, create: impl Fn(&Namespace), end: impl Fn(&Namespace)) -> Self {
        let mut outcomes = [const { Vec::new() }; PEERS.len()];
        for _ in 0..size.rounds {
            for ((_, peer), outcomes) in PEERS.iter().zip(&mut outcomes) {
                let namespace = namespace();
                outcomes.push(run(*peer, &namespace, flows, &|| create(&namespace), &|| end(&namespace)));
            }
        }
        Self(outcomes)
    }

    /// A figure of each peer, with its name.
    pub(super) fn figures(&self, unit: &'static str, value: impl Fn(&Outcome) -> f64) -> Vec<Figure> {
        PEERS.iter().map(|(name, peer)| Figure::new(*name, unit, self.of(*peer, &value))).collect()
    }

    /// A value of one peer in each round.
    pub(super) fn of(&self, peer: Peer, value: impl Fn(&Outcome) -> f64) -> Vec<f64> {
        let place = PEERS.iter().position(|(_, other)| *other == peer).expect("it is one of them");
        self.0[place].iter().map(value).collect()
    }

    /// CPU an event of one peer, as a part of that of another in the same round.
    pub(super) fn ratio(&self, ours: Peer, theirs: Peer) -> Vec<f64> {
        let each = |peer| self.of(peer, |outcome| outcome.all().each());
        each(ours).iter().zip(each(theirs)).map(|(ours, theirs)| ours / theirs).collect()
    }
}

pub(crate) fn measure(size: Size) -> Section {
    let rounds = Rounds::run(size, size.flows, |namespace| burst::create(namespace, 0, size.flows), flush);
    let all = f64::from(2 * size.flows);
    let received = rounds.figures("events", |outcome| f64::from(outcome.all().received));
    let cost = rounds.figures("µs", |outcome| outcome.all().each());
    let mut section = Section::new(
        "Bursts",
        format!(
            "{} UDP flows made by real packets as fast as one core sends them, then flushed: twice as many events.",
            show(f64::from(size.flows))
        ),
    );
    for (figure, (_, peer)) in received.iter().zip(PEERS) {
        let mut figure = figure.clone();
        figure.what = format!("events of a burst received: {}", figure.what);
        let is_ours = matches!(peer, Peer::FlowbusdBySocket | Peer::Flowbusd | Peer::FlowbusdAttributed);
        section.figures.push(if is_ours { figure.bar(Bar::AtLeast(all)) } else { figure });
    }
    for figure in &cost {
        let mut figure = figure.clone();
        figure.what = format!("CPU an event: {}", figure.what);
        section.figures.push(figure);
    }
    let mut figure = |what, unit, samples| section.figures.push(Figure::new(what, unit, samples));
    figure("CPU a NEW: flowbusd", "µs", rounds.of(Peer::Flowbusd, |outcome| outcome.new.each()));
    figure("CPU a DESTROY: flowbusd", "µs", rounds.of(Peer::Flowbusd, |outcome| outcome.destroy.each()));
    let whole = rounds.of(Peer::Flowbusd, |outcome| outcome.process().each());
    figure("CPU an event: flowbusd with its bus thread", "µs", whole);
    let woken = rounds.of(Peer::Floor(Floor::Blocking), Outcome::events_a_wake);
    figure("events read by the blocking floor each time it was woken", "", woken);
    for (what, ours, theirs, allowed) in RATIOS {
        let what = format!("CPU an event: {what} of the same round");
        section.figures.push(Figure::new(what, "x", rounds.ratio(ours, theirs)).bar(Bar::AtMost(allowed)));
    }
    section.charts.push(Chart::new("burst", "Events received of a burst", received));
    section.charts.push(Chart::new("cpu", "CPU time an event, in microseconds", cost));
    section
}

/// Has this reader read the events of `flows` flows, all of which `create` makes and `flush` ends.
pub(super) fn run(
    peer: Peer,
    namespace: &Namespace,
    flows: u32,
    create: &dyn Fn(),
    flush: &dyn Fn(),
) -> Outcome {
    match peer {
        Peer::Floor(floor) => {
            let reader = Reader::start(namespace, floor);
            let [new, destroy] = [create, flush].map(|send| reader.during(flows, send));
            let [new_part, destroy_part] =
                [new, destroy].map(|Done { received, used, .. }| Part { received, used });
            Outcome { new: new_part, destroy: destroy_part, process: None, woken: new.woken + destroy.woken }
        }
        Peer::FlowbusdBySocket => run_flowbusd(namespace, create, flush, |namespace, bus| {
            Daemon::start_with(namespace, bus, &["--config", BY_SOCKET])
        }),
        Peer::Flowbusd => run_flowbusd(namespace, create, flush, Daemon::start),
        Peer::FlowbusdAttributed => run_flowbusd(namespace, create, flush, Daemon::start_attributed),
        Peer::Conntrack(arguments) => {
            let directory = Directory::new("events");
            let path = directory.file("out", "");
            let mut command = namespace.command("conntrack");
            command.args(arguments).stdout(File::create(&path).expect("a file can be made"));
            let is_xml = arguments.contains(&"xml,timestamp,id");
            let words = if is_xml { ["type=\"new\"", "type=\"destroy\""] } else { ["[NEW]", "[DESTROY]"] };
            run_program(namespace, command, create, flush, || {
                let lines =
                    BufReader::new(File::open(&path).expect("it is there")).lines().map_while(Result::ok);
                count(lines, words)
            })
        }
        Peer::Ulogd => {
            let directory = Directory::new("events");
            let path = directory.file("out", "");
            let configuration = directory.file("ulogd.conf", &ulogd_configuration(&path.to_string_lossy()));
            let mut command = namespace.command("ulogd");
            command.arg("-c").arg(configuration).stdout(Stdio::null());
            run_program(namespace, command, create, flush, || {
                let lines =
                    BufReader::new(File::open(&path).expect("it is there")).lines().map_while(Result::ok);
                count(lines, ["[NEW]", "[DESTROY]"])
            })
        }
    }
}

fn run_flowbusd(
    namespace: &Namespace,
    create: &dyn Fn(),
    flush: &dyn Fn(),
    start: impl Fn(&Namespace, &Bus) -> Daemon,
) -> Outcome {
    let bus = Bus::start();
    let daemon = start(namespace, &bus);
    let client = Client::connect(&bus);
    let tracker = || cpu::of_thread(daemon.pid(), "tracker");
    let process = || cpu::of_process(daemon.pid());
    let all = |send: &dyn Fn()| {
        let (process_before, before) = (cpu::settled(process), tracker());
        let (events_before, _) = client.events();
        send();
        let used = cpu::settled(tracker) - before;
        let process = cpu::settled(process) - process_before;
        let received =
            u32::try_from(client.events().0 - events_before).expect("a burst has fewer than 2^32 events");
        (Part { received, used }, process)
    };
    let (new, process_new) = all(create);
    let (destroy, process_destroy) = all(flush);
    daemon.stop();
    let process = Part { received: new.received + destroy.received, used: process_new + process_destroy };
    Outcome { new, destroy, process: Some(process), woken: 0 }
}

/// A program that writes what it gets to a file, `counted` of each kind.
fn run_program(
    namespace: &Namespace,
    mut command: Command,
    create: &dyn Fn(),
    flush: &dyn Fn(),
    counted: impl Fn() -> [u32; 2],
) -> Outcome {
    let mut child =
        command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program is installed");
    wait_for_listener(namespace);
    let time = || cpu::of_process(child.id());
    let begin = cpu::settled(time);
    create();
    let between = cpu::settled(time);
    flush();
    let end = cpu::settled(time);
    stop(&mut child);
    let [new, destroy] = counted();
    Outcome {
        new: Part { received: new, used: between - begin },
        destroy: Part { received: destroy, used: end - between },
        process: None,
        woken: 0,
    }
}

/// Ends a program in a way that lets it write out what it holds.
pub(super) fn stop(child: &mut Child) {
    flowbus_tests::process::signal(child, Signal::INT);
    wait_for("the program to end", || child.try_wait().expect("a child can be waited for"));
}

fn count(lines: impl Iterator<Item = String>, words: [&str; 2]) -> [u32; 2] {
    let mut counts = [0; 2];
    for line in lines {
        for (count, word) in counts.iter_mut().zip(words) {
            *count += u32::from(line.contains(word));
        }
    }
    counts
}

/// Every event on its own, one line each.
fn ulogd_configuration(output: &str) -> String {
    const PLUGINS: &str = "/usr/lib/x86_64-linux-gnu/ulogd/ulogd_";
    let plugins = ["inpflow_NFCT", "filter_IP2STR", "filter_PRINTFLOW", "output_LOGEMU"];
    let plugins: String = plugins.map(|plugin| format!("plugin=\"{PLUGINS}{plugin}.so\"\n")).concat();
    format!(
        "[global]\nlogfile=\"/dev/null\"\nloglevel=7\n{plugins}stack=ct1:NFCT,ip2str1:IP2STR,print1:PRINTFLOW,emu1:LOGEMU\n\
         [ct1]\nhash_enable=0\nevent_mask=5\nnetlink_socket_buffer_size=33554432\nnetlink_socket_buffer_maxsize=33554432\n\
         [emu1]\nfile=\"{output}\"\nsync=0\n"
    )
}

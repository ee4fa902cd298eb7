//! What listening to events costs the traffic: the kernel makes each event on the processor of who sends the packet.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use ctnetlink::Socket;
use flowbus_tests::{Bus, Daemon, Namespace, burst};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::cpu;
use crate::document::Section;
use crate::figure::Figure;
use crate::load::delete;
use crate::size::Size;
use crate::world::{namespace, wait_for_listener};

/// Who listens while traffic passes.
#[derive(Clone, Copy, Debug)]
enum Listener {
    Nobody,
    Flowbusd,
    /// A flowbusd, and the traffic is that of another namespace.
    FlowbusdElsewhere,
    /// Blocks, and is woken for each event or for a few.
    Conntrack,
}

const LISTENERS: [(&str, Listener); 4] = [
    ("nobody listens", Listener::Nobody),
    ("flowbusd", Listener::Flowbusd),
    ("flowbusd, in another namespace", Listener::FlowbusdElsewhere),
    ("conntrack -E", Listener::Conntrack),
];

/// What was sent: its name, and the place of its cost in a sample.
const WORK: [&str; 3] = ["NEW, by a UDP packet", "DESTROY, by a request", "a TCP connection, both ends"];

pub(crate) fn measure(size: Size) -> Section {
    let all = sched_getaffinity(None).expect("a thread may know where it runs");
    let mut samples = vec![Vec::new(); LISTENERS.len()];
    for _ in 0..size.rounds {
        for ((_, listener), samples) in LISTENERS.iter().zip(&mut samples) {
            samples.push(sample(*listener, size.flows / 4, &all));
        }
    }
    let mut section = Section::new(
        "What listening costs the traffic",
        "Processor time of the thread that sends, for each UDP flow made, each flow deleted, and each TCP connection over \
         loopback that is opened, carries a byte each way and is closed (1 NEW, some 5 UPDATE); against nobody: of the same round.",
    );
    for (place, work) in WORK.iter().enumerate() {
        for ((name, listener), taken) in LISTENERS.iter().zip(&samples) {
            let cost = taken.iter().map(|sample| sample[place]).collect();
            section.figures.push(Figure::new(format!("{work}: {name}"), "µs", cost));
            if !matches!(listener, Listener::Nobody) {
                let more = taken.iter().zip(&samples[0]).map(|(with, without)| with[place] - without[place]);
                section.figures.push(Figure::new(format!("{work}: more by {name}"), "µs", more.collect()));
            }
        }
    }
    section
}

/// What each work costs while this listener is there, in microseconds.
fn sample(listener: Listener, flows: u32, all: &CpuSet) -> [f64; WORK.len()] {
    let traffic = namespace();
    let listening = Listening::start(listener, &traffic);
    // What listens has been started, so that it does not inherit the processor.
    cpu::pin(0);
    let sender = burst::Sender::open(&traffic);
    let new = each(flows, || sender.create(0, flows));
    let netlink = traffic.enter(|| Socket::open().expect("a netlink socket can be opened"));
    let destroy = each(flows, || delete(&netlink, 0..flows));
    let connections = flows / 8;
    let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 4000);
    let server = traffic.enter(|| TcpListener::bind(server).expect("the port is free"));
    let connection = traffic.enter(|| each(connections, || (0..connections).for_each(|_| connect(&server))));
    sched_setaffinity(None, all).expect("a thread may go back to where it was");
    listening.stop();
    [new, destroy, connection]
}

/// One connection whose ends are both here: over loopback each packet has arrived when it has been sent.
fn connect(server: &TcpListener) {
    let address = server.local_addr().expect("it is bound");
    let mut client = TcpStream::connect(address).expect("the server listens");
    let (mut accepted, _) = server.accept().expect("a connection waits");
    let mut byte = [1];
    client.write_all(&byte).expect("the server is there");
    accepted.read_exact(&mut byte).expect("the client has sent");
    accepted.write_all(&byte).expect("the client is there");
    client.read_exact(&mut byte).expect("the server has sent");
}

/// The processor time of this thread for each of `count` pieces of the work, in microseconds.
fn each(count: u32, work: impl FnOnce()) -> f64 {
    let begin = clock_gettime(ClockId::ThreadCPUTime);
    work();
    let used = Duration::try_from(clock_gettime(ClockId::ThreadCPUTime) - begin).expect("time goes forward");
    used.as_secs_f64() * 1e6 / f64::from(count)
}

/// A listener that is there.
#[derive(Debug)]
enum Listening {
    Nobody,
    Flowbusd { daemon: Daemon, _bus: Bus, _elsewhere: Option<Namespace> },
    Conntrack(Child),
}

impl Listening {
    fn start(listener: Listener, traffic: &Namespace) -> Self {
        let elsewhere = match listener {
            Listener::Nobody => return Self::Nobody,
            Listener::Conntrack => {
                let mut command = traffic.command("conntrack");
                command.args(["-E", "-o", "timestamp,id"]).stdin(Stdio::null()).stderr(Stdio::null());
                let nowhere = File::options().write(true).open("/dev/null").expect("it is there");
                let child = command.stdout(nowhere).spawn().expect("conntrack is installed");
                wait_for_listener(traffic);
                return Self::Conntrack(child);
            }
            Listener::FlowbusdElsewhere => Some(namespace()),
            Listener::Flowbusd => None,
        };
        let bus = Bus::start();
        let daemon = Daemon::start(elsewhere.as_ref().unwrap_or(traffic), &bus);
        cpu::settled(|| cpu::of_process(daemon.pid()));
        Self::Flowbusd { daemon, _bus: bus, _elsewhere: elsewhere }
    }

    fn stop(self) {
        match self {
            Self::Nobody => {}
            Self::Flowbusd { daemon, .. } => {
                daemon.stop();
            }
            Self::Conntrack(mut child) => super::burst::stop(&mut child),
        }
    }
}

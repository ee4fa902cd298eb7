//! From the start of the daemon, or from a loss, to a table that is the kernel's.

use std::time::{Duration, Instant};

use ctnetlink::{Message, Received, Socket, dump_request, messages};
use flowbus_tests::{Bus, Daemon, Namespace, burst};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;

use crate::client::Client;
use crate::document::{Chart, Section};
use crate::figure::{Bar, Figure, show};
use crate::size::Size;
use crate::world::{World, flush, namespace};

/// The time that is allowed, as a multiple of the raw dump's.
const BAR: f64 = 1.5;

pub(crate) fn measure(size: Size) -> Section {
    let namespace = namespace();
    burst::create(&namespace, 0, size.flows);
    let (mut raw, mut started) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        raw.push(dump(&namespace, size.flows));
        started.push(start(&namespace, size.flows));
    }
    let ratios = started.iter().zip(&raw).map(|(ours, raw)| ours / raw).collect();
    let resync = (0..size.rounds).map(|_| resync(size.flows)).collect();
    let figures = [
        Figure::new("a dump, received and not looked at", "s", raw),
        Figure::new("flowbusd, from its start to Synchronized", "s", started),
        Figure::new("resync, from the end of an overrun to Synchronized", "s", resync),
    ];
    let mut section = Section::new(
        "Start and resync",
        format!(
            "{} flows are there. A resync follows an overrun: the daemon is stopped, all flows are flushed and made anew, which \
             overflows its buffer, and it goes on; what was received before the overrun is read first.",
            show(f64::from(size.flows))
        ),
    );
    section.charts.push(Chart::new("start", "Until the table is the kernel's, in seconds", figures.to_vec()));
    section.figures.extend(figures);
    section.figures.push(Figure::new("start against the raw dump", "x", ratios).bar(Bar::AtMost(BAR)));
    section
}

/// Receives a dump: what a start cannot be faster than.
fn dump(namespace: &Namespace, flows: u32) -> f64 {
    let socket = namespace.enter(|| Socket::open().expect("a netlink socket can be opened"));
    let mut buffer = vec![0; 64 * 1024];
    let mut bytes = 0;
    let started = Instant::now();
    socket.send(&dump_request(1, None)).expect("the kernel takes requests");
    loop {
        match socket.receive(&mut buffer).expect("a dump can be received") {
            Received::Datagram(length) => {
                bytes += length;
                // The end is a datagram of its own.
                if length < 100
                    && messages(&buffer[..length]).any(|message| matches!(message, Ok(Message::Done(..))))
                {
                    break;
                }
            }
            _ => {
                let _ = poll(&mut [PollFd::new(&socket, PollFlags::IN)], None);
            }
        }
    }
    assert!(bytes > 100 * flows as usize, "{bytes} bytes are not {flows} flows");
    started.elapsed().as_secs_f64()
}

fn start(namespace: &Namespace, flows: u32) -> f64 {
    let bus = Bus::start();
    let client = Client::connect(&bus);
    let started = Instant::now();
    let daemon = Daemon::spawn(&mut Daemon::command(namespace, &bus));
    client.wait_until_synchronized();
    let time = started.elapsed().as_secs_f64();
    assert_eq!(client.active(), flows);
    daemon.stop();
    time
}

fn resync(flows: u32) -> f64 {
    let world = World::with_flows(flows);
    world.daemon.signal(Signal::STOP);
    flush(&world.namespace);
    burst::create(&world.namespace, 0, flows);
    let started = Instant::now();
    world.daemon.signal(Signal::CONT);
    // The resync of the start is the first.
    while world.client.resyncs() < 2 {
        std::thread::sleep(Duration::from_millis(1));
        assert!(started.elapsed() < Duration::from_secs(60), "there was no overrun");
    }
    let time = started.elapsed().as_secs_f64();
    world.client.wait_for_active(flows);
    world.daemon.stop();
    time
}

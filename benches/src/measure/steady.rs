//! Events one after the other, at a rate at which a reader that blocks is woken for each.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

use ctnetlink::Socket;
use flowbus_tests::burst::Sender;
use flowbus_tests::{Bus, Daemon, Namespace};

use super::burst::{Outcome, Peer, Rounds};
use crate::client::Client;
use crate::cpu;
use crate::document::{Chart, Section};
use crate::figure::{Bar, Figure, show};
use crate::floor::Floor;
use crate::load::delete;
use crate::size::Size;
use crate::world::namespace;

/// Events a second.
const RATE: u32 = 20_000;
/// Microseconds an event that flowbusd may take through a ring, with its bus thread.
const WITH_BUS_THREAD: f64 = 1.2;

pub(crate) fn measure(size: Size) -> Section {
    let flows = size.flows / 8;
    let create = |namespace: &Namespace| {
        let sender = Sender::open(namespace);
        paced(flows, |number| sender.create(number, 1));
    };
    let end = |namespace: &Namespace| {
        let netlink = namespace.enter(|| Socket::open().expect("a netlink socket can be opened"));
        paced(flows, |number| delete(&netlink, std::iter::once(number)));
    };
    let rounds = Rounds::run(size, flows, create, end);
    let mut section = Section::new(
        "Steady events",
        format!(
            "{} UDP flows made by real packets and deleted, one event every {SPACE:?}.",
            show(f64::from(flows))
        ),
    );
    let cost = rounds.figures("µs", |outcome| outcome.all().each());
    for figure in &cost {
        let mut figure = figure.clone();
        figure.what = format!("CPU an event: {}", figure.what);
        section.figures.push(figure);
    }
    let whole = (0..size.rounds)
        .map(|_| {
            lasting(|namespace| {
                create(namespace);
                end(namespace);
            })
        })
        .collect();
    let whole = Figure::new("CPU an event: flowbusd with its bus thread, as events go on", "µs", whole);
    section.figures.push(whole.bar(Bar::AtMost(WITH_BUS_THREAD)));
    let floor = Peer::Floor(Floor::Blocking);
    let woken = rounds.of(floor, Outcome::events_a_wake);
    section.figures.push(Figure::new("events read by the blocking floor each time it was woken", "", woken));
    section.figures.push(Figure::new(
        "CPU an event: flowbusd against the blocking floor of the same round",
        "x",
        rounds.ratio(Peer::Flowbusd, floor),
    ));
    section.charts.push(Chart::new("steady", "CPU time an event that comes alone, in microseconds", cost));
    section
}

/// What all of flowbusd takes for an event, in microseconds, when as many have come before: table and logs have grown, and signals are
/// sent as often as they may be.
fn lasting(send: impl Fn(&Namespace)) -> f64 {
    let (namespace, bus) = (namespace(), Bus::start());
    let daemon = Daemon::start(&namespace, &bus);
    let client = Client::connect(&bus);
    send(&namespace);
    let (events, _) = client.events();
    let before = cpu::of_process(daemon.pid());
    send(&namespace);
    let used = cpu::of_process(daemon.pid()) - before;
    let (received, lost) = client.events();
    assert_eq!(lost, 0, "flowbusd keeps up");
    daemon.stop();
    used.as_secs_f64() * 1e6 / (received - events) as f64
}

/// The time from one event to the next.
const SPACE: Duration = Duration::from_micros(1_000_000 / RATE as u64);

/// Sends `count`, spaced evenly: the sender has a processor of its own, and sleeping is too coarse.
fn paced(count: u32, send: impl Fn(u32)) {
    let begin = Instant::now();
    for number in 0..count {
        while begin.elapsed() < SPACE * number {
            spin_loop();
        }
        send(number);
    }
}

//! Events one after the other, at a rate at which a reader that blocks is woken for each.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

use ctnetlink::Socket;
use flowbus_tests::burst::Sender;

use super::burst::{Outcome, PEERS, run};
use crate::document::{Chart, Section};
use crate::figure::{Figure, show};
use crate::floor::Floor;
use crate::load::delete;
use crate::measure::burst::Peer;
use crate::size::Size;
use crate::world::namespace;

/// Events a second.
const RATE: u32 = 20_000;

pub(crate) fn measure(size: Size) -> Section {
    let flows = size.flows / 8;
    let mut outcomes: Vec<Vec<Outcome>> = vec![Vec::new(); PEERS.len()];
    for _ in 0..size.rounds {
        for ((_, peer), outcomes) in PEERS.iter().zip(&mut outcomes) {
            let namespace = namespace();
            let create = || {
                let sender = Sender::open(&namespace);
                paced(flows, |number| sender.create(number, 1));
            };
            let end = || {
                let netlink = namespace.enter(|| Socket::open().expect("a netlink socket can be opened"));
                paced(flows, |number| delete(&netlink, std::iter::once(number)));
            };
            outcomes.push(run(*peer, &namespace, flows, &create, &end));
        }
    }
    let mut section = Section::new(
        "Steady events",
        format!(
            "{} UDP flows made by real packets and deleted, one event every {SPACE:?}.",
            show(f64::from(flows))
        ),
    );
    let cost = PEERS.iter().zip(&outcomes).map(|((name, _), outcomes)| {
        Figure::new(*name, "µs", outcomes.iter().map(|outcome| outcome.all().each()).collect())
    });
    let cost: Vec<Figure> = cost.collect();
    for figure in &cost {
        let mut figure = figure.clone();
        figure.what = format!("CPU an event: {}", figure.what);
        section.figures.push(figure);
    }
    let of = |peer: Peer| PEERS.iter().position(|(_, other)| *other == peer).expect("it is one of them");
    let (floor, flowbusd) = (of(Peer::Floor(Floor::Blocking)), of(Peer::Flowbusd));
    let woken = outcomes[floor].iter().map(Outcome::events_a_wake).collect();
    section.figures.push(Figure::new("events read by the blocking floor each time it was woken", "", woken));
    let ratios = outcomes[floor].iter().zip(&outcomes[flowbusd]);
    let ratios = ratios.map(|(floor, ours)| ours.all().each() / floor.all().each()).collect();
    section.figures.push(Figure::new(
        "CPU an event: flowbusd against the blocking floor of the same round",
        "x",
        ratios,
    ));
    section.charts.push(Chart::new("steady", "CPU time an event that comes alone, in microseconds", cost));
    section
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

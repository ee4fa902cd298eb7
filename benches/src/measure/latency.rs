//! How long a page takes, idle, under load, and while a subscriber does not read.

use std::time::Instant;

use flowbus_interfaces::QueryMap;
use flowbus_tests::RawConnection;

use crate::document::{Chart, Section};
use crate::figure::{Bar, Figure, percentile, show};
use crate::load;
use crate::size::Size;
use crate::world::World;

/// What else goes on while pages are asked for, and the most milliseconds that one may take then.
const SITUATIONS: [(&str, f64); 3] = [
    ("idle", 5.0),
    ("under 50,000 events/s", 8.0),
    ("under 50,000 events/s, with a stalled subscriber", 8.0),
];
/// Events a second.
const RATE: u32 = 50_000;
/// Users that take turns: one page right after the other is more than flowbusd gives a single user in the long run. Every Debian has these.
const USERS: [u32; 4] = [0, 2, 3, 4];
/// The rule of a subscriber to all events.
const RULE: &str = "type='signal',interface='org.flowbus.FlowEvents1'";

/// How long pages took, sorted, in milliseconds.
type Times = Vec<f64>;

pub(crate) fn measure(size: Size) -> Section {
    let world = World::with_flows(size.flows);
    // Beyond the flows of the table.
    let first = size.flows.next_multiple_of(1 << 16);
    let mut rounds: [Vec<Times>; 3] = Default::default();
    let mut rates = Vec::new();
    for _ in 0..size.rounds {
        rounds[0].push(pages(&world, size));
        let (times, sent) = load::during(&world.namespace, first, RATE, || pages(&world, size));
        rounds[1].push(times);
        rates.push(sent as f64 / (size.time / 2).as_secs_f64());
        let mut stalled = RawConnection::connect(&world.bus);
        stalled.add_match(RULE); // Nothing of it is read from here on.
        let (times, _) = load::during(&world.namespace, first, RATE, || pages(&world, size));
        rounds[2].push(times);
        drop(stalled);
        world.settle();
    }
    let (received, lost) = world.client.events();
    world.daemon.stop();
    let mut section = Section::new(
        "ListActive",
        format!(
            "The default page (500 flows) at a random place of {} flows, from the call to the whole reply, by a client on dbus-daemon; \
             one call after the other for {:?}, of {} users in turn. Of {received} events in all {lost} were lost.",
            show(f64::from(size.flows)),
            size.time / 2,
            USERS.len()
        ),
    );
    for ((name, allowed), rounds) in SITUATIONS.into_iter().zip(rounds) {
        for (part, label) in [(0.5, "p50"), (0.99, "p99")] {
            let samples = rounds.iter().map(|times| percentile(times, part)).collect();
            let figure = Figure::new(format!("ListActive {label}, {name}"), "ms", samples);
            section.figures.push(if part > 0.9 { figure.bar(Bar::AtMost(allowed)) } else { figure });
        }
    }
    section.charts.push(Chart::new("latency", "ListActive, in milliseconds", section.figures.clone()));
    section.figures.push(Figure::new("events a second that the load came to", "", rates));
    section
}

fn pages(world: &World, size: Size) -> Times {
    let mut callers = USERS.map(|user| RawConnection::connect_as(&world.bus, user));
    let mut times = Vec::new();
    let begin = Instant::now();
    let mut place = 1_u64;
    while begin.elapsed() < size.time / 2 {
        place = place * 6_364_136_223 % u64::from(size.flows - 500);
        let query = QueryMap::from([("after", place.into())]);
        let caller = &mut callers[times.len() % USERS.len()];
        let started = Instant::now();
        let serial = caller.list_active(&query);
        let reply = loop {
            let received = caller.receive();
            if received.reply_serial() == Some(serial) {
                break received;
            }
        };
        times.push(started.elapsed().as_secs_f64() * 1e3);
        assert!(
            !reply.is_error() && reply.bytes() > 100_000,
            "a page of 500 flows has more than {} bytes",
            reply.bytes()
        );
    }
    times.sort_by(f64::total_cmp);
    times
}

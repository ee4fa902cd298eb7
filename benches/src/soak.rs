//! Churn for a while: memory stays as it is, and the table ends as the kernel's.

use std::thread::sleep;
use std::time::{Duration, Instant};

use flowbus_tests::flow::agreed;

use crate::document::{Chart, Section};
use crate::figure::{Bar, Figure};
use crate::world::World;
use crate::{cpu, load};

/// Flows that stay all the time.
const PINNED: u32 = 20_000;
/// The time between two looks at the memory.
const INTERVAL: Duration = Duration::from_secs(5);

pub(crate) fn run(time: Duration, rate: u32) -> Section {
    let world = World::with_flows(PINNED);
    let pid = world.daemon.pid();
    let (before, _) = world.client.events();
    let (memory, sent) = load::during(&world.namespace, PINNED.next_multiple_of(1 << 16), rate, || {
        let mut memory = Vec::new();
        let started = Instant::now();
        while started.elapsed() < time {
            sleep(INTERVAL);
            memory.push(cpu::memory(pid) as f64 / 1e6);
        }
        memory
    });
    world.client.wait_for_active(PINNED);
    world.settle();
    let (received, lost) = world.client.events();
    // Every flow, field by field, or this ends with the differences.
    let (flows, table) = agreed(&world.bus, &world.namespace);
    let resyncs = world.client.resyncs();
    world.daemon.stop();

    // The closed flows fill their ring in the first part; from there on nothing may grow.
    let settled = &memory[memory.len() / 4..];
    let half = settled.len() / 2;
    let growth = mean(&settled[half..]) - mean(&settled[..half]);
    let mut section = Section::new(
        "Soak",
        format!(
            "{:?} of churn, {} events, {rate} a second, beside {PINNED} flows that stay. At the end the table has {} flows and is the \
             kernel's dump of {}, field by field.",
            time,
            received - before,
            flows.len(),
            table.len()
        ),
    );
    section.figures.push(Figure::new("memory during the soak", "MB", memory.clone()));
    section.figures.push(
        Figure::new(
            "growth of memory, second half against first, after the first quarter",
            "MB",
            vec![growth],
        )
        .bar(Bar::AtMost(0.5)),
    );
    let missing = sent as f64 - (received - before) as f64;
    section.figures.push(
        Figure::new("events that were sent and not received", "events", vec![missing]).bar(Bar::AtMost(0.0)),
    );
    section
        .figures
        .push(Figure::new("events that were lost", "events", vec![lost as f64]).bar(Bar::AtMost(0.0)));
    section.figures.push(Figure::new("resyncs, the first included", "", vec![resyncs as f64]));
    section.charts.push(Chart::series("soak", "Memory during the soak, in MB", memory));
    section
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

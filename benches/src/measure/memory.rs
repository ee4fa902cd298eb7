//! What a flow takes in memory, at several sizes of the table.

use flowbus_tests::burst;

use crate::cpu;
use crate::document::{Chart, Section};
use crate::figure::{Bar, Figure, show};
use crate::size::Size;
use crate::world::{Raised, World};

/// The most bytes that a flow may take at [`BAR_FLOWS`].
const BAR: f64 = 190.0;
/// The size that the bar is for.
const BAR_FLOWS: u32 = 200_000;

pub(crate) fn measure(size: Size) -> Section {
    // The limit is set in the first namespace, and holds for each namespace by itself.
    let _limit = Raised::to("/proc/sys/net/netfilter/nf_conntrack_max", size.largest + 100_000);
    let mut section = Section::new(
        "Memory",
        "What flowbusd takes more than with an empty table, by flow: resident memory and pages of the state memfd that it does \
         not map. Accounting and timestamps are on, nothing is attributed.",
    );
    let sizes = [10_000, BAR_FLOWS, size.largest];
    let figures = sizes.map(|flows| {
        let samples = (0..size.rounds.min(5)).map(|_| bytes_each(flows)).collect();
        Figure::new(format!("memory a flow, of {}", show(f64::from(flows))), "B", samples)
    });
    section.charts.push(Chart::new("memory", "Memory a flow, in bytes", figures.to_vec()));
    let barred = sizes.into_iter().zip(figures);
    section.figures.extend(
        barred.map(|(flows, figure)| if flows == BAR_FLOWS { figure.bar(Bar::AtMost(BAR)) } else { figure }),
    );
    section
}

fn bytes_each(flows: u32) -> f64 {
    let world = World::with_flows(0);
    let empty = cpu::memory(world.daemon.pid());
    // In pieces that the receive buffer holds whatever this machine does besides.
    for first in (0..flows).step_by(10_000) {
        burst::create(&world.namespace, first, (flows - first).min(10_000));
        world.client.wait_for_active(flows.min(first + 10_000));
    }
    world.settle();
    let full = cpu::memory(world.daemon.pid());
    world.daemon.stop();
    (full.saturating_sub(empty)) as f64 / f64::from(flows)
}

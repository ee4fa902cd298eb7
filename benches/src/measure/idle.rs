//! What a daemon takes that has nothing to do.

use std::thread::sleep;

use crate::cpu;
use crate::document::Section;
use crate::figure::{Bar, Figure};
use crate::size::Size;
use crate::world::World;

/// MB that nobody else has: what the daemon costs the machine.
const PRIVATE_BAR: f64 = 1.5;
/// MB with its share of what others map, too.
const PSS_BAR: f64 = 5.0;

pub(crate) fn measure(size: Size) -> Section {
    let (mut private, mut pss, mut wakes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        // What the build before has written is not to be written back while we count.
        rustix::fs::sync();
        let world = World::with_flows(0);
        let pid = world.daemon.pid();
        sleep(size.time / 2); // What the start leaves to do is done.
        let before = cpu::sleeps(pid);
        sleep(size.time);
        wakes.push((cpu::sleeps(pid) - before) as f64 / size.time.as_secs_f64());
        private.push(cpu::private(pid) as f64 / 1e6);
        pss.push(cpu::pss(pid) as f64 / 1e6);
        world.daemon.stop();
    }
    let mut section = Section::new(
        "Idle",
        format!(
            "An empty table, nobody asks, by hand and without attribution; wake-ups are counted for {:?}.",
            size.time
        ),
    );
    section.figures.push(Figure::new("private memory, idle", "MB", private).bar(Bar::AtMost(PRIVATE_BAR)));
    section.figures.push(Figure::new("PSS, idle", "MB", pss).bar(Bar::AtMost(PSS_BAR)));
    section.figures.push(Figure::new("wake-ups a second, idle", "", wakes).bar(Bar::AtMost(0.0)));
    section
}

//! SIGKILL under load, again and again: what is lost, and how soon the next daemon has the table.

use std::thread::sleep;
use std::time::{Duration, Instant};

use flowbus_attribution::events::DEFAULT_EVENT_RING_BYTES;
use flowbus_tests::{Bus, Kept, burst};
use rustix::process::Signal;

use crate::client::Client;
use crate::document::Section;
use crate::figure::{Bar, Figure, show};
use crate::load;
use crate::size::{BUFFER, Size};
use crate::world::namespace;

/// Events a second.
const RATE: u32 = 20_000;

pub(crate) fn measure(size: Size) -> Section {
    let (namespace, bus) = (namespace(), Bus::start());
    let kept = Kept::open(&namespace, BUFFER).with_ring(DEFAULT_EVENT_RING_BYTES);
    let client = Client::connect(&bus);
    let mut daemon = kept.spawn(&namespace, &bus);
    client.wait_until_synchronized();
    let epoch = client.epoch();
    burst::create(&namespace, 0, size.flows);
    client.wait_for_active(size.flows);
    let first = size.flows.next_multiple_of(1 << 16);
    let kills = 4 * size.rounds;
    let (times, sent) = load::during(&namespace, first, RATE, || {
        let mut times = Vec::new();
        for kill in 0..kills {
            // At another instant every time.
            sleep(size.time / 20 + Duration::from_micros(kill as u64 * 733));
            daemon.signal(Signal::KILL);
            daemon.ended();
            let started = Instant::now();
            daemon = kept.spawn(&namespace, &bus);
            client.wait_until_synchronized();
            times.push(started.elapsed().as_secs_f64());
        }
        times
    });
    client.wait_for_active(size.flows);
    let (received, lost) = client.events();
    let emitted = u64::from(size.flows) + sent;
    assert_eq!((client.epoch(), client.resyncs()), (epoch, 1), "the state was kept, and no dump was needed");
    daemon.stop();
    let mut section = Section::new(
        "Restart under load",
        format!(
            "{kills} times SIGKILL while {RATE} events a second arrive, with {} more flows in the table; sockets, ring and memory are kept \
             as PID 1 keeps them. The epoch stayed, and no dump was needed but the first.",
            show(f64::from(size.flows))
        ),
    );
    section.figures.push(Figure::new("from the start of the next daemon to Synchronized", "s", times));
    let missing = emitted as f64 - received as f64;
    section.figures.push(
        Figure::new("events that were sent and not received", "events", vec![missing]).bar(Bar::AtMost(0.0)),
    );
    section
        .figures
        .push(Figure::new("events that were lost", "events", vec![lost as f64]).bar(Bar::AtMost(0.0)));
    section
}

//! As many senders as there are processors, all as fast as they can: what one reader keeps of it.

use std::thread;
use std::time::Instant;

use flowbus_tests::{Bus, Daemon, burst};

use crate::client::Client;
use crate::document::Section;
use crate::figure::{Bar, Figure, show};
use crate::size::Size;
use crate::world::namespace;

pub(crate) fn measure(size: Size) -> Section {
    let senders = thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
    let each = size.flows / senders;
    let (mut rates, mut lost) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        let (namespace, bus) = (namespace(), Bus::start());
        let daemon = Daemon::start(&namespace, &bus);
        let client = Client::connect(&bus);
        let begin = Instant::now();
        thread::scope(|scope| {
            for sender in 0..senders {
                let namespace = &namespace;
                scope.spawn(move || burst::create(namespace, sender * each, each));
            }
        });
        let sent = f64::from(senders * each);
        rates.push(sent / begin.elapsed().as_secs_f64());
        client.wait_for_active(senders * each);
        lost.push(client.events().1 as f64);
        daemon.stop();
    }
    let mut section = Section::new(
        "As many senders as processors",
        format!(
            "{} flows that {senders} senders make at once on as many processors, as fast as they can; the reader is one thread, and has \
             what they leave of a processor.",
            show(f64::from(senders * each))
        ),
    );
    section.figures.push(Figure::new("events sent", "a second", rates));
    section.figures.push(Figure::new("events lost of them", "events", lost).bar(Bar::AtMost(0.0)));
    section
}

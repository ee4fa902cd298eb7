//! A subscriber of signals that reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use crate::process::wait_for;
use crate::{Namespace, RawConnection, burst, inject};

/// The match rule of FlowEvents.
pub const FLOW_EVENTS: &str = "type='signal',sender='org.flowbus.FlowEvents1',member='FlowEvents'";

/// A subscriber that reads, on a thread of its own.
#[derive(Debug)]
pub struct Listener {
    heard: Arc<Heard>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Heard {
    events: AtomicU64,
    lost: AtomicU64,
    bytes: AtomicU64,
    enough: AtomicBool,
}

impl Listener {
    /// Subscribes on this connection and reads.
    ///
    /// # Panics
    /// If the bus refuses.
    #[must_use]
    pub fn over(mut connection: RawConnection) -> Self {
        connection.add_match(FLOW_EVENTS);
        let heard = Arc::new(Heard::default());
        let ours = Arc::clone(&heard);
        let thread = thread::spawn(move || {
            while !ours.enough.load(Ordering::SeqCst) {
                let message = connection.receive();
                let Some((events, lost)) = message.flow_events() else { continue };
                ours.bytes.fetch_add(message.bytes() as u64, Ordering::SeqCst);
                ours.lost.fetch_add(lost, Ordering::SeqCst);
                ours.events.fetch_add(events, Ordering::SeqCst);
            }
        });
        Self { heard, thread }
    }

    /// How many events it has received.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.heard.events.load(Ordering::SeqCst)
    }

    /// How many events the signals say were lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.heard.lost.load(Ordering::SeqCst)
    }

    /// The bytes of all signals that it has received.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.heard.bytes.load(Ordering::SeqCst)
    }

    /// Waits for one more event, which traffic in this namespace makes.
    ///
    /// # Panics
    /// If none comes.
    pub fn hears_one_more(&self, namespace: &Namespace) {
        let before = self.events();
        wait_for("one more event", || {
            burst::create(namespace, 0, 1);
            namespace.run("conntrack -F");
            (self.events() > before).then_some(())
        });
    }

    /// Ends with the next signal, which has to come.
    ///
    /// # Panics
    /// If none comes.
    pub fn end(self, namespace: &Namespace) {
        self.heard.enough.store(true, Ordering::SeqCst);
        inject::udp(namespace, 1002, 1);
        self.thread.join().expect("it has read to the end");
    }
}

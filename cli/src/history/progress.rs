//! How far a long search has come, for a person who waits at a terminal.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a search takes at least that shows a line.
const AFTER: Duration = Duration::from_secs(1);

/// A line on standard error, until the first row is printed.
pub(super) struct Progress {
    /// What was read so far, compressed as it is.
    pub(super) bytes: Rc<Cell<u64>>,
    all: u64,
    /// When the line is written next; `None` where it is not.
    next: Option<Instant>,
    is_shown: bool,
}

impl Progress {
    /// The progress of a search through `all` bytes.
    pub(super) fn of(all: u64) -> Self {
        let next = io::stderr().is_terminal().then(|| Instant::now() + AFTER);
        Self { bytes: Rc::default(), all, next, is_shown: false }
    }

    /// Writes the line, if it is time.
    pub(super) fn show(&mut self) {
        let Some(next) = self.next.filter(|next| *next <= Instant::now()) else { return };
        self.next = Some(next + AFTER / 4);
        self.is_shown = true;
        const MIB: u64 = 1 << 20;
        let (read, all) = (self.bytes.get(), self.all.max(1));
        // A terminal that is gone is no failure.
        let _ = write!(
            io::stderr(),
            "\r\x1b[Kflowctl: {} of {} MiB read ({}%)",
            read / MIB,
            all / MIB,
            read.min(all) * 100 / all
        );
    }

    /// Takes the line away.
    pub(super) fn stop(&mut self) {
        self.next = None;
        if std::mem::take(&mut self.is_shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

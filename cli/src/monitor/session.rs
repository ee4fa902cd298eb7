//! What is printed of one stream after the other.

use std::io::{self, Write};
use std::time::Instant;

use flowbus_interfaces::{EventKind, FlowStream, Key, StreamItem};

use super::notice::{Notice, Notices};
use crate::error::Error;
use crate::format::Printer;
use crate::resolve;
use crate::screen::Screen;

/// Where the printing of streams is.
pub(super) struct Session {
    pub(super) printer: Printer,
    pub(super) notices: Notices,
    pub(super) screen: Screen,
    /// Nothing is printed but notices.
    pub(super) quiet: bool,
    pub(super) totals: Totals,
    pub(super) place: Option<Place>,
    /// It was said why addresses have no names.
    pub(super) told_nameless: bool,
}

/// A place among the daemon's changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) epoch: String,
    /// The number of the last change before this epoch was watched.
    pub(super) begin: u64,
    /// The number of the last change that is known to be over.
    last: u64,
}

/// What was seen.
#[derive(Debug)]
pub(super) struct Totals {
    begun: Instant,
    new: u64,
    update: u64,
    destroy: u64,
    missed: u64,
}

impl Default for Totals {
    fn default() -> Self {
        Self { begun: Instant::now(), new: 0, update: 0, destroy: 0, missed: 0 }
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The daemon is stopping, or is gone.
    Stopped,
    /// The stream was closed though the daemon did not say that it stops.
    Closed,
}

impl Session {
    pub(super) fn begin(&mut self) -> io::Result<()> {
        if !self.quiet {
            self.printer.begin(&mut self.screen)?;
        }
        self.screen.flush()
    }

    /// Prints a stream to its end. Dropping the future loses nothing that was not printed.
    pub(super) async fn follow(&mut self, stream: &mut FlowStream) -> Result<Ended, Error> {
        let mut stopping = false;
        while let Some(item) = stream.next().await.map_err(Error::Stream)? {
            if let StreamItem::End { .. } = item {
                stopping = true;
            }
            self.item(item)?;
            if !stream.has_line() {
                self.printer.flush(&mut self.screen)?;
                self.screen.flush()?;
                if !self.told_nameless
                    && let Some(failure) = resolve::failure()
                {
                    self.told_nameless = true;
                    anstream::eprintln!("flowctl: {failure}");
                }
            }
        }
        Ok(if stopping { Ended::Stopped } else { Ended::Closed })
    }

    fn item(&mut self, item: StreamItem<'_>) -> io::Result<()> {
        match item {
            StreamItem::Begin { epoch, sequence } => self.enter(epoch.into_owned(), sequence),
            StreamItem::Flow(flow) if !self.quiet => self.printer.flow(&mut self.screen, &flow, None),
            StreamItem::SnapshotEnd { sequence } => {
                self.reach(sequence);
                Ok(())
            }
            StreamItem::Event { kind, flow, .. } => {
                match kind {
                    EventKind::New => self.totals.new += 1,
                    EventKind::Update => self.totals.update += 1,
                    EventKind::Destroy => self.totals.destroy += 1,
                }
                self.reach(flow.number(Key::Sequence).unwrap_or(0));
                if self.quiet { Ok(()) } else { self.printer.flow(&mut self.screen, &flow, Some(kind)) }
            }
            StreamItem::Gap { first, last, lost, reason } => {
                self.totals.missed += lost;
                self.reach(last);
                self.note(&Notice::Gap { first, last, lost, reason: reason.into_owned() })
            }
            StreamItem::Resync { reason, lost, closed, added } => {
                self.note(&Notice::Resync { reason: reason.into_owned(), lost, closed, added })
            }
            _ => Ok(()),
        }
    }

    /// A stream begins: what happened since the one before it is a gap.
    fn enter(&mut self, epoch: String, sequence: u64) -> io::Result<()> {
        let before = self.place.replace(Place { epoch: epoch.clone(), begin: sequence, last: sequence });
        match before {
            None => Ok(()),
            Some(before) if before.epoch == epoch => {
                if let Some(place) = &mut self.place {
                    place.begin = before.begin;
                }
                self.note(&Notice::Back)?;
                let lost = sequence.saturating_sub(before.last);
                if lost == 0 {
                    return Ok(());
                }
                self.totals.missed += lost;
                let (first, last, reason) = (before.last + 1, sequence, "restart".to_owned());
                self.note(&Notice::Gap { first, last, lost, reason })
            }
            Some(_) => self.note(&Notice::NewEpoch),
        }
    }

    fn reach(&mut self, sequence: u64) {
        if let Some(place) = &mut self.place {
            place.last = place.last.max(sequence);
        }
    }

    /// Says how a stream ended.
    pub(super) fn note_end(&mut self, ended: &Ended, bus: &str) -> Result<(), Error> {
        let bus = bus.to_owned();
        self.note(&match ended {
            Ended::Stopped => Notice::Stopped { bus },
            Ended::Closed => Notice::Closed { bus },
        })?;
        Ok(())
    }

    /// Says what was seen in all.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        if !self.quiet {
            self.printer.end(&mut self.screen)?;
        }
        let Totals { begun, new, update, destroy, missed } = self.totals;
        let usec = begun.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
        self.note(&Notice::Summary { usec, new, update, destroy, missed })?;
        Ok(())
    }

    /// In its place among what is printed.
    fn note(&mut self, notice: &Notice) -> io::Result<()> {
        self.printer.flush(&mut self.screen)?;
        self.notices.print(&mut self.screen, notice)?;
        self.screen.flush()
    }
}

//! What is printed of one stream after the other.

use std::io::{self, Write};
use std::time::Instant;

use flowbus_interfaces::{EventKind, FlowRef, FlowStream, Key, StreamItem};

use super::cursor_file::CursorFile;
use super::notice::{Notice, Notices};
use crate::arguments::Monitored;
use crate::error::Error;
use crate::format::Printer;
use crate::resolve;
use crate::screen::Screen;

/// Where the printing of streams is.
pub(super) struct Session<'a> {
    pub(super) monitored: &'a Monitored,
    pub(super) printer: Printer,
    pub(super) notices: Notices,
    pub(super) screen: Screen,
    pub(super) totals: Totals,
    pub(super) place: Option<Place>,
    /// Where another run goes on; `None` where nobody asked to keep it.
    pub(super) cursor: Option<CursorFile>,
    /// Whether the stream that is open began where an earlier one was.
    pub(super) resumed: bool,
    /// Whether the cursor tells flows that begin from those of before, in the stream that is open.
    pub(super) knows_begins: bool,
    /// Whether the daemon has left, or closed the stream, since the last one began.
    pub(super) away: bool,
    /// Whether it was said why addresses have no names.
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

/// What was seen in all.
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
    /// Changes came faster than they were printed, and another stream has what ended among them.
    Behind,
}

impl Session<'_> {
    pub(super) fn begin(&mut self) -> io::Result<()> {
        if !self.monitored.quiet {
            self.printer.begin(&mut self.screen)?;
        }
        self.screen.flush()
    }

    /// Prints a stream to its end. Dropping the future loses nothing that was not printed.
    pub(super) async fn follow(&mut self, stream: &mut FlowStream) -> Result<Ended, Error> {
        let mut stopping = false;
        while let Some(item) = stream.next().await.map_err(Error::Stream)? {
            match &item {
                StreamItem::End { .. } => stopping = true,
                StreamItem::Gap { reason, .. } if self.cursor.is_some() && reason == "slow-reader" => {
                    // Begins and ends among them come with the next stream, updates do not.
                    if self.monitored.shows(EventKind::Update) {
                        self.item(&item)?;
                    }
                    return Ok(Ended::Behind);
                }
                _ => {}
            }
            self.item(&item)?;
            if let Some(file) = &mut self.cursor {
                file.advance(&item);
            }
            drop(item);
            if !stream.has_line() {
                self.printer.flush(&mut self.screen)?;
                self.screen.flush()?;
                if let Some(file) = &mut self.cursor
                    && let Some(due) = file.due()
                    && (due <= tokio::time::Instant::now()
                        || tokio::time::timeout_at(due, stream.ready()).await.is_err())
                {
                    file.write()?;
                }
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

    fn item(&mut self, item: &StreamItem<'_>) -> io::Result<()> {
        match item {
            StreamItem::Begin { epoch, sequence, newest_id, .. } => {
                self.knows_begins = self.resumed || self.cursor.is_some() && newest_id.is_some();
                self.notices.print_item(&mut self.screen, item)?;
                self.enter(epoch, *sequence)
            }
            StreamItem::Closed(flow) => match self.kind_of_ended(flow).filter(|_| self.resumed) {
                Some(kind) => self.event(flow, kind),
                None => Ok(()),
            },
            StreamItem::Flow(flow) => {
                if self.knows_begins && self.monitored.shows(EventKind::New) && !self.has_seen(flow) {
                    self.event(flow, EventKind::New)
                } else if self.monitored.snapshot || self.resumed && self.monitored.shows(EventKind::Update) {
                    self.print(flow, None)
                } else {
                    Ok(())
                }
            }
            StreamItem::SnapshotEnd { sequence } | StreamItem::Reached { sequence } => {
                self.reach(*sequence);
                Ok(())
            }
            StreamItem::Event { kind, flow, .. } => {
                self.reach(flow.number(Key::Sequence).unwrap_or(0));
                self.event(flow, *kind)
            }
            &StreamItem::Gap { first, last, lost, ref reason } => {
                self.totals.missed += lost;
                self.reach(last);
                self.note(&Notice::Gap { first, last, lost, reason: reason.to_string() })
            }
            &StreamItem::Resync { ref reason, lost, closed, added } => {
                self.note(&Notice::Resync { reason: reason.to_string(), lost, closed, added })
            }
            _ => Ok(()),
        }
    }

    /// What is shown of a flow that ended before the stream began: its end, or its begin where only begins are shown.
    fn kind_of_ended(&self, flow: &FlowRef<'_>) -> Option<EventKind> {
        let is_shown = |kind: &EventKind| match kind {
            EventKind::New => self.monitored.shows(EventKind::New) && !self.has_seen(flow),
            kind => self.monitored.shows(*kind),
        };
        [EventKind::Destroy, EventKind::New].into_iter().find(is_shown)
    }

    fn has_seen(&self, flow: &FlowRef<'_>) -> bool {
        self.cursor.as_ref().is_some_and(|file| file.cursor().has_seen(flow))
    }

    fn event(&mut self, flow: &FlowRef<'_>, kind: EventKind) -> io::Result<()> {
        match kind {
            EventKind::New => self.totals.new += 1,
            EventKind::Update => self.totals.update += 1,
            EventKind::Destroy => self.totals.destroy += 1,
        }
        self.print(flow, Some(kind))
    }

    fn print(&mut self, flow: &FlowRef<'_>, kind: Option<EventKind>) -> io::Result<()> {
        if self.monitored.quiet { Ok(()) } else { self.printer.flow(&mut self.screen, flow, kind) }
    }

    /// A stream begins: what happened since the one before it is a gap, unless it goes on there.
    fn enter(&mut self, epoch: &str, sequence: u64) -> io::Result<()> {
        let place = Place { epoch: epoch.to_owned(), begin: sequence, last: sequence };
        let before = self.place.replace(place);
        let away = std::mem::take(&mut self.away);
        match before {
            None => Ok(()),
            Some(before) if before.epoch == epoch => {
                if let Some(place) = &mut self.place {
                    place.begin = before.begin;
                }
                if away {
                    self.note(&Notice::Back)?;
                }
                if self.resumed {
                    return Ok(());
                }
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
        self.away = *ended != Ended::Behind;
        match ended {
            Ended::Stopped => self.note(&Notice::Stopped { bus })?,
            Ended::Closed => self.note(&Notice::Closed { bus })?,
            Ended::Behind => {}
        }
        self.keep_place()
    }

    /// Writes the place down, once all up to it is printed.
    fn keep_place(&mut self) -> Result<(), Error> {
        self.printer.flush(&mut self.screen)?;
        self.screen.flush()?;
        self.cursor.as_mut().map_or(Ok(()), CursorFile::write)
    }

    /// Says what was seen in all.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        if !self.monitored.quiet {
            self.printer.end(&mut self.screen)?;
        }
        let Totals { begun, new, update, destroy, missed } = self.totals;
        let usec = begun.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
        self.note(&Notice::Summary { usec, new, update, destroy, missed })?;
        self.keep_place()
    }

    /// Prints a notice in its place among the flows.
    fn note(&mut self, notice: &Notice) -> io::Result<()> {
        self.printer.flush(&mut self.screen)?;
        self.notices.print(&mut self.screen, notice)?;
        self.screen.flush()
    }
}

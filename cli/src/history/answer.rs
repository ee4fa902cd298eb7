//! What was found, printed as it is found.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::ControlFlow;

use flowbus_interfaces::{FlowRef, QueryKey};

use super::History;
use super::files::Machine;
use super::incomplete::Incomplete;
use super::progress::Progress;
use super::row::Row;
use crate::cell;
use crate::error::Error;
use crate::fields::Recorded;
use crate::format::{Format, Kind, Printer, late_names};
use crate::output::json_line;
use crate::screen::Screen;

/// Notices that are printed below a table; the rest is counted.
const NOTICES: usize = 50;

/// Prints rows, and notices of what is missing: in JSON as lines, else below the rows, on standard error.
pub(super) struct Answer<'a> {
    history: &'a History,
    printer: Printer,
    /// The screen, opened with the first output, so that progress can be seen until then.
    screen: Option<Screen>,
    paged: bool,
    pub(super) progress: Progress,
    rows: usize,
    notices: Vec<String>,
    more_notices: usize,
    not_recorded: BTreeMap<QueryKey, u64>,
    failures: usize,
    denied: bool,
}

impl<'a> Answer<'a> {
    pub(super) fn new(history: &'a History, kind: Kind, paged: bool, progress: Progress) -> Self {
        let listed = &history.listed;
        Self {
            history,
            printer: Printer::of(&listed.query, &listed.output, kind),
            screen: None,
            paged,
            progress,
            rows: 0,
            notices: Vec::new(),
            more_notices: 0,
            not_recorded: BTreeMap::new(),
            failures: 0,
            denied: false,
        }
    }

    fn format(&self) -> &'a Format {
        self.history.listed.output.format()
    }

    fn screen(&mut self) -> Result<&mut Screen, Error> {
        if self.screen.is_none() {
            self.progress.stop();
            let mut screen = Screen::open(self.paged)?;
            self.printer.begin(&mut screen)?;
            self.screen = Some(screen);
        }
        self.screen.as_mut().ok_or(Error::CutOff)
    }

    /// Prints a flow, read of this line. `is_alive` is for those whose end is not there: whether they were alive when the record ended.
    pub(super) fn row(
        &mut self,
        machine: &Machine,
        epoch: &str,
        line: &str,
        flow: FlowRef<'_>,
        is_alive: Option<bool>,
    ) -> Result<ControlFlow<()>, Error> {
        let most = self.history.listed.lines.unwrap_or(usize::MAX);
        if self.rows == most {
            return Ok(ControlFlow::Break(()));
        }
        self.rows += 1;
        let format = self.format();
        let event = format.event_of_closed().filter(|_| is_alive.is_none());
        let row = Row {
            flow,
            line,
            recorded: Recorded { machine: &machine.id, name: &machine.name, epoch, is_alive },
            chosen: self.history.listed.query.fields(),
            both_directions: matches!(format, Format::Conntrack(_) | Format::Xml(_)),
        };
        self.screen()?;
        if let Some(screen) = &mut self.screen {
            self.printer.flow(screen, &row, event)?;
        }
        Ok(if self.rows == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Takes note that the answer is not all.
    pub(super) fn incomplete(&mut self, machine: Option<&Machine>, what: &Incomplete) -> Result<(), Error> {
        self.failures += usize::from(what.is_failure());
        self.denied |= what.is_denied();
        if *self.format() == Format::Json {
            let object = what.object(machine.map(|machine| machine.id.as_str()));
            return Ok(json_line(self.screen()?, &object)?);
        }
        if self.notices.len() < NOTICES {
            let whose = machine.map(|machine| format!("{}: ", machine.name)).unwrap_or_default();
            self.notices.push(format!("{whose}{}", what.text()));
        } else {
            self.more_notices += 1;
        }
        Ok(())
    }

    /// Counts a line that does not have what a condition is about.
    pub(super) fn not_recorded(&mut self, key: QueryKey) {
        *self.not_recorded.entry(key).or_default() += 1;
    }

    /// Prints what is left. `empty` is said where nothing was found.
    pub(super) async fn finish(mut self, empty: impl FnOnce() -> String) -> Result<(), Error> {
        for (key, flows) in std::mem::take(&mut self.not_recorded) {
            self.incomplete(None, &Incomplete::NotRecorded { key, flows })?;
        }
        self.screen()?;
        if let Some(mut screen) = self.screen.take() {
            self.printer.end(&mut screen)?;
            late_names(&self.history.listed.output, &mut screen).await?;
            screen.flush()?;
            screen.close()?;
        }
        if self.rows == 0 {
            anstream::eprintln!("{}", empty());
        }
        for notice in &self.notices {
            anstream::eprintln!("flowctl: {notice}");
        }
        if self.more_notices > 0 {
            let more = cell::counted(self.more_notices as u64, "more notice");
            anstream::eprintln!("flowctl: {more} of what is missing; --json has them all");
        }
        match self.failures {
            0 => Ok(()),
            files => {
                let files = cell::counted(files as u64, "file");
                Err(Error::Unread { files, denied: self.denied })
            }
        }
    }
}

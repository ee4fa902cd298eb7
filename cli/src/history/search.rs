//! The search through the files of one machine.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use flowbus_interfaces::{Cursor, FieldSet, FlowRef, Key, RecordError};
use serde::Deserialize;

use super::alive::Alive;
use super::answer::Answer;
use super::asked::Asked;
use super::files::{LogFile, Machine};
use super::incomplete::Incomplete;
use super::line::{Kind, Numbers, Prefix};
use super::lines::Line;
use crate::cell;
use crate::error::Error;

/// A log that is written has a line at least this often, unless nothing happens.
const QUIET_USEC: u64 = 10_000_000;
/// A time that is this much earlier than one before it means that the clock was set back.
const STEP_USEC: u64 = 1_000_000;
/// Lines between two looks at the clock.
const LINES: u64 = 1024;

/// What was read of a machine's files.
pub(super) struct Search<'a, 'h> {
    asked: &'a Asked,
    machine: &'a Machine,
    numbers: Numbers,
    answer: &'a mut Answer<'h>,
    alive: Alive,
    /// Whether there were too many.
    is_full: bool,
    /// The conditions of the log that were reported.
    selected: BTreeSet<String>,
    place: Place,
}

/// How far the record has been read.
#[derive(Default)]
struct Place {
    epoch: String,
    /// The latest time, but for that of `line`.
    usec: u64,
    /// The number of the latest change, but for that of `line`.
    sequence: u64,
    /// The last line of a change.
    line: Vec<u8>,
    /// The fields that the file has.
    recorded: FieldSet,
    /// Whether the file's snapshot is complete.
    has_snapshot: bool,
    /// Whether the file has its last line.
    is_ended: bool,
    is_unreadable: bool,
}

impl Place {
    fn usec(&self, numbers: &Numbers) -> u64 {
        self.usec.max(numbers.latest_usec(&self.line))
    }

    fn sequence(&self, numbers: &Numbers) -> u64 {
        self.sequence.max(numbers.sequence.of(&self.line).unwrap_or(0))
    }
}

/// Why something is missing.
#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    reason: String,
}

type Flow = Result<ControlFlow<()>, Error>;
const ON: Flow = Ok(ControlFlow::Continue(()));

impl<'a, 'h> Search<'a, 'h> {
    pub(super) fn new(asked: &'a Asked, machine: &'a Machine, answer: &'a mut Answer<'h>) -> Self {
        Self {
            asked,
            machine,
            numbers: Numbers::new(),
            answer,
            alive: Alive::new(),
            is_full: false,
            selected: BTreeSet::new(),
            place: Place::default(),
        }
    }

    /// Prints what is found, and breaks when that is enough.
    pub(super) fn run(mut self) -> Flow {
        let machine = self.machine;
        let span = machine.span(self.asked.since, self.asked.until);
        let begin = machine.begin_usec();
        if begin > self.asked.since && self.asked.since > 0 {
            self.incomplete(&Incomplete::Begins { usec: begin })?;
        }
        for index in span.clone() {
            let file = &machine.files[index];
            if self.read(file, true)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if let Some(next) = machine.files.get(index + 1) {
                self.join(file, next)?;
            }
        }
        // What ended up to the last line that was read is known; the rest is in the beginning of the next file, which goes on in the
        // one after it where its writer was killed meanwhile.
        let known = (self.usec(), !self.place.is_ended);
        let mut files = machine.files[span.end..].iter();
        loop {
            let Some(next) = files.next() else {
                self.note_end(known)?;
                break;
            };
            if self.read(next, false)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if self.place.has_snapshot {
                break;
            }
        }
        let is_alive = !self.place.is_unreadable;
        self.flush(is_alive)
    }

    fn incomplete(&mut self, what: &Incomplete) -> Result<(), Error> {
        self.answer.incomplete(Some(self.machine), what)
    }

    /// Reads a file, or the part of it that says what was alive when it began.
    fn read(&mut self, file: &LogFile, is_whole: bool) -> Flow {
        // What is missing before the first line of this file is missing since the last one of the file before.
        let mut before = if self.place.epoch.is_empty() { file.begin_usec() } else { self.usec() };
        if self.begin(file)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let unreadable = |after, error| Incomplete::Unreadable { path: file.path.clone(), after, error };
        let mut lines = match file.lines(&self.answer.progress.bytes) {
            Ok(lines) => lines,
            Err(error) => {
                self.place.is_unreadable = true;
                self.incomplete(&unreadable(None, error))?;
                return ON;
            }
        };
        let clues = self.asked.clues(self.place.recorded);
        let mut prefix = Prefix::of(&[]);
        let (mut read, mut bad, mut flow) = (0_u64, 0_u64, ControlFlow::Continue(()));
        loop {
            let line = match lines.next() {
                Ok(Some(Line::Whole(line))) => line,
                Ok(Some(Line::TooLong)) => {
                    (read, bad) = (read + 1, bad + 1);
                    continue;
                }
                Ok(Some(Line::Torn) | None) => break,
                Err(error) => {
                    self.place.is_unreadable = true;
                    let usec = self.usec();
                    self.incomplete(&unreadable(Some(usec), error))?;
                    break;
                }
            };
            read += 1;
            if read == 1 {
                prefix = Prefix::of(line);
                continue;
            }
            if read % LINES == 0 {
                self.answer.progress.show();
            }
            let Some((kind, is_compact)) = prefix.kind(line) else {
                bad += 1;
                continue;
            };
            let is_ruled_out = || is_compact && clues.rule_out(line);
            match kind {
                Kind::Flow | Kind::Begun => {
                    if kind == Kind::Begun {
                        self.note(line);
                    }
                    if !is_ruled_out() {
                        bad += u64::from(!self.begun(line)?);
                    }
                }
                Kind::Closed | Kind::Destroy => {
                    self.note(line);
                    if !is_ruled_out() {
                        match self.ended(line)? {
                            Some(ControlFlow::Continue(())) => {}
                            Some(ControlFlow::Break(())) => return Ok(ControlFlow::Break(())),
                            None => bad += 1,
                        }
                    }
                }
                Kind::SnapshotEnd => {
                    self.place.has_snapshot = true;
                    flow = self.end_snapshot()?;
                    if flow.is_break() || !is_whole {
                        break;
                    }
                }
                Kind::Gap | Kind::Resync => self.note_loss(line, kind, before)?,
                Kind::Reached => {
                    let reached = self.numbers.sequence.of(line).unwrap_or(0);
                    self.place.sequence = self.place.sequence.max(reached);
                }
                Kind::End => {
                    self.place.is_ended = true;
                    self.place.usec = self.usec().max(self.numbers.event_usec.of(line).unwrap_or(0));
                    let records = self.numbers.records.of(line).unwrap_or(0);
                    bad += records.saturating_sub(read - 1);
                }
                Kind::Other => {}
            }
            before = 0;
        }
        if bad > 0 {
            self.incomplete(&Incomplete::Lines { path: file.path.clone(), lost: bad })?;
        }
        Ok(flow)
    }

    /// Begins another file: in another epoch none of the flows goes on.
    fn begin(&mut self, file: &LogFile) -> Flow {
        let flow = if self.place.epoch == file.begin.epoch { ON? } else { self.flush(false)? };
        let query = file.begin.query.join(" ");
        if !query.is_empty() && self.selected.insert(query.clone()) {
            self.incomplete(&Incomplete::Selected { query })?;
        }
        self.alive.begin_file();
        self.place = Place {
            epoch: file.begin.epoch.clone(),
            usec: file.begin_usec(),
            sequence: file.begin.sequence,
            recorded: file.begin.recorded(),
            ..Place::default()
        };
        Ok(flow)
    }

    fn usec(&self) -> u64 {
        self.place.usec(&self.numbers)
    }

    /// Remembers a change.
    fn note(&mut self, line: &[u8]) {
        self.place.line.clear();
        self.place.line.extend_from_slice(line);
    }

    /// Notes that a flow is alive; false for a line that cannot be read.
    fn begun(&mut self, line: &[u8]) -> Result<bool, Error> {
        // The flow began later than what is asked about, and ends later.
        if self.numbers.start_usec.of(line).is_some_and(|start| start > self.asked.until) {
            return Ok(true);
        }
        let Some((text, flow, id)) = flow_of(line) else { return Ok(false) };
        let matches = self.matches(&flow);
        if matches != Some(true) {
            self.alive.remove(id);
        } else if !self.alive.insert(id, text) && !std::mem::replace(&mut self.is_full, true) {
            let usec = self.usec();
            self.incomplete(&Incomplete::TooMany { usec })?;
        }
        Ok(matches.is_some())
    }

    /// Prints a flow that has ended; `None` for a line that cannot be read.
    fn ended(&mut self, line: &[u8]) -> Result<Option<ControlFlow<()>>, Error> {
        let on = Some(ControlFlow::Continue(()));
        // An end before what is asked about says no more than whose it is.
        if self.numbers.end_usec.of(line).is_some_and(|end| end < self.asked.since)
            && let Some(id) = self.numbers.id.of(line)
        {
            self.alive.remove(id);
            return Ok(on);
        }
        let Some((text, flow, id)) = flow_of(line) else { return Ok(None) };
        self.alive.remove(id);
        match self.matches(&flow) {
            Some(true) => self.answer.row(self.machine, &self.place.epoch, text, flow, None).map(Some),
            Some(false) => Ok(on),
            None => Ok(None),
        }
    }

    /// Whether the flow passes; `None` for a line that cannot be read.
    fn matches(&mut self, flow: &FlowRef<'_>) -> Option<bool> {
        match self.asked.filter.matches_line(flow, self.place.recorded) {
            Ok(matches) => Some(matches),
            Err(RecordError::NotRecorded(key)) => {
                self.answer.not_recorded(key);
                Some(false)
            }
            Err(RecordError::Invalid(_)) => None,
        }
    }

    /// The snapshot is complete: what it lacks of the flows that were alive has ended, and the end is missing.
    fn end_snapshot(&mut self) -> Flow {
        let lines = self.alive.take_unseen();
        self.show_without_end(lines, false)
    }

    /// Prints the flows that have not ended.
    fn flush(&mut self, are_alive: bool) -> Flow {
        let lines = self.alive.take();
        self.show_without_end(lines, are_alive)
    }

    fn show_without_end(&mut self, lines: impl IntoIterator<Item = Box<str>>, are_alive: bool) -> Flow {
        for line in lines {
            let Ok(flow) = FlowRef::parse(&line) else { continue };
            let epoch = &self.place.epoch;
            if self.answer.row(self.machine, epoch, &line, flow, Some(are_alive))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        ON
    }

    /// Notes that changes are missing between the last line and this one. `before` is the last line's time where it was in the file
    /// before.
    fn note_loss(&mut self, line: &[u8], kind: Kind, before: u64) -> Result<(), Error> {
        let from = if before > 0 { before } else { self.usec() };
        let to = self.numbers.event_usec.of(line);
        self.place.usec = self.usec().max(to.unwrap_or(0));
        self.place.sequence = self.place.sequence(&self.numbers).max(self.numbers.last.of(line).unwrap_or(0));
        if !self.asked.is_about(from, to) {
            return Ok(());
        }
        let reason = serde_json::from_slice::<Reason>(line).map(|line| line.reason).unwrap_or_default();
        match (kind, reason.as_str()) {
            (Kind::Gap, _) => {
                let lost = self.numbers.lost.of(line);
                self.incomplete(&Incomplete::Gap { from, to, lost, reason })
            }
            // A gap, or another epoch, has said so.
            (_, "overrun" | "start") => Ok(()),
            _ => self.incomplete(&Incomplete::Resync { from, to, reason }),
        }
    }

    /// Whether a file begins where the one before it ends.
    fn join(&mut self, file: &LogFile, next: &LogFile) -> Result<(), Error> {
        let (from, to) = (self.usec(), next.begin_usec());
        if from.saturating_sub(to) > STEP_USEC && self.asked.is_about(to, Some(from)) {
            self.incomplete(&Incomplete::ClockSetBack { from, to })?;
        }
        if self.place.is_unreadable || !self.asked.is_about(from.min(to), Some(to.max(from))) {
            return Ok(());
        }
        if next.begin.epoch != self.place.epoch {
            return self.incomplete(&Incomplete::NewEpoch { from, to });
        }
        let cursor = next.begin.from.parse::<Cursor>().ok().filter(|cursor| !cursor.is_fresh());
        let goes_on = cursor
            .is_some_and(|cursor| cursor.goes_on(&self.place.epoch, self.place.sequence(&self.numbers)));
        match goes_on {
            true => Ok(()),
            false => self.incomplete(&Incomplete::Missing { path: file.path.clone(), from, to }),
        }
    }

    /// Whether the record, known up to `usec`, has the time that is asked about.
    fn note_end(&mut self, (usec, is_open): (u64, bool)) -> Result<(), Error> {
        let now = cell::now();
        let until = self.asked.until.min(now);
        let is_current = is_open && self.asked.until >= now && now.saturating_sub(usec) < QUIET_USEC;
        if usec == 0 || until <= usec || is_current || self.place.is_unreadable {
            return Ok(());
        }
        self.incomplete(&Incomplete::Ends { usec, is_open })
    }
}

fn flow_of(line: &[u8]) -> Option<(&str, FlowRef<'_>, u64)> {
    let text = std::str::from_utf8(line).ok()?;
    let flow = FlowRef::parse(text).ok()?;
    Some((text, flow, flow.number(Key::Id)?))
}

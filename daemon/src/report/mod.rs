//! The text that `GetReport` answers: what a feedback report says of the connections, with what identifies a user
//! hidden where it is written.
//!
//! A report takes in any number of flows and keeps as many as may fit, so that it costs little memory; the text has
//! the state of the daemon first, then what it counted, then flows, closed before active and the latest last, and a
//! summary at the very end: a reader that cuts a text from the front keeps what matters most.

mod line;
mod redact;
mod totals;

use std::collections::VecDeque;
use std::fmt::Write as _;

use flowbus_interfaces::{Flow, KernelState, ReportOptions, SourceNames, Span};
use jiff::Timestamp;

use line::ReportLine;
use redact::{EPHEMERAL, Redactor};
use totals::Totals;

/// What the daemon knows of itself and of the kernel.
#[derive(Clone, Debug)]
pub(crate) struct DaemonState {
    pub(crate) version: &'static str,
    pub(crate) uptime_usec: u64,
    pub(crate) synchronized: bool,
    /// How flows get their processes: none, procfs or bpf.
    pub(crate) attribution: &'static str,
    pub(crate) events_received: u64,
    pub(crate) events_lost: u64,
    pub(crate) resyncs: u64,
    pub(crate) closed_capacity: u32,
    pub(crate) closed_evicted: u64,
    /// The event socket's buffer.
    pub(crate) buffer_bytes: u64,
    pub(crate) kernel: KernelState,
}

/// A report that is being made.
#[derive(Debug)]
pub(crate) struct Report {
    options: ReportOptions,
    /// CLOCK_REALTIME microseconds: what times are relative to.
    now_usec: u64,
    totals: Totals,
    active: Kept,
    closed: Kept,
}

/// The latest flows and how many there were.
#[derive(Debug, Default)]
struct Kept {
    /// The flows' lines, the latest first.
    lines: VecDeque<ReportLine>,
    seen: usize,
}

impl Report {
    /// An empty report of what is so at `now_usec`. Whether `options.redact` may be off is the caller's to decide.
    pub(crate) fn new(options: ReportOptions, now_usec: u64) -> Self {
        Self {
            options,
            now_usec,
            totals: Totals::default(),
            active: Kept::default(),
            closed: Kept::default(),
        }
    }

    /// Adds an active flow. They come in the order of ListActive: the latest last.
    pub(crate) fn add_active(&mut self, flow: &Flow<'_>) {
        self.totals.add(flow, self.options.processes);
        self.active.seen += 1;
        if self.most_lines() == 0 {
            return;
        }
        if self.active.lines.len() == self.most_lines() {
            self.active.lines.pop_back();
        }
        self.active.lines.push_front(ReportLine::new(flow, self.options.processes));
    }

    /// Adds a closed flow. They come in the order of ListClosed: the latest first.
    pub(crate) fn add_closed(&mut self, flow: &Flow<'_>) {
        if flow.end.is_some_and(|end| end.usec < self.options.since) {
            return;
        }
        self.totals.add(flow, self.options.processes);
        self.closed.seen += 1;
        if self.closed.lines.len() < self.most_lines() {
            self.closed.lines.push_back(ReportLine::new(flow, self.options.processes));
        }
    }

    /// The number of lines to keep: hardly more fit.
    fn most_lines(&self) -> usize {
        if self.options.flows { self.options.max_bytes / line::SHORT } else { 0 }
    }

    /// The text, of at most `max_bytes`.
    pub(crate) fn finish(&self, state: &DaemonState, names: &SourceNames) -> String {
        let head = self.head(state, names);
        // No count of what is left out takes more digits than this one.
        let most = self.frame(state, [usize::MAX; 2]).iter().map(String::len).sum::<usize>();
        let room = self.options.max_bytes.saturating_sub(head.len() + most);

        let mut writer =
            LineWriter { redactor: Redactor::new(self.options.redact), names, now_usec: self.now_usec };
        let (mut closed, mut active) = (self.closed.lines.iter(), self.active.lines.iter());
        let (mut closed_lines, mut active_lines) = (Vec::new(), Vec::new());
        // Half of the room for either, and what one does not need for the other.
        let unused = writer.fill(&mut closed_lines, &mut closed, room / 2);
        let unused = writer.fill(&mut active_lines, &mut active, room - room / 2 + unused);
        writer.fill(&mut closed_lines, &mut closed, unused);

        let left_out = [self.active.seen - active_lines.len(), self.closed.seen - closed_lines.len()];
        let [closed_title, active_title, summary] = self.frame(state, left_out);
        let mut text = head;
        for (title, lines) in [(closed_title, closed_lines), (active_title, active_lines)] {
            text.push_str(&title);
            lines.iter().rev().for_each(|line| text.push_str(line));
        }
        text.push_str(&summary);
        text
    }

    fn head(&self, state: &DaemonState, names: &SourceNames) -> String {
        let DaemonState { kernel, .. } = state;
        let mut out = String::from("flowbus report\n");
        let _ = writeln!(out, "time: {}", utc(self.now_usec));
        if self.options.since > 0 {
            let _ = writeln!(out, "flows since: {}", utc(self.options.since));
        }
        if self.options.redact {
            let _ = writeln!(
                out,
                "Redacted: a token stands for the same address throughout this report, EPH for a port from {} up; byte \
                 counts have two digits.",
                EPHEMERAL.start
            );
        } else {
            out.push_str("NOT redacted: addresses and ports are real.\n");
        }
        let _ = write!(
            out,
            "\nDaemon:\n  version: {}\n  up: {}\n  synchronized: {}\n  events: {} received, {} lost\n  resyncs: {}\n  \
             receive buffer: {} bytes\n  processes: {}\n  closed flows: at most {} remembered, {} forgotten\n",
            state.version,
            Span(state.uptime_usec),
            if state.synchronized { "yes" } else { "no" },
            state.events_received,
            state.events_lost,
            state.resyncs,
            state.buffer_bytes,
            state.attribution,
            state.closed_capacity,
            state.closed_evicted,
        );
        let _ = write!(
            out,
            "\nKernel:\n  nf_conntrack_acct: {}\n  nf_conntrack_timestamp: {}\n  nf_conntrack_events: {}\n  table: {}\n  \
             early drops: {}\n  insert failures: {}\n",
            switch(kernel.accounting),
            switch(kernel.timestamping),
            number(kernel.events),
            fill_level(kernel),
            number(kernel.early_drop),
            number(kernel.insert_failed),
        );
        self.totals.write(&mut out, names, self.options.max_bytes);
        out
    }

    /// What stands around the flows: both titles and the summary. `left_out` counts active and closed flows.
    fn frame(&self, state: &DaemonState, left_out: [usize; 2]) -> [String; 3] {
        let title = |what: &str, left_out: usize| match left_out {
            _ if !self.options.flows => String::new(),
            0 => format!("\n{what} flows, latest last:\n"),
            count => format!("\n{what} flows, latest last; {count} earlier ones are left out:\n"),
        };
        let [active, closed] = left_out;
        let flows = match self.options.flows {
            true => format!(", of which {active} and {closed} are left out above"),
            false => ", which were not asked for".to_owned(),
        };
        let summary = format!(
            "\nSummary: flowbusd {} up {}, {}synchronized, {} events lost, {} resyncs, kernel table {}; {} active and {} \
             closed flows{flows}.\n",
            state.version,
            Span(state.uptime_usec),
            if state.synchronized { "" } else { "NOT " },
            state.events_lost,
            state.resyncs,
            fill_level(&state.kernel),
            self.active.seen,
            self.closed.seen,
        );
        [title("Closed", closed), title("Active", active), summary]
    }
}

/// Writes lines while there is room.
struct LineWriter<'a> {
    redactor: Redactor,
    names: &'a SourceNames,
    now_usec: u64,
}

impl LineWriter<'_> {
    /// Adds lines until one does not fit; answers how much room is left. That one is still to come.
    fn fill<'l>(
        &mut self,
        out: &mut Vec<String>,
        lines: &mut (impl Iterator<Item = &'l ReportLine> + Clone),
        mut room: usize,
    ) -> usize {
        while let Some(line) = lines.clone().next() {
            let text = line.text(&mut self.redactor, self.names, self.now_usec);
            let Some(left) = room.checked_sub(text.len()) else { break };
            room = left;
            out.push(text);
            lines.next();
        }
        room
    }
}

/// A time of the day in UTC, by which a report and the logs beside it are compared: its other times are relative to it.
fn utc(usec: u64) -> String {
    let time = i64::try_from(usec / 1_000_000).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map_or_else(|| "unknown".to_owned(), |time| time.to_string())
}

/// Count, maximum and how full that is.
fn fill_level(kernel: &KernelState) -> String {
    match (kernel.count, kernel.maximum) {
        (Some(count), Some(maximum @ 1..)) => {
            format!("{count} of {maximum} ({}%)", u64::from(count) * 100 / u64::from(maximum))
        }
        (Some(count), _) => format!("{count} of an unknown maximum"),
        (None, _) => "unknown".to_owned(),
    }
}

fn switch(on: Option<bool>) -> &'static str {
    match on {
        Some(true) => "on",
        Some(false) => "off",
        None => "unknown",
    }
}

fn number(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "unknown".to_owned(), |number| number.to_string())
}

#[cfg(test)]
mod tests;

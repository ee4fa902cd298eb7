//! Where flows are printed, and in which form.

use std::io::{self, BufWriter, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use flowbus_interfaces::{Key, OwnedFlow};

use crate::arguments::Format;
use crate::awk;
use crate::cell;
use crate::show;
use crate::table::{Column, Row, Table};

/// Standard output; colours are for terminals without NO_COLOR.
pub(crate) fn stdout() -> impl Write {
    BufWriter::new(anstream::stdout().lock())
}

/// The terminal's width, where standard output is one.
pub(crate) fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| terminal_size::terminal_size_of(&stdout)).flatten();
    size.map(|(width, _)| usize::from(width.0))
}

/// What a table of flows is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Active,
    Closed,
    Events,
}

const fn column(title: &'static str, width: usize, drop: u8) -> Column {
    Column { title, width, drop }
}

const ACTIVE: &[Column] = &[
    column("ID", 0, 0),
    column("PROTO", 0, 0),
    column("STATE", 0, 2),
    column("FROM", 0, 0),
    column("TO", 0, 0),
    column("NAT", 0, 1),
    column("SOURCE", 0, 0),
    column("BYTES", 0, 4),
    column("AGE", 0, 3),
];

const CLOSED: &[Column] = &[
    column("ID", 0, 0),
    column("PROTO", 0, 0),
    column("FROM", 0, 0),
    column("TO", 0, 0),
    column("NAT", 0, 1),
    column("SOURCE", 0, 0),
    column("BYTES", 0, 5),
    column("LASTED", 0, 3),
    column("ENDED", 0, 2),
    column("REASON", 0, 4),
];

/// Events come one by one: widths that fit most of IPv4 keep them aligned.
const EVENTS: &[Column] = &[
    column("EVENT", 7, 0),
    column("ID", 4, 1),
    column("PROTO", 6, 0),
    column("STATE", 12, 3),
    column("FROM", 21, 0),
    column("TO", 21, 0),
    column("SOURCE", 8, 0),
    column("NAT", 0, 2),
];

/// Prints flows.
pub(crate) struct Printer {
    format: Format,
    kind: Kind,
    /// The columns that were asked for; none where the kind has its own.
    fields: Vec<Key>,
    table: Table,
}

impl Printer {
    /// `fields` are the columns of a table, where they were chosen.
    pub(crate) fn new(format: Format, kind: Kind, fields: Vec<Key>) -> Self {
        let columns = match kind {
            _ if !fields.is_empty() => fields.iter().map(|key| column(key.name(), 0, 0)).collect(),
            Kind::Active => ACTIVE.to_vec(),
            Kind::Closed => CLOSED.to_vec(),
            Kind::Events => EVENTS.to_vec(),
        };
        Self { format, kind, fields, table: Table::new(columns, terminal_width()) }
    }

    /// Prints some flows; the caller flushes.
    pub(crate) fn print(&mut self, out: &mut dyn Write, flows: &[OwnedFlow]) -> io::Result<()> {
        match self.format {
            Format::Table => {
                let now = cell::now();
                let rows: Vec<_> = flows.iter().map(|flow| self.row(flow, now)).collect();
                self.table.print(out, &rows)
            }
            Format::Json => flows.iter().try_for_each(|flow| json(out, flow)),
            Format::Awk => flows.iter().try_for_each(|flow| writeln!(out, "{}", awk::Line(flow))),
        }
    }
}

impl Printer {
    fn row(&self, flow: &OwnedFlow, now: u64) -> Row {
        if self.fields.is_empty() {
            return row(self.kind, flow, now);
        }
        let cell = |key: &Key| flow.get(*key).map(|value| show::detail(*key, value)).unwrap_or_default();
        Row { cells: self.fields.iter().map(cell).collect(), style: Style::new() }
    }
}

/// Prints a value as one line of JSON.
pub(crate) fn json(out: &mut dyn Write, value: &OwnedFlow) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

fn row(kind: Kind, flow: &OwnedFlow, now: u64) -> Row {
    let text = |key| flow.get(key).map(ToString::to_string).unwrap_or_default();
    let from = cell::endpoint(flow, Key::Src, Key::Sport);
    let to = cell::endpoint(flow, Key::Dst, Key::Dport);
    let nat = cell::translation(flow);
    let [id, protocol, source] = [Key::Id, Key::Protocol, Key::Source].map(text);
    let (cells, style) = match kind {
        Kind::Active => {
            let (state, bytes, age) = (cell::state(flow), cell::bytes(flow), cell::age(flow, now));
            (vec![id, protocol, state, from, to, nat, source, bytes, age], Style::new())
        }
        Kind::Closed => {
            let ended = flow.number(Key::EndUsec).map(|usec| cell::when(usec, now)).unwrap_or_default();
            let (bytes, lasted, reason) = (cell::bytes(flow), cell::lasted(flow), text(Key::EndReason));
            (vec![id, protocol, from, to, nat, source, bytes, lasted, ended, reason], Style::new())
        }
        Kind::Events => {
            let event = text(Key::Event);
            let style = event_style(&event);
            (vec![event, id, protocol, cell::state(flow), from, to, source, nat], style)
        }
    };
    Row { cells, style }
}

fn event_style(event: &str) -> Style {
    match event {
        "new" => AnsiColor::Green.on_default(),
        "destroy" => AnsiColor::Red.on_default(),
        _ => Style::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: &str = r#"{"event":"new","id":7,"protocol":"tcp","src":"198.18.0.2","sport":40000,"dst":"2001:2::1",
        "dport":443,"nat_src":"198.18.3.2","nat_sport":1024,"state":"ESTABLISHED","mark":256,"source":"CHROME",
        "orig_bytes":84,"reply_bytes":0,"start_usec":1000000,"end_usec":3000000,"duration_usec":2000000,
        "start_source":"kernel","end_reason":"destroyed"}"#;

    fn printed(format: Format, kind: Kind) -> String {
        let mut out = anstream::StripStream::new(Vec::new());
        let mut printer =
            Printer { table: Table::new(EVENTS.to_vec(), None), ..Printer::new(format, kind, Vec::new()) };
        if kind != Kind::Events {
            printer = Printer::new(format, kind, Vec::new());
        }
        printer.print(&mut out, &[OwnedFlow::from_json(FLOW).unwrap()]).unwrap();
        String::from_utf8(out.into_inner()).unwrap()
    }

    #[test]
    fn an_event_is_one_line_for_people() {
        let text = printed(Format::Table, Kind::Events);
        let expected = "\
EVENT    ID    PROTO   STATE         FROM                   TO                     SOURCE    NAT
new      7     tcp     ESTABLISHED   198.18.0.2:40000       [2001:2::1]:443        CHROME    from 198.18.3.2:1024
";
        assert_eq!(text, expected);
    }

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        let flow = OwnedFlow::from_json(FLOW).unwrap();
        for (kind, columns) in [(Kind::Active, ACTIVE), (Kind::Closed, CLOSED), (Kind::Events, EVENTS)] {
            assert_eq!(row(kind, &flow, 0).cells.len(), columns.len());
            assert!(row(kind, &flow, 0).cells.iter().all(|cell| !cell.is_empty()));
            assert_eq!(row(kind, &OwnedFlow::default(), 0).cells.concat(), "");
        }
    }

    #[test]
    fn json_and_awk_are_one_line_a_flow() {
        let text = printed(Format::Json, Kind::Active);
        assert!(text.starts_with(r#"{"event":"new","id":7,"protocol":"tcp","#), "{text}");
        assert_eq!(text.lines().count(), 1);
        let text = printed(Format::Awk, Kind::Active);
        assert_eq!(text, "7 198.18.0.2 40000 198.18.3.2 1024 2001:2::1 443 tcp 1 3 256 CHROME\n");
    }

    #[test]
    fn chosen_fields_are_the_columns() {
        let flow = OwnedFlow::from_json(FLOW).unwrap();
        let fields = vec![Key::Dport, Key::Mark, Key::Zone, Key::Id];
        let mut printer = Printer::new(Format::Table, Kind::Active, fields);
        let mut out = anstream::StripStream::new(Vec::new());
        printer.print(&mut out, &[flow]).unwrap();
        let text = String::from_utf8(out.into_inner()).unwrap();
        assert_eq!(text, "dport  mark              zone  id\n443    256 (0x00000100)        7\n");
    }
}

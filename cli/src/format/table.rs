//! Flows as rows of a table for people.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use flowbus_interfaces::{EventKind, Key, event_name};

use crate::cell::{self, Cells};
use crate::fields::Fields;
use crate::screen::Look;
use crate::table::{Column, Row, Table};

/// What a table of flows is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Active,
    Closed,
    Events,
}

/// Rows are written so many at once: the columns get wide enough for the first of them.
const ROWS: usize = 500;

/// The source of a mark that names none.
const SOURCE: &str = "SOURCE";

/// What a reader needs most stays longest: the ends of a flow always, then its process.
const ACTIVE: &[Column] = &[
    Column::new("ID", 2),
    Column::new("PROTO", 0),
    Column::new("STATE", 0),
    Column::new("FROM", 0),
    Column::new("TO", 0),
    Column::new("NAT", 5),
    Column::new(SOURCE, 6),
    Column::new("BYTES", 3),
    Column::new("AGE", 4),
    Column::new("PROCESS", 1),
];

const CLOSED: &[Column] = &[
    Column::new("ID", 4),
    Column::new("PROTO", 0),
    Column::new("FROM", 0),
    Column::new("TO", 0),
    Column::new("NAT", 6),
    Column::new(SOURCE, 7),
    Column::new("BYTES", 5),
    Column::new("LASTED", 3),
    Column::new("ENDED", 2),
    Column::new("REASON", 8),
    Column::new("PROCESS", 1),
];

/// Events come one by one: widths that fit most of IPv4 keep them aligned.
const EVENTS: &[Column] = &[
    Column { width: 12, ..Column::new("TIME", 2) },
    Column { width: 7, ..Column::new("EVENT", 0) },
    Column { width: 4, ..Column::new("ID", 3) },
    Column { width: 4, ..Column::new("PROTO", 0) },
    Column { width: 11, ..Column::new("STATE", 0) },
    Column { width: 16, ..Column::new("FROM", 0) },
    Column { width: 16, ..Column::new("TO", 0) },
    Column::new("NAT", 4),
    Column { width: 8, ..Column::new(SOURCE, 5) },
    Column { width: 12, ..Column::new("PROCESS", 1) },
];

/// What the columns are made of, whatever they are about.
const KEYS: &[Key] = &[
    Key::EventUsec,
    Key::Id,
    Key::Src,
    Key::Sport,
    Key::Dst,
    Key::Dport,
    Key::NatSrc,
    Key::NatSport,
    Key::NatDst,
    Key::NatDport,
    Key::IcmpType,
    Key::IcmpId,
    Key::ReplyIcmpId,
    Key::State,
    Key::Status,
    Key::OrigBytes,
    Key::ReplyBytes,
    Key::StartUsec,
    Key::EndUsec,
    Key::StartSource,
    Key::DurationUsec,
    Key::EndReason,
    Key::Initiator,
    Key::Responder,
];

/// The keys that the columns need.
pub(super) fn keys(numeric: bool) -> Vec<Key> {
    let more = if numeric { [Key::ProtocolNumber, Key::SourceId] } else { [Key::Protocol, Key::Source] };
    KEYS.iter().copied().chain(more).collect()
}

/// A table of flows that is being printed.
pub(super) struct FlowTable {
    kind: Kind,
    /// The columns that were asked for; none where the kind has its own.
    fields: Vec<Key>,
    cells: Cells,
    table: Table,
    rows: Vec<Row>,
}

impl FlowTable {
    pub(super) fn new(kind: Kind, fields: Vec<Key>, look: Look) -> Self {
        let mut columns = match kind {
            _ if !fields.is_empty() => fields.iter().map(|key| Column::new(key.name(), 0)).collect(),
            Kind::Active => ACTIVE.to_vec(),
            Kind::Closed => CLOSED.to_vec(),
            Kind::Events => EVENTS.to_vec(),
        };
        if let Some(source) = columns.iter_mut().find(|column| column.title == SOURCE) {
            source.idle = if look.numeric { "0" } else { "UNKNOWN" };
        }
        let table = Table::new(columns, look.width).colored(look.colors);
        Self { kind, fields, cells: Cells { numeric: look.numeric }, table, rows: Vec::new() }
    }

    pub(super) fn push(
        &mut self,
        out: &mut dyn Write,
        flow: &dyn Fields,
        event: Option<EventKind>,
        now: u64,
    ) -> io::Result<()> {
        let row = self.row(flow, event, now);
        self.rows.push(row);
        if self.rows.len() < ROWS { Ok(()) } else { self.flush(out) }
    }

    pub(super) fn flush(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.table.print(out, &self.rows)?;
        self.rows.clear();
        Ok(())
    }

    /// Says which columns have no place on the terminal.
    pub(super) fn end(&self, out: &mut dyn Write) -> io::Result<()> {
        let left_out = self.table.left_out().join(", ");
        if left_out.is_empty() {
            return Ok(());
        }
        writeln!(out, "Left out: {left_out}. --wide shows every column, --fields those that it names.")
    }

    fn row(&self, flow: &dyn Fields, event: Option<EventKind>, now: u64) -> Row {
        let style = match event {
            Some(EventKind::New) => AnsiColor::Green.on_default(),
            Some(EventKind::Destroy) => AnsiColor::Red.on_default(),
            _ => Style::new(),
        };
        let event = event.map(event_name).unwrap_or_default();
        if !self.fields.is_empty() {
            let cell = |key: &Key| match key {
                Key::Event => event.to_owned(),
                _ => flow.value(*key).map(|value| self.cells.value(*key, &value)).unwrap_or_default(),
            };
            return Row { cells: self.fields.iter().map(cell).collect(), style };
        }
        Row { cells: self.own_columns(flow, event, now), style }
    }

    fn own_columns(&self, flow: &dyn Fields, event: &str, now: u64) -> Vec<String> {
        let cells = self.cells;
        let id = cell::plain(flow, Key::Id);
        let (protocol, source) = (cells.protocol(flow), cells.source(flow));
        let from = cell::endpoint(flow, Key::Src, Key::Sport);
        let to = cell::endpoint(flow, Key::Dst, Key::Dport);
        let (nat, process) = (cell::translation(flow), cell::process(flow));
        match self.kind {
            Kind::Active => {
                let (state, bytes, age) = (cell::state(flow), cells.bytes(flow), cells.age(flow, now));
                vec![id, protocol, state, from, to, nat, source, bytes, age, process]
            }
            Kind::Closed => {
                let ended = flow.number(Key::EndUsec).map(|usec| cells.when(usec, now));
                let (bytes, lasted) = (cells.bytes(flow), cells.lasted(flow));
                let (ended, reason) = (ended.unwrap_or_default(), cell::plain(flow, Key::EndReason));
                vec![id, protocol, from, to, nat, source, bytes, lasted, ended, reason, process]
            }
            Kind::Events => {
                let time =
                    flow.number(Key::EventUsec).map(|usec| cells.time_of_day(usec)).unwrap_or_default();
                let state = cell::state(flow);
                vec![time, event.to_owned(), id, protocol, state, from, to, nat, source, process]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flowbus_interfaces::OwnedFlow;

    use super::*;

    const CELLS: Cells = Cells::FOR_PEOPLE;

    const FLOW: &str = r#"{"event_usec":1795317361004000,"id":7,"protocol":"tcp","protocol_number":6,"src":"198.18.0.2","sport":40000,
        "dst":"2001:2::1","dport":443,"nat_src":"198.18.3.2","nat_sport":1024,"state":"ESTABLISHED","mark":256,
        "source":"CHROME","source_id":1,"orig_bytes":84,"reply_bytes":2048,"start_usec":1000000,"end_usec":3000000,
        "duration_usec":2000000,"start_source":"kernel","end_reason":"destroyed","initiator":{"pid":9,"comm":"curl"}}"#;

    fn printed(kind: Kind, fields: &[Key], look: Look, event: Option<EventKind>) -> String {
        let mut out = Vec::new();
        let mut table = FlowTable::new(kind, fields.to_vec(), look);
        table.push(&mut out, &OwnedFlow::from_json(FLOW).unwrap(), event, 6_000_000).unwrap();
        table.flush(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_event_is_one_line_for_people() {
        let text = printed(Kind::Events, &[], Look::PLAIN, Some(EventKind::New));
        let time = CELLS.time_of_day(1_795_317_361_004_000);
        let expected = format!(
            "\
TIME          EVENT    ID    PROTO  STATE        FROM              TO                NAT                   SOURCE    PROCESS
{time}  new      7     tcp    ESTABLISHED  198.18.0.2:40000  [2001:2::1]:443   from 198.18.3.2:1024  CHROME    curl[9]
"
        );
        assert_eq!(text, expected);
        assert!(time.ends_with(":01.004"), "{time}");
    }

    /// What a terminal of `width` columns shows of an event.
    fn narrow(flow: &str, width: usize) -> String {
        let look = Look { width: Some(width), ..Look::PLAIN };
        let mut out = Vec::new();
        let mut table = FlowTable::new(Kind::Events, Vec::new(), look);
        table.push(&mut out, &OwnedFlow::from_json(flow).unwrap(), Some(EventKind::New), 0).unwrap();
        table.flush(&mut out).unwrap();
        table.end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn eighty_columns_have_the_state_and_who_it_is() {
        let text = narrow(FLOW, 80);
        assert!(
            text.starts_with("EVENT    PROTO  STATE        FROM              TO                PROCESS\n"),
            "{text}"
        );
        assert!(text.contains("ESTABLISHED") && text.contains("curl[9]"), "{text}");
        assert!(text.ends_with(
            "Left out: TIME, ID, NAT, SOURCE. --wide shows every column, --fields those that it names.\n"
        ));
        assert!(text.lines().rev().skip(1).all(|line| line.chars().count() <= 80), "{text}");
        let anonymous =
            FLOW.replace("CHROME", "UNKNOWN").replace(r#""nat_src":"198.18.3.2","nat_sport":1024,"#, "");
        let anonymous = anonymous.replace(r#","initiator":{"pid":9,"comm":"curl"}"#, "");
        let text = narrow(&anonymous, 80);
        assert!(
            text.starts_with("TIME          EVENT    PROTO  STATE        FROM              TO\n"),
            "{text}"
        );
        assert!(
            text.ends_with("Left out: ID. --wide shows every column, --fields those that it names.\n"),
            "{text}"
        );
    }

    #[test]
    fn every_row_has_a_cell_for_each_column_and_every_key_it_needs() {
        let flow = OwnedFlow::from_json(FLOW).unwrap();
        for (kind, columns) in [(Kind::Active, ACTIVE), (Kind::Closed, CLOSED), (Kind::Events, EVENTS)] {
            let table = FlowTable::new(kind, Vec::new(), Look::PLAIN);
            let row = table.own_columns(&flow, "new", 0);
            assert_eq!(row.len(), columns.len());
            assert!(row.iter().all(|cell| !cell.is_empty()));
            let asked: OwnedFlow = flow
                .iter()
                .filter(|(key, _)| keys(false).contains(key))
                .map(|(key, value)| (key, value.clone()))
                .collect();
            assert_eq!(table.own_columns(&asked, "new", 0), row);
            assert_eq!(table.own_columns(&OwnedFlow::default(), "", 0).concat(), "");
        }
    }

    #[test]
    fn numeric_is_exact() {
        let look = Look { numeric: true, ..Look::PLAIN };
        let text = printed(Kind::Active, &[], look, None);
        let row: Vec<_> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(row[1], "6");
        assert!(row.contains(&"84/2048") && row.contains(&"5.000000") && row.contains(&"1"), "{text}");
    }

    #[test]
    fn chosen_fields_are_the_columns() {
        let fields = [Key::Dport, Key::Mark, Key::Zone, Key::Event, Key::Id];
        let text = printed(Kind::Events, &fields, Look::PLAIN, Some(EventKind::Update));
        assert_eq!(
            text,
            "dport  mark              zone  event   id\n443    256 (0x00000100)        update  7\n"
        );
        let text = printed(Kind::Active, &[Key::Mark], Look { numeric: true, ..Look::PLAIN }, None);
        assert_eq!(text, "mark\n256\n");
    }

    #[test]
    fn colours_are_for_those_who_want_them() {
        let look = Look { colors: true, ..Look::PLAIN };
        assert!(printed(Kind::Events, &[], look, Some(EventKind::New)).contains("\x1b[32m"));
        assert!(!printed(Kind::Events, &[], Look::PLAIN, Some(EventKind::New)).contains('\x1b'));
    }
}

//! Flows as rows of a table for people.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use flowbus_interfaces::EventKind;

use crate::cell::Cells;
use crate::field::{Field, Moment, Title};
use crate::fields::Fields;
use crate::resolve;
use crate::screen::Look;
use crate::table::{Column, Row, Table};

/// What a table of flows is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Active,
    Closed,
    Events,
    /// Recorded flows of one machine.
    History,
    /// Recorded flows of several machines.
    Fleet,
}

/// Rows that are written at once: columns get wide enough for the first of these pieces.
const ROWS: usize = 500;

/// A column, its least width, and its rank where the terminal is too narrow: the highest goes first, 0 stays.
type Own = (Title, usize, u8);

/// What a reader needs most stays longest: the ends of a flow always, then its process.
const ACTIVE: &[Own] = &[
    (Title::Id, 0, 2),
    (Title::Proto, 0, 0),
    (Title::State, 0, 0),
    (Title::From, 0, 0),
    (Title::To, 0, 0),
    (Title::Nat, 0, 5),
    (Title::Source, 0, 6),
    (Title::Bytes, 0, 3),
    (Title::Age, 0, 4),
    (Title::Process, 0, 1),
];

const CLOSED: &[Own] = &[
    (Title::Id, 0, 4),
    (Title::Proto, 0, 0),
    (Title::From, 0, 0),
    (Title::To, 0, 0),
    (Title::Nat, 0, 6),
    (Title::Source, 0, 7),
    (Title::Bytes, 0, 5),
    (Title::Lasted, 0, 3),
    (Title::Ended, 0, 2),
    (Title::Reason, 0, 8),
    (Title::Process, 0, 1),
];

/// Events come one by one: widths that fit most of IPv4 keep them aligned.
const EVENTS: &[Own] = &[
    (Title::Time, 12, 2),
    (Title::Event, 7, 0),
    (Title::Id, 4, 3),
    (Title::Proto, 4, 0),
    (Title::State, 11, 0),
    (Title::From, 16, 0),
    (Title::To, 16, 0),
    (Title::Nat, 0, 4),
    (Title::Source, 8, 5),
    (Title::Process, 12, 1),
];

const HISTORY: &[Own] = FLEET.split_at(1).1;

const FLEET: &[Own] = &[
    (Title::Machine, 0, 0),
    (Title::Id, 0, 5),
    (Title::Proto, 0, 0),
    (Title::From, 0, 0),
    (Title::To, 0, 0),
    (Title::Nat, 0, 3),
    (Title::Source, 0, 8),
    (Title::Bytes, 0, 7),
    (Title::Started, 0, 4),
    (Title::Ended, 0, 2),
    (Title::Reason, 0, 9),
    (Title::Process, 0, 1),
];

impl Kind {
    const fn columns(self) -> &'static [Own] {
        match self {
            Self::Active => ACTIVE,
            Self::Closed => CLOSED,
            Self::Events => EVENTS,
            Self::History => HISTORY,
            Self::Fleet => FLEET,
        }
    }

    /// The columns of a table where no others were chosen.
    pub(crate) fn fields(self) -> Vec<Field> {
        self.columns().iter().map(|(title, ..)| Field::Title(*title)).collect()
    }
}

/// A table of flows that is being printed.
pub(super) struct FlowTable {
    columns: Vec<Field>,
    cells: Cells,
    table: Table,
    rows: Vec<Row>,
    /// Whether a line below says which columns are left out.
    legend: bool,
}

impl FlowTable {
    /// A table with these columns or, where there are none, with those of its kind.
    pub(super) fn new(kind: Kind, fields: Vec<Field>, look: Look) -> Self {
        // The source of a mark that names none.
        let unknown = if look.numeric { "0" } else { "UNKNOWN" };
        let own = |&(title, width, drop): &Own| Column {
            width,
            idle: if title == Title::Source { unknown } else { "" },
            ..Column::new(title.text(), drop)
        };
        let (shown, columns) = if fields.is_empty() {
            (kind.columns().iter().map(own).collect(), kind.fields())
        } else {
            (
                fields
                    .iter()
                    .map(|field| Column { title: field.name().into(), ..Column::new("", 0) })
                    .collect(),
                fields,
            )
        };
        let table = Table::new(shown, look.width).colored(look.colors).legend(look.legend);
        // Two names of this length and the rest of an event have a place at 80 columns.
        let longest = if look.width.is_some() { 24 } else { usize::MAX };
        let cells = Cells { numeric: look.numeric, resolve: look.resolve.then_some(longest) };
        if look.resolve {
            resolve::start();
        }
        Self { columns, cells, table, rows: Vec::new(), legend: look.legend }
    }

    pub(super) fn push(&mut self, out: &mut dyn Write, flow: &dyn Fields, moment: Moment) -> io::Result<()> {
        let style = match moment.event {
            Some(EventKind::New) => AnsiColor::Green.on_default(),
            Some(EventKind::Destroy) => AnsiColor::Red.on_default(),
            _ => Style::new(),
        };
        let cells = self.columns.iter().map(|column| column.cell(flow, self.cells, moment)).collect();
        self.rows.push(Row { cells, style });
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
        if left_out.is_empty() || !self.legend {
            return Ok(());
        }
        writeln!(out, "Left out: {left_out}. --wide shows every column, --fields those that it names.")
    }
}

#[cfg(test)]
mod tests {
    use flowbus_interfaces::{Key, OwnedFlow};

    use super::*;

    const CELLS: Cells = Cells::FOR_PEOPLE;

    const FLOW: &str = r#"{"event_usec":1795317361004000,"id":7,"protocol":"tcp","protocol_number":6,"src":"198.18.0.2","sport":40000,
        "dst":"2001:2::1","dport":7100,"nat_src":"198.18.3.2","nat_sport":1024,"state":"ESTABLISHED","mark":256,
        "source":"CHROME","source_id":1,"orig_bytes":84,"reply_bytes":2048,"start_usec":1000000,"end_usec":3000000,
        "duration_usec":2000000,"start_source":"kernel","end_reason":"destroyed","initiator":{"pid":9,"comm":"curl"}}"#;

    fn printed(kind: Kind, fields: &[Field], look: Look, event: Option<EventKind>) -> String {
        let mut out = Vec::new();
        let mut table = FlowTable::new(kind, fields.to_vec(), look);
        let moment = Moment { event, now: 6_000_000 };
        table.push(&mut out, &OwnedFlow::from_json(FLOW).unwrap(), moment).unwrap();
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
{time}  new      7     tcp    ESTABLISHED  198.18.0.2:40000  [2001:2::1]:7100  from 198.18.3.2:1024  CHROME    curl[9]
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
        let moment = Moment { event: Some(EventKind::New), now: 0 };
        table.push(&mut out, &OwnedFlow::from_json(flow).unwrap(), moment).unwrap();
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
    fn numeric_is_exact() {
        let look = Look { numeric: true, ..Look::PLAIN };
        let text = printed(Kind::Active, &[], look, None);
        let row: Vec<_> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(row[1], "6");
        assert!(row.contains(&"84/2048") && row.contains(&"5.000000") && row.contains(&"1"), "{text}");
    }

    #[test]
    fn chosen_fields_are_the_columns() {
        let fields = [Key::Dport, Key::Mark, Key::Zone, Key::Event, Key::Id].map(Field::Key);
        let text = printed(Kind::Events, &fields, Look::PLAIN, Some(EventKind::Update));
        assert_eq!(
            text,
            "dport  mark              zone  event   id\n7100   256 (0x00000100)        update  7\n"
        );
        let numeric = Look { numeric: true, ..Look::PLAIN };
        assert_eq!(printed(Kind::Active, &[Field::Key(Key::Mark)], numeric, None), "mark\n256\n");
        let fields = ["proto", "initiator", "initiator.pid"].map(|name| Field::parse(name).unwrap());
        let text = printed(Kind::Active, &fields, Look { legend: false, ..Look::PLAIN }, None);
        assert_eq!(text, "tcp    curl[9]    9\n");
    }

    #[test]
    fn colours_are_for_those_who_want_them() {
        let look = Look { colors: true, ..Look::PLAIN };
        assert!(printed(Kind::Events, &[], look, Some(EventKind::New)).contains("\x1b[32m"));
        assert!(!printed(Kind::Events, &[], Look::PLAIN, Some(EventKind::New)).contains('\x1b'));
    }
}

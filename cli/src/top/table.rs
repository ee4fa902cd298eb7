//! The lines of the table: what a row shows in a width.

use flowbus_interfaces::{Key, OwnedFlow};

use super::message::Snapshot;
use super::tally::TallyRow;
use super::traffic::Traffic;
use super::view::{Grouping, Order, View};
use crate::cell::{self, Cells};

/// What the columns of flows are made of.
pub(super) const FIELDS: &[Key] = &[
    Key::Id,
    Key::Protocol,
    Key::ProtocolNumber,
    Key::Src,
    Key::Sport,
    Key::Dst,
    Key::Dport,
    Key::IcmpType,
    Key::IcmpId,
    Key::State,
    Key::Status,
    Key::Source,
    Key::StartUsec,
    Key::StartSource,
    Key::Initiator,
    Key::Responder,
];

/// The source of a mark that names none.
const UNKNOWN: &str = "UNKNOWN";

struct ScreenColumn {
    title: &'static str,
    /// The least width of a column that is aligned to the left: it takes its part of what the others leave.
    width: usize,
    takes_rest: bool,
    /// Which columns go first where the screen is too narrow: the highest. 0 stays.
    drop: u8,
    right: bool,
    /// The order that sorts by this column.
    order: Option<Order>,
}

const fn left(title: &'static str, width: usize, drop: u8) -> ScreenColumn {
    ScreenColumn { title, width, takes_rest: false, drop, right: false, order: None }
}

/// A column that grows with the screen.
const fn wide(title: &'static str, width: usize) -> ScreenColumn {
    ScreenColumn { takes_rest: true, ..left(title, width, 0) }
}

const fn right(title: &'static str, width: usize, drop: u8, order: Option<Order>) -> ScreenColumn {
    ScreenColumn { title, width, takes_rest: false, drop, right: true, order }
}

/// At 80 columns the process has its place beside two ends of IPv4.
const FLOWS: &[ScreenColumn] = &[
    right("UP", 5, 0, Some(Order::Rate)),
    right("DOWN", 5, 0, Some(Order::Rate)),
    right("BYTES", 6, 3, Some(Order::Bytes)),
    right("AGE", 7, 4, Some(Order::Age)),
    left("PROTO", 6, 0),
    left("SOURCE", 8, 2),
    wide("FROM", 21),
    wide("TO", 21),
    left("STATE", 12, 5),
    left("PROCESS", 17, 1),
];

const GROUPS: &[ScreenColumn] = &[
    right("UP", 5, 0, Some(Order::Rate)),
    right("DOWN", 5, 0, Some(Order::Rate)),
    right("BYTES", 6, 0, Some(Order::Bytes)),
    right("FLOWS", 7, 0, None),
    right("NEW/s", 6, 0, Some(Order::New)),
    right("AGE", 7, 0, Some(Order::Age)),
    wide("NAME", 21),
];

const fn columns(grouping: Grouping) -> &'static [ScreenColumn] {
    match grouping {
        Grouping::Flow => FLOWS,
        _ => GROUPS,
    }
}

/// The rows of a snapshot, and the columns that have a place.
pub(super) struct ScreenRows {
    columns: Vec<&'static ScreenColumn>,
    /// Cells of the shown columns, a list for each row.
    cells: Vec<Vec<String>>,
    order: Order,
    width: usize,
}

impl ScreenRows {
    /// The rows for a screen of this width, in the order of the view; with names of addresses, or without.
    pub(super) fn new(view: &View, snapshot: Option<&Snapshot>, width: usize, resolve: bool) -> Self {
        let columns = columns(view.grouping);
        // In an end's column the name leaves the port its place.
        let longest = 15 + width.saturating_sub(80) / 2;
        let resolve = resolve.then_some(longest);
        let cells: Vec<_> = snapshot.into_iter().flat_map(|snapshot| cells(snapshot, resolve)).collect();
        let shown = fit(columns, &cells, width);
        let shown_of = |cells: Vec<String>| {
            cells.into_iter().zip(&shown).filter_map(|(cell, shown)| shown.then_some(cell)).collect()
        };
        Self {
            columns: columns
                .iter()
                .zip(&shown)
                .filter_map(|(column, shown)| shown.then_some(column))
                .collect(),
            cells: cells.into_iter().map(shown_of).collect(),
            order: view.order,
            width,
        }
    }

    /// The titles; a `*` is before those that the rows are sorted by.
    pub(super) fn header(&self) -> String {
        let title = |column: &&ScreenColumn| match column.order {
            Some(order) if order == self.order => format!("*{}", column.title),
            _ => column.title.to_owned(),
        };
        self.put(&self.columns.iter().map(title).collect::<Vec<_>>())
    }

    /// The line of a row.
    pub(super) fn line(&self, index: usize) -> String {
        self.cells.get(index).map(|cells| self.put(cells)).unwrap_or_default()
    }

    fn put(&self, cells: &[String]) -> String {
        let gaps = self.columns.len().saturating_sub(1);
        let (wide, fixed): (Vec<&ScreenColumn>, Vec<&ScreenColumn>) =
            self.columns.iter().partition(|column| column.takes_rest);
        let fixed = fixed.iter().map(|column| column.width).sum::<usize>() + gaps;
        let part = self.width.saturating_sub(fixed) / wide.len().max(1);
        let cell = |(column, text): (&&ScreenColumn, &String)| {
            let width = if column.takes_rest { part } else { column.width };
            let text = cut(text, width);
            if column.right { format!("{text:>width$}") } else { format!("{text:<width$}") }
        };
        self.columns.iter().zip(cells).map(cell).collect::<Vec<_>>().join(" ")
    }
}

/// Which columns have a place: those that say nothing in any row go first.
fn fit(columns: &[ScreenColumn], cells: &[Vec<String>], width: usize) -> Vec<bool> {
    let says = |index: usize| cells.iter().any(|row| !row[index].is_empty() && row[index] != UNKNOWN);
    let says: Vec<bool> = (0..columns.len()).map(says).collect();
    let mut shown = vec![true; columns.len()];
    let length = |shown: &[bool]| {
        let widths =
            columns.iter().zip(shown).filter(|(_, shown)| **shown).map(|(column, _)| column.width + 1);
        widths.sum::<usize>().saturating_sub(1)
    };
    while length(&shown) > width {
        let droppable = (0..columns.len()).filter(|&index| shown[index] && columns[index].drop > 0);
        match droppable.max_by_key(|&index| (!says[index], columns[index].drop)) {
            Some(index) => shown[index] = false,
            None => break,
        }
    }
    shown
}

/// Titles and rows without an end to the right.
pub(super) fn titles(view: &View) -> impl Iterator<Item = &'static str> {
    columns(view.grouping).iter().map(|column| column.title)
}

/// The cells of every row, in every column.
pub(super) fn cells(snapshot: &Snapshot, resolve: Option<usize>) -> impl Iterator<Item = Vec<String>> {
    let cells = Cells { resolve, ..Cells::FOR_PEOPLE };
    snapshot.counted.rows.iter().map(move |row| cells_of(snapshot, row, cells))
}

fn cells_of(snapshot: &Snapshot, row: &TallyRow, form: Cells) -> Vec<String> {
    let grouping = snapshot.view.grouping;
    let short = |bytes: Option<u64>| bytes.map(cell::short_bytes).unwrap_or_default();
    let rate = |direction: fn(Traffic) -> u64| short(row.rate.map(direction));
    let bytes = short(row.bytes.map(Traffic::total));
    let mut cells = vec![rate(|rate| rate.up), rate(|rate| rate.down), bytes];
    if grouping == Grouping::Flow {
        let ended = OwnedFlow::default();
        let flow = snapshot.shown.get(&row.id).unwrap_or(&ended);
        cells.extend([
            form.age(flow, snapshot.now),
            form.protocol(flow),
            form.source(flow),
            form.source_end(flow),
            form.destination_end(flow),
            cell::state(flow),
            process(flow),
        ]);
    } else {
        let new = snapshot.counted.sample.map(|sample| a_second(row.new, sample.interval.as_secs_f64()));
        let age = row.start.map(|start| cell::duration(snapshot.now.saturating_sub(start)));
        cells.extend([row.flows.to_string(), new.unwrap_or_default(), age.unwrap_or_default()]);
        let name = cell::clean(name(grouping, &row.name).into());
        let name = if grouping == Grouping::Remote { form.address(name) } else { name };
        cells.push(name.into_owned());
    }
    cells
}

/// How a group is called.
pub(super) fn name(grouping: Grouping, name: &str) -> &str {
    match grouping {
        Grouping::Process | Grouping::Source if name.is_empty() => "unknown",
        _ if name.is_empty() => "none",
        _ => name,
    }
}

/// How often something happened a second: `0`, `0.8`, `250`.
pub(super) fn a_second(count: u64, seconds: f64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let rate = if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    if count == 0 || rate >= 10.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

fn process(flow: &OwnedFlow) -> String {
    let owner = flow.get(Key::Initiator).or_else(|| flow.get(Key::Responder));
    owner.map(cell::owner_name).unwrap_or_default()
}

/// The text in at most `width` columns.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(grouping: Grouping, order: Order) -> View {
        View { filter: Default::default(), grouping, order }
    }

    /// A row with these cells in a screen of this width, below its titles.
    fn put(cells: [&str; 10], width: usize) -> [String; 2] {
        let cells = vec![cells.map(str::to_owned).to_vec()];
        let shown = fit(FLOWS, &cells, width);
        let columns =
            FLOWS.iter().zip(&shown).filter_map(|(column, shown)| shown.then_some(column)).collect();
        let row =
            cells[0].iter().zip(&shown).filter(|(_, shown)| **shown).map(|(cell, _)| cell.clone()).collect();
        let lines = ScreenRows { columns, cells: vec![row], order: Order::Rate, width };
        [lines.header(), lines.line(0)]
    }

    const ROW: [&str; 10] = [
        "123K",
        "1.2M",
        "3.4M",
        ">59m59s",
        "icmpv6",
        "CROSTINI_VM",
        "198.19.255.255:65535",
        "[2001:2:0:1::2]:65535",
        "ESTABLISHED",
        "firefox-esr[1234567]",
    ];

    #[test]
    fn two_ipv4_endpoints_and_the_process_fit_into_eighty_columns() {
        let [titles, line] = put(ROW, 80);
        assert_eq!(
            titles,
            "  *UP *DOWN PROTO  FROM                  TO                    PROCESS          "
        );
        assert_eq!(line, " 123K  1.2M icmpv6 198.19.255.255:65535  [2001:2:0:1::2]:65535 firefox-esr[1234…");
        let mut unknown = ROW;
        (unknown[5], unknown[9]) = ("UNKNOWN", "");
        let [titles, line] = put(unknown, 80);
        assert_eq!(
            titles.split_whitespace().collect::<Vec<_>>(),
            ["*UP", "*DOWN", "BYTES", "AGE", "PROTO", "FROM", "TO"]
        );
        assert_eq!(line.chars().count(), 79, "{line}");
        unknown[5] = "CHROME";
        let [titles, _] = put(unknown, 80);
        assert!(titles.contains("BYTES PROTO  SOURCE") && !titles.contains("AGE"), "{titles}");
        assert!(put(ROW, 140)[1].contains("ESTABLISHED  firefox-esr"));
        assert_eq!(put(ROW, 3)[1].lines().count(), 1, "too narrow is no panic");
    }

    #[test]
    fn the_title_of_the_order_has_a_star() {
        let header = |order| ScreenRows::new(&view(Grouping::Source, order), None, 80, false).header();
        assert!(header(Order::Bytes).starts_with("   UP  DOWN *BYTES"));
        assert!(header(Order::New).contains("*NEW/s"));
    }

    #[test]
    fn seldom_is_told_from_never() {
        assert_eq!(a_second(0, 1.2), "0");
        assert_eq!(a_second(1, 1.25), "0.8");
        assert_eq!(a_second(500, 2.0), "250");
        assert_eq!(a_second(5, 0.0), "0.0");
    }

    #[test]
    fn a_flow_without_a_process_shows_none() {
        let flow = |json| OwnedFlow::from_json(json).unwrap();
        assert_eq!(process(&flow("{}")), "");
        assert_eq!(process(&flow(r#"{"responder":{"pid":7,"comm":"sshd"}}"#)), "sshd[7]");
        assert_eq!(name(Grouping::Process, ""), "unknown");
        assert_eq!(name(Grouping::Interface, ""), "none");
    }
}

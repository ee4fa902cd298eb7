//! The lines of the table: what a row shows in a width.

use flowbus_interfaces::{Key, OwnedFlow};

use super::message::Snapshot;
use super::tally::TallyRow;
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

struct ScreenColumn {
    title: &'static str,
    /// 0 takes its part of what the others leave.
    width: usize,
    /// The screen has to be so wide for it.
    least: usize,
    right: bool,
    /// The order that it is sorted by.
    order: Option<Order>,
}

const fn left(title: &'static str, width: usize, least: usize) -> ScreenColumn {
    ScreenColumn { title, width, least, right: false, order: None }
}

const fn right(title: &'static str, width: usize, order: Option<Order>) -> ScreenColumn {
    ScreenColumn { title, width, least: 0, right: true, order }
}

const FLOWS: &[ScreenColumn] = &[
    right("RATE", 5, Some(Order::Rate)),
    right("BYTES", 6, Some(Order::Bytes)),
    right("AGE", 7, Some(Order::Age)),
    left("PROTO", 6, 0),
    left("SOURCE", 8, 0),
    left("FROM", 0, 0),
    left("TO", 0, 0),
    left("STATE", 12, 100),
    left("PROCESS", 18, 120),
];

const GROUPS: &[ScreenColumn] = &[
    right("RATE", 5, Some(Order::Rate)),
    right("BYTES", 6, Some(Order::Bytes)),
    right("FLOWS", 7, None),
    right("NEW/s", 6, Some(Order::New)),
    right("AGE", 7, Some(Order::Age)),
    left("NAME", 0, 0),
];

const fn columns(grouping: Grouping) -> &'static [ScreenColumn] {
    match grouping {
        Grouping::Flow => FLOWS,
        _ => GROUPS,
    }
}

/// The titles; a `*` is before the one that the rows are sorted by.
pub(super) fn header(view: &View, width: usize) -> String {
    let title = |column: &ScreenColumn| match column.order {
        Some(order) if order == view.order => format!("*{}", column.title),
        _ => column.title.to_owned(),
    };
    let columns = columns(view.grouping);
    put(columns, &columns.iter().map(title).collect::<Vec<_>>(), width)
}

/// A row of this snapshot.
pub(super) fn line(snapshot: &Snapshot, row: &TallyRow, width: usize) -> String {
    let grouping = snapshot.view.grouping;
    let bytes = |bytes: Option<u64>| bytes.map(cell::short_bytes).unwrap_or_default();
    let mut cells = vec![bytes(row.rate), bytes(row.bytes)];
    if grouping == Grouping::Flow {
        let ended = OwnedFlow::default();
        let flow = snapshot.shown.get(&row.id).unwrap_or(&ended);
        let cells_of = Cells::FOR_PEOPLE;
        cells.extend([
            cells_of.age(flow, snapshot.now),
            cells_of.protocol(flow),
            cells_of.source(flow),
            cells_of.source_end(flow),
            cells_of.destination_end(flow),
            cell::state(flow),
            process(flow),
        ]);
    } else {
        let new = snapshot.counted.sample.map(|sample| a_second(row.new, sample.interval.as_secs_f64()));
        let age = row.start.map(|start| cell::duration(snapshot.now.saturating_sub(start)));
        cells.extend([row.flows.to_string(), new.unwrap_or_default(), age.unwrap_or_default()]);
        cells.push(cell::clean(name(grouping, &row.name).into()).into_owned());
    }
    put(columns(grouping), &cells, width)
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

fn put(columns: &[ScreenColumn], cells: &[String], width: usize) -> String {
    let shown = || columns.iter().zip(cells).filter(|(column, _)| column.least <= width);
    let fixed: usize = shown().map(|(column, _)| column.width + 1).sum::<usize>().saturating_sub(1);
    let parts = shown().filter(|(column, _)| column.width == 0).count().max(1);
    let part = width.saturating_sub(fixed) / parts;
    let cell = |(column, text): (&ScreenColumn, &String)| {
        let width = if column.width == 0 { part } else { column.width };
        let text = cut(text, width);
        if column.right { format!("{text:>width$}") } else { format!("{text:<width$}") }
    };
    shown().map(cell).collect::<Vec<_>>().join(" ")
}

/// The text in at most so many columns.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ipv4_endpoints_fit_into_eighty_columns() {
        let cells = [
            "123K",
            "1.2M",
            ">59m59s",
            "icmpv6",
            "CROSTINI_VM",
            "198.19.255.255:65535",
            "[2001:2:0:1::2]:65535",
        ];
        let mut cells = cells.map(str::to_owned).to_vec();
        cells.extend(["ESTABLISHED".to_owned(), "curl[12]".to_owned()]);
        let line = put(FLOWS, &cells, 80);
        assert_eq!(line.chars().count(), 80);
        assert_eq!(line, " 123K   1.2M >59m59s icmpv6 CROSTIN… 198.19.255.255:65535  [2001:2:0:1::2]:65535");
        assert!(put(FLOWS, &cells, 120).ends_with("ESTABLISHED  curl[12]          "));
        assert_eq!(put(FLOWS, &cells, 3).lines().count(), 1, "too narrow is no panic");
    }

    #[test]
    fn the_title_of_the_order_has_a_star() {
        let view = |order| View { filter: Default::default(), grouping: Grouping::Source, order };
        assert!(header(&view(Order::Bytes), 80).starts_with(" RATE *BYTES"));
        assert!(header(&view(Order::New), 80).contains("*NEW/s"));
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

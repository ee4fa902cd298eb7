//! `flowctl top --batch`: pictures one after the other, for files and scripts.

use std::io::{self, Write};
use std::time::Instant;

use anstyle::Style;
use flowbus_interfaces::{OwnedFlow, fit};
use serde::Serialize;

use super::asked::Top;
use super::feed::Feed;
use super::message::Snapshot;
use super::table;
use super::tally::{Sample, TallyRow};
use super::traffic::Traffic;
use super::view::{Grouping, View};

use crate::cell::{self, Cells};
use crate::error::Error;
use crate::resolve;
use crate::screen::{Look, Screen};
use crate::table as text;

/// Prints a picture each interval, the first after the first interval: rates take two looks.
pub(super) async fn batch(mut feed: Feed, view: &View, top: &Top) -> Result<(), Error> {
    let mut out = Screen::direct()?;
    let mut told = Vec::new();
    let mut begun = Instant::now();
    let first = feed.snapshot(view).await?;
    if top.resolve {
        resolve::start();
        // So that the first picture has names.
        table::cells(&first, Some(0)).for_each(drop);
    }
    for number in 0..top.iterations.unwrap_or(u64::MAX) {
        tokio::time::sleep(feed.rest(begun.elapsed())).await;
        begun = Instant::now();
        let snapshot = feed.snapshot(view).await?;
        let mut notices = snapshot.notices();
        notices.extend(resolve::failure().map(str::to_owned));
        for notice in notices.iter().filter(|notice| !told.contains(*notice)) {
            anstream::eprintln!("flowctl: {notice}");
        }
        told = notices;
        if top.tabled.json.is_on() {
            top.tabled.json.print(&mut out, &PictureJson::new(&snapshot))?;
        } else {
            if number > 0 && top.tabled.legend() {
                writeln!(out)?;
            }
            print(&mut out, &snapshot, top)?;
        }
        out.flush()?;
    }
    Ok(out.close()?)
}

/// Prints a line that sums up, and every column of every row.
fn print(out: &mut dyn Write, snapshot: &Snapshot, top: &Top) -> io::Result<()> {
    let (counted, tabled) = (&snapshot.counted, top.tabled);
    if tabled.legend() {
        write!(out, "{}  {} flows", Cells::FOR_PEOPLE.time_of_day(snapshot.now), counted.flows)?;
        if snapshot.view.grouping != Grouping::Flow {
            write!(out, ", by {}", snapshot.view.grouping.name())?;
        }
        if let Some(Sample { rate, new, interval }) = counted.sample {
            let new = table::a_second(new, interval.as_secs_f64());
            let [up, down] = [rate.up, rate.down].map(cell::short_bytes);
            write!(out, "; a second: {new} new, {up} up, {down} down")?;
        }
        writeln!(out)?;
    }
    let columns = table::titles(&snapshot.view).map(|title| text::Column::new(title, 0)).collect();
    let cells = table::cells(snapshot, top.resolve.then_some(usize::MAX));
    let rows: Vec<_> = cells.map(|cells| text::Row { cells, style: Style::new() }).collect();
    let colors = Look::new(false).colors;
    text::Table::new(columns, None).colored(colors).legend(tabled.legend()).print(out, &rows)?;
    let hidden = snapshot.hidden();
    if hidden > 0 && tabled.legend() {
        writeln!(out, "{hidden} more")?;
    }
    Ok(())
}

/// A snapshot as JSON. What is not known is absent.
#[derive(Serialize)]
struct PictureJson<'a> {
    /// When the snapshot was taken.
    usec: u64,
    /// The time that rates are taken over.
    #[serde(skip_serializing_if = "Option::is_none")]
    interval_usec: Option<u64>,
    group: &'static str,
    flows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_flows: Option<u64>,
    #[serde(flatten)]
    rate: RateJson,
    rows: Vec<RowJson<'a>>,
    /// How many rows are left out.
    more_rows: u64,
}

/// A row as JSON.
#[derive(Serialize)]
struct RowJson<'a> {
    /// Name of a group; absent for what is in none.
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    flows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_flows: Option<u64>,
    #[serde(flatten)]
    rate: RateJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    up_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    down_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_usec: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow: Option<&'a OwnedFlow>,
}

#[derive(Serialize)]
struct RateJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    up_bytes_per_second: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    down_bytes_per_second: Option<u64>,
}

impl RateJson {
    fn new(rate: Option<Traffic>) -> Self {
        Self {
            up_bytes_per_second: rate.map(|rate| rate.up),
            down_bytes_per_second: rate.map(|rate| rate.down),
        }
    }
}

impl<'a> PictureJson<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        let counted = &snapshot.counted;
        let usec = |sample: Sample| fit::<u128, u64>(sample.interval.as_micros());
        Self {
            usec: snapshot.now,
            interval_usec: counted.sample.map(usec),
            group: snapshot.view.grouping.word(),
            flows: counted.flows,
            new_flows: counted.sample.map(|sample| sample.new),
            rate: RateJson::new(counted.sample.map(|sample| sample.rate)),
            rows: counted.rows.iter().map(|row| RowJson::new(snapshot, row)).collect(),
            more_rows: snapshot.hidden(),
        }
    }
}

impl<'a> RowJson<'a> {
    fn new(snapshot: &'a Snapshot, row: &'a TallyRow) -> Self {
        let of_group = |number: u64| (snapshot.view.grouping != Grouping::Flow).then_some(number);
        Self {
            name: &row.name,
            flows: of_group(row.flows),
            new_flows: of_group(row.new).filter(|_| snapshot.counted.sample.is_some()),
            rate: RateJson::new(row.rate),
            up_bytes: row.bytes.map(|bytes| bytes.up),
            down_bytes: row.bytes.map(|bytes| bytes.down),
            start_usec: row.start,
            flow: snapshot.shown.get(&row.id),
        }
    }
}

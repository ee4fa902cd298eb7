//! `flowctl sources`: what each traffic source has, and how fast it grows.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::time::Duration;

use anstyle::Style;
use flowbus_interfaces::{FlowRef, Key, fit};
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::cell;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::flows;
use crate::json::Tabled;
use crate::output::stdout;
use crate::table::{Column, Row};

/// What is asked for of each flow.
const FIELDS: [Key; 8] = [
    Key::Sequence,
    Key::Id,
    Key::Source,
    Key::SourceId,
    Key::OrigPackets,
    Key::OrigBytes,
    Key::ReplyPackets,
    Key::ReplyBytes,
];

/// Packets and bytes of the original direction, then of the reply direction; none without accounting.
type Counters = [Option<u64>; 4];
const COUNTERS: [Key; 4] = [Key::OrigPackets, Key::OrigBytes, Key::ReplyPackets, Key::ReplyBytes];

/// The event of a flow that timed out can come half a minute after its end.
const LATE: Duration = Duration::from_secs(60);

/// A source by number, with its name.
type Source = (u64, String);

/// What is counted of a flow.
struct CountedFlow {
    source: Source,
    counters: Counters,
}

/// All flows of a moment, by id.
struct Reading {
    at: Instant,
    /// Microseconds since 1970.
    begun: u64,
    /// The number of the latest change that the reading may include.
    sequence: u64,
    flows: HashMap<u64, CountedFlow>,
}

/// What a source has.
#[derive(Clone, Debug, Default, PartialEq)]
struct Total {
    flows: u64,
    counters: Counters,
    /// Flows that began after the first reading.
    new: u64,
    /// What the counters grew by since the first reading, those of flows that ended meanwhile too.
    growth: Counters,
}

/// Prints a line for each source; without an interval there are no rates.
pub(crate) async fn sources(daemon: &Daemon, interval: Duration, tabled: Tabled) -> Result<(), Error> {
    let first = read(daemon).await?;
    let mut totals = BTreeMap::new();
    let mut seconds = None;
    if interval.is_zero() {
        first.flows.values().for_each(|flow| alive(&mut totals, flow));
    } else {
        tokio::time::sleep(interval).await;
        let second = read(daemon).await?;
        second.flows.values().for_each(|flow| alive(&mut totals, flow));
        let ended = ended_since(daemon, &first).await?;
        // A flow that ended while the second reading was made may be in both: its last counters are the right ones.
        let last = second.flows.iter().filter(|(id, _)| !ended.contains_key(id)).chain(&ended);
        last.for_each(|(id, flow)| grown(&mut totals, flow, first.flows.get(id)));
        seconds = Some((second.at - first.at).as_secs_f64());
    }
    let mut out = stdout();
    if tabled.json.is_on() {
        totals
            .iter()
            .try_for_each(|(source, total)| tabled.json.print(&mut out, &json(source, total, seconds)))?;
    } else {
        print(&mut out, &totals, seconds, tabled)?;
    }
    Ok(out.flush()?)
}

async fn read(daemon: &Daemon) -> Result<Reading, Error> {
    flows::refresh(daemon).await?;
    let (at, begun) = (Instant::now(), cell::now());
    let mut flows = HashMap::new();
    let sequence = flows::alive(daemon, &FIELDS, |flow| flows.extend(counted(flow))).await?;
    Ok(Reading { at, begun, sequence, flows })
}

/// The flows that ended after a reading, with their last counters.
async fn ended_since(daemon: &Daemon, reading: &Reading) -> Result<HashMap<u64, CountedFlow>, Error> {
    let late: u64 = fit(LATE.as_micros());
    let since = reading.begun.saturating_sub(late);
    let mut ended = HashMap::new();
    flows::ended_since(daemon, since, &FIELDS, |flow| {
        let after = flow.number(Key::Sequence).is_some_and(|sequence| sequence > reading.sequence);
        ended.extend(counted(flow).filter(|(id, _)| after || reading.flows.contains_key(id)));
    })
    .await?;
    Ok(ended)
}

fn counted(flow: &FlowRef<'_>) -> Option<(u64, CountedFlow)> {
    let source = (flow.number(Key::SourceId)?, flow.text(Key::Source)?.into_owned());
    Some((flow.number(Key::Id)?, CountedFlow { source, counters: COUNTERS.map(|key| flow.number(key)) }))
}

fn alive(totals: &mut BTreeMap<Source, Total>, flow: &CountedFlow) {
    let total = totals.entry(flow.source.clone()).or_default();
    total.flows += 1;
    add(&mut total.counters, flow.counters);
}

fn grown(totals: &mut BTreeMap<Source, Total>, flow: &CountedFlow, before: Option<&CountedFlow>) {
    let total = totals.entry(flow.source.clone()).or_default();
    total.new += u64::from(before.is_none());
    let mut growth = flow.counters;
    if let Some(before) = before {
        for (growth, before) in growth.iter_mut().zip(before.counters) {
            *growth = growth.map(|after| after.saturating_sub(before.unwrap_or(0)));
        }
    }
    add(&mut total.growth, growth);
}

/// Adds what is known: a sum is absent where no summand is known.
fn add(sums: &mut Counters, counters: Counters) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        if let Some(counter) = counter {
            *sum = Some(sum.unwrap_or(0).saturating_add(counter));
        }
    }
}

/// A count as a rate a second, rounded.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "`as` saturates"
)]
fn rate(growth: u64, seconds: f64) -> u64 {
    (growth as f64 / seconds).round() as u64
}

fn json((number, name): &Source, total: &Total, seconds: Option<f64>) -> Value {
    let mut line = Map::from_iter([
        (Key::Source.name().to_owned(), name.as_str().into()),
        (Key::SourceId.name().to_owned(), (*number).into()),
        ("flows".to_owned(), total.flows.into()),
    ]);
    for (key, counter) in COUNTERS.iter().zip(total.counters) {
        line.extend(counter.map(|counter| (key.name().to_owned(), counter.into())));
    }
    if let Some(seconds) = seconds {
        line.insert("new_flows_per_second".to_owned(), rate(total.new, seconds).into());
        for (key, growth) in COUNTERS.iter().zip(total.growth) {
            line.extend(growth.map(|growth| (format!("{key}_per_second"), rate(growth, seconds).into())));
        }
    }
    Value::Object(line)
}

const COLUMNS: [Column; 7] = [
    Column::new("SOURCE", 0),
    Column::new("FLOWS", 0),
    Column::new("ORIG", 2),
    Column::new("REPLY", 2),
    Column::new("NEW/S", 1),
    Column::new("ORIG/S", 0),
    Column::new("REPLY/S", 0),
];

fn print(
    out: &mut dyn Write,
    totals: &BTreeMap<Source, Total>,
    seconds: Option<f64>,
    tabled: Tabled,
) -> io::Result<()> {
    let bytes = |counter: Option<u64>| counter.map(cell::short_bytes).unwrap_or_default();
    let row = |((_, name), total): (&Source, &Total)| {
        let [_, orig, _, reply] = total.counters.map(bytes);
        let mut cells = vec![name.clone(), total.flows.to_string(), orig, reply];
        if let Some(seconds) = seconds {
            let [_, orig, _, reply] =
                total.growth.map(|growth| bytes(growth.map(|growth| rate(growth, seconds))));
            cells.extend([rate(total.new, seconds).to_string(), orig, reply]);
        }
        Row { cells, style: Style::new() }
    };
    let columns = if seconds.is_some() { &COLUMNS[..] } else { &COLUMNS[..4] };
    let rows: Vec<_> = totals.iter().map(row).collect();
    tabled.table(columns.to_vec()).print(out, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(source: u64, bytes: Option<u64>) -> CountedFlow {
        let name = if source == 1 { "CHROME" } else { "USER" };
        CountedFlow {
            source: (source, name.to_owned()),
            counters: [bytes.map(|_| 1), bytes, bytes.map(|_| 2), bytes],
        }
    }

    fn totals() -> BTreeMap<Source, Total> {
        let mut totals = BTreeMap::new();
        let (before, now, new) = (flow(1, Some(1_000)), flow(1, Some(5_000)), flow(1, Some(2_000)));
        alive(&mut totals, &now);
        alive(&mut totals, &new);
        alive(&mut totals, &flow(2, None));
        grown(&mut totals, &now, Some(&before));
        grown(&mut totals, &new, None);
        grown(&mut totals, &flow(2, None), None);
        totals
    }

    #[test]
    fn rates_are_growth_by_time_and_unknown_counters_are_absent() {
        let totals = totals();
        let lines: Vec<_> =
            totals.iter().map(|(source, total)| json(source, total, Some(2.0)).to_string()).collect();
        assert_eq!(
            lines,
            [
                r#"{"flows":2,"new_flows_per_second":1,"orig_bytes":7000,"orig_bytes_per_second":3000,"orig_packets":2,"orig_packets_per_second":1,"reply_bytes":7000,"reply_bytes_per_second":3000,"reply_packets":4,"reply_packets_per_second":1,"source":"CHROME","source_id":1}"#,
                r#"{"flows":1,"new_flows_per_second":1,"source":"USER","source_id":2}"#,
            ]
        );
    }

    #[test]
    fn a_table_has_rates_where_there_was_an_interval() {
        let printed = |seconds| {
            let mut out = anstream::StripStream::new(Vec::new());
            print(&mut out, &totals(), seconds, Tabled::default()).unwrap();
            String::from_utf8(out.into_inner()).unwrap()
        };
        assert_eq!(
            printed(Some(2.0)),
            "SOURCE  FLOWS  ORIG  REPLY  NEW/S  ORIG/S  REPLY/S\nCHROME  2      6.8K  6.8K   1      2.9K    2.9K\nUSER    1                   1\n"
        );
        assert_eq!(printed(None), "SOURCE  FLOWS  ORIG  REPLY\nCHROME  2      6.8K  6.8K\nUSER    1\n");
    }
}

//! `flowctl stats`: the daemon's statistics and the kernel's.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use flowbus_interfaces::Statistic;
use serde_json::{Map, Value};

use crate::arguments::Stats;
use crate::daemon::{Daemon, Statistics};
use crate::error::Error;
use crate::json::Tabled;
use crate::openmetrics;
use crate::output::stdout;
use crate::table::{Column, Row};

/// Prints the statistics.
pub(crate) async fn stats(daemon: &Daemon, asked: Stats) -> Result<(), Error> {
    let statistics = daemon.statistics().await?;
    let mut out = stdout();
    if asked.openmetrics || asked.prometheus {
        let text = openmetrics::text(daemon, &statistics).await?;
        let text = if asked.prometheus { openmetrics::prometheus(&text) } else { text };
        out.write_all(text.as_bytes())?;
    } else if asked.tabled.json.is_on() {
        let object: Map<String, Value> =
            statistics.into_iter().map(|(name, value)| (name, value.into())).collect();
        asked.tabled.json.print(&mut out, &object)?;
    } else {
        print(&mut out, &statistics, asked.tabled)?;
    }
    Ok(out.flush()?)
}

fn print(out: &mut dyn Write, statistics: &Statistics, tabled: Tabled) -> io::Result<()> {
    if tabled.legend()
        && let (Some(&count), Some(&maximum)) = (statistics.get("kernel_count"), statistics.get("kernel_max"))
    {
        let (pressure, style) = pressure(count, maximum);
        writeln!(
            out,
            "{style}The kernel's table is {pressure} full: {count} of at most {maximum} flows.{style:#}\n"
        )?;
    }
    let known = Statistic::ALL.iter().map(|statistic| (statistic.name, statistic.description));
    let later = statistics.keys().filter(|name| Statistic::parse(name).is_none());
    let rows: Vec<_> = known
        .chain(later.map(|name| (name.as_str(), "Not known to this version of flowctl.")))
        .filter_map(|(name, description)| {
            let cells = vec![name.to_owned(), statistics.get(name)?.to_string(), description.to_owned()];
            Some(Row { cells, style: Style::new() })
        })
        .collect();
    let columns = vec![Column::new("STATISTIC", 0), Column::new("VALUE", 0), Column::new("MEANING", 1)];
    tabled.table(columns).print(out, &rows)
}

/// How full the kernel's table is. When it is full the kernel refuses new connections.
fn pressure(count: u64, maximum: u64) -> (String, Style) {
    // Tenths of a percent; nf_conntrack_max is 32 bits wide.
    let tenths = count.saturating_mul(1000) / maximum.max(1);
    let style = match tenths {
        900.. => AnsiColor::Red.on_default(),
        750.. => AnsiColor::Yellow.on_default(),
        _ => Style::new(),
    };
    (format!("{}.{} %", tenths / 10, tenths % 10), style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_shown_with_their_meaning_and_the_pressure_first() {
        let statistics = Statistics::from(
            [("kernel_count", 230), ("kernel_max", 256), ("streams", 1), ("unheard_of", 7)]
                .map(|(name, value)| (name.to_owned(), value)),
        );
        let mut out = anstream::StripStream::new(Vec::new());
        print(&mut out, &statistics, Tabled::default()).unwrap();
        let expected = "\
The kernel's table is 89.8 % full: 230 of at most 256 flows.

STATISTIC     VALUE  MEANING
kernel_count  230    Flows in the kernel's table, absent where that cannot be read.
kernel_max    256    The most flows that the kernel keeps, absent where that cannot be read.
streams       1      Streams that are open.
unheard_of    7      Not known to this version of flowctl.
";
        assert_eq!(String::from_utf8(out.into_inner()).unwrap(), expected);
        assert_eq!(pressure(0, 0).0, "0.0 %");
        assert_eq!(pressure(90, 100).1, AnsiColor::Red.on_default());
    }
}

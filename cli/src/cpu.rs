//! `flowctl stats --cpu`: what each CPU of the kernel has counted, as `conntrack -S` shows it.

use std::io::Write;

use anstyle::Style;
use flowbus_interfaces::CpuStatistics;
use serde_json::{Map, Value};

use crate::change::{control, refused};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::json::Tabled;
use crate::output::stdout;
use crate::table::{Column, Row};

/// Prints a line for each CPU.
pub(crate) async fn cpu(daemon: &Daemon, tabled: Tabled) -> Result<(), Error> {
    let cpus = control(daemon).await?.get_cpu_statistics().await.map_err(|error| refused(daemon, error))?;
    let mut out = stdout();
    if tabled.json.is_on() {
        for cpu in &cpus {
            let object: Map<_, _> =
                cpu.fields().into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
            tabled.json.print(&mut out, &object)?;
        }
    } else {
        let columns = CpuStatistics::default().fields().map(|(title, _)| Column::new(title, 0));
        let row = |cpu: &CpuStatistics| Row {
            cells: cpu.fields().map(|(_, value)| value.to_string()).to_vec(),
            style: Style::new(),
        };
        let rows: Vec<_> = cpus.iter().map(row).collect();
        tabled.table(columns.to_vec()).print(&mut out, &rows)?;
    }
    Ok(out.flush()?)
}

//! `flowctl stats --cpu`: what each CPU of the kernel has counted, as `conntrack -S` shows it.

use std::io::Write;

use anstyle::Style;
use flowbus_interfaces::CpuStatistics;
use serde_json::{Map, Value};

use crate::change::{control, refused};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::{self, stdout, terminal_width};
use crate::table::{Column, Row, Table};

/// Prints a line for each CPU.
pub(crate) async fn cpu(daemon: &Daemon, json: bool) -> Result<(), Error> {
    let cpus = control(daemon).await?.get_cpu_statistics().await.map_err(|error| refused(daemon, error))?;
    let mut out = stdout();
    if json {
        for cpu in &cpus {
            let object: Map<_, _> =
                cpu.fields().into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
            output::json_line(&mut out, &Value::Object(object))?;
        }
    } else {
        let columns = CpuStatistics::default().fields().map(|(title, _)| Column::new(title, 0));
        let row = |cpu: &CpuStatistics| Row {
            cells: cpu.fields().map(|(_, value)| value.to_string()).to_vec(),
            style: Style::new(),
        };
        let rows: Vec<_> = cpus.iter().map(row).collect();
        Table::new(columns.to_vec(), terminal_width()).print(&mut out, &rows)?;
    }
    Ok(out.flush()?)
}

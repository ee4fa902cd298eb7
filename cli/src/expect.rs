//! `flowctl expect list` and `flowctl expect delete`: the connections that helpers of the kernel wait for.

use std::io::Write;

use anstyle::Style;
use clap::{Args, Subcommand};
use flowbus_interfaces::{Changes, Expectation};

use crate::cell::address_and_port;
use crate::change::{How, control, refused};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::{stdout, terminal_width};
use crate::query::Query;
use crate::table::{Column, Row, Table};

/// What to do with expectations.
#[derive(Debug, Subcommand)]
pub(crate) enum Expect {
    /// List them: what is waited for, and for which connection
    List {
        #[command(flatten)]
        query: Query,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Take them back: what comes then is an ordinary connection
    Delete(Deleted),
}

/// Which expectations, and how far to go.
#[derive(Args, Clone, Debug)]
pub(crate) struct Deleted {
    #[command(flatten)]
    query: Query,
    #[command(flatten)]
    how: How,
}

/// Lists or deletes expectations.
pub(crate) async fn expect(daemon: &Daemon, expect: &Expect) -> Result<(), Error> {
    let control = control(daemon).await?;
    let list = async |query: &Query| {
        control.list_expectations(&query.to_map()).await.map_err(|error| refused(daemon, error))
    };
    match expect {
        Expect::List { query, json } => {
            let found = list(query).await?;
            if found.is_empty() {
                anstream::eprintln!(
                    "No connection is expected{}.",
                    if query.is_for_all() { "" } else { " that matches" }
                );
            }
            print(&found, *json)
        }
        Expect::Delete(Deleted { query, how }) => {
            if query.is_for_all() {
                let text = "name at least one condition, such as helper=ftp, or family=ipv4,ipv6 for all";
                return Err(Error::Usage(text.to_owned()));
            }
            how.must_have_terminal()?;
            if how.asks() {
                let mut found = list(query).await?;
                found.truncate(how.limit());
                print(&found, how.is_json())?;
                let matched = u32::try_from(found.len()).unwrap_or(u32::MAX);
                how.ask("Delete", "expectation", &Changes { matched, ..Changes::default() })?;
                if how.is_dry() {
                    return Ok(());
                }
            }
            let options = how.options(false);
            let done = control.delete_expectations(&query.to_map(), &options).await;
            how.tell("expectation", &done.map_err(|error| refused(daemon, error))?)
        }
    }
}

fn print(expectations: &[Expectation], json: bool) -> Result<(), Error> {
    let mut out = stdout();
    if json {
        for expectation in expectations {
            writeln!(out, "{}", expectation.to_json())?;
        }
        return Ok(out.flush()?);
    }
    let columns = ["PROTO", "FROM", "TO", "HELPER", "SECONDS", "MASTER"];
    let columns = columns.map(|title| Column { title, width: 0, drop: 0 }).to_vec();
    let rows: Vec<_> = expectations.iter().map(row).collect();
    Table::new(columns, terminal_width()).print(&mut out, &rows)?;
    Ok(out.flush()?)
}

fn row(expectation: &Expectation) -> Row {
    let end = |address: &str, port: Option<u16>| address_and_port(address, port.map(u64::from));
    // A port that the mask leaves open is any.
    let sport = expectation.sport.filter(|_| expectation.mask_sport != Some(0));
    let master = format!(
        "{} {} -> {}",
        expectation.master_protocol,
        end(&expectation.master_src, expectation.master_sport),
        end(&expectation.master_dst, expectation.master_dport)
    );
    let cells = vec![
        expectation.protocol.clone(),
        end(&expectation.src, sport),
        end(&expectation.dst, expectation.dport),
        expectation.helper.clone().unwrap_or_default(),
        expectation.timeout.map(|left| left.to_string()).unwrap_or_default(),
        master,
    ];
    Row { cells, style: Style::new() }
}

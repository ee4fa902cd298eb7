//! `flowctl expect list` and `flowctl expect delete`: the connections that helpers of the kernel wait for.

use std::io::Write;

use anstyle::Style;
use clap::{Args, Subcommand};
use flowbus_interfaces::{Error as FlowError, Expectation};

use crate::cell::address_and_port;
use crate::change::{How, Verb, control, refused};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::json::Tabled;
use crate::output::stdout;
use crate::query::Query;
use crate::table::{Column, Row};

/// What to do with expectations.
#[derive(Debug, Subcommand)]
pub(crate) enum Expect {
    /// List expected connections, each with its master connection
    List {
        #[command(flatten)]
        query: Query,
        #[command(flatten)]
        tabled: Tabled,
    },
    /// Delete expectations: a connection that then arrives is an ordinary one
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
    match expect {
        Expect::List { query, tabled } => {
            let found = control.list_expectations(&query.to_map()).await;
            let found = found.map_err(|error| refused(daemon, error))?;
            if found.is_empty() {
                anstream::eprintln!(
                    "No connection is expected{}.",
                    if query.is_for_all() { "" } else { " that matches" }
                );
            }
            print(&found, *tabled)
        }
        Expect::Delete(Deleted { query, how }) => {
            if query.is_for_all() {
                let text = "name at least one condition, such as helper=ftp, or family=ipv4,ipv6 for all";
                return Err(Error::Usage(text.to_owned()));
            }
            how.must_have_terminal()?;
            let query = query.to_map();
            let call = async |dry_run: bool| {
                let answer = control.delete_expectations(&query, &how.options(dry_run)).await;
                answer.map_err(|error| refused(daemon, error))
            };
            if how.asks() {
                let seen = call(true).await?;
                match control.list_expectations(&query).await {
                    Ok(mut found) => {
                        found.truncate(how.limit());
                        print(&found, how.tabled())?;
                    }
                    // Their number does to go on: not all who may delete may list, and not all that match fit in a list.
                    Err(FlowError::NotAuthorized(text) | FlowError::LimitExceeded(text)) => {
                        anstream::eprintln!("flowctl: the expectations cannot be shown: {text}");
                    }
                    Err(error) => return Err(refused(daemon, error)),
                }
                how.ask(Verb::DELETE, "expectation", &seen)?;
                if how.is_dry() {
                    return Ok(());
                }
            }
            how.tell(Verb::DELETE, "expectation", &call(false).await?)
        }
    }
}

fn print(expectations: &[Expectation], tabled: Tabled) -> Result<(), Error> {
    let mut out = stdout();
    if tabled.json.is_on() {
        for expectation in expectations {
            tabled.json.print(&mut out, &expectation.to_json())?;
        }
        return Ok(out.flush()?);
    }
    let columns = ["PROTO", "FROM", "TO", "HELPER", "SECONDS", "MASTER"];
    let columns = columns.map(|title| Column::new(title, 0)).to_vec();
    let rows: Vec<_> = expectations.iter().map(row).collect();
    tabled.table(columns).print(&mut out, &rows)?;
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

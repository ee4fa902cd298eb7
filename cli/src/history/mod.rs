//! `flowctl history`: connections of the past, from the files of the flow log. flowbusd is not asked.

mod alive;
mod answer;
mod asked;
mod files;
mod incomplete;
mod line;
mod lines;
mod progress;
mod row;
mod search;

use std::fs;
use std::path::PathBuf;

use clap::Args;
use flowbus_interfaces::FLOW_LOG_DIRECTORY;

use crate::arguments::{Listed, time};
use crate::cell;
use crate::error::Error;
use crate::format::{Format, Kind};
use answer::Answer;
use asked::Asked;
use files::{Log, Machine};
use progress::Progress;
use search::Search;

/// Which recorded connections are shown, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct History {
    #[command(flatten)]
    pub(crate) listed: Listed,
    /// Show the connections that were alive at this time
    ///
    /// Takes the same times as --since, such as "3 weeks ago".
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with_all = ["since", "until"])]
    at: Option<u64>,
    /// Read the log in this directory
    #[arg(long, value_name = "DIRECTORY", default_value = FLOW_LOG_DIRECTORY, value_hint = clap::ValueHint::DirPath)]
    directory: PathBuf,
    /// Show connections of this machine: its host name, or the beginning of its id
    #[arg(long, value_name = "MACHINE")]
    machine: Option<String>,
}

/// Prints the connections that the log has.
pub(crate) async fn history(history: &History, paged: bool) -> Result<(), Error> {
    let asked = Asked::of(&history.listed.query, history.at)?;
    let log = Log::open(&history.directory, history.machine.as_deref())
        .map_err(|source| Error::Log { directory: history.directory.clone(), source })?;
    if log.files == 0 {
        return Err(Error::NoLog { directory: history.directory.clone() });
    }
    let kind = check(history, &log)?;
    let mut answer = Answer::new(history, kind, paged, Progress::of(bytes(&log, &asked)));
    for what in log.unreadable.iter().filter(|what| asked.concerns(what, &log)) {
        answer.incomplete(None, what)?;
    }
    for machine in &log.machines {
        if Search::new(&asked, machine, &mut answer).run()?.is_break() {
            break;
        }
    }
    answer.finish(|| why_none(history, &log)).await
}

/// The columns; an error where rows of several machines could not be told apart.
fn check(history: &History, log: &Log) -> Result<Kind, Error> {
    if log.machines.is_empty() && log.unreadable.is_empty() {
        let asked = history.machine.as_deref().unwrap_or_default();
        let text =
            format!("{asked:?} is not the name or the id of a machine in {}", history.directory.display());
        return Err(Error::Usage(text));
    }
    if log.machines.len() < 2 {
        return Ok(Kind::History);
    }
    let format = history.listed.output.format();
    if matches!(format, Format::Table | Format::Json | Format::Csv) {
        return Ok(Kind::Fleet);
    }
    let names: Vec<_> = log.machines.iter().map(|machine| machine.name.as_str()).collect();
    Err(Error::Usage(format!(
        "{} has the connections of several machines, which this form does not tell apart: choose one with --machine: {}",
        history.directory.display(),
        names.join(", ")
    )))
}

/// How much is read, as it lies on the disk.
fn bytes(log: &Log, asked: &Asked) -> u64 {
    let files =
        log.machines.iter().flat_map(|machine| &machine.files[machine.span(asked.since, asked.until)]);
    files.filter_map(|file| fs::metadata(&file.path).ok()).map(|data| data.len()).sum()
}

/// Why there are no rows.
fn why_none(history: &History, log: &Log) -> String {
    let begin = log.machines.iter().map(Machine::begin_usec).min().map_or_else(String::new, |usec| {
        format!(" The record of {} begins at {}.", history.directory.display(), cell::exactly(usec))
    });
    if history.listed.query.is_for_all() && history.at.is_none() {
        format!("No connection is recorded.{begin}")
    } else {
        format!("No recorded connection matches.{begin}")
    }
}

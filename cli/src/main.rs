//! flowctl: the command line of flowbus.

mod arguments;
mod cell;
mod change;
mod chosen;
mod completion;
mod connections;
mod cpu;
mod daemon;
mod error;
mod expect;
mod field;
mod fields;
mod flows;
mod format;
mod history;
mod json;
mod list;
#[cfg(test)]
mod manual;
mod moment;
mod monitor;
mod names;
mod openmetrics;
mod output;
mod query;
mod report;
mod resolve;
mod screen;
mod show;
mod silence;
mod sort;
mod sources;
mod stats;
mod status;
mod table;
#[cfg(feature = "top")]
mod top;

use std::process::ExitCode;

use arguments::{Arguments, Command};
use change::Change;
use daemon::Daemon;
use error::Error;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    completion::answer();
    match run(Arguments::read()).await {
        Ok(()) => ExitCode::SUCCESS,
        // `flowctl list | head` has what it wants.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("flowctl: {error}");
            error.exit_code()
        }
    }
}

async fn run(Arguments { bus, no_pager, command }: Arguments) -> Result<(), Error> {
    let daemon = Daemon::connect(&bus);
    let paged = !no_pager;
    match command {
        Command::Status { json } => status::status(&daemon.await?, json).await,
        Command::List { listed, sort } => list::list(&daemon.await?, &listed, sort, paged).await,
        Command::Closed(listed) => list::closed(&daemon.await?, &listed, paged).await,
        Command::History(asked) => history::history(&asked, paged).await,
        Command::Show { id, output } => show::show(&daemon.await?, id, &output, paged).await,
        Command::Monitor(monitored) => monitor::monitor(&daemon.await?, &monitored).await,
        #[cfg(feature = "top")]
        Command::Top(top) => {
            top::check(&top)?;
            top::top(daemon.await?, &top).await
        }
        Command::Connections(asked) if asked.print_program => connections::print_program(),
        Command::Connections(asked) => connections::connections(&daemon.await?, &asked).await,
        Command::Sources { interval, tabled } => sources::sources(&daemon.await?, interval, tabled).await,
        Command::Delete(changed) => change::change(&daemon.await?, &changed, Change::Delete).await,
        Command::SetMark { to, changed } => change::change(&daemon.await?, &changed, Change::Mark(to)).await,
        Command::SetTimeout { seconds, changed } => {
            change::change(&daemon.await?, &changed, Change::Timeout(seconds)).await
        }
        Command::Flush { yes } => change::flush(&daemon.await?, yes).await,
        Command::Expect { what } => expect::expect(&daemon.await?, &what).await,
        Command::Stats(stats) if stats.cpu => cpu::cpu(&daemon.await?, stats.tabled).await,
        Command::Stats(stats) => stats::stats(&daemon.await?, stats).await,
        Command::Completion { shell } => completion::completion(shell),
        // These two can do without a daemon.
        Command::Report(report) => report::report(daemon, report.options()).await,
        Command::DecodeMark { mark, json } => show::decode_mark(daemon.await, mark, json).await,
    }
}

//! flowctl: the command line of flowbus.

mod arguments;
mod awk;
mod cell;
mod daemon;
mod error;
mod list;
mod monitor;
mod output;
mod query;
mod report;
mod show;
mod status;
mod table;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use daemon::{Daemon, Listing};
use error::Error;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        // `flowctl list | head` has what it wants.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("flowctl: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(Arguments { bus, command }: Arguments) -> Result<(), Error> {
    let daemon = Daemon::connect(&bus);
    match command {
        Command::Status { json } => status::status(&daemon.await?, json).await,
        Command::List(listed) => list::list(&daemon.await?, Listing::Active, &listed).await,
        Command::Closed(listed) => list::list(&daemon.await?, Listing::Closed, &listed).await,
        Command::Show { id, output } => show::show(&daemon.await?, id, output.format()).await,
        Command::Monitor(output) => monitor::monitor(&daemon.await?, output.format()).await,
        // These two can do without a daemon.
        Command::Report(report) => report::report(daemon, report.options()).await,
        Command::DecodeMark { mark, json } => show::decode_mark(daemon.await, mark, json).await,
    }
}

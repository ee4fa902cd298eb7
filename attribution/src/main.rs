//! flowbus-attribution: loads the BPF programs and the socket filter for a flowbusd that may not, hands it their descriptors, and exits.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use flowbus_attribution::Report;
use flowbus_attribution::handover::{self, Handed, SOCKET};

/// Levels of the journal, which reads them off the beginning of a line on standard error.
const ERROR: u8 = 3;
const WARNING: u8 = 4;
const INFORMATION: u8 = 6;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let socket = match arguments.as_slice() {
        [] => Path::new(SOCKET),
        [option] if option == "--version" => {
            let written = writeln!(io::stdout(), "flowbus-attribution {}", env!("CARGO_PKG_VERSION"));
            return written.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
        }
        [option, socket] if option == "--socket" => Path::new(socket),
        _ => {
            say(ERROR, "usage: flowbus-attribution [--socket PATH | --version]");
            return ExitCode::from(2);
        }
    };
    match handover::serve(socket) {
        Ok(handed) => {
            tell(&handed);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(ERROR, &format!("flowbusd gets nothing: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn tell(handed: &Handed) {
    if let Some(error) = &handed.refused {
        say(WARNING, &format!("flowbusd receives events from its socket, not by a ring: {error}"));
    }
    if handed.filter.is_some() {
        say(INFORMATION, "flowbusd gets its events by a ring");
    }
    let Some(programs) = &handed.programs else {
        if handed.snapshot.is_some() {
            say(INFORMATION, "flowbusd has its programs and got a new snapshot");
        }
        return;
    };
    match programs.report() {
        Ok(report) => tell_report(&report),
        Err(error) => say(WARNING, &format!("the programs run, how they were loaded is not known: {error}")),
    }
}

fn tell_report(report: &Report) {
    for (name, reason) in report.failures() {
        say(WARNING, &format!("the kernel refuses the program {name}, continuing without it: {reason}"));
    }
    say(
        INFORMATION,
        &format!("flowbusd has its programs; who accepts is learnt by: {}", report.accept().name()),
    );
}

fn say(level: u8, text: &str) {
    eprintln!("<{level}>{text}");
}

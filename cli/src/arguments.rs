//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use flowbus_interfaces::{BusAddress, EventKind, Mark, ReportOptions, parse_number};
use jiff::Zoned;

use crate::change::{Changed, MaskedMark, masked_mark};
use crate::expect::Expect;
use crate::format::{Format, Output};
use crate::history::History;
use crate::json::{Json, Tabled};
use crate::moment;
use crate::query::Query;
use crate::sort::Sort;

/// Show connections as flowbusd knows them: who talks to whom, through which NAT, for which traffic source.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = "Exit status: 0 done, 1 failed, 2 wrong usage.")]
pub(crate) struct Arguments {
    /// The bus that flowbusd is on: "system", or an address such as unix:path=/run/my-bus
    #[arg(long, global = true, default_value = "system", value_name = "system|ADDRESS")]
    pub(crate) bus: BusAddress,

    /// Print to the terminal and not to a pager ($SYSTEMD_PAGER, $PAGER or less)
    #[arg(long, global = true)]
    pub(crate) no_pager: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the state of flowbusd and of the kernel's connection tracking
    Status {
        #[command(flatten)]
        json: Json,
    },
    /// List active connections
    ///
    /// BYTES, of the original and the reply direction, come from the last dump, and are empty before the first; --refresh
    /// requests a new one.
    List {
        #[command(flatten)]
        listed: Listed,
        /// Sort by this; by default connections are in the order of their numbers
        #[arg(long, value_enum, ignore_case = true)]
        sort: Option<Sort>,
    },
    /// List ended connections, latest first
    Closed(Listed),
    /// List connections of the past, from the log that flowbus-export writes
    ///
    /// A connection is shown once, as it was last recorded, and connections are listed machine by machine. ENDED is "alive" for
    /// connections that had not ended when the record ended, and "unknown" where their end is missing. flowctl reports if the
    /// record begins later or ends earlier than the time that was asked for, and every gap in it. flowbusd need not run.
    #[command(mut_arg("refresh", |arg| arg.hide(true)))]
    History(History),
    /// Show everything about one connection
    #[command(mut_arg("resolve", |arg| arg.hide(true)))]
    Show {
        /// Its number, the first column of a list
        #[arg(value_parser = flow_id)]
        id: u64,
        #[command(flatten)]
        output: Output,
    },
    /// Show connections as they begin, change and end, until Ctrl-C
    ///
    /// Every change is shown, or a line says how many are missing. When flowbusd restarts, monitor reconnects.
    Monitor(Monitored),
    /// Show a live screen of the traffic of connections, processes or sources; with --batch print it
    #[cfg(feature = "top")]
    #[command(after_help = crate::top::KEYS)]
    // A screen has fields of its own, which are brought up to date.
    #[command(mut_arg("fields", |arg| arg.hide(true)), mut_arg("refresh", |arg| arg.hide(true)))]
    Top(crate::top::Top),
    /// Show which process connects, accepts and closes, as tcptracer does, until Ctrl-C
    ///
    /// T is C for connect, A for accept, X for close, F for a connection that failed. SADDR and SPORT are the process's own end.
    /// Connections of all network namespaces are shown. A condition on a field that only flows have, such as the mark, matches
    /// no connection.
    #[command(mut_arg("pid", |arg| arg.short('p')))]
    #[command(mut_arg("fields", |arg| arg.hide(true)), mut_arg("refresh", |arg| arg.hide(true)))]
    Connections(Connections),
    /// Show the flows and bytes of each traffic source, and their rates
    Sources {
        /// Seconds between two readings, from which rates are computed; 0: no rates
        #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
        interval: Duration,
        #[command(flatten)]
        tabled: Tabled,
    },
    /// Delete connections from the kernel's table
    ///
    /// Needs root, or an authorization by polkit, as do the commands that follow.
    #[command(mut_arg("fields", |arg| arg.hide(true)), mut_arg("refresh", |arg| arg.hide(true)))]
    Delete(Changed),
    /// Set the mark of connections
    #[command(mut_arg("fields", |arg| arg.hide(true)), mut_arg("refresh", |arg| arg.hide(true)))]
    SetMark {
        /// The mark, or value/mask: the bits of the mask become those of the value
        #[arg(value_name = "MARK[/MASK]", value_parser = masked_mark)]
        to: MaskedMark,
        #[command(flatten)]
        changed: Changed,
    },
    /// Set the timeout of connections: the seconds without traffic after which they end
    #[command(mut_arg("fields", |arg| arg.hide(true)), mut_arg("refresh", |arg| arg.hide(true)))]
    SetTimeout {
        /// Seconds
        #[arg(value_parser = timeout)]
        seconds: u32,
        #[command(flatten)]
        changed: Changed,
    },
    /// Delete all connections from the kernel's table
    Flush {
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Show or delete expected connections (expectations of the kernel's helpers)
    Expect {
        #[command(subcommand)]
        what: Expect,
    },
    /// Show the statistics of flowbusd and of the kernel's connection tracking
    Stats(Stats),
    /// Print a script that teaches a shell to complete flowctl's commands, options and values
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Print a text for a feedback report, with addresses hidden
    ///
    /// It prints a text within 10 s and exits with 0, even if flowbusd is stopped or does not answer: the text then says why.
    Report(Reported),
    /// Show what a connection mark means
    DecodeMark {
        /// The mark: decimal, or hexadecimal after 0x
        #[arg(value_parser = mark)]
        mark: Mark,
        #[command(flatten)]
        json: Json,
    },
}

/// A shell that flowctl knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Which flows are listed, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct Listed {
    #[command(flatten)]
    pub(crate) query: Query,
    #[command(flatten)]
    pub(crate) output: Output,
    /// Print at most NUMBER connections
    #[arg(short = 'n', long = "lines", value_name = "NUMBER")]
    pub(crate) lines: Option<usize>,
}

/// Which connections are watched, and how they are shown.
#[derive(Args, Clone, Debug)]
pub(crate) struct Connections {
    #[command(flatten)]
    pub(crate) query: Query,
    /// Print words instead of letters, and each event's network namespace and error
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Seconds since the first event; with --verbose nanoseconds
    #[arg(short, long)]
    pub(crate) timestamp: bool,
    /// Only this network namespace: its inode number, as in /proc/PID/ns/net
    #[arg(short = 'N', long = "netns", value_name = "INODE", value_parser = inode)]
    pub(crate) network_namespace: Option<u32>,
    #[command(flatten)]
    pub(crate) json: Json,
    /// Print the source of the BPF programs that report to flowbusd, and exit
    #[arg(long)]
    pub(crate) print_program: bool,
}

/// How statistics are printed.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Stats {
    #[command(flatten)]
    pub(crate) tabled: Tabled,
    /// Print OpenMetrics text, with totals of flows by source, protocol and state
    #[arg(long, conflicts_with = "layout")]
    pub(crate) openmetrics: bool,
    /// Print these metrics in Prometheus's older text format, which node_exporter's textfile collector reads
    #[arg(long, conflicts_with_all = ["layout", "openmetrics"])]
    pub(crate) prometheus: bool,
    /// Show the kernel's counters per CPU, one line each
    #[arg(long, conflicts_with_all = ["openmetrics", "prometheus"])]
    pub(crate) cpu: bool,
}

/// What a report has.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Reported {
    /// The longest text: 4096 to 524288 bytes
    #[arg(long, value_name = "BYTES", default_value_t = ReportOptions::MOST, value_parser = report_bytes)]
    max_bytes: usize,
    /// Show names of processes
    #[arg(long)]
    processes: bool,
    /// Hide nothing; only for root
    #[arg(long)]
    no_redact: bool,
    /// Print totals, and no flows
    #[arg(long)]
    totals: bool,
    /// Leave out connections that ended earlier
    ///
    /// Takes how long ago it was, such as 10m, or a time, as `flowctl closed --since` does.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<u64>,
}

impl Reported {
    pub(crate) fn options(self) -> ReportOptions {
        ReportOptions {
            max_bytes: self.max_bytes,
            redact: !self.no_redact,
            processes: self.processes,
            flows: !self.totals,
            since: self.since.unwrap_or(0),
        }
    }
}

/// What is watched, and how it is shown.
#[derive(Args, Clone, Debug)]
pub(crate) struct Monitored {
    #[command(flatten)]
    pub(crate) query: Query,
    #[command(flatten)]
    pub(crate) output: Output,
    /// Show the active connections first
    #[arg(long)]
    pub(crate) snapshot: bool,
    /// Show these changes only
    #[arg(long, value_enum, value_delimiter = ',', ignore_case = true, value_name = "EVENT,...")]
    events: Vec<Event>,
    /// Continue after the last change that an earlier run printed; this file keeps the place
    ///
    /// Connections that began or ended meanwhile are printed first. The file is written once a second, after the output: if
    /// flowctl is killed, the next run prints the changes since then again. JSON lines always have `id` with this option. Only
    /// the user who runs flowctl should be able to write to the file's directory.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) cursor_file: Option<PathBuf>,
    /// At the end list the active connections and those that ended meanwhile, as monitor-conntrack does
    #[arg(long)]
    pub(crate) exit_summary: bool,
    /// Show no connections until the end
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl Monitored {
    /// Whether changes of this kind are to be shown.
    pub(crate) fn shows(&self, kind: EventKind) -> bool {
        let is_kind = |event: &Event| match event {
            Event::New => kind == EventKind::New,
            Event::Update => kind == EventKind::Update,
            Event::Destroy => kind == EventKind::Destroy,
        };
        self.events.is_empty() || self.events.iter().any(is_kind)
    }

    /// The names of the changes that are to be shown; none for all.
    pub(crate) fn events(&self) -> Vec<&'static str> {
        let name = |event: &Event| match event {
            Event::New => "new",
            Event::Update => "update",
            Event::Destroy => "destroy",
        };
        self.events.iter().map(name).collect()
    }
}

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Event {
    /// A connection began
    New,
    /// It changed: its state, mark, status
    Update,
    /// It ended
    Destroy,
}

impl Arguments {
    /// Reads the command line; what is wrong ends the program with exit status 2.
    pub(crate) fn read() -> Self {
        let mut command = Self::command();
        let matches = command.get_matches_mut();
        let read =
            Self::from_arg_matches(&matches).and_then(|arguments| arguments.check().map(|()| arguments));
        read.unwrap_or_else(|error| {
            // The usage that is shown is that of the subcommand.
            let subcommand = matches.subcommand_name().and_then(|name| command.find_subcommand_mut(name));
            match subcommand {
                Some(subcommand) => error.format(subcommand).exit(),
                None => error.exit(),
            }
        })
    }

    /// What clap cannot see.
    fn check(&self) -> Result<(), clap::Error> {
        let (query, output) = match &self.command {
            Command::List { listed: Listed { query, output, .. }, .. }
            | Command::Closed(Listed { query, output, .. })
            | Command::History(History { listed: Listed { query, output, .. }, .. }) => (query, output),
            Command::Monitor(Monitored { query, output, .. }) => (query, output),
            _ => return Ok(()),
        };
        if output.resolve() && *output.format() != Format::Table {
            let message = "--resolve goes with tables: programs get addresses";
            return Err(clap::Error::raw(ErrorKind::ArgumentConflict, message));
        }
        let is_history = matches!(self.command, Command::History(_));
        if let Some(field) = query.fields().iter().find(|field| !is_history && field.is_recorded()) {
            let message = format!("only history has the field {}", field.name());
            return Err(clap::Error::raw(ErrorKind::ValueValidation, message));
        }
        if query.fields().is_empty() || output.format().takes_fields() {
            return Ok(());
        }
        let message = "--fields goes with the forms table, json and csv: the others have fields of their own";
        Err(clap::Error::raw(ErrorKind::ArgumentConflict, message))
    }
}

fn report_bytes(text: &str) -> Result<usize, String> {
    let range = ReportOptions::LEAST..=ReportOptions::MOST;
    let wrong = || format!("takes {} to {}, or with a unit as in 64K", range.start(), range.end());
    let (number, unit) = text.strip_suffix(['K', 'k']).map_or((text, 1), |number| (number, 1024));
    let bytes = number.parse().ok().and_then(|number: usize| number.checked_mul(unit));
    bytes.filter(|bytes| range.contains(bytes)).ok_or_else(wrong)
}

pub(crate) fn time(text: &str) -> Result<u64, String> {
    moment::parse(text, &Zoned::now()).ok_or_else(|| format!("takes {}", moment::TAKES))
}

fn flow_id(text: &str) -> Result<u64, String> {
    let wrong = "takes the number of a flow, the first column of flowctl list and flowctl closed";
    text.parse().map_err(|_| wrong.to_owned())
}

fn timeout(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "takes whole seconds, 0 to 4294967295".to_owned())
}

fn inode(text: &str) -> Result<u32, String> {
    let wrong = "takes an inode number, as `stat -Lc %i /proc/PID/ns/net` prints it";
    text.parse().map_err(|_| wrong.to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| (0.0..=86_400.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "takes 0 to 86400, also fractions such as 0.5".to_owned())
}

fn mark(text: &str) -> Result<Mark, String> {
    let wrong = "takes 0 to 4294967295, or 0x0 to 0xffffffff; no leading zeros, which could mean octal";
    parse_number(text).map(Mark).ok_or_else(|| wrong.to_owned())
}

#[cfg(test)]
mod tests;

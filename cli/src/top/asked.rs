//! What `flowctl top` is asked for.

use std::time::Duration;

use clap::Args;

use super::view::{Grouping, Order};
use crate::json::Tabled;
use crate::query::Query;

/// What is shown, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct Top {
    #[command(flatten)]
    pub(super) query: Query,
    /// What a row stands for
    #[arg(long, value_enum, ignore_case = true, default_value = "flow")]
    pub(super) group: Grouping,
    /// Sort rows by this; by default those with the highest rate come first, or the latest if the kernel counts no bytes
    #[arg(long, value_enum, ignore_case = true)]
    pub(super) sort: Option<Order>,
    /// Seconds between two iterations, at least 1, because flowbusd reads counters no more often
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    pub(super) interval: Duration,
    /// Print iterations one after the other, without a terminal: the first after one interval, all columns, at most 256 rows
    #[arg(short, long)]
    pub(super) batch: bool,
    /// Print NUMBER iterations, then exit
    #[arg(short = 'n', long, value_name = "NUMBER", requires = "batch")]
    pub(super) iterations: Option<u64>,
    /// Show names of addresses, as systemd-resolved knows them
    ///
    /// It is asked in the background: an address is a number until its name is known.
    #[arg(long, conflicts_with = "layout")]
    pub(super) resolve: bool,
    #[command(flatten)]
    pub(super) tabled: Tabled,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| (1.0..=86_400.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "takes 1 to 86400, also fractions such as 2.5".to_owned())
}

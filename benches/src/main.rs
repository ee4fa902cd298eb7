//! Measures flowbus against its peers and against what the kernel alone takes, and writes docs/performance.md: see `./bench`.
//!
//! Only ratios within one run mean much: machines differ, and this one may be doing something else. So what is compared is
//! run in turns, several times, and the median is shown with the smallest and the largest.
#![allow(clippy::print_stdout, reason = "it is for someone to look at")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what fails here ends the measurement, with its reason"
)]

mod client;
mod cpu;
mod document;
mod figure;
mod floor;
mod load;
mod measure;
mod plot;
mod size;
mod soak;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use document::Section;
use measure::MEASURES;
use size::Size;

/// Measures flowbus and writes docs/performance.md.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Task>,
    /// Fewer flows and rounds, to try it: nothing is written
    #[arg(long, global = true)]
    quick: bool,
    /// How often each figure is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these measures, and their parts of the document: burst, steady, memory, listing, start, latency, idle, restart,
    /// attribution, sender, export
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Where docs/performance.md is
    #[arg(long, default_value = "docs")]
    documents: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Churn for a while: memory stays as it is, and the table ends as the kernel's
    Soak {
        /// How many minutes
        #[arg(long, default_value_t = 20)]
        minutes: u64,
        /// Events a second
        #[arg(long, default_value_t = 9_000)]
        rate: u32,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let size = if arguments.quick {
        Size { flows: 50_000, rounds: 2, largest: 200_000, time: Duration::from_secs(3) }
    } else {
        Size { flows: 200_000, rounds: arguments.rounds, largest: 1_000_000, time: Duration::from_secs(10) }
    };
    if let Some(Task::Soak { minutes, rate }) = arguments.command {
        let minutes = if arguments.quick { 1 } else { minutes };
        let section = soak::run(Duration::from_secs(60 * minutes), rate);
        println!("{}", section.markdown());
        if !arguments.quick {
            document::write(&arguments.documents, "soak", &[section]);
        }
        return ExitCode::SUCCESS;
    }
    let all = arguments.only.is_empty();
    let chosen = MEASURES.iter().filter(|(name, _)| all || arguments.only.iter().any(|only| only == name));
    let sections: Vec<Section> = chosen
        .map(|(name, measure)| {
            eprintln!("measuring: {name} ...");
            let section = measure(size);
            println!("{}", section.markdown());
            section
        })
        .collect();
    if !arguments.quick {
        document::write(&arguments.documents, "results", &sections);
    }
    let missed = sections.iter().flat_map(Section::missed).count();
    println!("{missed} bars are missed.");
    ExitCode::SUCCESS
}

//! The log of a daemon of flowbus: to journald where stderr is the journal's, else to stderr.

mod journal;
pub mod message_id;

use std::os::fd::AsFd;

use tracing::Level;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use journal::Journal;

/// Starts logging at level info, or at what the environment variable `RUST_LOG` says ("debug", "info,zbus=debug").
///
/// # Panics
/// When the process logs already.
pub fn start() {
    let journal = stderr_is_the_journal().then(Journal::open).and_then(Result::ok);
    let layer = match journal {
        // Its field message_id becomes the journal's MESSAGE_ID.
        Some(journal) => journal.boxed(),
        None => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr())
                && std::env::var_os("NO_COLOR").is_none();
            // On a terminal a MESSAGE_ID is noise.
            let fields = format::debug_fn(|writer, field, value| match field.name() {
                "message_id" => Ok(()),
                "message" => write!(writer, "{value:?}"),
                name => write!(writer, "{name}={value:?}"),
            });
            fmt::layer()
                .fmt_fields(fields.delimited(" "))
                .with_writer(std::io::stderr)
                .with_target(false)
                .with_ansi(colours)
                .boxed()
        }
    };
    tracing_subscriber::registry().with(levels()).with(layer).init();
}

/// The levels of `RUST_LOG` where it has some.
fn levels() -> Targets {
    let wished = std::env::var("RUST_LOG").ok().and_then(|levels| levels.parse().ok());
    wished.unwrap_or_else(|| Targets::new().with_default(Level::INFO).with_target("zbus", Level::WARN))
}

/// systemd sets `JOURNAL_STREAM` to the device and inode of the stream that it connected; see systemd.exec(5).
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(std::io::stderr().as_fd())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

//! A file of the log, sent to a collector.

use std::io;
use std::path::Path;
use std::time::Duration;

use flowbus_interfaces::{FlowLogBegin, StreamItem};

use crate::collector::Collector;
use crate::place;

/// The time between messages, so that a collector's socket holds what it has not read yet.
const PACE: Duration = Duration::from_micros(200);

/// Sends each begin and each end that the file has, but not the flows that a file before it has shown to be alive.
pub(crate) fn replay(path: &Path, collector: &mut Collector) -> io::Result<()> {
    let (mut lines, mut line) = (place::open(path)?, Vec::new());
    let mut cursor = None;
    while place::next_line(&mut lines, &mut line)? > 0 {
        let Ok(item) = StreamItem::parse(&line) else { continue };
        let cursor = cursor.get_or_insert_with(|| {
            let begin: Option<FlowLogBegin> = serde_json::from_slice(&line).ok();
            begin.and_then(|begin| begin.from.parse().ok()).unwrap_or_default()
        });
        if collector.push(&item, cursor) {
            std::thread::sleep(PACE);
        }
        cursor.advance(&item);
    }
    collector.flush();
    Ok(())
}

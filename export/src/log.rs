//! The file of the log that is written.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flowbus_interfaces::{Cursor, FlowLogBegin, FlowLogName, StreamItem};
use serde_json::json;

use crate::config::{Config, LogOptions};

/// Bytes of lines that are gathered before they are written.
pub(crate) const WRITE_BYTES: usize = 128 * 1024;
/// The age of what is not on the disk yet, at most.
const SYNC: Duration = Duration::from_secs(1);

/// A file that is written; whole lines reach it.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    prefix: Vec<u8>,
    /// Lines that are not written yet.
    lines: Vec<u8>,
    records: u64,
    /// How much is written.
    bytes: u64,
    /// How much of it was written when the snapshot was complete; `None` before.
    head_bytes: Option<u64>,
    begun: Instant,
    synced: Instant,
    is_synced: bool,
}

impl LogFile {
    /// A new file and its first line, of a stream that has begun and goes on from a cursor.
    pub(crate) fn create(
        directory: &Path,
        epoch: &str,
        machine: Option<&str>,
        sequence: u64,
        from: &Cursor,
        config: &Config,
    ) -> io::Result<Self> {
        let mut begin_usec = now_usec();
        let (path, file) = loop {
            let path = directory.join(FlowLogName { begin_usec, is_compressed: false }.to_string());
            match OpenOptions::new().append(true).create_new(true).mode(0o640).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => begin_usec += 1,
                file => break (path, file?),
            }
        };
        // Its name is to be found after a crash, as what is in it is.
        File::open(directory)?.sync_all()?;
        let now = Instant::now();
        let mut log = Self {
            path,
            file,
            prefix: prefix(epoch, machine),
            lines: Vec::with_capacity(WRITE_BYTES),
            records: 0,
            bytes: 0,
            head_bytes: None,
            begun: now,
            synced: now,
            is_synced: true,
        };
        let begin = FlowLogBegin {
            machine: machine.map(str::to_owned),
            epoch: epoch.to_owned(),
            kind: "begin".to_owned(),
            sequence,
            event_usec: begin_usec,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: std::fs::read_to_string("/etc/hostname").unwrap_or_default().trim().to_owned(),
            from: if from.goes_on(epoch, sequence) { from.to_string() } else { String::new() },
            fields: config.fields(),
            query: config.conditions().to_vec(),
        };
        serde_json::to_writer(&mut log.lines, &begin)?;
        log.end_line();
        Ok(log)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// An item of the stream, and its line.
    pub(crate) fn push(&mut self, item: &StreamItem<'_>, line: &[u8]) {
        self.lines.extend_from_slice(&self.prefix);
        self.lines.extend_from_slice(line.get(1..).unwrap_or_default());
        if matches!(item, StreamItem::Gap { .. } | StreamItem::Resync { .. }) {
            // It has no time of its own.
            self.lines.pop();
            let _ = write!(self.lines, ",\"event_usec\":{}}}", now_usec());
        }
        self.end_line();
        if matches!(item, StreamItem::SnapshotEnd { .. }) {
            self.head_bytes = Some(self.len());
        }
    }

    fn end_line(&mut self) {
        self.lines.push(b'\n');
        self.records += 1;
    }

    fn len(&self) -> u64 {
        self.bytes + self.lines.len() as u64
    }

    /// Whether the next file should begin. Every file begins with the flows that are alive: those take at most half of the log.
    pub(crate) fn is_full(&self, options: &LogOptions) -> bool {
        let Some(head) = self.head_bytes else { return false };
        self.len() >= options.rotate_bytes.max(2 * head) || self.begun.elapsed() >= options.rotate()
    }

    /// When something is to be done, whether or not lines come.
    pub(crate) fn due(&self, options: &LogOptions) -> Option<Instant> {
        let full = self.head_bytes.map(|_| self.begun + options.rotate());
        let sync = (!self.is_synced).then(|| self.synced + SYNC);
        full.into_iter().chain(sync).min()
    }

    /// Whether enough lines are gathered.
    pub(crate) fn has_gathered(&self) -> bool {
        self.lines.len() >= WRITE_BYTES
    }

    /// Writes what was gathered; once a second it reaches the disk.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if !self.lines.is_empty() {
            self.file.write_all(&self.lines)?;
            self.bytes += self.lines.len() as u64;
            self.lines.clear();
            self.is_synced = false;
        }
        if !self.is_synced && self.synced.elapsed() >= SYNC {
            self.sync()?;
        }
        Ok(())
    }

    /// The bytes that are written.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.synced = Instant::now();
        self.is_synced = true;
        Ok(())
    }

    /// Ends the file.
    pub(crate) fn close(mut self, reason: &str) -> io::Result<()> {
        let end = end_line(&self.prefix, reason, self.records);
        self.lines.extend_from_slice(&end);
        self.file.write_all(&self.lines)?;
        self.sync()
    }
}

/// What each line begins with, in place of its brace.
pub(crate) fn prefix(epoch: &str, machine: Option<&str>) -> Vec<u8> {
    let machine = machine.map(|machine| format!("\"machine\":{},", json!(machine))).unwrap_or_default();
    format!("{{{machine}\"epoch\":{},", json!(epoch)).into_bytes()
}

/// The last line of a file.
pub(crate) fn end_line(prefix: &[u8], reason: &str, records: u64) -> Vec<u8> {
    let mut line = prefix.to_owned();
    let usec = now_usec();
    let _ = writeln!(
        line,
        "\"type\":\"end\",\"reason\":\"{reason}\",\"event_usec\":{usec},\"records\":{records}}}"
    );
    line
}

pub(crate) fn now_usec() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

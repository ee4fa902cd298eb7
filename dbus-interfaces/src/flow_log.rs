//! The files of the flow log, which `flowbus-export` writes and `flowctl history` reads.
//!
//! A file is NDJSON and **a stream of its own**: its lines are those of an `OpenStream`, each with the keys `machine` (absent where
//! the machine has no id) and `epoch` in front, so that a line means the same in any store:
//!
//! 1. `begin`, a [`FlowLogBegin`];
//! 2. `closed` for each flow that ended since the place where the file before it ended, oldest end first;
//! 3. `flow` for each flow that is alive, and `snapshot-end`;
//! 4. `new` and `destroy`, and what else a stream has: `gap`, `resync`, `reached`, also lines of types that come with later versions;
//! 5. `end` with `reason` and `records`, the number of lines before it. A file without it is being written, or its writer was
//!    killed; then the last line can be torn, and the next life of the writer cuts it off and adds the `end`.
//!
//! Each end (`closed` or `destroy`) stands once in the log and `new` at most once. A flow that began while nobody wrote has its begin
//! in its first `flow` or `closed` line. What is missing is a `gap`. Times are microseconds since 1970. Lines of the writer
//! (`begin`, `gap`, `resync`, `end`) have `event_usec`, when they were written.
//!
//! Files are ordered by name; where the clock was set back, those of an epoch by `sequence`. One that is complete is compressed; for
//! a moment both forms of it are there, and say the same. Files with any other name are not part of the log.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::{FieldSet, Key};

/// Where the log is, unless its configuration says otherwise.
pub const FLOW_LOG_DIRECTORY: &str = "/var/log/flowbus";

const PREFIX: &str = "flows-";
const OPEN: &str = ".ndjson";
const COMPRESSED: &str = ".ndjson.zst";
const TIME: &str = "%Y%m%dT%H%M%S.%6fZ";

/// The name of a file of the log: `flows-20261127T201500.123456Z.ndjson`, with `.zst` behind it once it is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowLogName {
    /// When the file's stream began, in microseconds since 1970.
    pub begin_usec: u64,
    /// Whether the file is complete, and compressed with zstd.
    pub is_compressed: bool,
}

impl fmt::Display for FlowLogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usec = i64::try_from(self.begin_usec).map_err(|_| fmt::Error)?;
        let begin = Timestamp::from_microsecond(usec).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", begin.strftime(TIME))?;
        f.write_str(if self.is_compressed { COMPRESSED } else { OPEN })
    }
}

/// A name is not that of a file of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a file of the flow log")]
pub struct FlowLogNameError;

impl FromStr for FlowLogName {
    type Err = FlowLogNameError;

    fn from_str(name: &str) -> Result<Self, FlowLogNameError> {
        let parse = || {
            let time = name.strip_prefix(PREFIX)?;
            let (time, is_compressed) = match time.strip_suffix(COMPRESSED) {
                Some(time) => (time, true),
                None => (time.strip_suffix(OPEN)?, false),
            };
            let begin = DateTime::strptime(TIME, time).ok()?.to_zoned(TimeZone::UTC).ok()?;
            let begin_usec = u64::try_from(begin.timestamp().as_microsecond()).ok()?;
            Some(Self { begin_usec, is_compressed })
        };
        // Only names that are written: others would not sort by their time.
        parse().filter(|parsed| parsed.to_string() == name).ok_or(FlowLogNameError)
    }
}

/// The files of the log in a directory, oldest first; of a file in both forms the compressed one.
///
/// # Errors
/// If the directory cannot be read.
pub fn flow_log_files(directory: &Path) -> io::Result<Vec<(FlowLogName, PathBuf)>> {
    let mut files = Vec::new();
    for entry in directory.read_dir()? {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str().and_then(|name| name.parse::<FlowLogName>().ok()) {
            files.push((name, entry.path()));
        }
    }
    // Where a file has two forms, the compressed one comes first, and stays.
    files.sort_unstable_by_key(|&(name, _)| (name.begin_usec, !name.is_compressed));
    files.dedup_by_key(|(name, _)| name.begin_usec);
    Ok(files)
}

/// Opens a file of the log and nothing else: a copy of a log comes from elsewhere, and root may read it. Neither a link, a device nor
/// a pipe is followed, waited for or made to act.
///
/// # Errors
/// If it cannot be opened; ELOOP for a link, [`io::ErrorKind::InvalidInput`] for what else is no regular file.
pub fn open_flow_log_file(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// The first line of a file, as JSON with the `type` `begin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowLogBegin {
    /// The machine, as `begin` of a stream has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The epoch, which every line of the file has: ids and sequences of another one mean nothing in it.
    pub epoch: String,
    /// `begin`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The number of the last change before the stream.
    pub sequence: u64,
    /// When the stream began, as in the file's name.
    pub event_usec: u64,
    /// The version of the program that wrote the file.
    pub version: String,
    /// The name of the machine, as /etc/hostname has it.
    pub host: String,
    /// The [`Cursor`](crate::Cursor) after the last line of the file before it: where that is of the same epoch, this file has
    /// everything since. Empty where there was none of this epoch.
    pub from: String,
    /// The names of the fields that the log has of each flow: one that is not among them says nothing where it is absent. A file
    /// without it is read as if it had every field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Vec<String>>,
    /// The conditions that a flow of the log meets, as words of `flowctl list`: the log lacks all others. Empty where it has every flow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<String>,
}

impl FlowLogBegin {
    /// The fields that the log has of each flow.
    pub fn recorded(&self) -> FieldSet {
        let keys = |names: &Vec<String>| names.iter().filter_map(|name| Key::parse(name)).collect();
        self.fields.as_ref().map_or(FieldSet::ALL, keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StreamItem;

    const NAME: &str = "flows-20261127T201500.000009Z.ndjson";
    const BEGIN: u64 = 1_795_810_500_000_009;

    #[test]
    fn a_name_says_when_its_file_begins() {
        for (name, is_compressed) in [(NAME.to_owned(), false), (format!("{NAME}.zst"), true)] {
            let parsed: FlowLogName = name.parse().unwrap();
            assert_eq!((parsed.begin_usec, parsed.is_compressed), (BEGIN, is_compressed));
            assert_eq!(parsed.to_string(), name);
        }
        let earlier = FlowLogName { begin_usec: BEGIN - 10, is_compressed: false };
        assert_eq!(earlier.to_string(), "flows-20261127T201459.999999Z.ndjson");
    }

    #[test]
    fn other_names_are_not_of_the_log() {
        for name in [
            "",
            "flows-",
            "flows-.ndjson",
            "flows-20261127T201500Z.ndjson",
            "flows-20261127T201500.9Z.ndjson",
            "flows-20261327T201500.000009Z.ndjson",
            "flows-20261127T201500.000009Z.ndjson.zst.new",
            "flows-20261127T201500.000009Z.ndjson.zst.zst",
            "flows-19691231T235959.000000Z.ndjson",
            "flow-20261127T201500.000009Z.ndjson",
        ] {
            assert_eq!(name.parse::<FlowLogName>(), Err(FlowLogNameError), "{name}");
        }
    }

    #[test]
    fn files_are_listed_oldest_first_and_each_once() {
        let directory = std::env::temp_dir().join(format!("flowbus-log-names-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let later = NAME.replace("000009", "000010");
        for name in [&later, NAME, &format!("{NAME}.zst"), &format!("{later}.zst.new"), "lost+found"] {
            std::fs::write(directory.join(name), "").unwrap();
        }
        let files = flow_log_files(&directory).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        let names: Vec<_> = files.iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(names, [format!("{NAME}.zst"), later.clone()]);
        assert_eq!(files[1].1, directory.join(later));
        assert!(flow_log_files(&directory).is_err());
    }

    #[test]
    fn the_first_line_is_the_begin_of_a_stream() {
        let begin = FlowLogBegin {
            machine: None,
            epoch: "e".into(),
            kind: "begin".into(),
            sequence: 7,
            event_usec: BEGIN,
            version: "1".into(),
            host: "gateway".into(),
            from: String::new(),
            fields: None,
            query: Vec::new(),
        };
        assert_eq!(begin.recorded(), FieldSet::ALL);
        let chosen = FlowLogBegin { fields: Some(vec!["id".into(), "later".into()]), ..begin.clone() };
        assert_eq!(chosen.recorded(), FieldSet::EMPTY.with(Key::Id));
        let line = serde_json::to_string(&begin).unwrap();
        assert!(line.starts_with(r#"{"epoch":"e","type":"begin","sequence":7,"#), "{line}");
        let item = StreamItem::parse(line.as_bytes()).unwrap();
        assert!(matches!(item, StreamItem::Begin { sequence: 7, machine: None, .. }), "{item:?}");
        assert_eq!(serde_json::from_str::<FlowLogBegin>(&line).unwrap(), begin);
    }
}

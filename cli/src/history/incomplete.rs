//! What makes an answer incomplete, which is reported, so that no answer seems to be all that there was.

use std::io;
use std::path::{Path, PathBuf};

use flowbus_interfaces::{FlowLogName, QueryKey};
use serde::Serialize;

use crate::cell;

/// Something that the record does not have, or that could not be read of it. Times are microseconds since 1970.
#[derive(Debug)]
pub(super) enum Incomplete {
    /// The record begins later than what is asked about.
    Begins { usec: u64 },
    /// The record ends earlier than what is asked about.
    Ends { usec: u64, is_open: bool },
    /// The log has only the flows that meet these conditions.
    Selected { query: String },
    /// flowbusd lost its table, and began a new one.
    NewEpoch { from: u64, to: u64 },
    /// The clock was set back.
    ClockSetBack { from: u64, to: u64 },
    /// More flows were alive than are remembered.
    TooMany { usec: u64 },
    /// Changes that the log does not have.
    Gap { from: u64, to: Option<u64>, lost: Option<u64>, reason: String },
    /// flowbusd read the kernel's table anew.
    Resync { from: u64, to: Option<u64>, reason: String },
    /// The end of a file, or a file, is missing.
    Missing { path: PathBuf, from: u64, to: u64 },
    /// Lines of a file are missing, or are no lines of a log.
    Lines { path: PathBuf, lost: u64 },
    /// The file cannot be read, or not further.
    Unreadable { path: PathBuf, after: Option<u64>, error: io::Error },
    /// The file does not begin as one of a log.
    NotALog { path: PathBuf },
    /// A condition is about something that the log leaves out.
    NotRecorded { key: QueryKey, flows: u64 },
}

/// What the record does not have, as a line of JSON.
#[derive(Serialize)]
pub(super) struct Object<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_usec: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_usec: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<u64>,
    text: String,
}

impl Incomplete {
    /// Whether something is there that could not be read.
    pub(super) const fn is_failure(&self) -> bool {
        matches!(self, Self::Unreadable { .. } | Self::NotALog { .. })
    }

    /// Whether root or a member of the group could read it.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::Unreadable { error, .. } if error.kind() == io::ErrorKind::PermissionDenied)
    }

    /// When the file that cannot be read begins.
    pub(super) fn begin_usec(&self) -> Option<u64> {
        let (Self::Unreadable { path, .. } | Self::NotALog { path }) = self else { return None };
        Some(path.file_name()?.to_str()?.parse::<FlowLogName>().ok()?.begin_usec)
    }

    pub(super) fn text(&self) -> String {
        let time = |usec: u64| cell::exactly(usec);
        let span = |from: u64, to: &Option<u64>| match to {
            Some(to) => format!("between {} and {}", time(from), time(*to)),
            None => format!("after {}", time(from)),
        };
        match self {
            Self::Begins { usec } => {
                format!("the record begins at {}: connections that ended before are missing", time(*usec))
            }
            Self::Ends { usec, is_open: false } => {
                format!("the record ends at {}: nothing is known of later times", time(*usec))
            }
            Self::Ends { usec, is_open: true } => format!(
                "the last line of the record is of {}: nothing has happened since, or flowbus-export does not run",
                time(*usec)
            ),
            Self::Selected { query } => {
                format!("the log has only connections that match {}", cell::clean(query.into()))
            }
            Self::NewEpoch { from, to } => format!(
                "flowbusd began a new table {}: ends before that are not known, and connections that began and ended meanwhile are \
                 missing",
                span(*from, &Some(*to))
            ),
            Self::ClockSetBack { from, to } => {
                format!(
                    "the clock was set back from {} to {}: times in between occur twice",
                    time(*from),
                    time(*to)
                )
            }
            Self::TooMany { usec } => format!(
                "more connections were alive at {} than flowctl can keep in memory (1 GiB): those without an end are missing from then on",
                time(*usec)
            ),
            Self::Gap { from, to, lost, reason } => {
                let lost = match lost {
                    Some(lost) => format!("up to {}", cell::counted(*lost, "change")),
                    None => "changes".to_owned(),
                };
                let why = match reason.as_str() {
                    "slow-reader" => "the log was written too slowly",
                    "overrun" => "the kernel's events came too fast for flowbusd",
                    "forgotten" => "flowbusd no longer remembered them",
                    other => other,
                };
                format!("{lost} missing {}: {}", span(*from, to), cell::clean(why.into()))
            }
            Self::Resync { from, to, reason } => format!(
                "flowbusd read the kernel's table anew {} ({}): connections that began and ended meanwhile are missing",
                span(*from, to),
                cell::clean(reason.as_str().into())
            ),
            Self::Missing { path, from, to } => {
                format!(
                    "changes are missing {}, after the last line of {}",
                    span(*from, &Some(*to)),
                    shown(path)
                )
            }
            Self::Lines { path, lost } => {
                format!("{} of {} missing or unreadable", cell::counted(*lost, "line"), shown(path))
            }
            Self::Unreadable { path, after: None, error } => format!("cannot read {}: {error}", shown(path)),
            Self::Unreadable { path, after: Some(usec), error } => {
                format!("cannot read {} after {}: {error}", shown(path), time(*usec))
            }
            Self::NotALog { path } => format!("{} does not begin as a file of a flow log", shown(path)),
            Self::NotRecorded { key, flows } => format!(
                "{} not compared with {key}, which the log does not record",
                cell::counted(*flows, "line")
            ),
        }
    }

    /// This as a line of JSON, with the machine whose record it is about.
    pub(super) fn object<'a>(&'a self, machine: Option<&'a str>) -> Object<'a> {
        let (reason, from_usec, to_usec, lost) = match self {
            Self::Begins { usec } => ("record-begins", None, Some(*usec), None),
            Self::Ends { usec, .. } => ("record-ends", Some(*usec), None, None),
            Self::Selected { .. } => ("selected", None, None, None),
            Self::NewEpoch { from, to } => ("new-epoch", Some(*from), Some(*to), None),
            Self::ClockSetBack { from, to } => ("clock-set-back", Some(*to), Some(*from), None),
            Self::TooMany { usec } => ("too-many", Some(*usec), None, None),
            Self::Gap { from, to, lost, reason } => (reason.as_str(), Some(*from), *to, *lost),
            Self::Resync { from, to, reason } => (reason.as_str(), Some(*from), *to, None),
            Self::Missing { from, to, .. } => ("missing", Some(*from), Some(*to), None),
            Self::Lines { lost, .. } => ("lines", None, None, Some(*lost)),
            Self::Unreadable { after, .. } => ("unreadable", *after, None, None),
            Self::NotALog { .. } => ("not-a-log", None, None, None),
            Self::NotRecorded { flows, .. } => ("not-recorded", None, None, Some(*flows)),
        };
        let machine = machine.filter(|machine| !machine.is_empty());
        Object { kind: "incomplete", reason, machine, from_usec, to_usec, lost, text: self.text() }
    }
}

/// A path for people.
pub(super) fn shown(path: &Path) -> String {
    cell::clean(path.to_string_lossy()).into_owned()
}

//! The files of a log, by machine.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use flowbus_interfaces::{FlowLogBegin, FlowLogName, flow_log_files};

use super::incomplete::Incomplete;
use super::lines::{Line, Lines};
use crate::cell;

/// A file, and how it begins.
#[derive(Clone, Debug)]
pub(super) struct LogFile {
    pub(super) path: PathBuf,
    pub(super) name: FlowLogName,
    pub(super) begin: FlowLogBegin,
}

impl LogFile {
    /// When its stream began.
    pub(super) const fn begin_usec(&self) -> u64 {
        self.name.begin_usec
    }

    pub(super) fn lines(&self, bytes: &Rc<Cell<u64>>) -> io::Result<Lines> {
        Lines::open(File::open(&self.path)?, self.name.is_compressed, bytes.clone())
    }
}

/// A machine and its files, oldest first; there is at least one.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// The machine's id; empty where it has none.
    pub(super) id: String,
    pub(super) files: Vec<LogFile>,
}

impl Machine {
    /// The machine for people: by its host name, latest first.
    pub(super) fn name(&self) -> String {
        let host = self.files.last().map(|file| file.begin.host.as_str()).unwrap_or_default();
        let name = if host.is_empty() { self.id.get(..8).unwrap_or(&self.id) } else { host };
        cell::clean(name.into()).into_owned()
    }

    /// Whether this is what `--machine` says: a host name, or the beginning of an id.
    fn is(&self, asked: &str) -> bool {
        let has_name = self.files.iter().any(|file| file.begin.host == asked);
        has_name || !asked.is_empty() && self.id.starts_with(asked)
    }

    /// Which of the files have to be read to their end for what was alive from `since` to `until`: the last one that began before, and
    /// those that began in between. The one after them has in its beginning what was alive while nobody wrote.
    pub(super) fn span(&self, since: u64, until: u64) -> std::ops::Range<usize> {
        let begun = |time| self.files.partition_point(|file| file.begin_usec() <= time);
        let end = begun(until);
        begun(since).saturating_sub(1).min(end)..end
    }
}

/// What a directory has.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) machines: Vec<Machine>,
    /// The files that cannot be read, or do not begin as they should.
    pub(super) unreadable: Vec<Incomplete>,
    /// How many files there are.
    pub(super) files: usize,
}

impl Log {
    /// Looks at how each file begins. `machine` chooses one machine; those that cannot be read may be of any.
    pub(super) fn open(directory: &Path, machine: Option<&str>) -> io::Result<Self> {
        let names = flow_log_files(directory)?;
        let mut log = Self { files: names.len(), ..Self::default() };
        let newest = names.last().map(|(name, _)| *name);
        for (name, path) in names {
            match begin_of(&path, name) {
                Ok(Some(begin)) => log.add(LogFile { path, name, begin }),
                // The newest file is just being written.
                Ok(None) if Some(name) == newest => {}
                Ok(None) => log.unreadable.push(Incomplete::NotALog { path }),
                Err(error) => log.unreadable.push(Incomplete::Unreadable { path, after: None, error }),
            }
        }
        if let Some(asked) = machine {
            log.machines.retain(|machine| machine.is(asked));
        }
        Ok(log)
    }

    fn add(&mut self, file: LogFile) {
        let id = file.begin.machine.as_deref().unwrap_or_default();
        match self.machines.iter_mut().find(|machine| machine.id == id) {
            Some(machine) => machine.files.push(file),
            None => self.machines.push(Machine { id: id.to_owned(), files: vec![file] }),
        }
    }
}

/// The first line of a file; `None` where it is none of a log.
fn begin_of(path: &Path, name: FlowLogName) -> io::Result<Option<FlowLogBegin>> {
    let mut lines = Lines::open(File::open(path)?, name.is_compressed, Rc::default())?;
    let Some(Line::Whole(line)) = lines.next()? else { return Ok(None) };
    let begin = serde_json::from_slice(line).ok();
    Ok(begin.filter(|begin: &FlowLogBegin| begin.kind == "begin"))
}

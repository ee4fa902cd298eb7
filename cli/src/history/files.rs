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
        open(&self.path, self.name, bytes.clone())
    }
}

/// A machine and its files, oldest first; there is at least one.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// The machine's id; empty where it has none.
    pub(super) id: String,
    /// The machine for people: its host name, latest first, and where machines share one the id behind it.
    pub(super) name: String,
    pub(super) files: Vec<LogFile>,
}

impl Machine {
    fn host(&self) -> &str {
        self.files.last().map(|file| file.begin.host.as_str()).unwrap_or_default()
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
                // It was removed at the bound of the log: the record begins later.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => log.unreadable.push(Incomplete::Unreadable { path, after: None, error }),
            }
        }
        if let Some(asked) = machine {
            log.machines.retain(|machine| machine.is(asked));
        }
        log.name_machines();
        Ok(log)
    }

    fn name_machines(&mut self) {
        let hosts: Vec<_> = self.machines.iter().map(|machine| machine.host().to_owned()).collect();
        for (machine, host) in self.machines.iter_mut().zip(&hosts) {
            let id = machine.id.get(..8).unwrap_or(&machine.id);
            let name = match hosts.iter().filter(|other| *other == host).count() {
                _ if host.is_empty() => id.to_owned(),
                1 => host.clone(),
                _ => format!("{host}-{id}"),
            };
            machine.name = cell::clean(name.into()).into_owned();
        }
    }

    fn add(&mut self, file: LogFile) {
        let id = file.begin.machine.as_deref().unwrap_or_default();
        match self.machines.iter_mut().find(|machine| machine.id == id) {
            Some(machine) => machine.files.push(file),
            None => {
                let machine = Machine { id: id.to_owned(), name: String::new(), files: vec![file] };
                self.machines.push(machine);
            }
        }
    }
}

/// Opens a file, which may have been compressed since it was listed.
fn open(path: &Path, name: FlowLogName, bytes: Rc<Cell<u64>>) -> io::Result<Lines> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !name.is_compressed => {
            let name = FlowLogName { is_compressed: true, ..name };
            Lines::open(File::open(path.with_file_name(name.to_string()))?, true, bytes)
        }
        file => Lines::open(file?, name.is_compressed, bytes),
    }
}

/// The first line of a file; `None` where it is none of a log.
fn begin_of(path: &Path, name: FlowLogName) -> io::Result<Option<FlowLogBegin>> {
    let mut lines = open(path, name, Rc::default())?;
    let Some(Line::Whole(line)) = lines.next()? else { return Ok(None) };
    let begin = serde_json::from_slice(line).ok();
    Ok(begin.filter(|begin: &FlowLogBegin| begin.kind == "begin"))
}

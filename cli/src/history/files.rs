//! The files of a log, by machine.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use flowbus_interfaces::{FlowLogBegin, FlowLogName, flow_log_files, open_flow_log_file};
use nix::errno::Errno;

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

/// A machine and its files in the order in which they were written; there is at least one.
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

    /// When the record begins.
    pub(super) fn begin_usec(&self) -> u64 {
        self.files.iter().map(LogFile::begin_usec).min().unwrap_or_default()
    }

    /// Which of the files have to be read to their end for what was alive from `since` to `until`: the last one that began before, and
    /// those that began in between. The one after them has in its beginning what was alive while nobody wrote.
    pub(super) fn span(&self, since: u64, until: u64) -> std::ops::Range<usize> {
        let is_about = |place: usize| {
            let begin = self.files[place].begin_usec();
            // Behind a file after which the clock was set back, any time may be in it.
            let next = self.files.get(place + 1).map(LogFile::begin_usec).filter(|next| *next >= begin);
            begin <= until && next.is_none_or(|next| next > since)
        };
        let mut places = (0..self.files.len()).filter(|place| is_about(*place));
        let first = places.next().unwrap_or(0);
        let end = places.next_back().unwrap_or(first) + 1;
        if self.begin_usec() > until { 0..0 } else { first..end }
    }

    /// Puts the files into the order in which they were written. Names say it, unless the clock was set back: within an epoch the
    /// numbers of changes grow.
    fn sort(&mut self) {
        let mut epochs: Vec<String> = Vec::new();
        for file in &self.files {
            if !epochs.contains(&file.begin.epoch) {
                epochs.push(file.begin.epoch.clone());
            }
        }
        self.files.sort_by_cached_key(|file| {
            let epoch = epochs.iter().position(|epoch| *epoch == file.begin.epoch);
            (epoch, file.begin.sequence, file.begin_usec())
        });
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
        for (name, path) in names {
            match begin_of(&path, name) {
                Ok(Begin::Of(begin)) => log.add(LogFile { path, name, begin: *begin }),
                // It is just being made.
                Ok(Begin::Nothing) if !name.is_compressed => {}
                Ok(_) => log.unreadable.push(Incomplete::NotALog { path }),
                // It was removed at the bound of the log: the record begins later.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => log.unreadable.push(Incomplete::Unreadable { path, after: None, error }),
            }
        }
        if let Some(asked) = machine {
            log.machines.retain(|machine| machine.is(asked));
        }
        log.machines.iter_mut().for_each(Machine::sort);
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
    match open_regular(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !name.is_compressed => {
            let name = FlowLogName { is_compressed: true, ..name };
            Lines::open(open_regular(&path.with_file_name(name.to_string()))?, true, bytes)
        }
        file => Lines::open(file?, name.is_compressed, bytes),
    }
}

fn open_regular(path: &Path) -> io::Result<File> {
    open_flow_log_file(path, OpenOptions::new().read(true)).map_err(|error| match error.raw_os_error() {
        Some(number) if number == Errno::ELOOP as i32 => {
            io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
        }
        _ => error,
    })
}

/// How a file begins.
enum Begin {
    Of(Box<FlowLogBegin>),
    /// It is empty.
    Nothing,
    /// Not as one of a log.
    Other,
}

fn begin_of(path: &Path, name: FlowLogName) -> io::Result<Begin> {
    let mut lines = open(path, name, Rc::default())?;
    let line = match lines.next()? {
        Some(Line::Whole(line)) => line,
        Some(_) => return Ok(Begin::Other),
        None => return Ok(Begin::Nothing),
    };
    let begin = serde_json::from_slice(line).ok().filter(|begin: &FlowLogBegin| begin.kind == "begin");
    Ok(begin.map_or(Begin::Other, |begin| Begin::Of(Box::new(begin))))
}

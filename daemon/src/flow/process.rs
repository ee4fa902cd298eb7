//! A process: as the state holds it, and in words.

use std::sync::{Arc, PoisonError, RwLock};

use flowbus_attribution::{Confidence, Process};
use flowbus_interfaces::Owner;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{OwnerNumber, ProcessNumber};
use crate::checksum::{Checksummed, layout_of};
use crate::fit::fit;

/// A process as the state holds it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ProcessEntry {
    pub(crate) identity: Identity,
    check: u32,
    /// How many processes had this place before.
    pub(crate) uses: u16,
    path_len: u16,
    /// The path of the control group; a longer one is not kept.
    path: [u8; 256],
}

/// What tells processes apart. A thread of another name is another one, so that each flow shows its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Identity {
    start_boottime_ns: u64,
    cgroup: u64,
    pub(crate) pid: u32,
    uid: u32,
    comm: [u8; 16],
    leader_comm: [u8; 16],
}

layout_of!(ProcessEntry { identity, check, uses, path_len, path });
layout_of!(Identity { start_boottime_ns, cgroup, pid, uid, comm, leader_comm });

impl Checksummed for ProcessEntry {
    const CHECK: usize = std::mem::offset_of!(Self, check);
}

impl From<&Process> for Identity {
    fn from(process: &Process) -> Self {
        let Process { pid, start_boottime_ns, uid, comm, leader_comm, cgroup, .. } = *process;
        Self { start_boottime_ns, cgroup, pid, uid, comm, leader_comm }
    }
}

impl ProcessEntry {
    pub(crate) fn new(identity: Identity, uses: u16, path: Option<&str>) -> Self {
        let mut entry = Self { identity, check: 0, uses, path_len: 0, path: [0; 256] };
        entry.set_path(path);
        entry
    }

    /// One for tests of the state.
    #[cfg(test)]
    pub(crate) fn example(process: &Process, path: &str) -> Self {
        Self::new(process.into(), 0, Some(path))
    }

    /// True when this path is not known yet and there is room for it.
    pub(crate) fn lacks_path(&self, path: Option<&str>) -> bool {
        self.path_len == 0 && path.is_some_and(|path| path.len() <= self.path.len())
    }

    /// Notes the path of the control group.
    pub(crate) fn set_path(&mut self, path: Option<&str>) {
        if let Some(path) = path
            && let Some(place) = self.path.get_mut(..path.len())
        {
            place.copy_from_slice(path.as_bytes());
            self.path_len = fit(path.len());
        }
    }

    fn path(&self) -> Option<&str> {
        let path = self.path.get(..usize::from(self.path_len))?;
        std::str::from_utf8(path).ok().filter(|path| !path.is_empty())
    }
}

/// A process in words, for whoever shows it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProcessText {
    pid: u32,
    uid: u32,
    comm: Box<str>,
    leader_comm: Box<str>,
    cgroup: Option<Box<str>>,
    unit: Option<Box<str>>,
}

impl ProcessText {
    pub(crate) fn new(entry: &ProcessEntry) -> Self {
        let name = |comm: &[u8; 16]| {
            let name = comm.split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(name).into()
        };
        let Identity { pid, uid, comm, leader_comm, .. } = &entry.identity;
        let path = entry.path();
        Self {
            pid: *pid,
            uid: *uid,
            comm: name(comm),
            leader_comm: name(leader_comm),
            cgroup: path.map(Box::from),
            unit: path.and_then(flowbus_attribution::unit_of).map(Box::from),
        }
    }

    /// The process as the owner of something.
    pub(crate) fn owner(&self, confidence: Confidence) -> Owner<'_> {
        Owner {
            pid: Some(self.pid),
            comm: Some(&self.comm),
            leader_comm: Some(&self.leader_comm),
            uid: Some(self.uid),
            unit: self.unit.as_deref(),
            cgroup: self.cgroup.as_deref(),
            confidence: Some(confidence.name()),
        }
    }
}

/// Everyone's side: the processes behind the numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProcessTexts(Arc<RwLock<Vec<NumberedText>>>);

/// The process that has a place now.
#[derive(Debug)]
struct NumberedText {
    number: ProcessNumber,
    text: Arc<ProcessText>,
}

impl ProcessTexts {
    /// Shows the process that has a place from now on.
    pub(crate) fn set(&self, number: ProcessNumber, text: ProcessText) {
        let place = number.place();
        let text = NumberedText { number, text: Arc::new(text) };
        let mut texts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match texts.get_mut(place) {
            Some(old) => *old = text,
            None => texts.push(text),
        }
    }

    /// The process behind a number, unless its place has been used again.
    pub(crate) fn get(&self, process: ProcessNumber) -> Option<Arc<ProcessText>> {
        let texts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let NumberedText { number, text } = texts.get(process.place())?;
        (*number == process).then(|| Arc::clone(text))
    }

    /// The owner behind a number, and how surely it is the one.
    pub(crate) fn owner(&self, owner: OwnerNumber) -> Option<(Arc<ProcessText>, Confidence)> {
        let (process, confidence) = owner.get()?;
        Some((self.get(process)?, confidence))
    }
}

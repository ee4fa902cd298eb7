//! A process: as the state holds it, and in words.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError, RwLock};

use flowbus_attribution::{Confidence, Process};
use flowbus_interfaces::Owner;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{OwnerNumber, ProcessNumber};
use crate::checksum::{Checksummed, layout_of};
use flowbus_interfaces::fit;

/// A process as the state holds it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ProcessEntry {
    pub(crate) identity: Identity,
    check: u32,
    /// How many processes had this slot before.
    pub(crate) uses: u16,
    path_len: u16,
    /// The path of the control group; a longer one is not kept.
    path: [u8; 256],
    exe_len: u8,
    /// The path of the program, of a longer one the end behind `...`.
    exe: [u8; 127],
}

/// What distinguishes processes. A thread of another name is another one, so that each flow shows its own, and so is a process
/// with a socket in another namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Identity {
    start_boottime_ns: u64,
    cgroup: u64,
    pub(crate) pid: u32,
    uid: u32,
    comm: [u8; 16],
    leader_comm: [u8; 16],
    /// Inode of the socket's network namespace; 0 where it is the tracked one.
    pub(crate) network_namespace: u32,
    /// Tells the programs that the process has run apart; 0 where it is not known.
    execs: u32,
}

layout_of!(ProcessEntry { identity, check, uses, path_len, path, exe_len, exe });
layout_of!(Identity { start_boottime_ns, cgroup, pid, uid, comm, leader_comm, network_namespace, execs });

impl Checksummed for ProcessEntry {
    const CHECK: usize = std::mem::offset_of!(Self, check);
}

impl Identity {
    /// A process as the owner of a socket in another namespace than the tracked one, unless its inode is 0.
    pub(crate) fn new(process: &Process, network_namespace: u32) -> Self {
        let Process { pid, start_boottime_ns, uid, comm, leader_comm, cgroup, execs, .. } = *process;
        let execs = execs.into();
        Self { start_boottime_ns, cgroup, pid, uid, comm, leader_comm, network_namespace, execs }
    }
}

impl ProcessEntry {
    pub(crate) fn new(identity: Identity, uses: u16, path: Option<&str>, exe: Option<&str>) -> Self {
        let mut entry =
            Self { identity, check: 0, uses, path_len: 0, path: [0; 256], exe_len: 0, exe: [0; 127] };
        entry.complete(path, exe);
        entry
    }

    /// A process for tests of the state.
    #[cfg(test)]
    pub(crate) fn example(process: &Process, path: &str) -> Self {
        Self::new(Identity::new(process, 0), 0, Some(path), Some("/usr/bin/example"))
    }

    /// Whether one of these paths of control group and program is still to be noted.
    pub(crate) fn lacks(&self, path: Option<&str>, exe: Option<&str>) -> bool {
        self.missing_path(path).is_some() || self.missing_exe(exe).is_some()
    }

    /// Notes the paths of control group and program, as far as they were not known yet.
    ///
    /// A program that is renamed while it runs keeps the path that it had, also for flows that have ended. Where programs are not
    /// told apart, the path is another program's, which the process runs by now.
    pub(crate) fn complete(&mut self, path: Option<&str>, exe: Option<&str>) {
        if let Some(path) = self.missing_path(path) {
            self.path[..path.len()].copy_from_slice(path.as_bytes());
            self.path_len = fit(path.len());
        }
        if let Some(exe) = self.missing_exe(exe) {
            self.set_exe(exe);
        }
    }

    fn missing_path<'a>(&self, path: Option<&'a str>) -> Option<&'a str> {
        path.filter(|path| self.path_len == 0 && path.len() <= self.path.len())
    }

    fn missing_exe<'a>(&self, exe: Option<&'a str>) -> Option<&'a str> {
        let may_change = self.exe_len == 0 || self.identity.execs == 0;
        exe.filter(|exe| may_change && self.exe_is_another(exe))
    }

    fn exe_is_another(&self, exe: &str) -> bool {
        let known = self.exe().unwrap_or_default();
        exe != known && !(known.starts_with("...") && cut(exe, self.exe.len()) == known)
    }

    fn set_exe(&mut self, exe: &str) {
        let exe = cut(exe, self.exe.len());
        self.exe = [0; 127];
        if let Some(place) = self.exe.get_mut(..exe.len()) {
            place.copy_from_slice(exe.as_bytes());
            self.exe_len = fit(exe.len());
        }
    }

    fn path(&self) -> Option<&str> {
        text(&self.path, self.path_len.into())
    }

    fn exe(&self) -> Option<&str> {
        text(&self.exe, self.exe_len.into())
    }
}

fn text(bytes: &[u8], length: usize) -> Option<&str> {
    std::str::from_utf8(bytes.get(..length)?).ok().filter(|text| !text.is_empty())
}

/// Cuts a path to `maximum` bytes: a longer one becomes `...` and the names at its end.
fn cut(path: &str, maximum: usize) -> Cow<'_, str> {
    const MARK: &str = "...";
    if path.len() <= maximum {
        return path.into();
    }
    let mut begin = path.len() - (maximum - MARK.len());
    while !path.is_char_boundary(begin) {
        begin += 1;
    }
    let end = &path[begin..];
    // Whole names, where there is one.
    [MARK, end.find('/').map_or(end, |slash| &end[slash..])].concat().into()
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
    container: Option<Box<str>>,
    pod: Option<Box<str>>,
    exe: Option<Box<str>>,
    network_namespace: Option<u32>,
}

impl ProcessText {
    pub(crate) fn new(entry: &ProcessEntry) -> Self {
        let name = |comm: &[u8; 16]| {
            let name = comm.split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(name).into()
        };
        let Identity { pid, uid, comm, leader_comm, network_namespace, .. } = &entry.identity;
        let path = entry.path();
        Self {
            pid: *pid,
            uid: *uid,
            comm: name(comm),
            leader_comm: name(leader_comm),
            cgroup: path.map(Box::from),
            unit: path.and_then(flowbus_attribution::unit_of).map(Box::from),
            container: path.and_then(flowbus_attribution::container_of).map(Box::from),
            pod: path.and_then(flowbus_attribution::pod_of).map(Box::from),
            exe: entry.exe().map(Box::from),
            network_namespace: Some(*network_namespace).filter(|inode| *inode != 0),
        }
    }

    /// The process as the owner of something: how surely, and whether its end opened the connection.
    pub(crate) fn owner(&self, confidence: Confidence, opened: Option<bool>) -> Owner<'_> {
        Owner {
            pid: Some(self.pid),
            comm: Some(&self.comm),
            leader_comm: Some(&self.leader_comm),
            uid: Some(self.uid),
            unit: self.unit.as_deref(),
            cgroup: self.cgroup.as_deref(),
            container: self.container.as_deref(),
            pod: self.pod.as_deref(),
            exe: self.exe.as_deref(),
            network_namespace: self.network_namespace,
            opened,
            confidence: Some(confidence.name()),
        }
    }
}

/// The processes behind the numbers, for every thread that shows owners.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProcessTexts(Arc<RwLock<Vec<NumberedText>>>);

/// The process that has a slot now.
#[derive(Debug)]
struct NumberedText {
    number: ProcessNumber,
    text: Arc<ProcessText>,
}

impl ProcessTexts {
    /// Shows the process that has a slot from now on.
    pub(crate) fn set(&self, number: ProcessNumber, text: ProcessText) {
        let slot = number.slot();
        let text = NumberedText { number, text: Arc::new(text) };
        let mut texts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match texts.get_mut(slot) {
            Some(old) => *old = text,
            None => texts.push(text),
        }
    }

    /// The process behind a number, unless its slot has been used again.
    pub(crate) fn get(&self, process: ProcessNumber) -> Option<Arc<ProcessText>> {
        let texts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let NumberedText { number, text } = texts.get(process.slot())?;
        (*number == process).then(|| Arc::clone(text))
    }

    /// The owner behind a number, and how surely it is the one.
    pub(crate) fn owner(&self, owner: OwnerNumber) -> Option<(Arc<ProcessText>, Confidence)> {
        let (process, confidence) = owner.get()?;
        Some((self.get(process)?, confidence))
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    /// Notes the paths; true when the entry lacked one.
    fn completed(entry: &mut ProcessEntry, path: Option<&str>, exe: Option<&str>) -> bool {
        let lacked = entry.lacks(path, exe);
        entry.complete(path, exe);
        lacked
    }

    #[test]
    fn a_long_path_of_a_program_keeps_its_end() {
        assert_eq!(cut("/usr/bin/curl", 127), "/usr/bin/curl");
        assert_eq!(cut("/opt/some/where/bin/curl", 16), ".../bin/curl");
        assert_eq!(cut("/opt/äöüäöüäöü", 10), "...äöü");
        let mut entry = ProcessEntry::new(FromZeros::new_zeroed(), 0, None, None);
        let long = format!("/{}/bin/curl", "a".repeat(200));
        assert!(completed(&mut entry, None, Some(&long)));
        assert_eq!(entry.exe(), Some(".../bin/curl"));
        assert!(!completed(&mut entry, Some(&"p".repeat(300)), Some(&long)), "nothing is new");
        assert_eq!((entry.path(), entry.exe()), (None, Some(".../bin/curl")));
        assert!(completed(&mut entry, Some("/a"), Some("/bin/sh")), "it runs another program");
        assert_eq!((entry.path(), entry.exe()), (Some("/a"), Some("/bin/sh")));
    }

    #[test]
    fn a_program_that_is_renamed_keeps_the_path_that_it_had() {
        let identity = Identity { execs: 1, ..FromZeros::new_zeroed() };
        let mut entry = ProcessEntry::new(identity, 0, None, None);
        assert!(completed(&mut entry, None, Some("/tmp/first")));
        assert!(!completed(&mut entry, None, Some("/tmp/second")));
        assert_eq!(entry.exe(), Some("/tmp/first"));
    }
}

//! The processes that own sockets and flows, each kept once, in the restart state: owners outlive a restart.
//!
//! Nobody counts who refers to a process. When many places are taken, those that no flow and no socket refers to
//! are freed ([`Processes::free_unused`]); a number that somebody still holds then, such as a change on its way to a
//! slow reader, names its process until the place is used again, and nobody after that.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};

use flowbus_attribution::{Confidence, Process};
use flowbus_interfaces::Owner;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::checksum::{Checksummed, layout_of};
use crate::flow::{OwnerNumber, ProcessNumber};
use crate::state::{MAXIMUM_PROCESSES, State};

/// So many places are taken before unused ones are looked for.
const ENOUGH: usize = 4096;
/// Unused ones are looked for no sooner after the last time: every flow is looked at.
const SPACING_USEC: u64 = 1_000_000;
/// So many free places wait before the first of them is used again.
const RESTING: usize = 1024;

/// A process as the state holds it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ProcessEntry {
    identity: Identity,
    check: u32,
    /// How many processes had this place before.
    uses: u16,
    path_len: u16,
    /// The path of the control group; a longer one is not kept.
    path: [u8; 256],
}

/// What tells processes apart. A thread of another name is another one, so that each flow shows its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Identity {
    start_boottime_ns: u64,
    cgroup: u64,
    pid: u32,
    uid: u32,
    comm: [u8; 16],
    leader_comm: [u8; 16],
}

layout_of!(ProcessEntry { identity, check, uses, path_len, path });
layout_of!(Identity { start_boottime_ns, cgroup, pid, uid, comm, leader_comm });

#[cfg(test)]
pub(crate) fn layouts() -> [String; 2] {
    [ProcessEntry::layout(), Identity::layout()]
}

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
    fn new(identity: Identity, uses: u16, path: Option<&str>) -> Self {
        let mut entry = Self { identity, check: 0, uses, path_len: 0, path: [0; 256] };
        entry.set_path(path);
        entry
    }

    /// One for tests of the state.
    #[cfg(test)]
    pub(crate) fn example(process: &Process, path: &str) -> Self {
        Self::new(process.into(), 0, Some(path))
    }

    fn set_path(&mut self, path: Option<&str>) {
        if let Some(path) = path
            && let Some(place) = self.path.get_mut(..path.len())
        {
            place.copy_from_slice(path.as_bytes());
            self.path_len = u16::try_from(path.len()).unwrap_or(0);
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
    fn new(entry: &ProcessEntry) -> Self {
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

/// The tracker's side: gives out numbers.
#[derive(Debug)]
pub(crate) struct Processes {
    /// Identity to place.
    index: HashTable<u32>,
    hasher: RandomState,
    /// Places that nobody refers to, those that rest longest first.
    free: VecDeque<u32>,
    texts: ProcessTexts,
    /// Look for unused places when so many are taken.
    enough: usize,
    /// And not before this time, in CLOCK_BOOTTIME microseconds.
    not_before: u64,
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

impl Processes {
    /// The processes that the state holds.
    pub(crate) fn new(state: &State) -> Self {
        let mut processes = Self {
            index: HashTable::new(),
            hasher: RandomState::default(),
            free: VecDeque::new(),
            texts: ProcessTexts::default(),
            enough: ENOUGH,
            not_before: 0,
        };
        for place in 0..state.header.processes {
            processes.show(state, place);
        }
        processes
    }

    /// The number of a process, a new one at its first sight; `None` when all places are taken. `path` is that of its
    /// control group, where it is known.
    pub(crate) fn intern(
        &mut self,
        state: &mut State,
        process: &Process,
        path: Option<&str>,
    ) -> Option<ProcessNumber> {
        let identity = Identity::from(process);
        let hash = self.hasher.hash_one(identity.as_bytes());
        let known = self.index.find(hash, |place| state.process(*place).identity == identity).copied();
        let place = match known {
            Some(place) => {
                let mut entry = *state.process(place);
                if entry.path_len == 0 && path.is_some_and(|path| path.len() <= entry.path.len()) {
                    entry.set_path(path);
                    state.put_process(place, &entry);
                    self.set_text(state, place);
                }
                place
            }
            None => {
                let (place, uses) = self.take_place(state)?;
                state.put_process(place, &ProcessEntry::new(identity, uses, path));
                self.show(state, place);
                place
            }
        };
        Some(ProcessNumber::new(place, state.process(place).uses))
    }

    /// True when it is time to free what is not used; `now` is in CLOCK_BOOTTIME microseconds.
    pub(crate) fn are_many(&self, state: &State, now: u64) -> bool {
        state.header.processes as usize - self.free.len() >= self.enough && now >= self.not_before
    }

    /// Frees the places that are not among `used`.
    pub(crate) fn free_unused(&mut self, state: &State, now: u64, used: impl Iterator<Item = ProcessNumber>) {
        let mut is_used = vec![false; state.header.processes as usize];
        for process in used {
            if let Some(is_used) = is_used.get_mut(process.place()) {
                *is_used = true;
            }
        }
        for place in &self.free {
            // Resting already.
            is_used[*place as usize] = true;
        }
        for (place, _) in (0_u32..).zip(is_used).filter(|(_, used)| !used) {
            let hash = self.hasher.hash_one(state.process(place).identity.as_bytes());
            if let Ok(entry) = self.index.find_entry(hash, |other| *other == place) {
                entry.remove();
            }
            self.free.push_back(place);
        }
        let taken = state.header.processes as usize - self.free.len();
        self.enough = (2 * taken).clamp(ENOUGH, MAXIMUM_PROCESSES);
        self.not_before = now + SPACING_USEC;
    }

    /// The number that the kernel gave a process, unless its place has been used again.
    pub(crate) fn pid(&self, state: &State, process: ProcessNumber) -> Option<u32> {
        let place = u32::try_from(process.place()).ok().filter(|place| *place < state.header.processes)?;
        let entry = state.process(place);
        (ProcessNumber::new(place, entry.uses) == process).then_some(entry.identity.pid)
    }

    /// The side to share.
    pub(crate) fn texts(&self) -> ProcessTexts {
        self.texts.clone()
    }

    /// A place for another process, and how many had it before.
    fn take_place(&mut self, state: &State) -> Option<(u32, u16)> {
        let new = state.header.processes;
        if self.free.len() <= RESTING && (new as usize) < MAXIMUM_PROCESSES {
            return Some((new, 0));
        }
        let place = self.free.pop_front()?;
        Some((place, state.process(place).uses.wrapping_add(1)))
    }

    fn show(&mut self, state: &State, place: u32) {
        let Self { index, hasher, .. } = self;
        let hash_of = |place: &u32| hasher.hash_one(state.process(*place).identity.as_bytes());
        index.insert_unique(hash_of(&place), place, hash_of);
        self.set_text(state, place);
    }

    fn set_text(&self, state: &State, place: u32) {
        let entry = state.process(place);
        let number = ProcessNumber::new(place, entry.uses);
        let text = NumberedText { number, text: Arc::new(ProcessText::new(entry)) };
        let mut texts = self.texts.0.write().unwrap_or_else(PoisonError::into_inner);
        match texts.get_mut(place as usize) {
            Some(old) => *old = text,
            None => texts.push(text),
        }
    }
}

impl ProcessTexts {
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

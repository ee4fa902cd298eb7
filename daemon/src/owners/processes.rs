//! The processes that own sockets and flows, each kept once, in the restart state: owners outlive a restart.
//!
//! Nobody counts who refers to a process. When many slots are taken, those that no flow and no socket refers to
//! are freed ([`Processes::free_unused`]); a number that somebody still holds then, such as a change on its way to a
//! slow reader, names its process until the slot is used again, and nobody after that.

use std::collections::VecDeque;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;
use zerocopy::IntoBytes;

use crate::flow::{Identity, ProcessEntry, ProcessNumber, ProcessText, ProcessTexts};
use crate::state::{MAXIMUM_PROCESSES, State};

/// How many slots are taken before unused ones are looked for.
const ENOUGH: usize = 4096;
/// The least time between two looks for unused slots, which look at every flow.
const SPACING_USEC: u64 = 1_000_000;
/// How many free slots wait before the first of them is used again.
const RESTING: usize = 1024;

/// The tracker's side: gives out numbers.
#[derive(Debug)]
pub(crate) struct Processes {
    /// Identity to slot.
    index: HashTable<u32>,
    hasher: RandomState,
    /// Slots that nobody refers to, those that rest longest first.
    free: VecDeque<u32>,
    texts: ProcessTexts,
    /// How many slots are taken before unused ones are looked for; at least [`ENOUGH`].
    enough: usize,
    /// No look for unused slots before this time, in CLOCK_BOOTTIME microseconds.
    not_before: u64,
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
        for slot in 0..state.header.processes {
            processes.show(state, slot);
        }
        processes
    }

    /// The number of a process, a new one at its first sight; `None` when all slots are taken. `path` is that of its
    /// control group, `exe` that of its program, where they are known.
    pub(crate) fn intern(
        &mut self,
        state: &mut State,
        identity: Identity,
        path: Option<&str>,
        exe: Option<&str>,
    ) -> Option<ProcessNumber> {
        let hash = self.hasher.hash_one(identity.as_bytes());
        let known = self.index.find(hash, |slot| state.process(*slot).identity == identity).copied();
        let slot = match known {
            Some(slot) => {
                if state.process(slot).lacks(path, exe) {
                    let mut entry = *state.process(slot);
                    entry.complete(path, exe);
                    state.put_process(slot, &entry);
                    self.set_text(state, slot);
                }
                slot
            }
            None => {
                let (slot, uses) = self.take_slot(state)?;
                state.put_process(slot, &ProcessEntry::new(identity, uses, path, exe));
                self.show(state, slot);
                slot
            }
        };
        Some(ProcessNumber::new(slot, state.process(slot).uses))
    }

    /// True when it is time to free what is not used; `now` is in CLOCK_BOOTTIME microseconds.
    pub(crate) fn should_collect(&self, state: &State, now: u64) -> bool {
        state.header.processes as usize - self.free.len() >= self.enough && now >= self.not_before
    }

    /// Frees the slots that are not among `used`.
    pub(crate) fn free_unused(&mut self, state: &State, now: u64, used: impl Iterator<Item = ProcessNumber>) {
        let mut is_used = vec![false; state.header.processes as usize];
        for process in used {
            if let Some(is_used) = is_used.get_mut(process.slot()) {
                *is_used = true;
            }
        }
        for slot in &self.free {
            // Resting already.
            is_used[*slot as usize] = true;
        }
        for (slot, _) in (0_u32..).zip(is_used).filter(|(_, used)| !used) {
            let hash = self.hasher.hash_one(state.process(slot).identity.as_bytes());
            if let Ok(entry) = self.index.find_entry(hash, |other| *other == slot) {
                entry.remove();
            }
            self.free.push_back(slot);
        }
        let taken = state.header.processes as usize - self.free.len();
        self.enough = (2 * taken).clamp(ENOUGH, MAXIMUM_PROCESSES);
        self.not_before = now + SPACING_USEC;
    }

    /// The number that the kernel gave a process, unless its slot has been used again.
    pub(crate) fn pid(&self, state: &State, process: ProcessNumber) -> Option<u32> {
        identity(state, process).map(|identity| identity.pid)
    }

    /// The inode of the network namespace in which the process has the socket, unless its slot has been used again; 0 where it
    /// is the tracked one.
    pub(crate) fn network_namespace(&self, state: &State, process: ProcessNumber) -> Option<u32> {
        identity(state, process).map(|identity| identity.network_namespace)
    }

    /// The processes in words, for other threads.
    pub(crate) fn texts(&self) -> ProcessTexts {
        self.texts.clone()
    }

    /// A slot for another process, and how many had it before.
    fn take_slot(&mut self, state: &State) -> Option<(u32, u16)> {
        let new = state.header.processes;
        if self.free.len() <= RESTING && (new as usize) < MAXIMUM_PROCESSES {
            return Some((new, 0));
        }
        let slot = self.free.pop_front()?;
        Some((slot, state.process(slot).uses.wrapping_add(1)))
    }

    fn show(&mut self, state: &State, slot: u32) {
        let Self { index, hasher, .. } = self;
        let hash_of = |slot: &u32| hasher.hash_one(state.process(*slot).identity.as_bytes());
        index.insert_unique(hash_of(&slot), slot, hash_of);
        self.set_text(state, slot);
    }

    fn set_text(&self, state: &State, slot: u32) {
        let entry = state.process(slot);
        self.texts.set(ProcessNumber::new(slot, entry.uses), ProcessText::new(entry));
    }
}

fn identity(state: &State, process: ProcessNumber) -> Option<&Identity> {
    let slot = u32::try_from(process.slot()).ok().filter(|slot| *slot < state.header.processes)?;
    let entry = state.process(slot);
    (ProcessNumber::new(slot, entry.uses) == process).then_some(&entry.identity)
}

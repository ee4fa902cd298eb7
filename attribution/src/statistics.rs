//! What the programs count.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use crate::descriptors::Programs;
use crate::ring::{RingError, SharedNumbers};

/// `COUNTER_SLOTS` and `struct counters` of `bpf/record.h`.
const SLOTS: usize = 64;
const SLOT_BYTES: usize = 64;

/// Counts since the programs were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Records written into the ring.
    pub written: u64,
    /// Records that were not written because the ring was full.
    pub dropped: u64,
    /// Owners of sockets that could not be noted, because there was no memory for them.
    pub no_storage: u64,
    /// Events of sockets whose owner had not been noted.
    pub no_owner: u64,
    /// Runs of programs that the kernel left out, because they interrupted the same program on the same processor; `None`
    /// where [`Counters::open`] could not open files below /proc/self/fdinfo.
    pub missed: Option<u64>,
}

/// The counters, to be read at any time.
pub struct Counters {
    numbers: SharedNumbers,
    /// What the kernel says of each program.
    programs: Option<Vec<File>>,
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counters").field("statistics", &self.read()).finish_non_exhaustive()
    }
}

impl Counters {
    /// Opens the counters of these programs.
    ///
    /// # Errors
    ///
    /// The descriptor of the statistics is of something else, or the kernel refuses to map it.
    pub fn open(programs: &Programs) -> Result<Self, RingError> {
        let numbers = SharedNumbers::map(programs.statistics.as_fd(), SLOTS * SLOT_BYTES)?;
        let open = |program: &OwnedFd| File::open(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).ok();
        Ok(Self { numbers, programs: programs.programs.iter().map(open).collect() })
    }

    /// The counters now.
    #[must_use]
    pub fn read(&self) -> Statistics {
        let sum = |member: usize| {
            (0..SLOTS).map(|slot| self.numbers.at(slot * SLOT_BYTES + member * 8)).fold(0, u64::wrapping_add)
        };
        Statistics {
            written: sum(0),
            dropped: sum(1),
            no_storage: sum(2),
            no_owner: sum(3),
            missed: self.programs.as_ref().and_then(|programs| programs.iter().map(missed).sum()),
        }
    }
}

/// The line `recursion_misses:<tab>NUMBER`.
fn missed(program: &File) -> Option<u64> {
    let mut bytes = [0; 1024];
    let length = program.read_at(&mut bytes, 0).ok()?;
    let text = std::str::from_utf8(bytes.get(..length)?).ok()?;
    text.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?.trim().parse().ok()
}

//! What the programs count.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::descriptors::{self, Programs};
use crate::ring::{RingError, SharedNumbers};

/// `COUNTER_SLOTS` and `struct counters` of `bpf/record.h`.
const SLOTS: u32 = 64;
const SLOT_BYTES: u32 = 64;

/// Counts since the programs were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Records written into the ring.
    pub written: u64,
    /// Records that were not, because the ring was full.
    pub dropped: u64,
    /// Owners of sockets that could not be noted, because there was no memory for them.
    pub no_storage: u64,
    /// Events of sockets whose owner had not been noted.
    pub no_owner: u64,
    /// Runs of programs that the kernel left out, because the same program was interrupted on that processor.
    pub missed: u64,
}

/// The counters, to be read at any time. What is needed for that is opened at once: a daemon that has confined itself can
/// open nothing.
pub struct Counters {
    numbers: SharedNumbers,
    /// `/proc/self/fdinfo` of each program.
    programs: Vec<File>,
}

impl Counters {
    /// Opens the counters of these programs.
    ///
    /// # Errors
    ///
    /// The descriptor of the statistics is of something else, or the kernel refuses to map it.
    pub fn open(programs: &Programs) -> Result<Self, RingError> {
        let numbers = SharedNumbers::map(std::os::fd::AsFd::as_fd(&programs.statistics), SLOTS, SLOT_BYTES)?;
        let open = |program| File::open(descriptors::information_path(program));
        let programs = programs.programs().map(open).collect::<Result<_, _>>().map_err(RingError::Unknown)?;
        Ok(Self { numbers, programs })
    }

    /// The counters now.
    #[must_use]
    pub fn read(&self) -> Statistics {
        let sum = |member: usize| {
            let slots = 0..SLOTS as usize;
            slots
                .map(|slot| self.numbers.at(slot * SLOT_BYTES as usize + member * 8))
                .fold(0, u64::wrapping_add)
        };
        Statistics {
            written: sum(0),
            dropped: sum(1),
            no_storage: sum(2),
            no_owner: sum(3),
            missed: self.programs.iter().filter_map(missed).sum(),
        }
    }
}

fn missed(information: &File) -> Option<u64> {
    let mut bytes = [0; 1024];
    let length = information.read_at(&mut bytes, 0).ok()?;
    descriptors::number(std::str::from_utf8(bytes.get(..length)?).ok()?, "recursion_misses")
}

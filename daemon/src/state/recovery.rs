//! Taking over the state of an earlier life, or refusing it.

use std::os::fd::OwnedFd;

use super::layout::{
    CLOSED_COUNT, HEADER, Header, MAGIC, NAMES_COUNT, PROCESSES_COUNT, RECORDS_COUNT, TOTAL, UNDO, UNDO_END,
    VERSION,
};
use super::{State, new_memfd, seal};
use crate::checksum::Checksummed;
use crate::flow::NO_EXTRA;
use flowbus_interfaces::fit;
use rustix::fs::fstat;
use rustix::io::Errno;
use std::os::fd::AsFd;

use super::mapping::Mapping;

/// Why a state was not taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it is not a memfd")]
    Kind,
    #[error("it has {found} bytes, not {TOTAL}")]
    Size { found: u64 },
    #[error("it does not begin as a state of flowbusd does")]
    Magic,
    #[error("its layout has version {found}, this daemon's {VERSION}")]
    Version { found: u32 },
    #[error("the checksum of {what} is wrong")]
    Checksum { what: &'static str },
    #[error("{what} is out of range")]
    Range { what: &'static str },
    #[error("it cannot be read and written: {0}")]
    System(#[from] Errno),
}

impl State {
    /// Takes over what is in the descriptor. An empty memfd becomes a new state. Where it is refused the state is one of
    /// a memfd of its own, and the reason comes with it: whoever damaged the old one may have it still.
    pub(crate) fn open(memfd: OwnedFd) -> Result<(Self, Option<Refused>), Errno> {
        match Self::recover(memfd) {
            Ok(state) => Ok((state, None)),
            Err(refused) => Ok((Self::create()?, Some(refused))),
        }
    }

    fn recover(memfd: OwnedFd) -> Result<Self, Refused> {
        let found = fstat(&memfd)?;
        // All memfds are of one file system, and nothing else is: a pipe, a file, a memfd of huge pages, which may be missing
        // when they are touched.
        if found.st_dev != fstat(new_memfd()?)?.st_dev {
            return Err(Refused::Kind);
        }
        match fit::<_, u64>(found.st_size) {
            0 => return Ok(Self::format(memfd)?),
            size if size == TOTAL as u64 => {}
            size => return Err(Refused::Size { found: size }),
        }
        seal(&memfd)?;
        let map = Mapping::new(memfd.as_fd(), 0, TOTAL)?;
        let mut state =
            Self { memfd, map, header: zerocopy::FromZeros::new_zeroed(), undo: 0, overfull: false };
        state.roll_back()?;
        let header: Header = *state.read(HEADER);
        if header.magic != MAGIC {
            return Err(Refused::Magic);
        }
        if header.version != VERSION {
            return Err(Refused::Version { found: header.version });
        }
        if !header.checksum_holds() {
            return Err(Refused::Checksum { what: "the header" });
        }
        state.header = header;
        state.check_ranges()?;
        state.check_flows()?;
        state.clear_ends_after_sequence();
        Ok(state)
    }

    /// Undoes a change that a kill cut short, newest write first.
    fn roll_back(&mut self) -> Result<(), Refused> {
        const BAD: Refused = Refused::Range { what: "the undo log" };
        let used = *self.read::<u64>(UNDO);
        let log_end = used.saturating_add(UNDO as u64 + 8);
        if log_end > UNDO_END as u64 {
            return Err(BAD);
        }
        let mut entries = Vec::new();
        let mut entry = UNDO + 8;
        while (entry as u64) < log_end {
            let [offset, length] = [entry, entry + 8].map(|at| *self.read::<u64>(at));
            let (Ok(offset), Ok(length)) = (usize::try_from(offset), usize::try_from(length)) else {
                return Err(BAD);
            };
            let end = entry.saturating_add(16).saturating_add(length);
            if end as u64 > log_end || offset.saturating_add(length) > TOTAL || length % 8 != 0 {
                return Err(BAD);
            }
            entries.push((entry + 16, offset, length));
            entry = end;
        }
        for (bytes, offset, length) in entries.into_iter().rev() {
            self.map.copy_within(bytes..bytes + length, offset);
        }
        self.end_undo();
        Ok(())
    }

    fn check_ranges(&self) -> Result<(), Refused> {
        let header = &self.header;
        let ranges = [
            ("the number of records", header.records as usize, RECORDS_COUNT),
            ("the number of extras", header.extras as usize, RECORDS_COUNT),
            ("the number of names", header.names as usize, NAMES_COUNT),
            ("the number of processes", header.processes as usize, PROCESSES_COUNT),
            ("the capacity of closed flows", header.closed_capacity as usize, CLOSED_COUNT),
            ("the number of closed flows", header.closed_count as usize, header.closed_capacity as usize),
            ("the place of closed flows", header.closed_place as usize, 1),
        ];
        for (what, value, maximum) in ranges {
            if value > maximum {
                return Err(Refused::Range { what });
            }
        }
        if header.closed_total < u64::from(header.closed_count) {
            return Err(Refused::Range { what: "the number of closed flows" });
        }
        Ok(())
    }

    fn check_flows(&self) -> Result<(), Refused> {
        let header = &self.header;
        let mut active = 0;
        for slot in 0..header.records {
            let record = self.record(slot);
            if record.id == 0 {
                continue;
            }
            if !record.checksum_holds() {
                return Err(Refused::Checksum { what: "a flow" });
            }
            if record.extra != NO_EXTRA && record.extra >= header.extras {
                return Err(Refused::Range { what: "the extra part of a flow" });
            }
            if record.extra != NO_EXTRA && !self.extra(record.extra).checksum_holds() {
                return Err(Refused::Checksum { what: "the extra part of a flow" });
            }
            if record.is_owned() && !self.owners_entry(slot).checksum_holds() {
                return Err(Refused::Checksum { what: "the owners of a flow" });
            }
            active += 1;
        }
        if active != header.active {
            return Err(Refused::Range { what: "the number of flows" });
        }
        let oldest = header.closed_total - u64::from(header.closed_count);
        if !(oldest..header.closed_total).all(|number| self.closed(number).checksum_holds()) {
            return Err(Refused::Checksum { what: "a closed flow" });
        }
        if !(0..header.names as usize).all(|index| self.name(index).checksum_holds()) {
            return Err(Refused::Checksum { what: "a name" });
        }
        if !(0..header.processes).all(|slot| self.process(slot).checksum_holds()) {
            return Err(Refused::Checksum { what: "a process" });
        }
        Ok(())
    }
}

//! What is handed to the tracker about sockets: BPF programs that report them, or what somebody found in /proc.

use flowbus_attribution::{Counters, DescriptorError, Event, Programs, Report, Ring, RingError, Snapshot};

use super::Place;

/// Programs that run, and what is needed to read what they report.
pub(crate) struct Probe {
    /// The programs, which run as long as these descriptors are open.
    pub(crate) programs: Programs,
    pub(crate) ring: Ring,
    pub(crate) report: Report,
    pub(crate) counters: Counters,
    /// The sockets that were open before.
    pub(crate) snapshot: Option<Snapshot>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("report", &self.report).finish_non_exhaustive()
    }
}

/// Why nothing can be read from programs that run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    #[error(transparent)]
    Ring(#[from] RingError),
}

impl Probe {
    /// Maps what these programs report and count.
    pub(crate) fn open(programs: Programs, snapshot: Option<Snapshot>) -> Result<Self, ProbeError> {
        Ok(Self {
            ring: Ring::map(&programs)?,
            report: programs.report()?,
            counters: Counters::open(&programs)?,
            programs,
            snapshot,
        })
    }
}

/// What a look into /proc has found.
#[derive(Debug)]
pub(crate) struct Found {
    /// An event as if the process had sent in this direction just now.
    pub(crate) event: Event,
    /// The path of the process's control group.
    pub(crate) path: Option<String>,
    /// The path of the process's program.
    pub(crate) exe: Option<String>,
}

impl Found {
    /// The ends of the event's direction.
    pub(crate) fn place(&self) -> Place {
        let Event { protocol, local, remote, .. } = self.event;
        Place { protocol, local, remote }
    }
}

//! The descriptors that loading leaves, and their names.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::memfd;
use crate::record::LAYOUT;
use crate::report::Report;

const RING: &str = "bpf-ring";
const STATISTICS: &str = "bpf-statistics";
const REPORT: &str = "bpf-report";
const HELD: &str = "bpf-held";

/// Programs that are loaded and attached: they run until the last copy of these descriptors is closed.
#[derive(Debug)]
pub struct Programs {
    /// The ring that they write into, for [`crate::Ring::map`].
    pub ring: OwnedFd,
    /// The array that they count in, for [`crate::Counters::open`].
    pub statistics: OwnedFd,
    /// A sealed memfd with the [`Report`].
    pub(crate) report: OwnedFd,
    /// Links, which keep a program attached, and the programs, which tell what they missed.
    pub(crate) held: Vec<OwnedFd>,
}

/// Why descriptors are not those of programs.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// One is not there.
    #[error("there is no descriptor named {0}")]
    Missing(&'static str),
    /// One has a name that is not known.
    #[error("a descriptor is named {0:?}, which is none of bpf-ring, bpf-statistics, bpf-report, bpf-held")]
    Unknown(String),
    /// The report cannot be read.
    #[error("the descriptor named bpf-report cannot be read: {0}")]
    Report(std::io::Error),
    /// The report is not one.
    #[error("the descriptor named bpf-report holds no report")]
    NoReport,
    /// Another version has left them.
    #[error("the programs write records of layout {found}, layout {LAYOUT} is read here")]
    Layout {
        /// What they write.
        found: u32,
    },
}

impl Programs {
    /// Whether a descriptor of this name (LISTEN_FDNAMES) belongs to [`Programs::from_named`].
    #[must_use]
    pub fn owns(name: &str) -> bool {
        [RING, STATISTICS, REPORT, HELD].contains(&name)
    }

    /// The descriptors with their names, some of which repeat: for the service manager to keep.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        [(RING, &self.ring), (STATISTICS, &self.statistics), (REPORT, &self.report)]
            .into_iter()
            .chain(self.held.iter().map(|held| (HELD, held)))
            .map(|(name, descriptor)| (name, descriptor.as_fd()))
    }

    /// What [`Programs::named`] gave, in any order.
    ///
    /// # Errors
    ///
    /// One is missing or unknown, or the programs are of another version.
    pub fn from_named(named: impl IntoIterator<Item = (String, OwnedFd)>) -> Result<Self, DescriptorError> {
        let (mut ring, mut statistics, mut report, mut held) = (None, None, None, Vec::new());
        for (name, descriptor) in named {
            match name.as_str() {
                RING => ring = Some(descriptor),
                STATISTICS => statistics = Some(descriptor),
                REPORT => report = Some(descriptor),
                HELD => held.push(descriptor),
                _ => return Err(DescriptorError::Unknown(name)),
            }
        }
        let programs = Self {
            ring: ring.ok_or(DescriptorError::Missing(RING))?,
            statistics: statistics.ok_or(DescriptorError::Missing(STATISTICS))?,
            report: report.ok_or(DescriptorError::Missing(REPORT))?,
            held,
        };
        match programs.report()?.layout {
            LAYOUT => Ok(programs),
            found => Err(DescriptorError::Layout { found }),
        }
    }

    /// How loading went.
    ///
    /// # Errors
    ///
    /// The descriptor of the report is of something else.
    pub fn report(&self) -> Result<Report, DescriptorError> {
        let text = memfd::read(&self.report).map_err(DescriptorError::Report)?;
        Report::parse(&text).ok_or(DescriptorError::NoReport)
    }

    /// Those of [`Programs::held`] that are programs.
    pub(crate) fn programs(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let is_program = |held: &&OwnedFd| {
            information(held.as_fd())
                .is_ok_and(|text| text.contains("prog_tag:") && !text.contains("link_id:"))
        };
        self.held.iter().filter(is_program).map(AsFd::as_fd)
    }
}

/// Where the kernel tells what a descriptor is.
pub(crate) fn information_path(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd())
}

/// What the kernel tells of a descriptor: lines `key:<tab>value`.
pub(crate) fn information(descriptor: BorrowedFd<'_>) -> std::io::Result<String> {
    std::fs::read_to_string(information_path(descriptor))
}

/// A number among them.
pub(crate) fn number(information: &str, key: &str) -> Option<u64> {
    let mut values = information.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    values.next()?.trim().parse().ok()
}

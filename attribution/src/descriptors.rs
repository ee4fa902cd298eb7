//! The descriptors that loading leaves, and their names.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::kind::DescriptorKind;
use crate::memfd;
use crate::record::LAYOUT;
use crate::report::Report;

const RING: &str = "bpf-ring";
const STATISTICS: &str = "bpf-statistics";
const REPORT: &str = "bpf-report";
const LINK: &str = "bpf-link";
const PROGRAM: &str = "bpf-program";

/// Programs that are loaded and attached: they run until the last copy of these descriptors is closed.
#[derive(Debug)]
pub struct Programs {
    /// The ring that the programs write into, for [`crate::Ring::map`].
    pub ring: OwnedFd,
    /// The array that the programs count in, for [`crate::Counters::open`].
    pub statistics: OwnedFd,
    /// A sealed memfd with the [`Report`].
    pub(crate) report: OwnedFd,
    /// What keeps each program attached, and so loaded.
    pub(crate) links: Vec<OwnedFd>,
    /// The programs themselves: the kernel counts for each what it missed.
    pub(crate) programs: Vec<OwnedFd>,
}

/// Why descriptors are not those of programs.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// A descriptor is not there.
    #[error("there is no descriptor named {0}")]
    Missing(&'static str),
    /// A descriptor is something else than its name says.
    #[error("the descriptor named {0} is of something else")]
    Kind(&'static str),
    /// A descriptor has a name that is not known.
    #[error("a descriptor is named {0:?}, which is not the name of a program's descriptor")]
    Unknown(String),
    /// The report cannot be read.
    #[error("the descriptor named bpf-report cannot be read: {0}")]
    Report(std::io::Error),
    /// The text of the report is not a report.
    #[error("the descriptor named bpf-report holds no report")]
    NoReport,
    /// The programs are those of another version.
    #[error("the programs write records of layout {found}, layout {LAYOUT} is read here")]
    Layout {
        /// The layout of the records that they write.
        found: u32,
    },
}

impl Programs {
    /// Whether a descriptor of this name (LISTEN_FDNAMES) belongs to [`Programs::from_named`].
    #[must_use]
    pub fn owns(name: &str) -> bool {
        [RING, STATISTICS, REPORT, LINK, PROGRAM].contains(&name)
    }

    /// The descriptors with their names, some of which repeat: for the service manager to keep.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> + Clone {
        [(RING, &self.ring), (STATISTICS, &self.statistics), (REPORT, &self.report)]
            .into_iter()
            .chain(self.links.iter().map(|link| (LINK, link)))
            .chain(self.programs.iter().map(|program| (PROGRAM, program)))
            .map(|(name, descriptor)| (name, descriptor.as_fd()))
    }

    /// Takes the descriptors that [`Programs::named`] gave, in any order.
    ///
    /// # Errors
    ///
    /// A descriptor is missing or unknown, or the programs are of another version.
    pub fn from_named(named: impl IntoIterator<Item = (String, OwnedFd)>) -> Result<Self, DescriptorError> {
        let (mut ring, mut statistics, mut report) = (None, None, None);
        let (mut links, mut programs) = (Vec::new(), Vec::new());
        for (name, descriptor) in named {
            match name.as_str() {
                RING => ring = Some(descriptor),
                STATISTICS => statistics = Some(descriptor),
                REPORT => report = Some(descriptor),
                LINK => links.push(descriptor),
                PROGRAM => programs.push(descriptor),
                _ => return Err(DescriptorError::Unknown(name)),
            }
        }
        let programs = Self {
            ring: ring.ok_or(DescriptorError::Missing(RING))?,
            statistics: statistics.ok_or(DescriptorError::Missing(STATISTICS))?,
            report: report.ok_or(DescriptorError::Missing(REPORT))?,
            links,
            programs,
        };
        programs.check_kinds()?;
        let report = programs.report()?;
        if report.layout != LAYOUT {
            return Err(DescriptorError::Layout { found: report.layout });
        }
        for (name, descriptors) in [(LINK, &programs.links), (PROGRAM, &programs.programs)] {
            if descriptors.len() != report.attached() {
                return Err(DescriptorError::Missing(name));
            }
        }
        Ok(programs)
    }

    /// Refuses what is not a BPF object: memory of a map never shrinks, that of a file could, under its reader.
    fn check_kinds(&self) -> Result<(), DescriptorError> {
        let all =
            [(RING, DescriptorKind::Ring, &self.ring), (STATISTICS, DescriptorKind::Array, &self.statistics)]
                .into_iter()
                .chain(self.links.iter().map(|link| (LINK, DescriptorKind::Link, link)))
                .chain(self.programs.iter().map(|program| (PROGRAM, DescriptorKind::Program, program)));
        for (name, kind, descriptor) in all {
            if !kind.is_of(descriptor) {
                return Err(DescriptorError::Kind(name));
            }
        }
        Ok(())
    }

    /// How loading went.
    ///
    /// # Errors
    ///
    /// The descriptor of the report is not one of a report.
    pub fn report(&self) -> Result<Report, DescriptorError> {
        /// Each of the programs has a line, which a refusal makes longer.
        const MAXIMUM_BYTES: usize = 256 << 10;
        let text = memfd::read(&self.report, MAXIMUM_BYTES).map_err(DescriptorError::Report)?;
        Report::parse(&text).ok_or(DescriptorError::NoReport)
    }
}

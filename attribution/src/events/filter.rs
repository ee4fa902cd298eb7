//! The socket filter that is loaded, as descriptors that can be handed over and kept.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use ctnetlink::SocketError;
use rustix::mm::ProtFlags;

use crate::attach;
use crate::kind::DescriptorKind;
use crate::ring::{Mapping, RawRing, RingError};

const PROGRAM: &str = "bpf-events-filter";
const RING: &str = "bpf-events-ring";
const CONTROL: &str = "bpf-events-control";

// Where the members of `struct control` are (`bpf/events.bpf.c`).
pub(super) const PASSED: usize = 0;
pub(super) const TAKEN: usize = 64;
pub(super) const SLEEPING: usize = 128;
pub(super) const MARK: usize = 192;
const LAYOUT: usize = 200;
const RING_BYTES: usize = 208;

/// Grows with every change of `struct control`, of the records, or of what filter and reader expect of each other.
const VERSION: u64 = 1;

/// Why events do not come by a ring.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The kernel has no description of its types.
    #[error("/sys/kernel/btf/vmlinux cannot be read, a kernel with CONFIG_DEBUG_INFO_BTF is needed: {0}")]
    Btf(#[from] aya::BtfError),
    /// The maps could not be made.
    #[error("the kernel refuses the maps of the socket filter, which need CAP_BPF: {0}")]
    Object(#[from] Box<aya::EbpfError>),
    /// A map is not in the object.
    #[error("the object has no map named {0}")]
    NoMap(&'static str),
    /// The program could not be loaded.
    #[error("the kernel refuses the socket filter: {0}")]
    Refused(String),
    /// A descriptor could not be made.
    #[error("a descriptor cannot be made: {0}")]
    Descriptor(std::io::Error),
    /// A descriptor was not handed over.
    #[error("there is no descriptor named {0}")]
    Missing(&'static str),
    /// A descriptor is something else than its name says.
    #[error("the descriptor named {0} is of something else")]
    Kind(&'static str),
    /// There is one descriptor too many.
    #[error("there is another descriptor named {0:?}")]
    Another(String),
    /// The filter is that of another version.
    #[error("the socket filter is of version {found}, this one is {VERSION}")]
    Version {
        /// Its version.
        found: u64,
    },
    /// The filter could not be attached.
    #[error("the socket filter cannot be attached: {0}")]
    Attach(std::io::Error),
    /// The socket could not be asked.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The ring could not be mapped.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// A socket filter that is loaded, with a ring of its own.
#[derive(Debug)]
pub struct EventFilter {
    program: OwnedFd,
    ring: OwnedFd,
    control: OwnedFd,
}

impl EventFilter {
    /// A filter that was just loaded.
    pub(super) fn new(
        program: OwnedFd,
        ring: OwnedFd,
        control: OwnedFd,
        ring_bytes: u32,
    ) -> Result<Self, FilterError> {
        let filter = Self { program, ring, control };
        let control = filter.map()?;
        control.position(RING_BYTES).store(ring_bytes.into(), Ordering::Relaxed);
        control.position(LAYOUT).store(VERSION, Ordering::Relaxed);
        Ok(filter)
    }

    /// The names of its descriptors.
    pub const NAMES: [&str; 3] = [PROGRAM, RING, CONTROL];

    /// Whether a descriptor of this name is one of a filter.
    #[must_use]
    pub fn owns(name: &str) -> bool {
        Self::NAMES.contains(&name)
    }

    /// The descriptors with their names: for the service manager to keep.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> + Clone {
        [(PROGRAM, self.program.as_fd()), (RING, self.ring.as_fd()), (CONTROL, self.control.as_fd())]
            .into_iter()
    }

    /// Takes the descriptors that [`EventFilter::named`] gave, in any order.
    ///
    /// # Errors
    ///
    /// A descriptor is missing or of something else, or the filter is of another version.
    pub fn from_named(named: impl IntoIterator<Item = (String, OwnedFd)>) -> Result<Self, FilterError> {
        let mut named: Vec<_> = named.into_iter().collect();
        let mut take = |name: &'static str, kind: DescriptorKind| {
            let place = named.iter().position(|(found, _)| found == name);
            let (_, descriptor) = named.swap_remove(place.ok_or(FilterError::Missing(name))?);
            // Memory of a map never shrinks; that of a file could, under its reader.
            if kind.is_of(&descriptor) { Ok(descriptor) } else { Err(FilterError::Kind(name)) }
        };
        let filter = Self {
            program: take(PROGRAM, DescriptorKind::Program)?,
            ring: take(RING, DescriptorKind::Ring)?,
            control: take(CONTROL, DescriptorKind::Array)?,
        };
        if let Some((name, _)) = named.pop() {
            return Err(FilterError::Another(name));
        }
        filter.map_ring(&filter.map_control()?)?;
        Ok(filter)
    }

    /// Attaches the filter to a socket. What the ring has room for is in no queue any more: a socket whose ring nobody reads is deaf.
    ///
    /// # Errors
    /// The kernel's.
    pub fn attach(&self, socket: BorrowedFd<'_>) -> Result<(), FilterError> {
        attach::filter(socket, self.program.as_fd()).map_err(FilterError::Attach)
    }

    /// The numbers that filter and reader share, of this version.
    pub(super) fn map_control(&self) -> Result<Mapping, FilterError> {
        let control = self.map()?;
        match control.position(LAYOUT).load(Ordering::Relaxed) {
            VERSION => Ok(control),
            found => Err(FilterError::Version { found }),
        }
    }

    /// The ring, as large as the numbers say.
    pub(super) fn map_ring(&self, control: &Mapping) -> Result<RawRing, FilterError> {
        let bytes = control.position(RING_BYTES).load(Ordering::Relaxed);
        Ok(RawRing::map(self.ring.as_fd(), usize::try_from(bytes).unwrap_or(0))?)
    }

    fn map(&self) -> Result<Mapping, FilterError> {
        let both = ProtFlags::READ | ProtFlags::WRITE;
        Ok(Mapping::new(self.control.as_fd(), "event filter's array", rustix::param::page_size(), both, 0)?)
    }
}

//! Loads the socket filter.

use std::os::fd::AsFd;

use aya::maps::{Map, MapData};
use aya::programs::Program;
use aya::{Btf, EbpfLoader};

use super::filter::{EventFilter, FilterError};
use crate::attach;
use crate::load::reason;

/// The size of the ring: some 2,300 events, or 10 ms of what one core sends at most.
pub const DEFAULT_EVENT_RING_BYTES: u32 = 512 << 10;

/// What stands in the place of the function's number in `bpf/events.bpf.c`: the call, and KERNEL_FUNCTION.
const MARKED_CALL: [u8; 8] = [0x85, 0x20, 0, 0, 0x66, 0x6c, 0x6f, 0x77];

/// How the filter learns who has sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenderBy {
    /// By the kernel's type of the buffer. It takes Linux 6.2.
    Type,
    /// By reading the kernel's memory, which lockdown=confidentiality forbids. It takes CAP_PERFMON.
    Reading,
}

impl EventFilter {
    /// Loads the filter, with a ring of `ring_bytes`, a power of two and a multiple of the page. Needs CAP_BPF, and CAP_PERFMON before
    /// Linux 6.2; whoever has the result needs nothing.
    ///
    /// # Errors
    /// The kernel has no BTF, makes no maps, or refuses the programs.
    pub fn load(ring_bytes: u32) -> Result<Self, FilterError> {
        // On a thread of its own, whose memory the allocator keeps apart: nothing that stays is among it, so all of it is given back.
        attach::return_freed_memory();
        let loading = std::thread::spawn(move || Self::load_either(ring_bytes));
        loading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Loads the filter in a process that ends soon.
    pub(crate) fn load_either(ring_bytes: u32) -> Result<Self, FilterError> {
        Self::load_by(ring_bytes, SenderBy::Type).or_else(|by_type| match by_type {
            FilterError::Refused(by_type) => match Self::load_by(ring_bytes, SenderBy::Reading) {
                Err(FilterError::Refused(by_reading)) => {
                    Err(FilterError::Refused(format!("{by_type}; {by_reading}")))
                }
                other => other,
            },
            error => Err(error),
        })
    }

    /// Loads the filter that learns the sender in this way.
    ///
    /// # Errors
    /// As those of [`EventFilter::load`].
    pub fn load_by(ring_bytes: u32, sender: SenderBy) -> Result<Self, FilterError> {
        let btf = Btf::from_sys_fs()?;
        let mut object = aya::include_bytes_aligned!(env!("EVENTS_BPF_OBJECT")).to_vec();
        let name = match sender {
            SenderBy::Type => {
                let refused = || FilterError::Refused("it has no bpf_cast_to_kern_ctx".to_owned());
                number_call(&mut object, function(&btf, "bpf_cast_to_kern_ctx").ok_or_else(refused)?);
                "events_by_type"
            }
            SenderBy::Reading => "events_by_reading",
        };
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf)).map_max_entries("messages", ring_bytes);
        let mut object = loader.load(&object).map_err(Box::new)?;
        let Some(Program::SocketFilter(program)) = object.program_mut(name) else {
            return Err(FilterError::Refused(format!("the object has no program named {name}")));
        };
        program.load().map_err(|error| FilterError::Refused(reason(error)))?;
        let program = program.fd().map_err(|error| FilterError::Refused(reason(error)))?.as_fd();
        let program = program.try_clone_to_owned().map_err(FilterError::Descriptor)?;
        let map = |name| {
            let (Map::Array(map) | Map::RingBuf(map)) = object.map(name).ok_or(FilterError::NoMap(name))?
            else {
                return Err(FilterError::NoMap(name));
            };
            MapData::fd(map).as_fd().try_clone_to_owned().map_err(FilterError::Descriptor)
        };
        let (ring, control) = (map("messages")?, map("control")?);
        Self::new(program, ring, control, ring_bytes)
    }
}

/// The number of a function that the kernel describes.
fn function(btf: &Btf, name: &str) -> Option<u32> {
    /// `BTF_KIND_FUNC`, by its number: aya keeps the type's name to itself.
    const FUNCTION: u32 = 12;
    btf.id_by_type_name_kind(name, FUNCTION.try_into().ok()?).ok()
}

/// Writes the function's number into the call that has a mark in its place.
fn number_call(object: &mut [u8], function: u32) {
    let place = object.windows(MARKED_CALL.len()).position(|bytes| bytes == MARKED_CALL);
    if let Some(number) = place.and_then(|place| object.get_mut(place + 4..place + 8)) {
        number.copy_from_slice(&function.to_le_bytes());
    }
}

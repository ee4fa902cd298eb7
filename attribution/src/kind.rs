//! What a descriptor is, as the kernel tells anybody who has it: the lines of /proc/self/fdinfo, which only a BPF map, link or
//! program has.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

/// What descriptors of programs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DescriptorKind {
    Ring,
    Array,
    Link,
    Program,
}

impl DescriptorKind {
    /// How its line begins or, where that depends on the type of map (linux/bpf.h), is.
    fn line(self) -> &'static str {
        match self {
            Self::Ring => "map_type:\t27",
            Self::Array => "map_type:\t2",
            Self::Link => "link_type:\t",
            Self::Program => "prog_type:\t",
        }
    }

    /// Whether the descriptor is of this kind. False where /proc cannot be read.
    pub(crate) fn is_of(self, descriptor: &OwnedFd) -> bool {
        /// A link to a program has half of it.
        const MAXIMUM_BYTES: u64 = 4096;
        let mut text = String::new();
        let read = File::open(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd()))
            .and_then(|file| file.take(MAXIMUM_BYTES).read_to_string(&mut text));
        let line = self.line();
        read.is_ok()
            && text
                .lines()
                .any(|found| if line.ends_with('\t') { found.starts_with(line) } else { found == line })
    }
}

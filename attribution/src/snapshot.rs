//! What was open when the programs were attached.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use crate::event::Message;
use crate::memfd;
use crate::record::{self, SOCKET_RECORD_BYTES};

/// The open sockets of all processes, and the control groups. It can be read once.
#[derive(Debug)]
pub struct Snapshot {
    /// The iterator over the sockets; `None` where its program did not load.
    pub sockets: Option<OwnedFd>,
    /// A sealed memfd of lines `NUMBER PATH`.
    pub cgroups: OwnedFd,
}

impl Snapshot {
    /// Reads the sockets: events of the kind [`crate::Kind::Snapshot`], one for each descriptor, and the programs of the processes
    /// that have them. Takes about 2 µs a socket, more where many files are open, and must not be repeated.
    ///
    /// # Errors
    ///
    /// The kernel's, when reading fails.
    pub fn sockets(&mut self, mut each: impl FnMut(Message<'_>)) -> std::io::Result<()> {
        let Some(sockets) = self.sockets.take() else { return Ok(()) };
        let mut file = File::from(sockets);
        let mut bytes = vec![0; 256 * SOCKET_RECORD_BYTES];
        let (mut length, mut text) = (0, String::new());
        loop {
            let read = file.read(&mut bytes[length..])?;
            if read == 0 {
                return Ok(());
            }
            length += read;
            let mut begin = 0;
            while let Some(record) = record::first(&bytes[begin..length]) {
                begin += record.len();
                if let Some(message) = record::decode(record, &mut text) {
                    each(message);
                }
            }
            bytes.copy_within(begin..length, 0);
            length -= begin;
        }
    }

    /// Reads the control groups: number, as in [`crate::Process::cgroup`], and path below the root of cgroup2.
    ///
    /// # Errors
    ///
    /// The kernel's, when reading fails.
    pub fn cgroups(&self, mut each: impl FnMut(u64, &str)) -> std::io::Result<()> {
        /// No honest text is longer: a million control groups with paths of 64 bytes.
        const MAXIMUM_BYTES: usize = 64 << 20;
        for line in memfd::read(&self.cgroups, MAXIMUM_BYTES)?.lines() {
            let Some((id, path)) = line.split_once(' ') else { continue };
            let Ok(id) = id.parse() else { continue };
            each(id, path);
        }
        Ok(())
    }
}

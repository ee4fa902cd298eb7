//! Texts that are handed over as descriptors.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};

/// A memfd with this text, which nobody can change any more.
pub(crate) fn write(name: &str, text: &str) -> std::io::Result<OwnedFd> {
    let memfd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memfd);
    file.write_all(text.as_bytes())?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
    )?;
    Ok(file.into())
}

/// The text of a memfd, from its beginning, if it is no longer; the descriptor's position stays.
pub(crate) fn read(memfd: &OwnedFd, maximum_bytes: usize) -> std::io::Result<String> {
    let file = File::from(memfd.try_clone()?);
    let length = file.metadata()?.len();
    let Some(length) = usize::try_from(length).ok().filter(|length| *length <= maximum_bytes) else {
        return Err(std::io::Error::other(format!(
            "a text of {length} bytes, at most {maximum_bytes} are read"
        )));
    };
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    String::from_utf8(bytes).map_err(std::io::Error::other)
}

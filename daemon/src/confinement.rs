//! What this process gives up once it has what it needs; docs/security.md says what that is for.

use std::path::Path;

use flowbus_seccomp::{MACHINE_ID, NETWORK_SETTINGS, Policy, Refusal};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::config;
use crate::handle::Handle;

/// Gives up files: this thread, and those that it starts later, open for reading only what a reload, a question for the kernel's
/// settings, one for its BPF programs and a stranger's for the machine need. A thread that has to look into other processes starts
/// before this.
pub(crate) fn files(configuration: Option<&Path>) {
    let configuration = configuration.unwrap_or(Path::new(config::DEFAULT_PATH));
    // The directory: an editor puts another file in the place of the old one.
    let directory = match configuration.parent() {
        Some(directory) if directory.as_os_str().is_empty() => Path::new("."),
        Some(directory) => directory,
        None => configuration,
    };
    let mut paths = vec![directory.to_owned(), NETWORK_SETTINGS.into(), "/proc/self/fdinfo".into()];
    paths.extend(MACHINE_ID.map(Into::into));
    // A link is followed to where it leads now.
    paths.extend(configuration.canonicalize().ok().and_then(|file| Some(file.parent()?.to_owned())));
    match flowbus_seccomp::read_only(&paths) {
        Ok(enforced) => tracing::debug!(?enforced, "files are confined"),
        Err(error) => tracing::warn!(%error, "files are not confined, ignoring"),
    }
}

/// Gives up all system calls of this process but those of its policy.
pub(crate) async fn system_calls(handle: &Handle) {
    // A thread that is still being started needs system calls of the C library that the policy does not have, and would
    // end the process without them. The tracker's has started when it answers; one that has ended does not matter.
    let _ = handle.ping().await;
    if let Err(error) = flowbus_seccomp::apply(Policy::Flowbusd, Refusal::OF_THIS_BUILD) {
        tracing::warn!(%error, "system calls are not confined, ignoring");
    }
}

/// Gives up root's powers but that of asking for dumps, for this thread and those that it starts later. A thread that loads BPF
/// programs starts before this.
pub(crate) fn drop_capabilities() -> Result<(), Errno> {
    flowbus_seccomp::keep(CapabilitySet::NET_ADMIN)
}

/// Gives up root's powers of this thread but those that show other users' descriptors.
pub(crate) fn drop_capabilities_but_to_look() -> Result<(), Errno> {
    flowbus_seccomp::keep(CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH)
}

//! Landlock: which files this thread, and those that it starts later, may open from now on.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
    path_beneath_rules,
};

/// Newer kernels know more to refuse; what a rule set does not name stays allowed.
const KNOWN: ABI = ABI::V6;

/// The kernel's settings of a network namespace, conntrack's among them.
pub const NETWORK_SETTINGS: &str = "/proc/sys/net";
/// The machine's number, which everybody on the bus may be asked for (org.freedesktop.DBus.Peer).
pub const MACHINE_ID: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];

/// How much of the confinement the kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    /// All of it.
    Fully,
    /// Files; but signals may be sent to anybody (before Linux 6.12), or a file that is open may be cut (before 6.2), and so on.
    Partly,
    /// Nothing: it has no Landlock.
    Not,
}

/// Confines this thread and those that it starts later: they open files for reading only, and only the given ones and those below
/// the given directories; list no directory, run no program; and send signals to nobody outside of this process. What is
/// open stays open. A path that is not there gives nothing, and a file that takes its place later cannot be opened either:
/// name its directory.
///
/// Sockets of the bus, which have paths too, can be connected to as before.
///
/// **It closes other processes' /proc/PID** (fd, environ, all that asks for the right to trace), whatever is given.
///
/// # Errors
/// When the kernel has Landlock and refuses.
pub fn read_only<P: AsRef<Path>>(paths: &[P]) -> Result<Enforced, RulesetError> {
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(paths, AccessFs::ReadFile))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Enforced::Fully,
        RulesetStatus::PartiallyEnforced => Enforced::Partly,
        RulesetStatus::NotEnforced => Enforced::Not,
    })
}

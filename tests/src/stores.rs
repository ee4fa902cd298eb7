//! The stores that docs/fleet.md has recipes for, as Debian has them: in a root of the test's own, in a namespace of the test's own.

use std::path::PathBuf;
use std::process::Command;

use crate::Namespace;
use crate::booted::Layer;

/// A Debian with Postgres, rsyslog and ClickHouse, of which nothing runs; gone with its owner.
#[derive(Debug)]
pub struct Stores(Layer);

impl Stores {
    /// A root in which nothing has been stored.
    ///
    /// # Panics
    /// If tools/test-root cannot make it.
    #[must_use]
    pub fn new() -> Self {
        Self(Layer::above(&["stores"]))
    }

    /// A path of the root as the host sees it.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.root().join(path.trim_start_matches('/'))
    }

    /// Writes a file of the root.
    ///
    /// # Panics
    /// If its directory is not there.
    pub fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        std::fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// A command that a user of the root runs in it and in a network namespace; its process id is the program's own. The kernel kills
    /// it when the thread that started it has ended.
    #[must_use]
    pub fn command(&self, namespace: &Namespace, user: &str, program: &str) -> Command {
        let root = self.0.root();
        let mut command = namespace.command("unshare");
        // Shared memory goes away with the processes that have it.
        command.args(["--ipc", &format!("--mount-proc={}", root.join("proc").display())]);
        command.arg("chroot").arg(root);
        // In this order: a process that becomes another user is tied to nobody.
        command.args([
            "setpriv",
            "--reuid",
            user,
            "--regid",
            user,
            "--init-groups",
            "--pdeathsig",
            "KILL",
            "--",
        ]);
        command.arg(program);
        command
    }
}

impl Default for Stores {
    fn default() -> Self {
        Self::new()
    }
}

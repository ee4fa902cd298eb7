//! The files of a machine: a Debian that all of its kind share, and a layer of its own above it.

use std::path::PathBuf;
use std::process::Command;

use super::package::workspace;
use crate::process::{Directory, output_of};

/// A root of its own: what is written goes to a layer above the one that all tests share.
#[derive(Debug)]
pub(crate) struct Layer(Directory);

impl Layer {
    /// A layer above the root that machines boot.
    pub(super) fn new() -> Self {
        Self::above(&[])
    }

    /// A layer above the root that tools/test-root makes with these arguments.
    pub(crate) fn above(arguments: &[&str]) -> Self {
        let shared = output_of(Command::new(workspace().join("tools/test-root")).args(arguments));
        let layer = Self(Directory::new("machine"));
        let path = |name: &str| layer.0.path().join(name);
        for name in ["upper", "work", "root"] {
            std::fs::create_dir(path(name)).expect("a directory of our own takes directories");
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            shared.trim(),
            path("upper").display(),
            path("work").display()
        );
        output_of(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(path("root")));
        layer
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    pub(super) fn console(&self) -> PathBuf {
        self.0.path().join("console")
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        // Lazily: the last process of the machine may still be on its way out.
        let _ = Command::new("umount").arg("--lazy").arg(self.root()).status();
    }
}

//! The files of a machine: a Debian that all machines share, and a layer of its own above it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use super::package::workspace;
use crate::process::{Directory, output_of};

/// A root of its own: what is written goes to a layer above the one that all tests share.
#[derive(Debug)]
pub(super) struct Layer(Directory);

impl Layer {
    pub(super) fn new() -> Self {
        static SHARED: OnceLock<PathBuf> = OnceLock::new();
        let shared = SHARED.get_or_init(|| {
            let tool = workspace().join("tools/test-root");
            PathBuf::from(output_of(&mut Command::new(tool)).trim())
        });
        let layer = Self(Directory::new("machine"));
        let path = |name: &str| layer.0.path().join(name);
        for name in ["upper", "work", "root"] {
            std::fs::create_dir(path(name)).expect("a directory of our own takes directories");
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            shared.display(),
            path("upper").display(),
            path("work").display()
        );
        output_of(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(path("root")));
        layer
    }

    pub(super) fn root(&self) -> PathBuf {
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

//! The package that a machine installs, made of the binaries under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::daemon::binary;
use crate::process::output_of;

/// The package of the binaries under test.
#[must_use]
pub fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| build(&[]))
}

/// The package of the binaries under test, with the version of an earlier build.
#[must_use]
pub fn previous_package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| build(&["--version", "0.0.1"]))
}

/// Builds the package next to the binaries; each test run does so once, and leaves the last one there.
fn build(arguments: &[&str]) -> PathBuf {
    let binaries =
        ["flowbusd", "flowbus-control", "flowbus-attribution", "flowbus-export", "flowctl"].map(binary);
    let directory = binaries[0].parent().expect("a file is in a directory");
    assert!(binaries.iter().all(|binary| binary.parent() == Some(directory)));
    let mut command = Command::new(workspace().join("packaging/build"));
    command.args(arguments).arg(directory).arg(directory.join("package"));
    PathBuf::from(output_of(command.env("FLOWBUS_DEB_COMPRESSION", "none")).trim())
}

pub(super) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace")
}

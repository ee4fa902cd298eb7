//! What both policies refuse and what both leave, tried in the test's own process.

use std::fs::OpenOptions;
use std::io::{Error, ErrorKind};
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use flowbus_seccomp::{Policy, apply};

/// Puts the whole process under the policy, and tries what the policies have in common. It cannot be undone: a test that
/// calls this is the only one of its file.
pub(crate) fn apply_and_try(policy: Policy) {
    assert!(Command::new("true").status().unwrap().success());
    apply(policy).unwrap();
    refused("a program", Command::new("true").status().unwrap_err());
    refused("an internet socket", UdpSocket::bind("127.0.0.1:0").unwrap_err());
    refused("a thread", std::thread::Builder::new().spawn(|| ()).unwrap_err());
    refused("a file's name", std::fs::rename("/nonexistent", "/other").unwrap_err());
    refused("writing to a file", OpenOptions::new().write(true).open("/dev/null").unwrap_err());
    assert!(UnixDatagram::unbound().is_ok());
    assert!(std::fs::read_to_string("/proc/self/status").unwrap().contains("Seccomp:\t2"));
}

/// The error is the one that a policy answers with.
pub(crate) fn refused(what: &str, error: Error) {
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
}

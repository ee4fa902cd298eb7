//! A process under the policy: the whole test process, so this file has one test. flowbusd's own life under it is what the
//! integration tests run.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use flowbus_seccomp::{Policy, apply};

#[test]
fn what_the_policy_does_not_name_is_refused_and_the_rest_goes_on() {
    assert!(Command::new("true").status().unwrap().success());
    apply(Policy::Flowbusd).unwrap();
    let refused = |what: &str, error: std::io::Error| {
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
    };
    refused("a program", Command::new("true").status().unwrap_err());
    refused("an internet socket", UdpSocket::bind("127.0.0.1:0").unwrap_err());
    refused("a thread", std::thread::Builder::new().spawn(|| ()).unwrap_err());
    refused("a file's name", std::fs::rename("/nonexistent", "/other").unwrap_err());
    refused("writing to a file", OpenOptions::new().write(true).open("/dev/null").unwrap_err());
    assert!(UnixDatagram::unbound().is_ok());
    assert!(std::fs::read_to_string("/proc/self/status").unwrap().contains("Seccomp:\t2"));
}

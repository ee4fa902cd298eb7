//! A process under the policy: the whole test process, so this file has one test. The helper's own life under it is what the
//! integration tests run.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use flowbus_seccomp::{Policy, apply};

#[test]
fn what_the_policy_does_not_name_is_refused_and_the_rest_goes_on() {
    assert!(Command::new("true").status().unwrap().success());
    apply(Policy::FlowbusControl).unwrap();
    let refused = |what: &str, error: std::io::Error| {
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
    };
    refused("a program", Command::new("true").status().unwrap_err());
    refused("an internet socket", UdpSocket::bind("127.0.0.1:0").unwrap_err());
    refused("a thread", std::thread::Builder::new().spawn(|| ()).unwrap_err());
    refused("a file's name", std::fs::rename("/nonexistent", "/other").unwrap_err());
    refused("a pipe", std::io::pipe().map(drop).unwrap_err());
    refused("writing to a file", OpenOptions::new().write(true).open("/dev/null").unwrap_err());
    refused("making a file", File::create("/tmp/flowbus-seccomp").unwrap_err());
    // NETLINK_NETFILTER is 12, NETLINK_ROUTE 0.
    let netlink = |protocol| {
        let (family, kind) = (rustix::net::AddressFamily::NETLINK, rustix::net::SocketType::RAW);
        rustix::net::socket(family, kind, protocol).map(drop)
    };
    assert_eq!(netlink(None), Err(rustix::io::Errno::PERM));
    assert_eq!(netlink(Some(rustix::net::netlink::NETFILTER)), Ok(()));
    assert!(UnixDatagram::unbound().is_ok());
    assert!(std::fs::read_to_string("/proc/self/status").unwrap().contains("Seccomp:\t2"));
}

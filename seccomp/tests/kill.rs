//! What a refused call does where nothing is to be refused in silence: in a process of its own, which it ends.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::net::UdpSocket;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use flowbus_seccomp::{Policy, Refusal, apply};

const CHILD: &str = "FLOWBUS_TEST_POLICY";
/// SIGSYS.
const BAD_SYSTEM_CALL: i32 = 31;

#[test]
fn a_call_outside_of_the_policy_ends_the_process() {
    let policies = [("flowbusd", Policy::Flowbusd), ("flowbus-control", Policy::FlowbusControl)];
    if let Ok(name) = std::env::var(CHILD) {
        let (_, policy) = policies.into_iter().find(|(other, _)| *other == name).unwrap();
        apply(policy, Refusal::Kill).unwrap();
        let _ = UdpSocket::bind("127.0.0.1:0");
        panic!("it goes on");
    }
    for (name, _) in policies {
        let status = Command::new(std::env::current_exe().unwrap()).env(CHILD, name).status().unwrap();
        assert_eq!(status.signal(), Some(BAD_SYSTEM_CALL), "{name}: {status}");
    }
}

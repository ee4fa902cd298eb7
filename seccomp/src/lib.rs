//! What a daemon of flowbus may ask of the kernel once it has started: the system calls of its policy, the JSON file of its
//! name beside this crate, one reason for each, compiled in; and the files that it names itself. What is not there fails with
//! EPERM or EACCES.
//!
//! The unit's `SystemCallFilter=` covers the start as well and is wider.

mod files;

pub use files::{Enforced, MACHINE_ID, NETWORK_SETTINGS, read_only};

include!(concat!(env!("OUT_DIR"), "/policies.rs"));

/// Whose policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// flowbusd, as a service and by hand.
    Flowbusd,
    /// flowbus-control, likewise.
    FlowbusControl,
}

/// Applies a policy to all threads of this process, for good.
///
/// # Errors
/// When the kernel refuses: it has no seccomp, or one thread is under a filter that the others are not.
pub fn apply(policy: Policy) -> Result<(), seccompiler::Error> {
    let program = match policy {
        Policy::Flowbusd => FLOWBUSD,
        Policy::FlowbusControl => FLOWBUS_CONTROL,
    };
    let program: Vec<_> =
        program.iter().map(|&(code, jt, jf, k)| seccompiler::sock_filter { code, jt, jf, k }).collect();
    seccompiler::apply_filter_all_threads(&program)
}

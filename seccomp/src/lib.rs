//! What a daemon of flowbus may ask of the kernel once it has started: its policy is the JSON file of its name beside
//! this crate, one reason for each system call, compiled in. What is not there fails with EPERM.
//!
//! The unit's `SystemCallFilter=` covers the start as well and is wider.

include!(concat!(env!("OUT_DIR"), "/policies.rs"));

/// Whose policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// flowbusd, as a service and by hand.
    Flowbusd,
}

/// Applies a policy to all threads of this process, for good.
///
/// # Errors
/// When the kernel refuses: it has no seccomp, or one thread is under a filter that the others are not.
pub fn apply(policy: Policy) -> Result<(), seccompiler::Error> {
    let program: Vec<_> = match policy {
        Policy::Flowbusd => FLOWBUSD,
    }
    .into_iter()
    .map(|(code, jt, jf, k)| seccompiler::sock_filter { code, jt, jf, k })
    .collect();
    seccompiler::apply_filter_all_threads(&program)
}

//! What a daemon of flowbus may ask of the kernel once it has started: the system calls of its policy, the JSON file of its
//! name beside this crate, one reason for each, compiled in; and the files and the capabilities that it names itself. What is
//! not there fails with EPERM or EACCES.
//!
//! The unit's `SystemCallFilter=` covers the start as well and is wider.

mod files;
mod powers;

pub use files::{Enforced, MACHINE_ID, NETWORK_SETTINGS, read_only};
pub use powers::keep;

include!(concat!(env!("OUT_DIR"), "/policies.rs"));

/// The daemon whose policy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// flowbusd, as a service and by hand.
    Flowbusd,
    /// flowbus-control, as a service and by hand.
    FlowbusControl,
}

/// What a system call outside of the policy gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// EPERM. A library may hide it.
    Error,
    /// The end of the process by SIGSYS.
    Kill,
}

impl Refusal {
    /// What a daemon takes: in a debug build, which is what the tests run, nothing is refused in silence.
    pub const OF_THIS_BUILD: Self = if cfg!(debug_assertions) { Self::Kill } else { Self::Error };

    /// What the filter returns (linux/seccomp.h).
    fn code(self) -> u32 {
        match self {
            Self::Error => REFUSED,
            Self::Kill => 0x8000_0000,
        }
    }
}

/// What the policies return for a call that they do not name: `SECCOMP_RET_ERRNO` and EPERM.
const REFUSED: u32 = 0x0005_0001;
/// The filter's instruction that returns a constant: `BPF_RET`.
const RETURN: u16 = 0x06;

/// Applies a policy to all threads of this process, for good.
///
/// # Errors
/// When the kernel refuses: it has no seccomp, or one thread is under a filter that the others are not.
pub fn apply(policy: Policy, refusal: Refusal) -> Result<(), seccompiler::Error> {
    let program = match policy {
        Policy::Flowbusd => FLOWBUSD,
        Policy::FlowbusControl => FLOWBUS_CONTROL,
    };
    let program: Vec<_> = program
        .iter()
        .map(|&(code, jt, jf, k)| {
            let k = if (code, k) == (RETURN, REFUSED) { refusal.code() } else { k };
            seccompiler::sock_filter { code, jt, jf, k }
        })
        .collect();
    seccompiler::apply_filter_all_threads(&program)
}

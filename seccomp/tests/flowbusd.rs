//! A process under the policy: the whole test process, so this file has one test. flowbusd's own life under it is what the
//! integration tests run.
#![allow(clippy::unwrap_used, reason = "a test")]

mod policy;

use flowbus_seccomp::Policy;

#[test]
fn what_the_policy_does_not_name_is_refused_and_the_rest_goes_on() {
    policy::apply_and_try(Policy::Flowbusd);
}

//! A process under the policy: the whole test process, so this file has one test. The helper's own life under it is what the
//! integration tests run.
#![allow(clippy::unwrap_used, reason = "a test")]

mod policy;

use std::fs::File;

use flowbus_seccomp::Policy;

use policy::refused;

#[test]
fn what_the_policy_does_not_name_is_refused_and_the_rest_goes_on() {
    policy::apply_and_try(Policy::FlowbusControl);
    refused("a pipe", std::io::pipe().map(drop).unwrap_err());
    refused("making a file", File::create("/tmp/flowbus-seccomp").unwrap_err());
    // NETLINK_NETFILTER is 12, NETLINK_ROUTE 0.
    let netlink = |protocol| {
        let (family, kind) = (rustix::net::AddressFamily::NETLINK, rustix::net::SocketType::RAW);
        rustix::net::socket(family, kind, protocol).map(drop)
    };
    assert_eq!(netlink(None), Err(rustix::io::Errno::PERM));
    assert_eq!(netlink(Some(rustix::net::netlink::NETFILTER)), Ok(()));
}

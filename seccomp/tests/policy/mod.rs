//! What both policies refuse and what both leave, tried in the test's own process.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{Error, ErrorKind};
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Barrier;
use std::time::{Instant, SystemTime};

use flowbus_seccomp::{Policy, Refusal, apply, read_only};

/// Puts the whole process under the policy, and tries what the policies have in common. It cannot be undone: a test that
/// calls this is the only one of its file.
pub(crate) fn apply_and_try(policy: Policy) {
    assert!(Command::new("true").status().unwrap().success());
    let started = Barrier::new(2);
    std::thread::scope(|scope| {
        // As a daemon's thread: it has started, opens no file any more, and the policy is applied to it from outside.
        let confined = || {
            read_only::<&str>(&[]).unwrap();
            started.wait();
            started.wait();
            libraries_get_on();
        };
        let libraries = scope.spawn(confined);
        started.wait();
        apply(policy, Refusal::Error).unwrap();
        started.wait();
        libraries.join().unwrap();
    });
    refused("a program", Command::new("true").status().unwrap_err());
    refused("an internet socket", UdpSocket::bind("127.0.0.1:0").unwrap_err());
    refused("a thread", std::thread::Builder::new().spawn(|| ()).unwrap_err());
    refused("a file's name", std::fs::rename("/nonexistent", "/other").unwrap_err());
    refused("writing to a file", OpenOptions::new().write(true).open("/dev/null").unwrap_err());
    assert!(UnixDatagram::unbound().is_ok());
    assert!(std::fs::read_to_string("/proc/self/status").unwrap().contains("Seccomp:\t2"));
}

/// What libraries look up when it is first asked for, which may be late: they have it in the process, or do without.
///
/// A new kernel gives a process its auxiliary vector by `prctl()`, an old one by a file. Both are refused here, so that this
/// fails on any kernel where a library wants either.
fn libraries_get_on() {
    assert!(rustix::param::page_size().is_power_of_two());
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    assert!(time.tv_sec > 0 || time.tv_nsec > 0);
    assert!(SystemTime::now() > SystemTime::UNIX_EPOCH && Instant::now().elapsed().as_secs() < 3_600);
    // Seeds of hash tables; a heap that grows, shrinks, and is shared by as many arenas as there are processors.
    let table: HashMap<_, _> = (0..100_000_u32).map(|number| (number, vec![0_u8; 100])).collect();
    assert_eq!(table.len(), 100_000);
    drop(table);
    drop(vec![1_u8; 64 << 20]);
}

/// The error is the one that a policy answers with.
pub(crate) fn refused(what: &str, error: Error) {
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
}

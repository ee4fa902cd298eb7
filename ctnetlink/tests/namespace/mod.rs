//! A network namespace of a test's own. It needs root: without it the test fails.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, reason = "a test that cannot go on panics")]

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use rustix::thread::LinkNameSpaceType;

/// A network namespace, which lives as long as the process in it: `cat`, until its input is closed.
struct Namespace(Child);

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Runs `test` in a thread of its own in a new network namespace where loopback traffic is tracked.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-c", "ip link set lo up && echo ready && exec cat"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "this test needs root and iproute2");
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", child.id())).unwrap();
        let _namespace = Namespace(child);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .unwrap();
        // A rule that looks at the connection turns tracking on.
        run("nft add table ip t");
        run("nft add chain ip t c { type filter hook output priority 0 ; }");
        run("nft add rule ip t c ct state new accept");
        test();
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

pub(crate) fn run(command: &str) {
    let mut words = command.split(' ');
    let status =
        Command::new(words.next().unwrap()).args(words).stderr(Stdio::null()).stdout(Stdio::null()).status();
    assert!(status.expect(command).success(), "{command}");
}

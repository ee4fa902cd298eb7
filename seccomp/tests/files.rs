//! A thread under Landlock, and what it may still open. It needs a kernel that has it, as every Debian's has; those before 6.12 do
//! not keep it from sending signals.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Command;

use flowbus_seccomp::{Enforced, read_only};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn only_what_was_named_can_be_opened_and_only_to_be_read() {
    let directory = std::env::temp_dir().join(format!("flowbus-files-{}", std::process::id()));
    let (named, other) = (directory.join("named"), directory.join("other"));
    for directory in [&named, &other] {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("file"), "text").unwrap();
    }
    let bus = UnixListener::bind(other.join("bus")).unwrap();
    let mut open = File::open(other.join("file")).unwrap();
    let mut child = Command::new("sleep").arg("100").spawn().unwrap();
    let other_process = Pid::from_child(&child);
    let executable = format!("/proc/{}/exe", child.id());
    fs::read_link(&executable).unwrap();

    std::thread::scope(|scope| {
        let confined = || {
            let missing = directory.join("missing");
            let enforced = read_only(&[&named, &missing]).unwrap();
            assert_ne!(enforced, Enforced::Not);
            let refused = |what: &str, error: std::io::Error| {
                assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
            };
            assert_eq!(fs::read_to_string(named.join("file")).unwrap(), "text");
            refused("another file", File::open(other.join("file")).map(drop).unwrap_err());
            refused("a link", symlink("../other/file", named.join("link")).unwrap_err());
            refused(
                "writing",
                OpenOptions::new().write(true).open(named.join("file")).map(drop).unwrap_err(),
            );
            refused("making a file", File::create(named.join("new")).map(drop).unwrap_err());
            refused("listing", fs::read_dir(&named).map(drop).unwrap_err());
            refused("running a program", Command::new("/bin/true").status().map(drop).unwrap_err());
            refused("another process", fs::read_link(&executable).unwrap_err());
            if enforced == Enforced::Fully {
                assert_eq!(kill_process(other_process, Signal::TERM), Err(Errno::PERM));
            }
            // What was open stays so, and the bus can be reached.
            assert_eq!(std::io::read_to_string(&mut open).unwrap(), "text");
            UnixStream::connect(other.join("bus")).unwrap();
            bus.accept().unwrap();
            UnixDatagram::unbound().unwrap();
        };
        scope.spawn(confined);
    });
    // Other threads are as before.
    assert!(Command::new("/bin/true").status().unwrap().success());
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_dir_all(directory).unwrap();
}

//! What `./run` shows, and what it leaves behind: nothing.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use flowbus_tests::Namespace;
use flowbus_tests::process::{output_of, signal};
use rustix::process::Signal;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

fn namespaces_of(pid: u32) -> usize {
    let all = output_of(Command::new("ip").args(["netns", "list"]));
    all.lines().filter(|line| line.starts_with(&format!("flowbus-{pid}-"))).count()
}

#[test]
fn the_network_shows_events_and_tables_and_goes_away() {
    let child = Command::new(DEMO).args(["--seconds", "4"]).stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}\n{text}", output.status);
    for word in
        ["198.18.0.2", "2001:2:0:1::2", "tcp", "udp", "icmp", "CHROME", "Active flows", "Closed flows"]
    {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
    assert_eq!(namespaces_of(pid), 0);
}

#[test]
fn an_interrupt_ends_it_in_order() {
    let mut child = Command::new(DEMO).args(["--seconds", "600"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("198.18.0.2")), "events are shown");
    assert_eq!(namespaces_of(child.id()), 3);
    signal(&child, Signal::INT);
    assert!(lines.any(|line| line.starts_with("Closed flows")), "the tables are shown at the end");
    lines.for_each(drop);
    assert!(child.wait().unwrap().success());
    assert_eq!(namespaces_of(child.id()), 0);
}

#[test]
fn the_host_is_as_before_afterwards() {
    // A namespace that stands in for the host: the demo only knows the one it is started in.
    let host = Namespace::new("host");
    let output = host.command(DEMO).args(["--host", "--seconds", "2"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    for words in [
        "undo: nft delete table inet flowbus_run",
        "undo: sysctl -w net.netfilter.nf_conntrack_acct=0",
        "undone",
    ] {
        assert!(text.contains(words), "{words} is not in:\n{text}");
    }
    assert_eq!(host.run("nft list tables"), "");
    assert_eq!(host.sysctl_value("net.netfilter.nf_conntrack_acct"), "0");
    assert_eq!(host.sysctl_value("net.netfilter.nf_conntrack_timestamp"), "0");
}

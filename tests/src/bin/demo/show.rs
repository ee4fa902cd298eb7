//! What is shown, by flowctl, and how to look from another terminal.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flowbus_tests::Bus;
use flowbus_tests::daemon::binary;
use flowbus_tests::process::{signal, tied, wait_for};
use rustix::process::Signal;

use crate::stop::Stop;

/// Where our tmpfs is.
pub(crate) const RUN: &str = "/run";
/// How often we look whether a program has ended.
const LOOK: Duration = Duration::from_millis(50);
/// Rows of each table: both and the daemon's status fit on a terminal's screen and a half.
const ROWS: usize = 10;

/// Prints a line. A reader that closed standard output, or the terminal, does not want to see it, which is no failure.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A running `flowctl monitor` that writes where we write.
pub(crate) struct Events(Child);

impl Events {
    /// Returns when it receives events, so that the first flow is seen.
    pub(crate) fn show(bus: &Bus) -> Self {
        say("\nEvents as flowctl monitor shows them. From another terminal, as root:");
        let address = reachable(bus);
        say(&format!("  {} --bus {address} top", short(&binary("flowctl"))));
        say(&format!(
            "  busctl --address={address} introspect org.flowbus.FlowMonitor1 /org/flowbus/FlowMonitor1\n"
        ));
        let mut monitor = flowctl(bus, &["monitor"]).spawn().expect("flowctl is built");
        wait_for("flowctl monitor to have its stream", || {
            let gone = monitor.try_wait().expect("a child can be waited for").is_some();
            let streams = || bus.monitor_call("GetStatistics", &[]).ok()?[0]["streams"].as_u64();
            (gone || streams() == Some(1)).then_some(())
        });
        Self(monitor)
    }

    /// Waits while there is something to see; whether there is still after `duration`.
    pub(crate) fn watch(&mut self, stop: &Stop, duration: Duration) -> bool {
        let mut left = duration;
        while !left.is_zero() {
            let step = left.min(LOOK);
            // flowctl ends by itself when nobody reads what it writes.
            if !stop.wait(step) || self.0.try_wait().expect("a child can be waited for").is_some() {
                return false;
            }
            left -= step;
        }
        true
    }

    pub(crate) fn end(mut self) {
        if self.0.try_wait().expect("a child can be waited for").is_none() {
            signal(&self.0, Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

/// Shows the newest flows of each table, and the daemon's status. Ends early when asked to.
pub(crate) fn tables(bus: &Bus, stop: &Stop) {
    let mut active = ids(bus, "ListActive");
    active.reverse();
    for (title, command, ids) in [
        ("Active flows", &["list", "--refresh"][..], active),
        ("Closed flows", &["closed"][..], ids(bus, "ListClosed")),
        ("The daemon", &["status"][..], Vec::new()),
    ] {
        let which =
            if ids.len() > ROWS { format!(", the last {ROWS} of {}", ids.len()) } else { String::new() };
        say(&format!("\n{title}{which} (flowctl {}):\n", command.join(" ")));
        let mut flowctl = flowctl(bus, command);
        if !ids.is_empty() {
            flowctl.arg("--id").arg(ids[..ids.len().min(ROWS)].join(","));
        }
        let mut child = flowctl.spawn().expect("flowctl is built");
        while child.try_wait().expect("a child can be waited for").is_none() {
            if !stop.wait(LOOK) {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
        }
    }
}

/// The ids of a table's flows, in its order.
fn ids(bus: &Bus, member: &str) -> Vec<String> {
    let flows = bus.list(member, &[["fields", "as", "1 id"]]).unwrap_or_default();
    flows.iter().filter_map(|flow| flow["id"].as_u64()).map(|id| id.to_string()).collect()
}

/// A flowctl that does not outlive us, without a pager. Ctrl-C is for us to handle.
fn flowctl(bus: &Bus, arguments: &[&str]) -> Command {
    let mut flowctl = Command::new(binary("flowctl"));
    flowctl.args(["--bus", &bus.address(), "--no-pager"]).args(arguments);
    let mut flowctl = tied(&flowctl);
    flowctl.stdin(Stdio::null());
    flowctl
}

/// The bus's address for processes outside of our mount namespace, and short.
fn reachable(bus: &Bus) -> String {
    let address = bus.address();
    let socket = Path::new(address.trim_start_matches("unix:path=")).strip_prefix(RUN);
    let link = Path::new(RUN).join("bus");
    // Relative, because an absolute one would begin at the root of whoever follows it.
    symlink(socket.expect("temporary files are on our tmpfs"), &link).expect("the tmpfs is new");
    format!("unix:path=/proc/{}/root{}", std::process::id(), link.display())
}

/// A path below the working directory without that.
fn short(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

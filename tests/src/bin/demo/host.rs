//! What has to be on for this machine's traffic to be tracked with counters and times, and how it is undone.

use std::fmt::Write;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use flowbus_tests::Namespace;
use flowbus_tests::process::complain;

use crate::show::say;

const PARAMETERS: [&str; 2] = ["nf_conntrack_acct", "nf_conntrack_timestamp"];

/// The name of an abstract socket, which only one process of a network namespace can have, and which ends with it.
const LOCK: &str = "flowbus-run";

/// The error where another run has changed this machine and is not done.
#[derive(Debug)]
pub(crate) struct Busy;

/// This machine's changes, and the process that undoes them.
pub(crate) struct Changes {
    undo: Child,
}

impl Changes {
    pub(crate) fn make() -> Result<Self, Busy> {
        let address = SocketAddr::from_abstract_name(LOCK).expect("the name is short");
        let lock = UnixListener::bind_addr(&address).map_err(|_| Busy)?;
        let host = Namespace::host();
        // If all of an earlier run was killed at once, its table is here and says what was before it.
        let before = recorded(&host).unwrap_or_else(|| {
            PARAMETERS
                .map(|name| (name.to_owned(), host.sysctl_value(&format!("net.netfilter.{name}"))))
                .into()
        });
        // Before anything is changed.
        let changes = Self { undo: undo(&before, lock) };
        say("To see this machine's traffic, this run changes, and undoes at its end:");
        say("  an nft table turns connection tracking on    undo: nft delete table inet flowbus_run");
        host.nft(&rules(&before));
        for (name, value) in &before {
            let parameter = format!("net.netfilter.{name}");
            say(&format!("  {parameter} = 1 (was {value})    undo: sysctl -w {parameter}={value}"));
            host.sysctl(&parameter, "1");
        }
        Ok(changes)
    }

    /// Undoes the changes and returns when that is done.
    pub(crate) fn undo(mut self) {
        drop(self.undo.stdin.take());
        match self.undo.wait() {
            Ok(status) if status.success() => say("\nAll that was changed on this machine is undone."),
            _ => complain("Undoing the changes failed. The commands that do it are above."),
        }
    }
}

/// The table that turns connection tracking on, with what to undo in its comment. Deleted first, if there is one: it would
/// have the chain twice.
fn rules(before: &[(String, String)]) -> String {
    let record = before.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ");
    format!(
        r#"
add table inet flowbus_run
delete table inet flowbus_run
table inet flowbus_run {{
    comment "before: {record}"
    chain track {{
        type filter hook prerouting priority raw
        ct state invalid
    }}
}}
"#
    )
}

/// What a table that is left here says was before.
fn recorded(host: &Namespace) -> Option<Vec<(String, String)>> {
    let table = host.command("nft").args(["list", "table", "inet", "flowbus_run"]).output().ok()?;
    let table = String::from_utf8(table.stdout).ok()?;
    let record = table.split_once("comment \"before: ")?.1.split_once('"')?.0;
    let pairs = record.split(' ').map(|pair| pair.split_once('='));
    let before: Vec<_> =
        pairs.map(|pair| pair.map(|(name, value)| (name.into(), value.into()))).collect::<Option<_>>()?;
    // Names and values go into a script.
    let fits = |(name, value): &(String, String)| {
        PARAMETERS.contains(&name.as_str()) && value.parse::<u32>().is_ok()
    };
    before.iter().all(fits).then_some(before)
}

/// Starts the process that waits for our end, however we end, and then undoes all. It has the lock meanwhile, as its standard
/// output, to which it writes nothing.
fn undo(before: &[(String, String)], lock: UnixListener) -> Child {
    let mut script =
        String::from("trap '' HUP INT TERM; cat >/dev/null; nft delete table inet flowbus_run || failed=1\n");
    for (name, value) in before {
        let _ = writeln!(script, "echo '{value}' 2>/dev/null >/proc/sys/net/netfilter/{name} || failed=1");
    }
    script.push_str("exit ${failed:-0}");
    Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(OwnedFd::from(lock))
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("there is a shell")
}

//! A network namespace of the test's own, with connection tracking turned on as asked.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{output_of, output_with_input, unique};

/// The rules that make a namespace track connections: the kernel does so only where some rule asks for it.
pub const TRACKING: &str = "
table inet tracking {
    chain track {
        type filter hook prerouting priority raw
        ct state invalid
    }
}
";

/// A network namespace, deleted with all that runs in it when dropped.
#[derive(Debug)]
pub struct Namespace {
    /// The name as `ip netns` lists it; none for the namespace that this process was started in, which is not deleted.
    name: Option<String>,
}

impl Namespace {
    /// Makes an empty namespace whose loopback is up. Nothing is tracked yet: see [`Namespace::nft`] and [`TRACKING`].
    ///
    /// # Panics
    /// Without root's privilege to make namespaces.
    #[must_use]
    pub fn new(label: &str) -> Self {
        let name = unique(label);
        output_of(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name: Some(name) };
        namespace.run("ip link set lo up");
        // Nobody else is on these links: without the search for duplicates their addresses work at once.
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0");
        // Any group may open ICMP datagram sockets, which is how the traffic module pings with identifiers of its choice.
        namespace.sysctl("net.ipv4.ping_group_range", "0 2147483647");
        namespace
    }

    /// A namespace with [`TRACKING`] on, counters and timestamps too: what most tests of one machine need.
    ///
    /// # Panics
    /// Without root's privilege to make namespaces.
    #[must_use]
    pub fn tracked(label: &str) -> Self {
        let namespace = Self::new(label);
        namespace.nft(TRACKING);
        namespace.track_counters_and_times();
        namespace
    }

    /// The namespace that this process was started in.
    #[must_use]
    pub fn host() -> Self {
        Self { name: None }
    }

    /// The file that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> String {
        match &self.name {
            Some(name) => format!("/run/netns/{name}"),
            None => format!("/proc/{}/ns/net", std::process::id()),
        }
    }

    /// A command that runs in the namespace; its process id is the program's own.
    ///
    /// It enters by nsenter and not by `ip netns exec`, which would give the program another /sys.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// Runs a command line, its words separated by spaces, and returns its standard output.
    ///
    /// # Panics
    /// If the command fails.
    pub fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a command line has a program");
        output_of(self.command(program).args(words))
    }

    /// Loads nft rules in the text form of `nft -f`.
    ///
    /// # Panics
    /// If nft refuses them.
    pub fn nft(&self, rules: &str) {
        output_with_input(self.command("nft").args(["-f", "-"]), rules);
    }

    /// Sets a kernel parameter of the namespace: `net.netfilter.nf_conntrack_acct`, "1".
    ///
    /// # Panics
    /// If there is no such parameter or it refuses the value.
    pub fn sysctl(&self, parameter: &str, value: &str) {
        let path = format!("/proc/sys/{}", parameter.replace('.', "/"));
        self.enter(|| {
            std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path} = {value}: {error}"))
        });
    }

    /// Makes the kernel keep counters and start and stop times of the flows created from now on.
    ///
    /// # Panics
    /// If the kernel has no connection tracking.
    pub fn track_counters_and_times(&self) {
        self.sysctl("net.netfilter.nf_conntrack_acct", "1");
        self.sysctl("net.netfilter.nf_conntrack_timestamp", "1");
    }

    /// The value of a kernel parameter, as [`Namespace::sysctl`] takes it.
    ///
    /// # Panics
    /// If there is no such parameter.
    #[must_use]
    pub fn sysctl_value(&self, parameter: &str) -> String {
        let path = format!("/proc/sys/{}", parameter.replace('.', "/"));
        self.enter(|| std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")))
            .trim()
            .to_owned()
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets that it opens stay in the namespace for good.
    ///
    /// # Panics
    /// If the namespace cannot be entered or `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let door = File::open(self.path()).unwrap_or_else(|error| panic!("{}: {error}", self.path()));
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(door.as_fd(), Some(LinkNameSpaceType::Network))
                    .unwrap_or_else(|error| panic!("{} cannot be entered: {error}", self.path()));
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let Some(name) = &self.name else { return };
        let pids = Command::new("ip").args(["netns", "pids", name]).stdin(Stdio::null()).output();
        let pids =
            pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()).filter_map(Pid::from_raw) {
            // Sockets of a test's own threads keep their namespace without living in it, so this never finds ourselves.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        let _ = Command::new("ip").args(["netns", "del", name]).stdin(Stdio::null()).status();
    }
}

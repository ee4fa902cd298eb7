//! A machine: a Debian root booted by systemd-nspawn, with a real systemd, journald and system bus, and a network namespace of
//! its own. The package is installed in it as a person would.

mod bus;
mod layer;
mod package;
mod store;

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::cgroup::ControlGroup;
use crate::process::{complain, output_of, wait_for};
use crate::{Namespace, conntrack};

pub use bus::{control, monitor};
pub(crate) use layer::Layer;
pub use package::{package, previous_package};

/// Which program is the system bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemBus {
    /// dbus-daemon, the reference.
    Daemon,
    /// dbus-broker, the default of Fedora and others.
    Broker,
}

/// A booted machine, gone with its owner.
#[derive(Debug)]
pub struct Machine {
    layer: Layer,
    process: Child,
    /// The machine's PID 1, as the host numbers it.
    leader: u32,
    namespace: Namespace,
    installed: bool,
    _group: ControlGroup,
}

/// A user who is in the group flowbus, made by [`Machine::install`].
pub const MEMBER: &str = "member";
/// A user who is not in the group flowbus, made by [`Machine::install`].
pub const STRANGER: &str = "stranger";

impl Machine {
    /// Boots a machine without flowbus.
    ///
    /// # Panics
    /// Without root's privileges, and if it does not come up; the message has its console.
    #[must_use]
    pub fn boot(bus: SystemBus) -> Self {
        Self::boot_with(Layer::new(), bus, &[], "")
    }

    /// Boots a machine whose bus keeps at most this many bytes that are not read, and installs flowbus.
    ///
    /// # Panics
    /// If the machine does not come up, or dpkg fails.
    #[must_use]
    pub fn installed_with_bus_keeping(bus: SystemBus, bytes: u64) -> Self {
        let (limit, bytes) = match bus {
            // What it has received from a connection.
            SystemBus::Daemon => ("max_incoming_bytes", bytes),
            // What it keeps for a connection, which the broker multiplies by the connections that a user may have.
            SystemBus::Broker => ("max_outgoing_bytes", bytes / 64),
        };
        let layer = Layer::new();
        let limit = format!("<busconfig><limit name=\"{limit}\">{bytes}</limit></busconfig>\n");
        std::fs::write(layer.root().join("etc/dbus-1/system-local.conf"), limit)
            .expect("a new root takes files");
        let mut machine = Self::boot_with(layer, bus, &[], "");
        machine.install(package());
        machine
    }

    /// Boots a machine that may load BPF programs, and installs flowbus.
    ///
    /// # Panics
    /// If the machine does not come up, or dpkg fails.
    #[must_use]
    pub fn installed_with_bpf(bus: SystemBus) -> Self {
        let mut machine = Self::boot_with_bpf(bus);
        machine.install(package());
        machine
    }

    /// Boots a machine that may load BPF programs, without flowbus.
    ///
    /// # Panics
    /// If the machine does not come up.
    #[must_use]
    pub fn boot_with_bpf(bus: SystemBus) -> Self {
        let options = ["--capability=CAP_BPF,CAP_PERFMON", "--bind-ro=/sys/kernel/tracing"];
        Self::boot_with(Layer::new(), bus, &options, "bpf perf_event_open")
    }

    /// Boots a machine with more options of nspawn and more system calls.
    fn boot_with(layer: Layer, bus: SystemBus, options: &[&str], system_calls: &str) -> Self {
        if bus == SystemBus::Broker {
            let alias = layer.root().join("etc/systemd/system/dbus.service");
            symlink("/lib/systemd/system/dbus-broker.service", alias).expect("a new root takes links");
        }
        let namespace = Namespace::new("machine");
        let console = File::create(layer.console()).expect("a directory of our own takes files");
        let group = ControlGroup::new("machine");
        let process = group
            .command("systemd-nspawn")
            .arg("--directory")
            .arg(layer.root())
            .arg(format!("--network-namespace-path={}", namespace.path()))
            // What --private-network brings: PID 1 opens the sockets, and may set the namespace's parameters.
            .arg("--capability=CAP_NET_ADMIN")
            // A real machine lets everybody confine themselves.
            .arg(format!(
                "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self {system_calls}"
            ))
            .args(options)
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
            // The machine that runs the tests may have no systemd of its own.
            .args(["--boot", "--console=read-only", "--register=no", "--keep-unit", "--hostname=machine"])
            .stdin(Stdio::null())
            .stdout(console.try_clone().expect("a file can be shared"))
            .stderr(console)
            .spawn()
            .expect("systemd-nspawn is installed");
        let mut machine = Self { layer, process, leader: 0, namespace, installed: false, _group: group };
        machine.leader = wait_for("systemd-nspawn to start PID 1", || machine.find_leader());
        wait_for("the machine to be up", || {
            machine.must_live();
            let state = machine.command("systemctl").arg("is-system-running").output().ok()?;
            matches!(String::from_utf8_lossy(&state.stdout).trim(), "running" | "degraded").then_some(())
        });
        machine
    }

    /// Boots a machine and installs flowbus.
    ///
    /// # Panics
    /// If the machine does not come up, or dpkg fails.
    #[must_use]
    pub fn installed(bus: SystemBus) -> Self {
        let mut machine = Self::boot(bus);
        machine.install(package());
        machine
    }

    /// Installs or upgrades the package, and the first time makes [`MEMBER`] and [`STRANGER`].
    ///
    /// # Panics
    /// If dpkg fails.
    pub fn install(&mut self, package: &Path) {
        std::fs::copy(package, self.layer.root().join("root/flowbus.deb")).expect("the root takes files");
        self.run("dpkg --install /root/flowbus.deb");
        if !self.installed {
            self.run(&format!("useradd --groups flowbus {MEMBER}"));
            self.run(&format!("useradd {STRANGER}"));
            self.installed = true;
        }
    }

    /// The network namespace that is the machine's.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Where the machine's files are, seen from here; what is mounted inside (/run, /proc) is not in them.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.layer.root()
    }

    /// A command that runs inside, as root.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.leader));
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "--", program]);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8");
        command
    }

    /// A command that runs inside as a user, with the groups of that user.
    #[must_use]
    pub fn command_as(&self, user: &str, program: &str) -> Command {
        let mut command = self.command("setpriv");
        command.args([format!("--reuid={user}"), format!("--regid={user}"), "--init-groups".into()]);
        command.arg(program);
        command
    }

    /// Runs a command line inside as root, its words separated by spaces, and returns its standard output.
    ///
    /// # Panics
    /// If the command fails.
    pub fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a command line has a program");
        output_of(self.command(program).args(words))
    }

    /// Runs a shell script inside as root and returns its standard output.
    ///
    /// # Panics
    /// If the script fails.
    pub fn shell(&self, script: &str) -> String {
        output_of(self.command("sh").args(["-euc", script]))
    }

    /// Gives a unit a drop-in `/run/systemd/system/UNIT.d/NAME.conf`. What runs has it from its next start.
    ///
    /// # Panics
    /// If systemd does not read its units.
    pub fn override_unit(&self, unit: &str, name: &str, text: &str) {
        let directory = format!("/run/systemd/system/{unit}.d");
        self.shell(&format!("mkdir -p {directory}\ncat >{directory}/{name}.conf <<'END'\n{text}\nEND"));
        self.run("systemctl daemon-reload");
    }

    /// Gives both services a drop-in, and starts them anew: flowbusd at once, the helper when it is called.
    ///
    /// # Panics
    /// If flowbusd does not start.
    pub fn restart_with(&self, name: &str, text: &str) {
        for unit in ["flowbusd.service", "flowbus-control.service"] {
            self.override_unit(unit, name, text);
        }
        self.run("systemctl stop flowbus-control.service");
        self.run("systemctl restart flowbusd.service");
    }

    /// A property of a unit, as `systemctl show` prints it.
    ///
    /// # Panics
    /// If systemctl fails.
    #[must_use]
    pub fn unit(&self, unit: &str, property: &str) -> String {
        self.run(&format!("systemctl show --value --property={property} {unit}")).trim().to_owned()
    }

    /// Waits until a property of a unit has a value.
    ///
    /// # Panics
    /// If it never has; the message has the unit's journal.
    pub fn wait_for_unit(&self, unit: &str, property: &str, value: &str) {
        wait_for(&format!("{property} of {unit} to be {value}"), || {
            (self.unit(unit, property) == value).then_some(())
        });
    }

    /// The journal's entries that match, each with all its fields; `matches` are journalctl's arguments.
    ///
    /// # Panics
    /// If journalctl fails.
    #[must_use]
    pub fn journal(&self, matches: &[&str]) -> Vec<Value> {
        // What was sent before this is in the answer.
        self.run("journalctl --sync");
        let entries = output_of(self.command("journalctl").args(["--output=json", "--all"]).args(matches));
        entries.lines().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect()
    }

    /// Waits until flowbusd says that its table agrees with the kernel's, and has as many flows.
    ///
    /// # Panics
    /// If that never is so.
    pub fn wait_until_synchronized(&self) {
        wait_for("flowbusd to be synchronized", || {
            let synchronized = self.property("Synchronized").ok()? == Value::Bool(true);
            let flows = self.property("ActiveCount").ok()?;
            (synchronized && flows == conntrack::list(&self.namespace).len()).then_some(())
        });
    }

    fn find_leader(&mut self) -> Option<u32> {
        self.must_live();
        let parent = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        let child = children.split_whitespace().next()?.parse().ok()?;
        // Before this it is a helper of nspawn that has not entered the new namespaces yet.
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).ok()?;
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        let comm = std::fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
        (numbers.split_whitespace().nth(1) == Some("1") && comm.trim() == "systemd").then_some(child)
    }

    fn must_live(&mut self) {
        if let Some(status) = self.process.try_wait().expect("a child can be waited for") {
            let console = std::fs::read_to_string(self.layer.console()).unwrap_or_default();
            panic!("systemd-nspawn ended with {status}:\n{console}");
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() && self.leader != 0 {
            let journal = self.command("journalctl").args(["--no-pager", "--lines=60"]).output();
            let journal = journal.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            complain(&format!("the machine's journal:\n{}", journal.unwrap_or_default()));
        }
        // All of the machine ends with its PID 1, and nspawn with that.
        match i32::try_from(self.leader).ok().and_then(Pid::from_raw) {
            Some(leader) => drop(rustix::process::kill_process(leader, Signal::KILL)),
            None => drop(self.process.kill()),
        }
        let _ = self.process.wait();
    }
}

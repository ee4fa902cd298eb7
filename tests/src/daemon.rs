//! flowbusd and flowctl as cargo built them.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::process::Signal;
use serde_json::Value;

use crate::process::{DEADLINE, complain, signal, wait_for};
use crate::{Bus, Namespace};

/// The environment variable that names a directory of binaries to test, in place of those next to the test.
pub const BINARIES: &str = "FLOWBUS_BINARIES";

/// A configuration in which nobody asks for BPF programs.
pub const UNATTRIBUTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/unattributed.toml");

/// A configuration in which events are received from the socket, too.
pub const BY_SOCKET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/by-socket.toml");

/// A running flowbusd.
#[derive(Debug)]
pub struct Daemon {
    process: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

/// The path of a program of this workspace: of `$FLOWBUS_BINARIES`, else of the profile that the test itself was built with.
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let directories = match std::env::var_os(BINARIES) {
        Some(directory) => vec![PathBuf::from(directory)],
        None => {
            let test = std::env::current_exe().expect("a test knows its own path");
            test.ancestors().skip(1).take(2).map(PathBuf::from).collect()
        }
    };
    directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("{name} is not in {directories:?}: build it first with `cargo build -p flowbusd -p flowctl`, or use ./test")
    })
}

impl Daemon {
    /// Starts flowbusd in the namespace on the bus and returns once its table is synchronized and both names are there.
    ///
    /// # Panics
    /// If the daemon ends before that or takes for ever; the message has its log.
    #[must_use]
    pub fn start(namespace: &Namespace, bus: &Bus) -> Self {
        Self::start_with(namespace, bus, &[])
    }

    /// Starts flowbusd with more arguments; see [`Daemon::start`].
    ///
    /// # Panics
    /// If the daemon ends before it is synchronized, or takes for ever.
    #[must_use]
    pub fn start_with(namespace: &Namespace, bus: &Bus, arguments: &[&str]) -> Self {
        let mut daemon = Self::spawn(Self::command(namespace, bus).args(arguments));
        daemon.wait_until_synchronized(bus);
        daemon
    }

    /// The command that starts flowbusd there, for tests of what it does with other arguments or fewer privileges.
    #[must_use]
    pub fn command(namespace: &Namespace, bus: &Bus) -> Command {
        let mut command = namespace.command(binary("flowbusd").to_str().expect("paths here are UTF-8"));
        command.args(["--bus", &bus.address()]);
        // BPF programs see the whole machine, and other tests on it: those who want them say so.
        command.args(["--config", UNATTRIBUTED]);
        command
    }

    /// Starts flowbusd with BPF programs that report sockets, which run when this returns; see [`Daemon::start`].
    ///
    /// # Panics
    /// If the daemon ends before it is synchronized, takes for ever, or the programs are refused.
    #[must_use]
    pub fn start_attributed(namespace: &Namespace, bus: &Bus) -> Self {
        let mut daemon = Self::spawn(Self::command(namespace, bus).args(["--config", "/dev/null"]));
        daemon.wait_until_attributed(bus);
        daemon
    }

    /// Waits until the table is synchronized and flows get their owners.
    ///
    /// # Panics
    /// If the daemon ends before that, takes for ever, or the programs are refused.
    pub fn wait_until_attributed(&mut self, bus: &Bus) {
        self.wait_until_synchronized(bus);
        wait_for("BPF programs to run", || (bus.property("Attribution").ok()? == "bpf").then_some(()));
    }

    /// Starts a command that is a flowbusd and collects its log.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn spawn(command: &mut Command) -> Self {
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(process.stderr.take().expect("stderr is piped")).lines();
        let sink = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = sink.lock().expect("no one panics with the log in hand");
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { process, log, reader: Some(reader) }
    }

    /// Waits until the daemon answers on the bus with a synchronized table and has its name for events.
    ///
    /// # Panics
    /// If the daemon ends before that, or takes for ever.
    pub fn wait_until_synchronized(&mut self, bus: &Bus) {
        wait_for("flowbusd to be on the bus with a synchronized table", || {
            if let Some(status) = self.process.try_wait().expect("a child can be waited for") {
                panic!("flowbusd ended with {status}:\n{}", self.finished_log());
            }
            let names = bus.call(DBUS_LIST_NAMES, &[]).ok()?;
            let owned = |name: &str| names[0].as_array().is_some_and(|names| names.iter().any(|n| n == name));
            (owned("org.flowbus.FlowMonitor1") && owned("org.flowbus.FlowEvents1")).then_some(())?;
            (bus.property("Synchronized").ok()? == Value::Bool(true)).then_some(())
        });
    }

    /// What the daemon has written to standard error so far.
    ///
    /// # Panics
    /// Never, unless the thread that collects the log has.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().expect("no one panics with the log in hand").clone()
    }

    fn finished_log(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.log()
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends the daemon a signal.
    ///
    /// # Panics
    /// If the daemon is gone.
    pub fn signal(&self, number: Signal) {
        signal(&self.process, number);
    }

    /// Waits for the daemon to end by itself: its status and its whole log.
    ///
    /// # Panics
    /// If it is still running after the deadline.
    pub fn ended(&mut self) -> (ExitStatus, String) {
        let status = wait_for(&format!("flowbusd to end within {DEADLINE:?}"), || {
            self.process.try_wait().expect("a child can be waited for")
        });
        (status, self.finished_log())
    }

    /// Ends the daemon with SIGTERM and insists on exit status 0.
    ///
    /// # Panics
    /// If it ends otherwise, with its log.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let (status, log) = self.ended();
        assert!(status.success(), "flowbusd ended with {status} after SIGTERM:\n{log}");
    }
}

const DBUS_LIST_NAMES: [&str; 4] =
    ["org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "ListNames"];

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            complain(&format!("the log of flowbusd {}:\n{}", self.process.id(), self.finished_log()));
        }
    }
}

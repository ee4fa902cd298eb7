//! Child processes: output as text, a directory of their own, and the wait for a condition.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use rustix::process::{Pid, Signal};

/// How long anything may take before the test is given up. It is never what a test measures.
pub const DEADLINE: Duration = Duration::from_secs(60);

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A name that no other test, thread or run on this machine has: the process, when it began, a number, and `label`.
///
/// # Panics
/// If the label makes the name longer than the 15 bytes of an interface name would leave room for a namespace's own names.
#[must_use]
pub fn unique(label: &str) -> String {
    // Process numbers are used again, and what a killed run leaves behind keeps its name.
    static BEGIN: LazyLock<u128> =
        LazyLock::new(|| UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() % 100_000_000));
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("flowbus-{}-{:x}-{number}-{label}", std::process::id(), *BEGIN)
}

/// Runs a command to its end and returns its standard output.
///
/// # Panics
/// If it cannot be started or does not exit with 0; the message has its standard error.
pub fn output_of(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    checked(command, output)
}

/// Runs a command to its end with `input` on its standard input, and returns its standard output.
///
/// # Panics
/// If the command cannot be started or does not exit with 0; the message has its standard error.
pub fn output_with_input(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    child
        .stdin
        .take()
        .expect("stdin is piped")
        .write_all(input.as_bytes())
        .expect("the command reads its input");
    let output = child.wait_with_output().expect("the command can be waited for");
    checked(command, output)
}

fn checked(command: &Command, output: Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        panic!("{command:?} ended with {}\n{stdout}{stderr}", output.status);
    }
    stdout
}

/// Sends a signal to a child that has not been waited for yet.
///
/// # Panics
/// If the kernel refuses.
pub fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).expect("a child can be signalled");
}

/// A command that the kernel kills when the thread that started it has ended, however it ended: SIGKILL too.
#[must_use]
pub fn tied(command: &Command) -> Command {
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(name, value),
            None => tied.env_remove(name),
        };
    }
    tied
}

/// Writes to standard error, whether or not anybody is left to read it: `eprintln!` panics without a reader, which in a
/// destructor would keep the destructors that follow from running.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Asks until there is an answer; `what` is what the test was waiting for if there never is one.
///
/// # Panics
/// If there is no answer within [`DEADLINE`].
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < DEADLINE, "still waiting after {DEADLINE:?} for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A directory that goes away with its owner.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Makes an empty directory below the system's directory for temporary files.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn new(label: &str) -> Self {
        let path = std::env::temp_dir().join(unique(label));
        std::fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    /// The directory's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in the directory and returns its path.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left behind is a few files in /tmp; a second panic would hide the first.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

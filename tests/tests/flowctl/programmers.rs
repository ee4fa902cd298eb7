//! The examples for programmers, run as they are.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use flowbus_tests::process::{DEADLINE, output_of, wait_for};
use flowbus_tests::{Bus, Daemon, Monitor, Namespace, conntrack, inject};
use serde_json::Value;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

/// The Rust example, as cargo built it.
fn rust_example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples/follow");
    assert!(
        path.is_file(),
        "{}: build it first with `cargo build -p flowbus-interfaces --examples`",
        path.display()
    );
    path
}

/// More flows than a page has, and a daemon that has them and has told of them.
fn started() -> (Namespace, Bus, Daemon) {
    let (namespace, bus) = (Namespace::tracked("host"), Bus::start());
    inject::udp(&namespace, 53, 1_100);
    let monitor = Monitor::start(&bus, "org.flowbus.FlowEvents1");
    let daemon = Daemon::start(&namespace, &bus);
    let _ = monitor.signal("Resynced");
    (namespace, bus, daemon)
}

/// What an example prints of a flow.
fn line(what: &str, flow: &Value) -> String {
    let text = |name: &str| flow[name].as_str().unwrap().to_owned();
    format!("{what} {} {} {} {}", flow["id"], text("protocol"), text("src"), text("dst"))
}

fn lines(what: &str, flows: &[Value]) -> BTreeSet<String> {
    flows.iter().map(|flow| line(what, flow)).collect()
}

/// How long a line is waited for before more is done for it.
const POLL: Duration = Duration::from_millis(200);

/// A running example and its lines.
struct Running {
    process: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { process, lines }
    }

    /// The next so many lines.
    fn take(&self, count: usize) -> BTreeSet<String> {
        (0..count).map(|_| self.lines.recv_timeout(DEADLINE).unwrap()).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Lists what is alive, then tells of births and ends.
fn follows(program: &mut Command) {
    let (namespace, bus, daemon) = started();
    let flows = bus.list("ListActive", &[]).unwrap();
    let example = Running::start(program.arg(bus.address()));
    assert_eq!(example.take(flows.len()), lines("alive", &flows));
    inject::udp(&namespace, 54, 2);
    let born = example.take(2);
    assert_eq!(born, lines("new", &bus.list("ListActive", &[["dport", "q", "54"]]).unwrap()));
    conntrack::delete(&namespace, "-p udp --dport 54");
    let ended: BTreeSet<_> = born.iter().map(|line| line.replace("new", "destroy")).collect();
    assert_eq!(example.take(2), ended);
    daemon.stop();
}

#[test]
fn the_example_in_rust_follows_a_stream() {
    follows(&mut Command::new(rust_example()));
}

#[test]
fn the_example_in_python_keeps_a_copy_of_the_table() {
    follows(&mut Command::new(example("follow.py")));
}

#[test]
fn the_example_in_python_ends_with_the_bus() {
    let (_namespace, mut bus, daemon) = started();
    let mut example = Running::start(Command::new(example("follow.py")).arg(bus.address()));
    example.take(1);
    bus.stop();
    let status = wait_for("its end", || example.process.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
    drop(daemon);
}

#[test]
fn what_busctl_monitor_shows_is_a_line_for_each_event() {
    let (namespace, bus, daemon) = started();
    let example =
        Running::start(Command::new(example("monitor.sh")).arg(format!("--address={}", bus.address())));
    // busctl does not say when it listens: flows come until one is shown.
    let first = wait_for("a line", || {
        inject::udp(&namespace, 55, 1);
        conntrack::delete(&namespace, "-p udp --dport 55");
        example.lines.recv_timeout(POLL).ok()
    });
    let words: Vec<&str> = first.split(' ').collect();
    assert!(words.len() == 8 && ["new", "destroy"].contains(&words[0]), "{first}");
    assert_eq!((words[2], words[7]), ("udp", "55"), "{first}");
    daemon.stop();
}

#[test]
fn the_example_in_shell_lists_page_by_page() {
    let (_namespace, bus, daemon) = started();
    let flows = bus.list("ListActive", &[]).unwrap();
    let text = output_of(Command::new(example("list.sh")).arg(format!("--address={}", bus.address())));
    assert_eq!(text.lines().map(str::to_owned).collect::<BTreeSet<_>>(), lines("alive", &flows));
    assert_eq!(text.lines().count(), flows.len(), "each once");
    daemon.stop();
}

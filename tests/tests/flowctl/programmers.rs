//! The examples for programmers, run as they are.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use flowbus_tests::process::{DEADLINE, Directory, output_of, wait_for};
use flowbus_tests::{Bus, Daemon, Monitor, Namespace, conntrack, inject};
use rustix::process::Signal;
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

/// The example in C, compiled as its first lines say, for as long as the directory is there.
fn c_example(directory: &Directory) -> Command {
    let program = directory.path().join("follow");
    let compile = r#"cc -Wall -Wextra -Wno-unused-parameter -Werror "$0" -o "$1" $(pkg-config --cflags --libs gio-2.0)"#;
    output_of(Command::new("sh").args(["-c", compile]).arg(example("follow.c")).arg(&program));
    Command::new(program)
}

/// The example in Go, built with Debian's package of its one dependency.
fn go_example(directory: &Directory) -> Command {
    let (source, program) =
        (directory.path().join("src/github.com/godbus/dbus"), directory.path().join("follow"));
    std::fs::create_dir_all(&source).unwrap();
    // Debian has its fifth version where its first was.
    symlink("/usr/share/gocode/src/github.com/godbus/dbus", source.join("v5")).unwrap();
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(&program).arg(example("follow.go"));
    build
        .env("GO111MODULE", "off")
        .env("GOPATH", directory.path())
        .env("GOCACHE", directory.path().join("cache"));
    output_of(&mut build);
    Command::new(program)
}

/// A namespace with more flows than a page has, and a daemon that has them and has sent its first signal.
fn started() -> (Namespace, Bus, Daemon) {
    started_with(1_100)
}

fn started_with(flows: u32) -> (Namespace, Bus, Daemon) {
    let (namespace, bus) = (Namespace::tracked("host"), Bus::start());
    inject::udp(&namespace, 53, flows);
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

/// What is alive, as the examples print it.
fn table(bus: &Bus) -> BTreeSet<String> {
    lines("alive", &bus.list("ListActive", &[["limit", "u", "1000"]]).unwrap())
}

/// How long a line is waited for before more is done for it.
const POLL: Duration = Duration::from_millis(200);

/// A running example and its lines.
struct Example {
    process: Child,
    lines: Receiver<String>,
}

impl Example {
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { process, lines }
    }

    /// Applies what the example prints to a copy of the table until that is this one.
    fn becomes(&self, copy: &mut BTreeSet<String>, table: &BTreeSet<String>) {
        wait_for("the copy to be the table", || {
            for line in self.lines.try_iter() {
                let (what, flow) = line.split_once(' ').unwrap();
                let flow = format!("alive {flow}");
                match what {
                    "alive" | "new" | "update" => _ = copy.insert(flow),
                    "destroy" | "gone" => _ = copy.remove(&flow),
                    other => panic!("{other} is no event"),
                }
            }
            (copy == table).then_some(())
        });
    }

    /// Waits until the example has ended with an error.
    fn fails(&mut self) {
        let status = wait_for("its end", || self.process.try_wait().unwrap());
        assert_eq!(status.code(), Some(1));
    }

    /// The next lines, this many.
    fn take(&self, count: usize) -> BTreeSet<String> {
        (0..count).map(|_| self.lines.recv_timeout(DEADLINE).unwrap()).collect()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_example_in_rust_prints_what_is_alive_then_each_event() {
    let (namespace, bus, daemon) = started();
    let flows = bus.list("ListActive", &[]).unwrap();
    let example = Example::start(Command::new(rust_example()).arg(bus.address()));
    assert_eq!(example.take(flows.len()), lines("alive", &flows));
    inject::udp(&namespace, 54, 2);
    let born = example.take(2);
    assert_eq!(born, lines("new", &bus.list("ListActive", &[["dport", "q", "54"]]).unwrap()));
    conntrack::delete(&namespace, "-p udp --dport 54");
    let ended: BTreeSet<_> = born.iter().map(|line| line.replace("new", "destroy")).collect();
    assert_eq!(example.take(2), ended);
    daemon.stop();
}

/// How many flows there are while others come and go.
const MANY: u32 = 30_000;

/// 1,500 flows that come and go, and 1,500 that stay.
fn churn(namespace: &Namespace) {
    for port in 1_000..1_015 {
        inject::udp(namespace, port, 100);
        inject::udp(namespace, port + 1_000, 100);
        conntrack::delete(namespace, &format!("-p udp --dport {port}"));
    }
}

#[test]
fn the_examples_keep_copies_of_a_crowded_table_over_a_kill_of_flowbusd_and_end_with_an_error_when_the_bus_does()
 {
    let directories = [Directory::new("example"), Directory::new("example")];
    let mut programs =
        [Command::new(example("follow.py")), c_example(&directories[0]), go_example(&directories[1])];
    let (namespace, mut bus, mut daemon) = started_with(MANY);
    let mut copies: Vec<_> = programs
        .iter_mut()
        .map(|program| (Example::start(program.arg(bus.address())), BTreeSet::new()))
        .collect();
    let there = table(&bus);
    let stream = Example::start(Command::new(rust_example()).arg(bus.address()));
    let mut list = Command::new(example("list.sh"));
    list.arg(format!("--address={}", bus.address()));
    let listed = thread::scope(|scope| {
        let listed = scope.spawn(|| output_of(&mut list));
        churn(&namespace);
        listed.join().unwrap()
    });
    daemon.wait_until_synchronized(&bus);
    let before = table(&bus);
    stream.becomes(&mut BTreeSet::new(), &before);
    for (example, copy) in &mut copies {
        example.becomes(copy, &before);
    }
    // The shell's list has each flow once that was there all the time.
    let lines: BTreeSet<_> = listed.lines().map(str::to_owned).collect();
    assert_eq!(listed.lines().count(), lines.len());
    assert!(lines.is_superset(&there));

    daemon.signal(Signal::KILL);
    _ = daemon.ended();
    conntrack::delete(&namespace, "-p udp --dport 2000");
    let daemon = Daemon::start(&namespace, &bus);
    inject::udp(&namespace, 54, 2);
    let after = wait_for("all flows", || {
        let after = table(&bus);
        (after.len() == before.len() - 100 + 2).then_some(after)
    });
    for (example, copy) in &mut copies {
        example.becomes(copy, &after);
    }
    bus.stop();
    for (example, _) in &mut copies {
        example.fails();
    }
    assert!(!list.output().unwrap().status.success());
    drop(daemon);
}

#[test]
fn the_example_in_rust_has_each_change_over_a_restart_of_the_bus_and_ends_with_flowbusd() {
    let (namespace, mut bus, mut daemon) = started();
    let mut example = Example::start(Command::new(rust_example()).arg(bus.address()));
    let mut copy = BTreeSet::new();
    example.becomes(&mut copy, &table(&bus));
    // Its stream is a pipe, which the bus is no part of.
    bus.restart();
    inject::udp(&namespace, 54, 200);
    daemon.wait_until_synchronized(&bus);
    example.becomes(&mut copy, &table(&bus));
    daemon.stop();
    example.fails();
}

#[test]
fn what_busctl_monitor_shows_is_a_line_for_each_event_and_an_error_when_the_bus_ends() {
    let (namespace, mut bus, daemon) = started();
    let mut example =
        Example::start(Command::new(example("monitor.sh")).arg(format!("--address={}", bus.address())));
    // busctl does not say when it listens: flows come until one is shown.
    let first = wait_for("a line", || {
        inject::udp(&namespace, 55, 1);
        conntrack::delete(&namespace, "-p udp --dport 55");
        example.lines.recv_timeout(POLL).ok()
    });
    let words: Vec<&str> = first.split(' ').collect();
    assert!(words.len() == 8 && ["new", "destroy"].contains(&words[0]), "{first}");
    assert_eq!((words[2], words[7]), ("udp", "55"), "{first}");
    bus.stop();
    example.fails();
    drop(daemon);
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

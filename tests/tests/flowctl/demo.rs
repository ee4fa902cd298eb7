//! What `./run` shows, and what it leaves behind: nothing, however it ends.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use flowbus_tests::process::{Directory, output_of, signal, unique, wait_for};
use flowbus_tests::{Namespace, Screen};
use rustix::process::{Pid, Signal, kill_process};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const PARAMETERS: [&str; 2] = ["net.netfilter.nf_conntrack_acct", "net.netfilter.nf_conntrack_timestamp"];

/// One `./run`, and how to find what belongs to it.
struct Run {
    /// A variable of the run's environment, which all that it starts inherits.
    marker: String,
    temporary: Directory,
}

/// A shell as on a terminal. What starts tests in the background may ignore SIGINT, and no shell can undo that.
const SHELL: [&str; 4] = ["--default-signal=INT,QUIT", "sh", "-c", "--"];

impl Run {
    fn new() -> Self {
        Self { marker: unique("run"), temporary: Directory::new("tmp") }
    }

    /// A shell's command line that becomes `./run`.
    fn line(&self, arguments: &str) -> String {
        let (marker, temporary, demo) =
            (&self.marker, self.temporary.path().display(), env!("CARGO_BIN_EXE_demo"));
        format!(
            "cd {ROOT}; TMPDIR={temporary} FLOWBUS_DEMO={demo} FLOWBUS_TEST_RUN={marker} exec ./run {arguments}"
        )
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new("env");
        command.args(SHELL).arg(self.line(arguments));
        command
    }

    /// `./run` with a namespace that stands in for the host: the show only knows the one it is started in.
    fn command_on(&self, host: &Namespace, arguments: &str) -> Command {
        let mut command = host.command("env");
        command.args(SHELL).arg(self.line(arguments));
        command
    }

    /// The processes that belong to the run: number and command line.
    fn processes(&self) -> Vec<(i32, String)> {
        let marker = format!("FLOWBUS_TEST_RUN={}", self.marker);
        let entries = std::fs::read_dir("/proc").unwrap().map_while(Result::ok);
        let of_it = |pid: &i32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes())
        };
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(of_it);
        pids.map(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            (pid, String::from_utf8_lossy(&line).replace('\0', " "))
        })
        .collect()
    }

    /// Kills the processes whose command line contains `what`.
    fn kill(&self, what: &str) {
        let pids: Vec<i32> = self
            .processes()
            .into_iter()
            .filter(|(_, line)| line.contains(what))
            .map(|(pid, _)| pid)
            .collect();
        assert!(!pids.is_empty(), "{what} runs");
        for pid in pids {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    }

    /// Waits until nothing that belongs to the run goes on, and looks for what else it could have left.
    fn nothing_is_left(&self) {
        let mut last = Vec::new();
        wait_for("all processes of the show to end", || {
            let left = self.processes();
            if left != last {
                eprintln!("still there: {left:?}");
                last.clone_from(&left);
            }
            left.is_empty().then_some(())
        });
        let files: Vec<_> =
            self.temporary.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(files.is_empty(), "{files:?}");
    }
}

/// Whether a line shows a flow's birth, behind its time.
fn is_birth(line: &str) -> bool {
    line.split_whitespace().nth(1) == Some("new")
}

/// The lines of a running show, once it shows events.
fn lines_from_the_first_event(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| is_birth(&line)), "events are shown");
    lines
}

/// A namespace like a machine where nothing is tracked and nothing counted.
fn host() -> Namespace {
    let host = Namespace::new("host");
    PARAMETERS.iter().for_each(|parameter| host.sysctl(parameter, "0"));
    host
}

fn is_as_before(host: &Namespace) -> bool {
    host.run("nft list tables").is_empty()
        && PARAMETERS.iter().all(|parameter| host.sysctl_value(parameter) == "0")
}

fn is_changed(host: &Namespace) -> bool {
    host.run("nft list tables").contains("flowbus_run")
        && PARAMETERS.iter().all(|parameter| host.sysctl_value(parameter) == "1")
}

#[test]
fn the_network_shows_events_and_tables_and_goes_away() {
    let run = Run::new();
    let text = output_of(&mut run.command("--seconds 4"));
    for word in
        ["198.18.0.2", "2001:2:0:1::2", "tcp", "udp", "icmp", "CHROME", "Active flows", "Closed flows", "top"]
    {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
    let first = text.lines().find(|line| is_birth(line)).unwrap();
    assert_eq!(first.split_whitespace().nth(2), Some("1"), "events begin with the first flow:\n{text}");
    let active = text.split("Active flows").nth(1).unwrap().split("Closed flows").next().unwrap();
    let rows: Vec<&str> =
        active.lines().filter(|line| line.contains("198.18.") || line.contains("2001:2:")).collect();
    assert_eq!(rows.len(), 10, "{text}");
    // BYTES of both directions.
    let counted = |row: &&&str| {
        row.split_whitespace()
            .any(|cell| cell.split('/').filter(|half| half.parse::<u32>().is_ok()).count() == 2)
    };
    assert_eq!(rows.iter().filter(counted).count(), 10, "{text}");
    // Client and server are one process, in two other namespaces.
    for row in rows.iter().filter(|row| row.contains(" tcp ") || row.contains(" udp ")) {
        assert_eq!(row.matches("demo[").count(), 2, "{row}\n{text}");
    }
    run.nothing_is_left();
}

#[test]
fn an_interrupt_ends_it_in_order() {
    let run = Run::new();
    let mut child = run.command("--seconds 600").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = lines_from_the_first_event(&mut child);
    signal(&child, Signal::INT);
    assert!(lines.any(|line| line.starts_with("Closed flows")), "the tables are shown at the end");
    lines.for_each(drop);
    assert!(child.wait().unwrap().success());
    run.nothing_is_left();
}

#[test]
fn the_host_is_as_before_afterwards() {
    let (run, host) = (Run::new(), host());
    let text = output_of(&mut run.command_on(&host, "--host --seconds 2"));
    for words in [
        "undo: nft delete table inet flowbus_run",
        "undo: sysctl -w net.netfilter.nf_conntrack_acct=0",
        "127.0.0.1",
        "undone",
    ] {
        assert!(text.contains(words), "{words} is not in:\n{text}");
    }
    assert!(is_as_before(&host));
    run.nothing_is_left();
}

#[test]
fn nothing_is_left_whoever_is_killed() {
    for (host_option, what) in [("", "a network"), ("--host", "the host")] {
        for (number, victim) in [
            (Signal::TERM, None),
            (Signal::HUP, None),
            (Signal::KILL, None),
            (Signal::KILL, Some("--enclosed")),
            // After which the show itself panics.
            (Signal::KILL, Some("flowbusd --bus")),
            (Signal::KILL, Some("dbus-daemon")),
        ] {
            eprintln!("{what}: {number:?} for {}", victim.unwrap_or("./run"));
            let (run, host) = (Run::new(), host());
            let mut child = run
                .command_on(&host, &format!("{host_option} --seconds 600"))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = lines_from_the_first_event(&mut child);
            assert_eq!(is_changed(&host), host_option == "--host");
            match victim {
                None => signal(&child, number),
                Some(victim) => run.kill(victim),
            }
            if matches!(victim, Some("flowbusd --bus" | "dbus-daemon")) {
                signal(&child, Signal::INT);
            }
            lines.for_each(drop);
            let _ = child.wait().unwrap();
            run.nothing_is_left();
            assert!(is_as_before(&host));
        }
    }
}

#[test]
fn nothing_is_left_when_the_terminal_closes() {
    for (end, shows) in [
        ("--seconds 600", "new "),
        ("--seconds 600 | less", "new "),
        ("--host --seconds 600 | less", "127.0.0.1"),
    ] {
        let (run, host) = (Run::new(), host());
        let line = run.line(end).replace("exec ", &format!("exec nsenter --net={} -- ", host.path()));
        let screen = Screen::start(&format!("({line})"));
        screen.wait_for(shows);
        drop(screen);
        run.nothing_is_left();
        assert!(is_as_before(&host));
    }
}

#[test]
fn nothing_is_left_when_the_shell_in_the_terminal_is_killed() {
    let (run, host) = (Run::new(), host());
    let line =
        run.line("--host --seconds 600").replace("exec ", &format!("exec nsenter --net={} -- ", host.path()));
    let screen = Screen::start(&format!("({line})"));
    screen.wait_for("127.0.0.1");
    kill_process(Pid::from_raw(screen.is("#{pane_pid}").parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    run.nothing_is_left();
    assert!(is_as_before(&host));
}

#[test]
fn it_ends_when_nobody_reads_what_it_shows() {
    let (run, host) = (Run::new(), host());
    let line = run.line("--host --seconds 600").replace("exec ", "");
    assert_eq!(
        output_of(host.command("sh").args(["-c", &format!("({line}) 2>&1 | head -n 3")])).lines().count(),
        3
    );
    run.nothing_is_left();
    assert!(is_as_before(&host));
    // Nor is a full disk below the output a reason.
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let _ = run.command_on(&host, "--host --seconds 1").stdout(full()).stderr(full()).status().unwrap();
    run.nothing_is_left();
    assert!(is_as_before(&host));
}

#[test]
fn two_shows_at_once_are_two_and_a_second_of_the_host_is_refused() {
    let (first, second, host) = (Run::new(), Run::new(), host());
    let mut child = first.command_on(&host, "--host --seconds 600").stdout(Stdio::piped()).spawn().unwrap();
    let lines = lines_from_the_first_event(&mut child);
    let refused = second.command_on(&host, "--host").output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Another ./run --host"), "{refused:?}");
    assert!(is_changed(&host), "those of the first are as they were");
    assert!(output_of(&mut second.command_on(&host, "--seconds 1")).contains("Closed flows"));
    second.nothing_is_left();
    signal(&child, Signal::INT);
    lines.for_each(drop);
    assert!(child.wait().unwrap().success());
    first.nothing_is_left();
    assert!(is_as_before(&host));
}

#[test]
fn the_next_show_of_the_host_undoes_what_a_kill_of_everything_left() {
    let (run, host) = (Run::new(), host());
    let mut child = run.command_on(&host, "--host --seconds 600").stdout(Stdio::piped()).spawn().unwrap();
    let lines = lines_from_the_first_event(&mut child);
    // The process that would undo it first.
    run.kill("nft delete table");
    run.kill("");
    lines.for_each(drop);
    let _ = child.wait().unwrap();
    run.nothing_is_left();
    assert!(is_changed(&host), "nobody was left to undo it");
    assert!(output_of(&mut run.command_on(&host, "--host --seconds 1")).contains("(was 0)"));
    run.nothing_is_left();
    assert!(is_as_before(&host));
}

#[test]
fn wrong_usage_is_refused_and_help_is_given_before_anything_is_done() {
    for (arguments, status, words) in [
        ("-h", 0, "Usage: ./run"),
        ("--seconds 5 --help", 0, "Usage: ./run"),
        ("--seconds", 2, "--seconds takes a number"),
        ("--seconds soon", 2, "--seconds takes a number"),
        ("--hots", 2, "unknown argument"),
    ] {
        let line = format!("cd {ROOT}; PATH=/usr/bin:/bin exec ./run {arguments}");
        // Without cargo and without privileges.
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &line])
            .output()
            .unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(status), "{arguments}: {text}");
        assert!(text.contains(words), "{arguments}: {text}");
    }
}

#[test]
fn what_a_machine_lacks_is_one_sentence_with_its_cure() {
    let tools = Directory::new("tools");
    let old = tools.file("cargo", "#!/bin/sh\necho 'cargo 1.70.0 (ec8a8a0ca 2023-04-25)'\n");
    output_of(Command::new("chmod").arg("+x").arg(&old));
    let path = tools.path().display();
    for (script, setting, words) in [
        ("./run", "setpriv --reuid=65534 --clear-groups env PATH=/usr/bin:/bin", "needs root"),
        ("./run", "env PATH=/usr/bin:/bin:/usr/sbin:/sbin", "https://rustup.rs"),
        ("./test", "env PATH=/usr/bin:/bin:/usr/sbin:/sbin", "https://rustup.rs"),
        ("./bench", "env PATH=/usr/bin:/bin:/usr/sbin:/sbin", "https://rustup.rs"),
        ("./run", &format!("env PATH={path}:/usr/bin:/bin:/usr/sbin:/sbin"), "rustup update"),
        ("./run", "setpriv --bounding-set=-sys_admin", "--privileged"),
    ] {
        let line = format!("cd {ROOT} && exec {setting} {script}");
        let output = Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {text}");
        assert!(text.contains(words) && text.trim().lines().count() == 1, "{line}: {text}");
    }
}

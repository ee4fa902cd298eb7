//! A process that calls itself what no terminal should be sent: every output of flowctl shows it, on one line, in its place.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use flowbus_tests::daemon::binary;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Namespace, Screen};
use serde_json::Value;

/// What a name of 15 bytes has room for: text from right to left, a line's end (twice, of which one is C1), a vertical tab, the terminal's
/// reset.
const NAME: &str = "a\u{202e}\u{2028}\u{85}\u{b}\u{1b}cb";

/// Whether the text has only lines that all readers see, and nothing that a terminal takes for a command or would reorder.
fn is_plain(text: &str) -> bool {
    text.chars().all(|character| character == '\n' || flowbus_interfaces::is_printing(character))
}

#[test]
fn a_name_that_does_not_print_is_one_line_in_every_output() {
    let (namespace, bus) = (Namespace::tracked("names"), Bus::start());
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let listener = namespace.enter(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    // A shell names itself, and connects.
    let script =
        format!("printf %s \"$NAME\" >/proc/$$/comm; exec 3<>/dev/tcp/127.0.0.1/{port}; echo >&3; read line");
    let start = || {
        let mut shell = namespace.command("bash");
        shell.args(["-c", &script]).env("NAME", NAME).stdin(Stdio::piped());
        shell.spawn().unwrap()
    };
    let mut shell = start();
    let flow = wait_for("the flow and its process", || {
        let flows = bus.list("ListActive", &[]).unwrap();
        flows.into_iter().find(|flow| flow["dport"] == port && flow["initiator"]["comm"] == NAME)
    });
    let id = flow["id"].to_string();
    let flowctl = |arguments: &[&str]| {
        let mut command = Command::new(binary("flowctl"));
        command.args(["--bus", &bus.address()]).args(arguments);
        command
    };
    let print = |arguments: &[&str]| {
        let output = flowctl(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(is_plain(&text), "{arguments:?}: {text:?}");
        text
    };
    let fields = "id,initiator,responder";
    for arguments in [
        &["list"][..],
        &["list", "-o", "csv", "--fields", fields],
        &["show", &id],
        &["report", "--processes"],
    ] {
        let _ = print(arguments);
    }
    assert!(print(&["list"]).contains("a\\u{202e}\\u{2028}\\u{85}"));
    assert_eq!(print(&["list", "-o", "csv", "--fields", fields]).lines().count(), 2);
    for arguments in [&["list", "--json"][..], &["show", &id, "--json"]] {
        let text = print(arguments);
        let object: Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(object["initiator"]["comm"], NAME, "{arguments:?}");
        assert!(text.contains("\\u202e\\u2028\\u0085\\u000b"), "{text}");
    }

    // The commands that follow a stream: each prints the name of the next process that comes.
    for arguments in [&["monitor"][..], &["monitor", "--json"], &["connections"], &["connections", "--json"]]
    {
        let mut follower = flowctl(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(follower.stdout.take().unwrap()).lines().map_while(Result::ok);
        let shown = std::thread::scope(|scope| {
            let reading = scope.spawn(move || {
                let mut lines = lines;
                lines.find(|line| line.contains("2028")).unwrap()
            });
            while !reading.is_finished() {
                let mut next = start();
                let _ = listener.accept().unwrap();
                drop(next.stdin.take());
                next.wait().unwrap();
            }
            reading.join().unwrap()
        });
        assert!(is_plain(&shown), "{arguments:?}: {shown:?}");
        if arguments.contains(&"--json") {
            assert!(serde_json::from_str::<Value>(&shown).is_ok(), "{shown}");
        }
        follower.kill().unwrap();
        follower.wait().unwrap();
    }

    let screen = Screen::start(&format!("{} --bus {} top", binary("flowctl").display(), bus.address()));
    screen.resize(200, 50);
    let shown = screen.wait("the name", |text| text.contains("202e"));
    assert!(is_plain(&shown), "{shown:?}");
    drop(shell.stdin.take());
    shell.wait().unwrap();
    daemon.stop();
}

//! flowctl against a running daemon: every command, every form of output, every exit status.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use flowbus_tests::conntrack;
use flowbus_tests::daemon::binary;
use flowbus_tests::flow::{agreed, differences};
use flowbus_tests::network::{CHROME, SERVER_V4, socket_address};
use flowbus_tests::process::{DEADLINE, Directory, signal, wait_for};
use flowbus_tests::{Bus, Daemon, Namespace, Network};
use rustix::process::Signal;
use serde_json::Value;

use super::{json_lines, network_with_flows};

/// What flowctl printed, and how it ended.
struct Answer {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

fn flowctl_command(bus: &Bus, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("flowctl"));
    command.args(["--bus", &bus.address()]).args(arguments).stdin(Stdio::null());
    command
}

fn flowctl(bus: &Bus, arguments: &[&str]) -> Answer {
    let output = flowctl_command(bus, arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Answer { stdout: text(&output.stdout), stderr: text(&output.stderr), code: output.status.code() }
}

fn good(bus: &Bus, arguments: &[&str]) -> String {
    let answer = flowctl(bus, arguments);
    assert_eq!(answer.code, Some(0), "flowctl {arguments:?}: {}{}", answer.stdout, answer.stderr);
    answer.stdout
}

#[test]
fn list_closed_and_show_print_every_flow() {
    let (network, bus, daemon) = network_with_flows();
    let (flows, table) = agreed(&bus, &network.router);

    let listed = json_lines(&good(&bus, &["list", "--json"]));
    assert_eq!(differences(&listed, &table), [""; 0], "flowctl list --json has the kernel's flows");
    let text = good(&bus, &["list"]);
    for word in ["198.18.0.2", "2001:2:0:1::2", "CHROME", "0x29", "icmpv6"] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
    let id = flows[0]["id"].to_string();
    assert!(good(&bus, &["show", &id]).contains("198.18.0.2"));
    assert_eq!(json_lines(&good(&bus, &["show", &id, "--json"]))[0]["id"], flows[0]["id"]);

    conntrack::delete(&network.router, "-p udp");
    wait_for("the ends", || (bus.property("ClosedCount").unwrap() == 4).then_some(()));
    let closed = json_lines(&good(&bus, &["closed", "--json"]));
    assert_eq!(closed.len(), 4);
    assert!(closed.iter().all(|flow| flow["end_reason"] == "destroyed"), "{closed:?}");
    assert!(good(&bus, &["closed"]).contains("CHROME"));
    let lines = good(&bus, &["closed", "-o", "conntrack"]);
    assert!(lines.lines().all(|line| line.starts_with("[DESTROY] udp ")), "{lines}");
    assert!(good(&bus, &["closed", "-o", "xml"]).contains("<flow type=\"destroy\">"));
    assert_eq!(json_lines(&good(&bus, &["list", "--json"])).len(), 2);
    daemon.stop();
}

#[test]
fn awk_lines_are_monitor_conntracks() {
    let (network, bus, daemon) = network_with_flows();
    let (flows, _) = agreed(&bus, &network.router);
    let text = good(&bus, &["list", "-o", "awk"]);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(lines.len(), flows.len());
    let none_or =
        |value: Option<&Value>| value.map_or("None".to_owned(), |value| value.to_string().replace('"', ""));
    for flow in &flows {
        // id src_ip src_port nat_src_ip nat_src_port dst_ip dst_port proto start_epoch end_epoch fwmark source
        let line = lines
            .iter()
            .find(|line| line[0].parse().ok() == flow["id"].as_u64())
            .unwrap_or_else(|| panic!("no {flow} in {text}"));
        assert_eq!(line.len(), 12, "{line:?}");
        for (column, name) in [
            (1, "src"),
            (2, "sport"),
            (5, "dst"),
            (6, "dport"),
            (7, "protocol"),
            (10, "mark"),
            (11, "source"),
        ] {
            assert_eq!(line[column], none_or(flow.get(name)), "column {column}, {name} of {flow}");
        }
        assert_eq!(line[9], "None", "an active flow has no end");
        let start = flow["start_usec"].as_u64().unwrap() / 1_000_000;
        assert!(line[8].starts_with(&start.to_string()), "{} is not {start}", line[8]);
        let translated = |name: &str, original: &str| flow.get(name).filter(|nat| *nat != &flow[original]);
        assert_eq!(line[3], none_or(translated("nat_src", "src")), "{flow}");
        assert_eq!(line[4], none_or(translated("nat_sport", "sport")), "{flow}");
    }
    daemon.stop();
}

#[test]
fn monitor_prints_events_as_they_come() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    let mut monitor = flowctl_command(&bus, &["monitor", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(monitor.stdout.take().unwrap()).lines().map_while(Result::ok);
    let (sender, receiver) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in lines.by_ref() {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    // flowctl does not say when it has subscribed: make flows until one is shown.
    let service = network.udp_service(SERVER_V4, CHROME);
    let first = wait_for("flowctl monitor to show a flow", || {
        service.exchange(&network.client, socket_address(SERVER_V4, CHROME), 1);
        receiver.recv_timeout(Duration::from_millis(500)).ok().filter(|line| !line.contains("\"begin\""))
    });
    let event = &json_lines(&first)[0];
    assert_eq!((&event["source"], &event["dport"]), (&Value::from("CHROME"), &Value::from(CHROME)));
    let since_start = event["event_usec"].as_u64().unwrap().abs_diff(event["start_usec"].as_u64().unwrap());
    assert!(since_start < 60_000_000, "an event has its time: {event}");
    conntrack::delete(&network.router, "-p udp");
    wait_for("flowctl monitor to show an end", || {
        json_lines(&receiver.recv_timeout(DEADLINE).unwrap())
            .iter()
            .any(|event| event["event"] == "destroy")
            .then_some(())
    });
    signal(&monitor, Signal::INT);
    assert_eq!(monitor.wait().unwrap().code(), Some(0), "Ctrl-C is how one leaves");
    reader.join().unwrap();
    daemon.stop();
}

/// What a running flowctl has printed so far.
struct Running {
    process: std::process::Child,
    directory: Directory,
}

impl Running {
    fn start(bus: &Bus, arguments: &[&str]) -> Self {
        let directory = Directory::new("flowctl");
        let file = |name: &str| std::fs::File::create(directory.path().join(name)).unwrap();
        let mut command = flowctl_command(bus, arguments);
        let process = command.stdout(file("out")).stderr(file("err")).spawn().unwrap();
        Self { process, directory }
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(name)).unwrap()
    }

    fn wait_for(&self, name: &str, word: &str) {
        wait_for(&format!("{word} in:\n{}", self.text(name)), || {
            self.text(name).contains(word).then_some(())
        });
    }

    fn interrupt(mut self) -> String {
        signal(&self.process, Signal::INT);
        assert_eq!(
            self.process.wait().unwrap().code(),
            Some(0),
            "Ctrl-C is how one leaves: {}",
            self.text("err")
        );
        self.text("out")
    }
}

#[test]
fn monitor_shows_what_is_alive_and_goes_on_after_a_restart() {
    let (network, bus, daemon) = network_with_flows();
    let table = Running::start(&bus, &["monitor", "--snapshot"]);
    let json = Running::start(&bus, &["monitor", "--json", "--events", "new", "dport=7001"]);
    table.wait_for("out", "icmpv6");
    wait_for("both streams", || {
        let streams = bus.monitor_call("GetStatistics", &[]).unwrap()[0]["streams"].as_u64();
        (streams == Some(2)).then_some(())
    });
    daemon.stop();
    table.wait_for("out", "-- flowbusd has left");
    json.wait_for("out", "{\"type\":\"end\",\"reason\":\"stopping\"}");
    let daemon = Daemon::start(&network.router, &bus);
    table.wait_for("out", "-- flowbusd is back");
    // Dropped, a daemon is killed: it has no time to end its streams.
    drop(daemon);
    table.wait_for("out", "has cut the stream off");
    json.wait_for("out", "{\"type\":\"end\",\"reason\":\"cut-off\"}");
    let daemon = Daemon::start(&network.router, &bus);
    wait_for("the second return", || {
        (table.text("out").matches("flowbusd is back").count() == 2).then_some(())
    });
    let service = network.udp_service(SERVER_V4, CHROME);
    wait_for("the new streams", || {
        service.exchange(&network.client, socket_address(SERVER_V4, CHROME), 1);
        (json.text("out").contains("CHROME")
            && table.text("out").lines().any(|line| line.split_whitespace().nth(1) == Some("new")))
        .then_some(())
    });
    let text = table.interrupt();
    let summary = text.lines().last().unwrap();
    assert!(
        summary.starts_with("-- ") && summary.contains(" new, ") && summary.contains(" missed"),
        "{summary}"
    );
    let lines = json_lines(&json.interrupt());
    let begins: Vec<_> = lines.iter().filter(|line| line["type"] == "begin").collect();
    assert_eq!(begins.len(), 3, "{lines:?}");
    assert_ne!(begins[0]["epoch"], begins[1]["epoch"]);
    let events: Vec<_> = lines.iter().filter(|line| line["type"].is_null()).collect();
    assert!(!events.is_empty(), "{lines:?}");
    assert!(events.iter().all(|event| event["event"] == "new" && event["dport"] == CHROME), "{events:?}");
    daemon.stop();
}

#[test]
fn an_exit_summary_has_what_is_alive_then_what_ended_meanwhile_in_its_order() {
    let (network, bus, daemon) = network_with_flows();
    conntrack::delete(&network.router, "-p icmp");
    let monitor = Running::start(&bus, &["monitor", "-o", "awk", "--exit-summary"]);
    let service = network.udp_service(SERVER_V4, CHROME);
    wait_for("flowctl monitor to show a flow", || {
        service.exchange(&network.client, socket_address(SERVER_V4, CHROME), 1);
        (!monitor.text("out").is_empty()).then_some(())
    });
    conntrack::delete(&network.router, "-p udp --orig-port-dst 7002");
    conntrack::delete(&network.router, "-p udp --orig-port-dst 7000");
    wait_for("the ends", || (bus.property("ClosedCount").unwrap() == 3).then_some(()));
    let text = monitor.interrupt();
    let (_, lists) = text.split_once("Active connections:\n").unwrap();
    let (active, closed) = lists.split_once("Closed connections:\n").unwrap();
    let listed = good(&bus, &["list", "-o", "awk"]);
    assert_eq!(active, listed, "what is alive");
    let ports: Vec<_> = closed.lines().map(|line| line.split(' ').nth(6).unwrap()).collect();
    assert_eq!(ports, ["7002", "7000"], "what ended before is not there:\n{closed}");
    daemon.stop();
}

#[test]
fn a_terminal_has_a_pager_and_a_reader_may_leave() {
    let (_network, bus, daemon) = network_with_flows();
    let script = |arguments: &str, pager: &str| {
        let line = format!("{} --bus {} {arguments}", binary("flowctl").display(), bus.address());
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("SYSTEMD_PAGER", pager).env("TERM", "dumb");
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let paged = script("list", "sed s/^/paged:/");
    assert!(paged.lines().all(|line| line.starts_with("paged:")), "{paged}");
    assert!(paged.contains("CHROME"), "{paged}");
    for (arguments, pager) in [("list --no-pager", "false"), ("list", ""), ("list", "cat")] {
        assert!(script(arguments, pager).contains("CHROME"), "{arguments} with {pager:?}");
    }
    assert!(script("list", "true").is_empty(), "a pager that reads nothing is no failure");
    let id = &json_lines(&good(&bus, &["list", "--json"]))[0]["id"];
    assert!(script(&format!("show {id}"), "sed s/^/paged:/").starts_with("paged:"));
    assert!(script(&format!("show {id} --json"), "sed s/^/paged:/").starts_with('{'), "JSON is for programs");
    let line = format!("{} --bus {} list | head -n 1", binary("flowctl").display(), bus.address());
    let output = Command::new("bash").args(["-o", "pipefail", "-c", &line]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(good(&bus, &["list"]).starts_with("ID "), "no pager and no colours where nobody looks");
    daemon.stop();
}

#[test]
fn decode_mark_and_status_tell_what_there_is() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    let daemon = Daemon::start(&namespace, &bus);
    for mark in ["0x040C0100", "67895552"] {
        let text = good(&bus, &["decode-mark", mark]);
        assert!(text.contains("CHROME") && text.contains("1036"), "{text}");
        assert_eq!(json_lines(&good(&bus, &["decode-mark", mark, "--json"]))[0]["source"], "CHROME");
    }
    assert!(good(&bus, &["decode-mark", "0x2900"]).contains("0x29"));
    let status = good(&bus, &["status"]);
    assert!(status.contains(env!("CARGO_PKG_VERSION")), "{status}");
    assert!(json_lines(&good(&bus, &["status", "--json"]))[0].is_object());
    daemon.stop();
}

#[test]
fn an_empty_list_says_why() {
    let untracked = Namespace::new("untracked");
    let bus = Bus::start();
    let daemon = Daemon::start(&untracked, &bus);
    let answer = flowctl(&bus, &["list"]);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    let said = format!("{}{}", answer.stdout, answer.stderr);
    assert!(said.contains("nft"), "how to turn tracking on is not in:\n{said}");
    assert_eq!(good(&bus, &["list", "--json"]), "", "for programs an empty list is empty");
    daemon.stop();
}

#[test]
fn it_waits_for_a_flowbusd_that_is_just_being_started() {
    let (namespace, bus) = (Namespace::tracked("host"), Bus::start());
    // On a busy machine flowbusd may take longer than flowctl waits: then the next one is tried.
    wait_for("a list", || {
        let mut listing = flowctl_command(&bus, &["status", "--json"]);
        let listing = listing.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        assert!(bus.property("Version").is_err(), "flowctl is the first");
        let daemon = Daemon::start(&namespace, &bus);
        let answered = listing.wait_with_output().unwrap();
        daemon.stop();
        answered.status.success().then_some(())
    });
}

#[test]
fn the_recipe_for_a_bus_of_ones_own_works_as_it_stands() {
    let page = include_str!("../../../docs/install.md");
    let recipe = page.split("```").find(|block| block.contains("dbus-daemon --session")).unwrap();
    let (namespace, directory) = (Namespace::tracked("host"), Directory::new("recipe"));
    let recipe = recipe.replace("/tmp/flowbus-bus", &directory.path().join("bus").display().to_string());
    let path =
        format!("{}:{}", binary("flowctl").parent().unwrap().display(), std::env::var("PATH").unwrap());
    wait_for("the recipe to work", || {
        // What it leaves behind ends with its process namespace.
        let mut pasted = namespace.command("unshare");
        pasted.args(["--pid", "--fork", "--kill-child", "bash", "-c", &recipe]).env("PATH", &path);
        let output = pasted.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // On a busy machine flowbusd may take longer than flowctl waits.
        assert!(output.status.success() || said.contains("nobody owns"), "{said}");
        String::from_utf8_lossy(&output.stdout).contains("synchronized  yes").then_some(())
    });
}

#[test]
fn mistakes_and_failures_have_their_own_exit_statuses() {
    let namespace = Namespace::tracked("host");
    let mut bus = Bus::start();
    let no_daemon = flowctl(&bus, &["list"]);
    assert_ne!(no_daemon.code, Some(0));
    assert!(no_daemon.stderr.contains("flowbusd"), "{}", no_daemon.stderr);

    let daemon = Daemon::start(&namespace, &bus);
    let unknown = flowctl(&bus, &["show", "18446744073709551615"]);
    assert!(unknown.code.is_some_and(|code| code != 0) && unknown.stdout.is_empty(), "{}", unknown.stdout);
    assert!(unknown.stderr.contains("18446744073709551615"), "{}", unknown.stderr);
    for wrong in
        [&["no-such-command"][..], &["show", "x"], &["decode-mark", "0x100000000"], &["decode-mark", "red"]]
    {
        let answer = flowctl(&bus, wrong);
        assert_eq!(answer.code, Some(2), "flowctl {wrong:?}: {}", answer.stderr);
    }
    daemon.stop();
    bus.stop();
    let no_bus = flowctl(&bus, &["list"]);
    assert_ne!(no_bus.code, Some(0));
    assert!(no_bus.stderr.contains("/socket"), "which bus is not in: {}", no_bus.stderr);
}

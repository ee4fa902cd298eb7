//! Which flows and what of them, as people ask for it.

use std::process::{Command, Stdio};

use flowbus_tests::daemon::binary;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Namespace, Screen, conntrack, inject};
use serde_json::Value;

use super::{json_lines, network_with_flows};

/// Exit status, standard output, standard error.
fn flowctl(bus: &Bus, line: &str) -> (i32, String, String) {
    let mut command = Command::new(binary("flowctl"));
    command.args(["--bus", &bus.address()]).args(line.split(' ')).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn good(bus: &Bus, line: &str) -> String {
    let (code, stdout, stderr) = flowctl(bus, line);
    assert_eq!(code, 0, "{line}: {stdout}{stderr}");
    stdout
}

#[test]
fn every_key_excludes_by_flowctl_and_on_d_bus() {
    let (_network, bus, daemon) = network_with_flows();
    let all = json_lines(&good(&bus, "list --json")).len();
    for (line, excluded) in [
        ("dport!=7000", 1),
        ("--dport !7000,!7001", 2),
        ("src!=0.0.0.0/0", 4),
        ("protocol!=udp", 4),
        ("source!=chrome", 1),
        ("protocol=udp dport!=7000-7099", 5),
    ] {
        assert_eq!(json_lines(&good(&bus, &format!("list --json {line}"))).len(), all - excluded, "{line}");
    }
    for (key, value, left) in [
        ("dport", "!7000", 5),
        ("address", "!198.18.0.0/15", 2),
        ("family", "!ipv6", 4),
        ("state", "!UNREPLIED", 6),
    ] {
        assert_eq!(bus.list("ListActive", &[[key, "s", value]]).unwrap().len(), left, "{key} {value}");
    }
    let stateless = |state: &str| json_lines(&good(&bus, &format!("list --json state={state}"))).len();
    assert_eq!((stateless("REPLIED") + stateless("UNREPLIED") + stateless("ASSURED")), all);
    let (code, _, said) = flowctl(&bus, "list source=nosuch");
    assert!(code == 2 && said.contains("source takes a traffic source: UNKNOWN, CHROME"), "{said}");
    daemon.stop();
}

#[test]
fn columns_are_chosen_by_name_and_owners_by_what_is_known_of_them() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let socket = namespace.enter(|| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", "127.0.0.1:53").unwrap();
        socket
    });
    let me = std::process::id();
    let fields = "proto,from,to,state,process,initiator,initiator.pid,initiator.uid";
    let line = format!("list pid={me} --fields {fields}");
    let text = wait_for("the flow", || {
        let text = good(&bus, &line);
        (text.lines().count() == 2).then_some(text)
    });
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0].join(","), fields);
    let from = socket.local_addr().unwrap().to_string();
    assert_eq!(rows[1][..4], ["udp", &from, "127.0.0.1:domain", "UNREPLIED"]);
    assert!(rows[1][4] == rows[1][5] && rows[1][5].ends_with(&format!("[{me}]")), "{text}");
    assert_eq!(rows[1][6..], [me.to_string().as_str(), "root"]);
    let bare = good(&bus, &format!("{line} --no-legend --numeric"));
    assert!(
        bare.starts_with("17 ") && bare.contains("127.0.0.1:53") && bare.trim_end().ends_with(" 0"),
        "{bare}"
    );
    let csv = good(&bus, &format!("{line} -o csv"));
    assert_eq!(csv.lines().next(), Some(fields));
    for condition in ["dport=domain", "uid=root", "dport!=https", "port=!ssh"] {
        assert_eq!(
            json_lines(&good(&bus, &format!("list --json pid={me} {condition}"))).len(),
            1,
            "{condition}"
        );
    }
    // At 80 columns the process stays, whoever it is.
    let command = format!("{} --bus {} list --no-pager pid={me}", binary("flowctl").display(), bus.address());
    let shown = Screen::start(&command).wait_for("ended with 0");
    assert!(shown.contains("PROCESS") && shown.contains(&rows[1][4][..8]), "{shown}");
    drop(socket);
    daemon.stop();
}

#[test]
fn protocols_that_conntrack_numbers_have_names() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    let daemon = Daemon::start(&namespace, &bus);
    for protocol in ["50", "2", "89"] {
        namespace.run(&format!("conntrack -I -s 198.18.0.1 -d 198.18.0.2 -p {protocol} -t 600"));
    }
    wait_for("the flows", || (bus.property("ActiveCount").unwrap() == 3).then_some(()));
    let text = good(&bus, "list");
    for name in ["esp", "igmp", "ospf"] {
        assert!(text.lines().any(|line| line.split_whitespace().nth(1) == Some(name)), "{name}: {text}");
        assert_eq!(json_lines(&good(&bus, &format!("list --json protocol={name}"))).len(), 1, "{name}");
    }
    assert!(good(&bus, "list --numeric").contains(" 50 "));
    daemon.stop();
}

#[test]
fn a_list_is_sorted_and_cut_and_printed_without_titles_or_indented() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    let daemon = Daemon::start(&namespace, &bus);
    namespace.track_counters_and_times();
    inject::udp(&namespace, 53, 5);
    wait_for("the flows", || (bus.property("ActiveCount").unwrap() == 5).then_some(()));
    let ids = |line: &str| {
        let lines = json_lines(&good(&bus, line));
        lines.iter().map(|flow| flow["id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let all = ids("list --json");
    assert_eq!(ids("list --json --sort age -n 2"), all[..2], "the oldest first");
    assert_eq!(ids("list --json --sort bytes").len(), 5);
    assert_eq!(ids("list --json --sort rate --lines 3").len(), 3);
    assert_eq!(good(&bus, "list --json --sort age --fields id -n 1"), format!("{{\"id\":{}}}\n", all[0]));
    assert_eq!(good(&bus, "list -n 2 --no-legend").lines().count(), 2);
    let sources = good(&bus, "sources --json=pretty --interval 0.5");
    assert!(sources.starts_with("{\n  \"") && sources.contains("_per_second"), "{sources}");
    let report = good(&bus, "report --max-bytes 64K --since 10m");
    assert!(report.contains("flowbus") && report.len() <= 64 << 10, "{report}");
    conntrack::delete(&namespace, "-p udp");
    wait_for("the ends", || (bus.property("ClosedCount").unwrap() == 5).then_some(()));
    assert_eq!(ids("closed --json -n 3").len(), 3);
    assert_eq!(good(&bus, "closed -n 2").lines().count(), 3);
    let id = all[0];
    for line in [
        "status --json=pretty",
        "stats --json=pretty",
        "closed --json=pretty -n 1",
        &format!("show {id} --json=pretty"),
        "decode-mark 5 --json=pretty",
    ] {
        let text = good(&bus, line);
        assert!(text.starts_with("{\n  \"") && text.ends_with("\n}\n"), "{line}: {text}");
        serde_json::from_str::<Value>(&text).unwrap();
    }
    assert!(good(&bus, "stats --no-legend").lines().all(|line| !line.contains("STATISTIC")));
    assert!(good(&bus, "sources --interval 0 --no-legend").lines().all(|line| !line.contains("SOURCE")));
    daemon.stop();
}

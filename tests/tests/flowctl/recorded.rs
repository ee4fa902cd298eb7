//! `flowctl history` on the files of flowbus-export: what flowbusd knew is found in the log.

use std::path::Path;
use std::process::{Command, Stdio};

use flowbus_interfaces::flow_log_files;
use flowbus_tests::daemon::binary;
use flowbus_tests::network::{CHROME, MASQUERADED, SERVER_V4, SERVER_V6, socket_address};
use flowbus_tests::process::{Directory, output_of, wait_for};
use flowbus_tests::{Bus, Daemon, Network, conntrack};
use serde_json::Value;

use super::json_lines;

/// The rows of an answer, which has no notice.
fn history(log: &Path, arguments: &[&str]) -> Vec<Value> {
    let mut command = Command::new(binary("flowctl"));
    command.args(["--bus", "unix:path=/nonexistent", "history", "--json", "--directory"]).arg(log);
    let rows = json_lines(&output_of(command.args(arguments).stdin(Stdio::null())));
    assert!(rows.iter().all(|row| row.get("type").is_none()), "{arguments:?}: {rows:?}");
    rows
}

fn number(flow: &Value, key: &str) -> u64 {
    flow[key].as_u64().unwrap_or_else(|| panic!("no {key} in {flow}"))
}

#[test]
fn every_flow_is_found_at_its_middle_in_a_log_that_changes_files_each_second() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    let directory = Directory::new("recorded");
    let log = directory.path().join("log");
    std::fs::create_dir(&log).unwrap();
    let config = directory.file("export.toml", &format!("[log]\ndirectory = {log:?}\nrotate_sec = 1\n"));
    let mut exporter = Command::new(binary("flowbus-export"));
    let exporter = Daemon::spawn(exporter.args(["--bus", &bus.address(), "--config"]).arg(config));
    let files = || flow_log_files(&log).unwrap().len();
    let begin = wait_for("the log", || Some(flow_log_files(&log).unwrap().first()?.0.begin_usec.to_string()));

    let services = [(SERVER_V4, CHROME), (SERVER_V6, CHROME), (SERVER_V4, MASQUERADED)];
    let services =
        services.map(|(address, port)| (network.udp_service(address, port), socket_address(address, port)));
    for round in 1..=4 {
        for (service, address) in &services {
            service.exchange(&network.client, *address, 1);
            service.exchange(&network.client, *address, 1);
        }
        // Some end in the file that they began in, and some in a later one.
        if round % 2 == 0 {
            conntrack::delete(&network.router, "-p udp");
        }
        let begun = files();
        // Files are compressed and go while they are read.
        wait_for("another file", || {
            history(&log, &["id=0", "--at", &begin]);
            (files() > begun).then_some(())
        });
    }
    wait_for("the ends", || (bus.property("ClosedCount").unwrap() == 24).then_some(()));
    let begun = files();
    wait_for("the last ends in a file that is closed", || (files() > begun + 1).then_some(()));
    let ended = bus.list("ListClosed", &[]).unwrap();
    exporter.stop();
    daemon.stop();

    assert_eq!(ended.len(), 24);
    for flow in &ended {
        let (start, end) = (number(flow, "start_usec"), number(flow, "end_usec"));
        let (id, middle) = (number(flow, "id").to_string(), (start + (end - start) / 2).to_string());
        let rows = history(&log, &[&format!("id={id}"), "--at", &middle]);
        assert_eq!(rows.len(), 1, "{flow}: {rows:?}");
        for key in ["id", "src", "sport", "dst", "dport", "nat_src", "nat_sport", "mark"] {
            assert_eq!(rows[0][key], flow[key], "{key}: {flow} {}", rows[0]);
        }
        // An instant needs no more than the head of the next file, so that the end of a long one is left open. The kernel's own
        // stamp of the start comes with the end, too.
        if rows[0]["alive"] != true {
            for key in ["start_usec", "end_usec"] {
                assert_eq!(rows[0][key], flow[key], "{key}: {flow} {}", rows[0]);
            }
        }
        if let Some(nat_src) = flow["nat_src"].as_str() {
            let port = number(flow, "nat_sport");
            let who = [format!("nat_src={nat_src}"), format!("nat_sport={port}")];
            let rows = history(&log, &[&who[0], &who[1], "--at", &middle]);
            assert!(rows.iter().any(|row| row["id"] == flow["id"]), "{flow}: {rows:?}");
        }
    }
    // Over the whole time each is there once, with its end.
    let since = ended.iter().map(|flow| number(flow, "start_usec")).min().unwrap();
    let until = ended.iter().map(|flow| number(flow, "end_usec")).max().unwrap();
    let span = ["--since", &since.to_string(), "--until", &until.to_string()];
    let mut found: Vec<_> = history(&log, &span)
        .iter()
        .filter(|row| row["protocol"] == "udp")
        .map(|row| (number(row, "id"), number(row, "end_usec")))
        .collect();
    let mut expected: Vec<_> =
        ended.iter().map(|flow| (number(flow, "id"), number(flow, "end_usec"))).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

//! The files of the log.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use flowbus_tests::daemon::binary;
use flowbus_tests::process::{output_of, wait_for};
use flowbus_tests::{Daemon, Namespace, burst, churn};
use rustix::process::Signal;

use super::{World, assert_once, assert_streams, files, lines};

fn kill(mut process: Daemon) {
    process.signal(Signal::KILL);
    process.ended();
}

/// Waits until a process has begun a file.
fn wait_for_begin(world: &World<'_>, exporter: &Daemon, begun: usize) {
    wait_for(&format!("a file to begin, {}", exporter.log()), || {
        let begins = files(&world.log()).iter().filter(|(_, lines)| !lines.is_empty()).count();
        (begins > begun).then_some(())
    });
}

#[test]
fn kills_of_flowbusd_and_of_the_exporter_under_load_lose_no_begin_and_no_end() {
    let namespace = Namespace::tracked("export");
    let world = World::new(&namespace, 1_000_000);
    let (daemon, exporter) = (world.flowbusd(), world.exporter("rotate_sec = 1"));
    let (daemon, exporter) = churn::during(&namespace, || {
        let (mut daemon, mut exporter) = (daemon, exporter);
        for round in 0..10_u64 {
            // At the beginning, in the middle, later: a different instant every time.
            thread::sleep(Duration::from_millis(round * 37 % 190));
            kill(daemon);
            daemon = world.flowbusd();
            thread::sleep(Duration::from_millis(round * 173 % 970));
            kill(exporter);
            exporter = world.exporter("rotate_sec = 1");
        }
        (daemon, exporter)
    });
    world.wait_for_last_end(&world.log(), &exporter);
    exporter.stop();
    let files = files(&world.log());
    assert_streams(&files);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert!(files.iter().all(|(name, _)| mode(world.log().join(name)) == 0o640));
    assert_once(&lines(&world.log()), &world.ended());
    daemon.stop();
}

#[test]
fn what_flowbusd_has_forgotten_is_a_gap_of_exactly_that_many_ends() {
    let namespace = Namespace::tracked("export");
    let world = World::new(&namespace, 1_000);
    let daemon = world.flowbusd();
    let exporter = world.exporter("");
    world.wait_for_last_end(&world.log(), &exporter);
    exporter.stop();
    burst::create(&namespace, 1, 3_500);
    namespace.run("conntrack -D -p udp --orig-port-dst 5000");
    wait_for("flowbusd to forget", || {
        let statistics = world.bus.monitor_call("GetStatistics", &[]).unwrap();
        (statistics[0]["events_destroy"] == 3_501).then_some(())
    });
    let exporter = world.exporter("");
    wait_for(&format!("the head of the next file, {}", exporter.log()), || {
        let (_, lines) = files(&world.log()).pop()?;
        (lines.first()?["from"] != "" && lines.iter().any(|line| line["type"] == "snapshot-end"))
            .then_some(())
    });
    let lines = lines(&world.log());
    let gaps: Vec<_> = lines.iter().filter(|line| line["type"] == "gap").collect();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!((&gaps[0]["reason"], &gaps[0]["lost"]), (&"forgotten".into(), &2_500.into()));
    assert!(gaps[0]["event_usec"].as_u64() >= lines[0]["event_usec"].as_u64(), "{}", gaps[0]);
    let ends = super::count(&lines, super::is_end);
    assert!(ends.len() == 1_001 && ends.values().all(|&count| count == 1), "{}", ends.len());
    exporter.stop();
    daemon.stop();
}

#[test]
fn the_oldest_files_go_where_the_log_reaches_its_bound() {
    let namespace = Namespace::tracked("export");
    let world = World::new(&namespace, 100_000);
    let daemon = world.flowbusd();
    let exporter = world.exporter("rotate_bytes = 65536\nmaximum_bytes = 131072");
    wait_for_begin(&world, &exporter, 0);
    churn::during(&namespace, || {
        wait_for(&format!("files to go, {}", exporter.log()), || {
            (exporter.log().matches("the oldest file of the log was removed").count() > 3).then_some(())
        });
    });
    world.wait_for_last_end(&world.log(), &exporter);
    exporter.stop();
    let length = |entry: fs::DirEntry| entry.metadata().unwrap().size();
    let bytes: u64 = fs::read_dir(world.log()).unwrap().map(|entry| length(entry.unwrap())).sum();
    // The one that is written is as large as what one drain of the pipe adds to it.
    assert!(bytes < 131_072 + 1_048_576, "{bytes}");
    let files = files(&world.log());
    assert_streams(&files);
    // What is left has no hole in it.
    let lines: Vec<_> = files.into_iter().flat_map(|(_, lines)| lines).collect();
    let ends = super::count(&lines, super::is_end);
    // The latest end is the first of the list.
    let closed = world.bus.list("ListClosed", &[]).unwrap();
    let kept: BTreeMap<_, _> = closed.iter().take(ends.len()).map(|flow| (super::id(flow), 1)).collect();
    assert!(ends == kept, "{} ends", ends.len());
    daemon.stop();
}

#[test]
fn a_full_disk_is_reported_and_what_ends_meanwhile_is_written_when_there_is_room() {
    let namespace = Namespace::tracked("export");
    let world = World::new(&namespace, 100_000);
    let daemon = world.flowbusd();
    let socket = world.directory.path().join("notify");
    let notified = UnixDatagram::bind(&socket).unwrap();
    notified.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let command = world.exporter_command("");
    let line = format!("mount -t tmpfs -o size=4m tmpfs {} && exec \"$@\"", world.log().display());
    let mut unshared = std::process::Command::new("unshare");
    unshared
        .args(["--mount", "bash", "-c", &line, "bash"])
        .arg(command.get_program())
        .args(command.get_args());
    let exporter = Daemon::spawn(unshared.env("NOTIFY_SOCKET", &socket));
    let log = PathBuf::from(format!("/proc/{}/root{}", exporter.pid(), world.log().display()));
    let status = |part: &str| {
        let mut message = [0; 4096];
        loop {
            let length = notified.recv(&mut message).unwrap();
            let text = String::from_utf8_lossy(&message[..length]);
            if text.lines().any(|line| line.starts_with("STATUS=") && line.contains(part)) {
                break;
            }
        }
    };
    status("writing ");
    world.wait_for_last_end(&log, &exporter);
    // All of it, so that not even the line of a gap fits.
    let mut ballast = fs::File::create(log.join("ballast")).unwrap();
    while ballast.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    burst::create(&namespace, 1, 2_000);
    namespace.run("conntrack -D -p udp --orig-port-dst 5000");
    status("No space left");
    burst::create(&namespace, 1, 500);
    namespace.run("conntrack -D -p udp --orig-port-dst 5000");
    drop(ballast);
    fs::remove_file(log.join("ballast")).unwrap();
    status("writing ");
    world.wait_for_last_end(&log, &exporter);
    assert!(exporter.log().contains("No space left"), "{}", exporter.log());
    let files = files(&log);
    assert_streams(&files);
    assert_once(&lines(&log), &world.ended());
    exporter.stop();
    daemon.stop();
}

#[test]
fn a_second_instance_is_refused_and_the_first_goes_on() {
    let namespace = Namespace::tracked("export");
    let world = World::new(&namespace, 1_000);
    let daemon = world.flowbusd();
    let exporter = world.exporter("");
    burst::create(&namespace, 1, 10);
    world.wait_for_last_end(&world.log(), &exporter);
    let written = files(&world.log());
    let (status, log) = world.exporter("rotate_sec = 60").ended();
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(log.contains("another flowbus-export writes to "), "{log}");
    assert_eq!(files(&world.log()), written);
    namespace.run("conntrack -D -p udp --orig-port-dst 5000");
    wait_for("the ends", || (super::count(&lines(&world.log()), super::is_end).len() == 11).then_some(()));
    exporter.stop();
    let files = files(&world.log());
    assert_eq!(files.len(), 1);
    assert_streams(&files);
    assert_once(&lines(&world.log()), &world.ended());
    daemon.stop();
}

#[test]
fn a_torn_line_is_cut_off_and_files_of_another_machine_are_left_as_they_are() {
    let namespace = Namespace::tracked("export");
    let world = World::new(&namespace, 100_000);
    let daemon = world.flowbusd();
    let exporter = world.exporter("");
    burst::create(&namespace, 1, 100);
    world.wait_for_last_end(&world.log(), &exporter);
    kill(exporter);
    let (name, written) = files(&world.log()).pop().unwrap();
    let path = world.log().join(&name);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}{{\"machine\":\"0\",\"epoch\":\"1\",\"type\":\"destroy\",\"sequ"))
        .unwrap();
    // A later name, another epoch: the directory was copied, or the clock was ahead.
    let epoch = written[0]["epoch"].as_str().unwrap();
    let foreign = text.replace(epoch, "ffffffffffffffffffffffffffffffff");
    fs::write(world.log().join("flows-20991231T235959.000000Z.ndjson"), &foreign).unwrap();

    burst::create(&namespace, 200, 100);
    namespace.run("conntrack -D -p udp --orig-port-dst 5000");
    let exporter = world.exporter("");
    wait_for("the files to be compressed", || {
        let compressed = [&name[..], "flows-20991231T235959.000000Z.ndjson"];
        compressed.iter().all(|name| world.log().join(format!("{name}.zst")).exists()).then_some(())
    });
    wait_for("the ends", || {
        let ends = super::count(&lines(&world.log()), super::is_end);
        (ends.len() >= world.ended().len()).then_some(())
    });
    exporter.stop();
    let mut files = files(&world.log());
    let (_, foreign_lines) = files.pop().unwrap();
    assert_eq!(foreign_lines.len(), foreign.lines().count() + 1, "with an end");
    assert_streams(&files);
    assert_eq!(files[0].1.last().unwrap()["reason"], "interrupted");
    assert_eq!(files[0].1[..written.len()], written);
    let lines: Vec<_> = files.into_iter().flat_map(|(_, lines)| lines).collect();
    assert_once(&lines, &world.ended());
    daemon.stop();
}

#[test]
fn each_flow_is_found_in_its_middle_whatever_file_that_is_in() {
    let namespace = Namespace::tracked("export");
    let world = World::new(&namespace, 100_000);
    let (mut daemon, exporter) = (world.flowbusd(), world.exporter("rotate_sec = 1"));
    for round in 0..4 {
        let begun = files(&world.log()).len();
        burst::create(&namespace, 1 + round * 10, 10);
        wait_for_begin(&world, &exporter, begun + 1);
        if round == 2 {
            kill(daemon);
            daemon = world.flowbusd();
        }
        let first = format!("198.19.0.{}", 1 + round * 10);
        namespace.run(&format!("conntrack -D -p udp --orig-dst {first}"));
    }
    namespace.run("conntrack -D -p udp --orig-port-dst 5000");
    world.wait_for_last_end(&world.log(), &exporter);
    for flow in world.bus.list("ListClosed", &[]).unwrap() {
        let number = |key: &str| flow[key].as_u64().unwrap();
        let middle = number("start_usec").midpoint(number("end_usec")).to_string();
        let id = format!("id={}", super::id(&flow));
        let mut history = std::process::Command::new(binary("flowctl"));
        history.args(["history", "--json", "--directory"]).arg(world.log()).args(["--at", &middle, &id]);
        let found = output_of(&mut history);
        let found: Vec<_> = found.lines().filter(|line| !line.contains("\"incomplete\"")).collect();
        assert_eq!(found.len(), 1, "{flow} in {found:?}");
        assert!(found[0].contains(&format!("\"dst\":{}", flow["dst"])), "{flow} is not {found:?}");
    }
    exporter.stop();
    daemon.stop();
}

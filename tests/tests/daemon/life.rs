//! How flowbusd starts, goes on when the bus does not, and ends; and what it says when it cannot start.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use flowbus_tests::daemon::binary;
use flowbus_tests::flow::{agreed, key};
use flowbus_tests::network::{PLAIN, SERVER_V4, socket_address};
use flowbus_tests::process::{Directory, wait_for};
use flowbus_tests::{Bus, Daemon, Namespace, Network, companion, conntrack, inject};
use rustix::fs::{FileType, Mode};
use rustix::process::Signal;

/// Runs a flowbusd that must not start, and returns what it says.
fn refusal(command: &mut Command) -> String {
    let (status, log) = Daemon::spawn(command).ended();
    assert!(!status.success(), "it should have failed:\n{log}");
    assert!(status.code().is_some(), "it should have failed in order, not by {status}:\n{log}");
    assert!(!log.contains("panicked"), "{log}");
    log
}

fn says(log: &str, parts: &[&str]) {
    for part in parts {
        assert!(log.contains(part), "{part:?} is not in:\n{log}");
    }
}

#[test]
fn signals_end_it_in_order() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start(&namespace, &bus);
        daemon.signal(signal);
        let (status, log) = daemon.ended();
        assert!(status.success(), "{status} after {signal:?}:\n{log}");
        assert_eq!(bus.property("Version").unwrap_err().name, "org.freedesktop.DBus.Error.ServiceUnknown");
    }
}

#[test]
fn the_table_outlives_the_bus() {
    let network = Network::new();
    let mut bus = Bus::start();
    let mut daemon = Daemon::start(&network.router, &bus);
    let service = network.udp_service(SERVER_V4, PLAIN);
    let _before = service.exchange(&network.client, socket_address(SERVER_V4, PLAIN), 5);
    let (before, _) = agreed(&bus, &network.router);
    let epoch = bus.property("Epoch").unwrap();

    bus.stop();
    let _meanwhile = service.exchange(&network.client, socket_address(SERVER_V4, PLAIN), 5);
    bus.restart();
    daemon.wait_until_synchronized(&bus);
    let (after, _) = agreed(&bus, &network.router);
    assert_eq!(after.len(), 10);
    assert_eq!(bus.property("Epoch").unwrap(), epoch);
    let kept = after[..5].iter().map(|flow| (flow["id"].as_u64(), key(flow))).collect::<Vec<_>>();
    assert_eq!(kept, before.iter().map(|flow| (flow["id"].as_u64(), key(flow))).collect::<Vec<_>>());
    assert_eq!(bus.property("EventsLost").unwrap(), 0);
    daemon.stop();
}

#[test]
fn it_can_be_stopped_while_the_bus_is_away() {
    let namespace = Namespace::tracked("host");
    let mut bus = Bus::start();
    let daemon = Daemon::start(&namespace, &bus);
    bus.stop();
    daemon.stop();
}

#[test]
fn a_second_daemon_does_not_take_the_name() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    let first = Daemon::start(&namespace, &bus);
    let log = refusal(&mut Daemon::command(&namespace, &bus));
    says(&log, &["org.flowbus.Flow", "already owned", &bus.address()]);
    assert_eq!(bus.property("Synchronized").unwrap(), true, "the first goes on");
    first.stop();
}

#[test]
fn without_net_admin_it_says_what_is_missing() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    let mut command = namespace.command("setpriv");
    command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]);
    command.arg(binary("flowbusd")).args(["--bus", &bus.address()]);
    says(&refusal(&mut command), &["CAP_NET_ADMIN"]);
}

#[test]
fn without_a_bus_it_says_which_one_is_missing() {
    let namespace = Namespace::tracked("host");
    let mut command = namespace.command(binary("flowbusd").to_str().unwrap());
    says(&refusal(command.args(["--bus", "unix:path=/nonexistent/bus"])), &["/nonexistent/bus"]);
    let mut command = namespace.command(binary("flowbusd").to_str().unwrap());
    says(&refusal(command.args(["--bus", "nonsense"])), &["nonsense"]);
}

#[test]
fn a_bad_configuration_is_refused_by_file_line_and_key() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    let directory = Directory::new("configuration");
    let file = directory.file("flowbusd.toml", "[closed]\ncapacity = 10\ncapacty = 20\n");
    let path = file.to_str().unwrap();
    for arguments in [&["--config", path][..], &["--config", path, "--check"]] {
        says(&refusal(Daemon::command(&namespace, &bus).args(arguments)), &[path, "3", "capacty"]);
    }
    says(
        &refusal(Daemon::command(&namespace, &bus).args(["--config", "/nonexistent.toml"])),
        &["/nonexistent.toml"],
    );
}

/// A pipe that nobody writes into.
fn pipe(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[test]
fn what_is_no_file_or_has_no_end_is_no_configuration() {
    let (namespace, bus) = (Namespace::tracked("host"), Bus::start());
    let directory = Directory::new("configuration");
    let [fifo, long] = ["fifo", "long"].map(|name| directory.path().join(name));
    pipe(&fifo);
    std::fs::write(&long, "# to be continued\n".repeat(100_000)).unwrap();
    for (path, fault) in [
        (fifo.to_str().unwrap(), "not a regular file"),
        (directory.path().to_str().unwrap(), "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (long.to_str().unwrap(), "longer than"),
    ] {
        for arguments in [&["--config", path][..], &["--config", path, "--check"]] {
            says(&refusal(Daemon::command(&namespace, &bus).args(arguments)), &[path, fault]);
        }
    }
}

#[test]
fn a_reload_does_not_wait_for_a_pipe() {
    let (namespace, bus) = (Namespace::tracked("host"), Bus::start());
    let directory = Directory::new("configuration");
    let file = directory.file("flowbusd.toml", "closed.capacity = 1");
    let daemon = Daemon::start_with(&namespace, &bus, &["--config", file.to_str().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    pipe(&file);
    daemon.signal(Signal::HUP);
    wait_for("a refusal", || daemon.log().contains("not a regular file; the old one stays").then_some(()));
    assert_eq!(bus.property("ClosedCapacity").unwrap(), 1);
    daemon.stop();
}

#[test]
fn check_accepts_a_good_configuration_and_starts_nothing() {
    let directory = Directory::new("configuration");
    let file = directory.file("flowbusd.toml", "[closed]\ncapacity = 10\n");
    let check = |arguments: &[&str]| {
        let mut command = Command::new(binary("flowbusd"));
        command.args(arguments).stdin(Stdio::null()).output().unwrap()
    };
    let checked =
        check(&["--check", "--config", file.to_str().unwrap(), "--bus", "unix:path=/nonexistent/bus"]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let version = check(&["--version"]);
    assert_eq!(
        String::from_utf8_lossy(&version.stdout),
        concat!("flowbusd ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn it_follows_many_flows_at_once() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    let service = network.udp_service(SERVER_V4, PLAIN);
    // More than one page of the largest size.
    service.exchange(&network.client, socket_address(SERVER_V4, PLAIN), 1_500);
    let (flows, _) = agreed(&bus, &network.router);
    assert_eq!(flows.len(), 1_500);
    conntrack::delete(&network.router, "-p udp");
    wait_for("all to be closed", || (bus.property("ClosedCount").unwrap() == 1_500).then_some(()));
    assert_eq!(bus.list("ListClosed", &[["limit", "u", "1000"]]).unwrap().len(), 1_500);
    daemon.stop();
}

#[test]
fn once_it_serves_its_system_calls_are_confined() {
    let (namespace, bus) = (Namespace::tracked("host"), Bus::start());
    let daemon = Daemon::start(&namespace, &bus);
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    assert!(status.contains("Seccomp:\t2\n"), "{status}");
    daemon.stop();
}

#[test]
fn it_can_read_its_configuration_again_and_no_other_file() {
    let (namespace, bus, directory) =
        (Namespace::tracked("host"), Bus::start(), Directory::new("configuration"));
    let (own, elsewhere) = (directory.path().join("own"), directory.path().join("elsewhere"));
    std::fs::create_dir(&own).unwrap();
    std::fs::create_dir(&elsewhere).unwrap();
    let (file, other) = (own.join("flowbusd.toml"), elsewhere.join("flowbusd.toml"));
    std::fs::write(&file, "closed.capacity = 1").unwrap();
    std::fs::write(&other, "closed.capacity = 2").unwrap();
    let daemon = Daemon::start_with(&namespace, &bus, &["--config", file.to_str().unwrap()]);
    // An editor writes a new file and gives it the name of the old one.
    let new = own.join("new");
    std::fs::write(&new, "closed.capacity = 3").unwrap();
    std::fs::rename(&new, &file).unwrap();
    daemon.signal(Signal::HUP);
    wait_for("the new file to be read", || (bus.property("ClosedCapacity").unwrap() == 3).then_some(()));
    // The same name, but the file is in another directory.
    std::os::unix::fs::symlink(&other, &new).unwrap();
    std::fs::rename(&new, &file).unwrap();
    daemon.signal(Signal::HUP);
    let refusal = wait_for("a refusal", || {
        let log = daemon.log();
        log.lines().find(|line| line.contains("the old one stays in force")).map(str::to_owned)
    });
    assert!(refusal.contains("Permission denied"), "{refusal}");
    assert_eq!(bus.property("ClosedCapacity").unwrap(), 3);
    daemon.stop();
}

#[test]
fn as_many_hangups_as_anybody_sends_keep_it_from_nothing() {
    const HANGUPS: u32 = 10_000;
    let (namespace, bus, directory) =
        (Namespace::tracked("host"), Bus::start(), Directory::new("configuration"));
    let file = directory.file("flowbusd.toml", "");
    let daemon = Daemon::start_with(&namespace, &bus, &["--config", file.to_str().unwrap()]);
    let configure = |capacity: u32| {
        // The file is replaced as an editor does it: a reader has the old one or the new one.
        let new = directory.file("new", &format!("closed.capacity = {capacity}"));
        std::fs::rename(new, &file).unwrap();
    };
    let hang_up = |stop: &AtomicBool| {
        let mut sent = 0;
        while sent < HANGUPS || !stop.load(Ordering::Relaxed) {
            daemon.signal(Signal::HUP);
            sent += 1;
            // About a thousand a second.
            thread::sleep(Duration::from_millis(1));
        }
    };
    let ((), ()) = companion::during(hang_up, || {
        for capacity in 1..=20 {
            configure(capacity);
            wait_for("the new capacity", || {
                (bus.property("ClosedCapacity").unwrap() == capacity).then_some(())
            });
            inject::udp(&namespace, 1001, 200);
            let _ = agreed(&bus, &namespace);
            conntrack::delete(&namespace, "-p udp");
            let _ = agreed(&bus, &namespace);
            assert_eq!(bus.property("ClosedCount").unwrap(), capacity);
        }
    });
    configure(77);
    daemon.signal(Signal::HUP);
    wait_for("the last capacity", || (bus.property("ClosedCapacity").unwrap() == 77).then_some(()));
    assert_eq!(bus.property("EventsLost").unwrap(), 0);
    daemon.stop();
}

//! `--resolve`: names of addresses, beside a service in the place of systemd-resolved.

use std::process::{Command, Output, Stdio};

use flowbus_tests::daemon::binary;
use flowbus_tests::network::{MASQUERADED, SERVER_V4, socket_address};
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Namespace, Network, Resolved, Screen, inject};

/// flowctl, whose system bus is the test's, too.
fn flowctl(bus: &Bus, arguments: &str) -> Output {
    let mut command = Command::new(binary("flowctl"));
    command.env("DBUS_SYSTEM_BUS_ADDRESS", bus.address()).stdin(Stdio::null());
    command.args(["--bus", &bus.address()]).args(arguments.split(' ')).output().unwrap()
}

fn terminal(bus: &Bus, arguments: &str) -> Screen {
    let address = bus.address();
    let flowctl = binary("flowctl");
    Screen::start(&format!(
        "DBUS_SYSTEM_BUS_ADDRESS={address} {} --bus {address} {arguments}",
        flowctl.display()
    ))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn no_line_of_monitor_waits_for_a_name_that_later_lines_have() {
    let network = Network::new();
    let bus = Bus::start();
    let (daemon, resolved) = (Daemon::start(&network.router, &bus), Resolved::start(&bus));
    let service = network.tcp_service(SERVER_V4, MASQUERADED);
    let connect = || service.connect(&network.client, socket_address(SERVER_V4, MASQUERADED), 1);
    let first = connect();
    let screen = terminal(&bus, "monitor --snapshot --resolve dport=7100");
    screen
        .wait("the address of a server whose name nobody has said", |text| text.contains("198.18.1.2:7100"));
    wait_for("the questions", || (resolved.open() >= 2).then_some(()));
    assert!(!screen.text().contains(".test"));
    resolved.answer();
    // The next lines know it, as soon as the answer is there.
    let mut open = vec![first];
    let text = screen.wait("the names of both ends", |text| {
        open.push(connect());
        text.lines()
            .any(|line| line.contains("host-0-2.lan.test:") && line.contains("host-1-2.lan.test:7100"))
    });
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(resolved.asked() <= 3, "each address is asked for once: {}", resolved.asked());
    drop(open);
    daemon.stop();
}

#[test]
fn below_a_list_stand_the_names_that_came_after_their_lines() {
    let (namespace, bus) = (Namespace::tracked("names"), Bus::start());
    let (daemon, resolved) = (Daemon::start(&namespace, &bus), Resolved::start(&bus));
    inject::udp(&namespace, 53, 300);
    wait_for("the flows", || (bus.property("ActiveCount").unwrap() == 300).then_some(()));
    let output = std::thread::scope(|scope| {
        let listing = scope.spawn(|| flowctl(&bus, "list --resolve"));
        wait_for("as many questions as there may be at once", || (resolved.open() == 16).then_some(()));
        resolved.answer();
        listing.join().unwrap()
    });
    let listed = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let row = listed.lines().find(|line| line.contains("198.19.0.1:domain")).unwrap();
    assert!(row.contains("198.18."), "the line did not wait: {row}");
    assert!(listed.contains("\n198.18.0.7 is host-0-7.lan.test\n"), "{listed}");
    assert!(!listed.contains("198.19.0.1 is"), "an address without a name stays one: {listed}");
    assert_eq!(resolved.asked(), 301, "each address is asked for once");
    for line in ["list --resolve --json", "list --resolve -o csv", "list --resolve --numeric"] {
        assert_eq!(flowctl(&bus, line).status.code(), Some(2), "{line}");
    }
    daemon.stop();
}

#[test]
fn the_screen_of_top_has_names_by_a_key() {
    let (namespace, bus) = (Namespace::tracked("names"), Bus::start());
    let (daemon, resolved) = (Daemon::start(&namespace, &bus), Resolved::start(&bus));
    resolved.answer();
    inject::udp(&namespace, 5353, 3);
    let screen = terminal(&bus, "top");
    screen.wait_for("198.18.0.2:4000");
    assert_eq!(resolved.asked(), 0, "nobody wished for names");
    screen.press(&["n"]);
    let text = screen.wait_for("-0-2.lan.test:4000");
    assert!(text.contains("198.19.0.1:5353"), "{text}");
    screen.press(&["n"]);
    screen.wait_for("198.18.0.2:4000");
    screen.press(&["q"]);
    screen.wait_for("ended with 0");
    let batch = flowctl(&bus, "top --batch -n 1 --resolve");
    assert!(String::from_utf8_lossy(&batch.stdout).contains("host-0-2.lan.test:4000"), "{batch:?}");
    daemon.stop();
}

#[test]
fn without_systemd_resolved_one_line_says_so() {
    let (namespace, bus) = (Namespace::tracked("nameless"), Bus::start());
    let daemon = Daemon::start(&namespace, &bus);
    inject::udp(&namespace, 53, 100);
    wait_for("the flows", || (bus.property("ActiveCount").unwrap() == 100).then_some(()));
    let output = flowctl(&bus, "list --resolve");
    let said = text(&output.stderr);
    assert!(output.status.success() && text(&output.stdout).lines().count() == 101, "{output:?}");
    assert!(said.contains("systemd-resolved") && said.lines().count() == 1, "{said}");
    let screen = terminal(&bus, "top --resolve");
    screen.wait_for("systemd-resolved cannot be asked");
    screen.press(&["q"]);
    screen.wait_for("ended with 0");
    let screen = terminal(&bus, "monitor --snapshot --resolve");
    let said = |text: &str| text.matches("systemd-resolved cannot be asked").count();
    let mut number = 0;
    screen.wait("why addresses have no names", |text| {
        inject::udp(&namespace, 6000 + number, 1);
        number += 1;
        said(text) == 1
    });
    daemon.stop();
}

//! flowctl at 80 columns and 24 lines, in a terminal.

use std::collections::HashSet;

use flowbus_tests::daemon::binary;
use flowbus_tests::network::{MASQUERADED, SERVER_V4, socket_address};
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Network, Screen};

fn terminal(bus: &Bus, arguments: &str) -> Screen {
    Screen::start(&format!("{} --bus {} {arguments}", binary("flowctl").display(), bus.address()))
}

/// The lines of the terminal that are of events.
fn events(text: &str) -> Vec<&str> {
    let is_event = |line: &&str| ["new", "update", "destroy"].iter().any(|event| line.contains(event));
    text.lines().filter(|line| is_event(line) && line.contains("198.18.1.2:7100")).collect()
}

#[test]
fn the_events_of_one_connection_have_their_times_and_differ_from_each_other() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    let service = network.tcp_service(SERVER_V4, MASQUERADED);
    // Whether it follows shows with the first flow: the line of the snapshot.
    let before = service.connect(&network.client, socket_address(SERVER_V4, MASQUERADED), 1);
    let screen = terminal(&bus, "monitor --snapshot dport=7100");
    screen.wait_for("ESTABLISHED");
    let connection = service.connect(&network.client, socket_address(SERVER_V4, MASQUERADED), 1);
    screen.wait("the connection", |text| events(text).iter().any(|line| line.contains("ESTABLISHED")));
    drop(connection);
    let text = screen.wait("its end", |text| events(text).iter().any(|line| line.contains("TIME_WAIT")));
    assert!(text.contains("TIME          EVENT    PROTO  STATE        FROM              TO"), "{text}");
    let events = events(&text);
    let differing: HashSet<&str> =
        events.iter().filter_map(|line| line.split_once(' ')).map(|(_, rest)| rest).collect();
    assert!(events.len() >= 4 && differing.len() == events.len(), "{text}");
    for line in &events {
        let (time, _) = line.split_once(' ').unwrap();
        let digits = time.bytes().filter(u8::is_ascii_digit).count();
        assert!(digits == 9 && time.len() == 12 && time.as_bytes()[8] == b'.', "{line}");
    }
    network.client.run(&format!("kill -INT {}", screen.child().unwrap()));
    let text = screen.wait_for("ended with 0");
    assert!(text.contains("Left out: ID, NAT. --wide shows every column"), "{text}");
    drop(before);
    daemon.stop();
}

#[test]
fn a_list_says_what_it_leaves_out() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    let service = network.tcp_service(SERVER_V4, MASQUERADED);
    let open = service.connect(&network.client, socket_address(SERVER_V4, MASQUERADED), 1);
    wait_for("the flow", || (bus.property("ActiveCount").unwrap() == 1).then_some(()));
    let text = terminal(&bus, "list --no-pager dport=7100").wait_for("ended with 0");
    assert!(text.contains("STATE        FROM") && text.contains("ESTABLISHED"), "{text}");
    assert!(text.contains("Left out: NAT. --wide shows every column"), "{text}");
    assert!(!text.contains("SOURCE"), "a column that says nothing goes first: {text}");
    let text = terminal(&bus, "list --no-pager dport=7100 --wide").wait_for("ended with 0");
    assert!(text.contains("SOURCE") && !text.contains("Left out"), "{text}");
    drop(open);
    daemon.stop();
}

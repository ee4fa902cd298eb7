//! What strangers write to the sockets that flowbus reads, of the bus and of its own: messages that never end, bytes that mean nothing.

use std::io::Write;
use std::process::Stdio;

use flowbus_tests::booted::{MEMBER, STRANGER, control, monitor};
use flowbus_tests::process::wait_for;
use flowbus_tests::{Machine, SystemBus, conntrack, inject};

/// Bytes of a message: its first, its fixed part, half of its header, its header and half of its body.
const PARTS: [usize; 4] = [1, 16, 64, 2_000];
/// How many connections of each user; the bus takes 64 that have not said who they are.
const UNKNOWN: usize = 16;

fn answers(machine: &Machine, bus: SystemBus) {
    for user in ["root", MEMBER] {
        machine.call(user, monitor("ListActive"), &["a{sv}", "0"]).unwrap();
        machine.call(user, control("GetCpuStatistics"), &[]).unwrap();
    }
    machine.call("root", control("DeleteFlows"), &["a{sv}a{sv}", "1", "dport", "q", "9", "0"]).unwrap();
    inject::udp(machine.namespace(), 1001, 10);
    machine.wait_until_synchronized();
    conntrack::delete(machine.namespace(), "-p udp --orig-port-dst 1001");
    machine.wait_until_synchronized();
    assert_eq!(machine.unit("flowbusd.service", "NRestarts"), "0", "{bus:?}");
    assert_eq!(machine.unit("flowbus-control.service", "NRestarts"), "0", "{bus:?}");
}

#[test]
fn a_message_of_which_only_the_beginning_comes_holds_up_nobody_on_either_bus() {
    for bus in [SystemBus::Daemon, SystemBus::Broker] {
        let machine = Machine::installed(bus);
        machine.wait_until_synchronized();
        let mut connections = Vec::new();
        let mut unknown = Vec::new();
        for user in [MEMBER, STRANGER] {
            for target in [monitor("ListActive"), control("DeleteFlows")] {
                for part in PARTS {
                    let mut connection = machine.raw_connection(user);
                    connection.call_in_part(target, part);
                    connections.push(connection);
                }
            }
            for _ in 0..UNKNOWN {
                let mut socket = machine.bus_socket(user);
                socket.write_all(b"\0AUTH EXTER").unwrap();
                unknown.push(socket);
            }
        }
        answers(&machine, bus);
        machine.run("systemctl restart flowbusd.service");
        machine.run("systemctl stop flowbus-control.service");
        machine.wait_until_synchronized();
        answers(&machine, bus);
        // Connections that end in the middle take nothing with them.
        drop((connections, unknown));
        answers(&machine, bus);
    }
}

/// Connects to the socket where flowbus-attribution hands over its programs, is asked, and answers some bytes again and again in one
/// message; ends when the connection does.
const ANSWER: &str = r#"
    use Socket;
    my ($bytes, $times) = @ARGV;
    socket(S, AF_UNIX, SOCK_SEQPACKET, 0) or die $!;
    connect(S, pack_sockaddr_un("/run/flowbus/attribution")) or exit($!{EACCES} ? 7 : 1);
    sysread(S, my $asked, 1) == 1 or die $!;
    $times and send(S, pack("H*", $bytes) x $times, 0);
    $times and sysread(S, my $end, 1);
"#;

#[test]
fn the_socket_for_programs_refuses_all_but_root_and_outlives_what_root_sends() {
    let machine = Machine::installed_with_bpf(SystemBus::Daemon);
    machine.wait_until_synchronized();
    let attributed = || (machine.property("Attribution").ok()? == "bpf").then_some(());
    wait_for("the programs", attributed);
    wait_for("the loader to end", || {
        (machine.unit("flowbus-attribution.service", "ActiveState") == "inactive").then_some(())
    });
    let sockets = machine
        .shell("ss --no-header --listening --unix --packet | grep --only-matching '/run/flowbus[^ ]*'");
    assert_eq!(sockets.split_whitespace().collect::<Vec<_>>(), ["/run/flowbus/attribution"]);
    let answer = |user: &str, bytes: &str, times: u32| {
        let mut perl = machine.command_as(user, "perl");
        perl.args(["-MErrno", "-e", ANSWER, bytes, &times.to_string()]).stdin(Stdio::null());
        perl.status().unwrap().code()
    };
    for user in [MEMBER, STRANGER, "flowbus", "flowbus-control"] {
        assert_eq!(answer(user, "00", 1), Some(7), "{user}");
    }
    let refusals = || {
        let entries = machine.journal(&["--identifier=flowbusd"]);
        let refused = |text: &str| text.contains("receiving BPF programs from flowbus-attribution failed");
        entries.iter().filter(|entry| entry["MESSAGE"].as_str().is_some_and(refused)).count()
    };
    // A byte, a name without its descriptor, what is no text, too much, and nothing at all.
    let name: String = "bpf-cgroups".bytes().map(|byte| format!("{byte:02x}")).collect();
    let nonsense = [("00", 1), (&name, 1), ("ff", 2_048), ("3a", 100_000), ("00", 0)];
    for (round, (bytes, times)) in nonsense.into_iter().enumerate() {
        assert_eq!(answer("root", bytes, times), Some(0), "{times} of {bytes}");
        wait_for("a refusal", || (refusals() > round).then_some(()));
    }
    machine.run("systemctl start flowbus-attribution.service");
    assert_eq!(machine.unit("flowbus-attribution.service", "Result"), "success");
    assert_eq!(machine.unit("flowbusd.service", "NRestarts"), "0");
    attributed().unwrap();
}

//! Where owners come from in each life of the daemon: from its own programs, the loader's, /proc, or the life before.

use std::net::UdpSocket;

use flowbus_tests::daemon::UNATTRIBUTED;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Kept, Machine, Namespace, SystemBus};
use rustix::process::Signal;
use serde_json::Value;

use super::{connect, exact, flows, listen, on_thread, owned, this_process, who};

/// Every configuration option has its default.
pub(super) const DEFAULT: &str = "/dev/null";

#[test]
fn owners_survive_a_daemon_that_is_killed() {
    let namespace = Namespace::tracked("killed");
    let bus = Bus::start();
    let kept = Kept::open(&namespace, 1 << 20);
    let mut daemon = kept.spawn_with(&namespace, &bus, DEFAULT);
    daemon.wait_until_attributed(&bus);
    let listener = listen(&namespace, "127.0.0.1:0");
    let port = listener.local_addr().unwrap().port();
    let held = connect(&namespace, &listener, listener.local_addr().unwrap());
    let before = owned(&bus, port);
    let ended = on_thread(&namespace, "ends", || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", "127.0.0.1:9").unwrap();
        socket.local_addr().unwrap().port()
    });
    wait_for("the flow", || flows(&bus).into_iter().find(|flow| flow["sport"] == ended));
    namespace.run("conntrack -D -p udp --dport 9");
    let closed = |bus: &Bus| {
        let closed = bus.list("ListClosed", &[]).unwrap();
        closed.into_iter().find(|flow| flow["sport"] == ended)
    };
    let closed_before = wait_for("its end", || closed(&bus));
    assert_eq!(who(&closed_before["initiator"]), exact("ends"), "{closed_before:#}");
    let program = std::env::current_exe().unwrap();
    for owner in [&before["initiator"], &before["responder"], &closed_before["initiator"]] {
        let exe = owner["exe"].as_str().unwrap_or_else(|| panic!("{owner:#}"));
        // Of a long path the end is shown.
        assert!(program.to_str().unwrap().ends_with(exe.trim_start_matches("...")), "{exe}");
    }

    daemon.signal(Signal::KILL);
    let _ = daemon.ended();
    // The next life has no programs: what it shows it has from the one before.
    let mut daemon = kept.spawn_with(&namespace, &bus, UNATTRIBUTED);
    daemon.wait_until_synchronized(&bus);
    assert_eq!(bus.property("Attribution").unwrap(), "none");
    let after = owned(&bus, port);
    for key in ["id", "initiator", "responder"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    assert_eq!(closed(&bus).unwrap()["initiator"], closed_before["initiator"]);
    drop(held);
    daemon.stop();
}

#[test]
fn without_bpf_the_daemon_runs_says_so_and_looks_into_proc() {
    let namespace = Namespace::tracked("refused");
    let bus = Bus::start();
    let mut command = Daemon::command(&namespace, &bus);
    let program = command.get_program().to_owned();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    command = std::process::Command::new("setpriv");
    command.args(["--bounding-set", "-bpf,-perfmon,-sys_admin", "--inh-caps", "-bpf,-perfmon,-sys_admin"]);
    // The namespace is entered by a program that needs CAP_SYS_ADMIN: the powers go after it.
    let (enter, flowbusd) = arguments
        .split_at(arguments.iter().position(|word| word.to_string_lossy().ends_with("/flowbusd")).unwrap());
    let mut entered = std::process::Command::new(program);
    entered.args(enter).arg("setpriv").args(command.get_args()).args(flowbusd).args(["--config", DEFAULT]);
    let mut daemon = Daemon::spawn(&mut entered);
    daemon.wait_until_synchronized(&bus);
    wait_for("the log to say so", || daemon.log().contains("BPF is refused").then_some(()));
    assert_eq!(daemon.log().matches("BPF is refused").count(), 1, "{}", daemon.log());
    wait_for("the lesser way", || (bus.property("Attribution").unwrap() == "procfs").then_some(()));
    // A connection that lasts is found in /proc.
    let listener = listen(&namespace, "127.0.0.1:0");
    let held = connect(&namespace, &listener, listener.local_addr().unwrap());
    let flow = owned(&bus, listener.local_addr().unwrap().port());
    for owner in [&flow["initiator"], &flow["responder"]] {
        assert_eq!(
            (owner["pid"].as_u64(), owner["uid"].as_u64()),
            (Some(this_process()), Some(0)),
            "{flow:#}"
        );
        assert_eq!(owner["confidence"], "procfs", "{flow:#}");
    }
    drop(held);
    daemon.stop();
}

#[test]
fn the_service_gets_its_programs_from_the_loader_and_keeps_them_over_a_restart() {
    let machine = Machine::installed_with_bpf(SystemBus::Daemon);
    let attribution = || {
        let value = machine.run("busctl get-property org.flowbus.FlowMonitor1 /org/flowbus/FlowMonitor1 org.flowbus.FlowMonitor1 Attribution");
        (value.trim() == "s \"bpf\"").then_some(())
    };
    wait_for("the loader to hand its programs over", attribution);
    machine.namespace().nft(
        "table inet track { chain output { type filter hook output priority 0; ct state new accept; }; }",
    );
    machine.namespace().sysctl("net.netfilter.nf_conntrack_udp_timeout", "600");
    // The machine's control groups lie below one of ours, and the kernel names them by the whole path.
    let flow = |unit: &str, port: u16| {
        machine.shell(&format!("systemd-run --wait --unit={unit} bash -c 'echo >/dev/udp/127.0.0.1/{port}'"));
        let flow = wait_for("a flow of that process", || {
            let listed = machine.run(&format!("flowctl list --json comm=bash dport={port}"));
            listed.lines().next().map(|line| serde_json::from_str::<Value>(line).unwrap())
        });
        let path = flow["initiator"]["cgroup"].as_str().unwrap().to_owned();
        assert!(path.ends_with(&format!("/system.slice/{unit}.service")), "{flow:#}");
        flow
    };
    let before = flow("asks-before", 5300);
    let programs = || machine.shell("ls -l /proc/$(systemctl show -P MainPID flowbusd)/fd | grep -c bpf");
    let count = programs();
    machine.run("systemctl kill --signal=KILL flowbusd.service");
    wait_for("the next life", || {
        machine.command("flowctl").arg("status").output().unwrap().status.success().then_some(())
    });
    wait_for("the programs to be there", attribution);
    assert_eq!(programs(), count, "the same programs, not others");
    let _ = flow("asks-after", 5301);
    let kept = machine.run("flowctl list --json comm=bash dport=5300");
    let kept: Value = serde_json::from_str(kept.lines().next().unwrap()).unwrap();
    assert_eq!((&kept["id"], &kept["initiator"]), (&before["id"], &before["initiator"]));
}

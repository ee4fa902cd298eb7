//! flowbusd as a service of a booted Debian: no capability, nothing lost over its own deaths, and who may see what.

mod hidden;
mod journal;
mod signals;
mod taken_over;

use std::collections::BTreeSet;
use std::process::Stdio;
use std::thread;

use flowbus_tests::booted::{MEMBER, monitor, package, previous_package};
use flowbus_tests::namespace::TRACKING;
use flowbus_tests::process::wait_for;
use flowbus_tests::traffic::UdpService;
use flowbus_tests::{Machine, SystemBus, conntrack, inject};
use serde_json::Value;

const BOTH: [SystemBus; 2] = [SystemBus::Daemon, SystemBus::Broker];

/// Ports that tell the flows of a test apart.
const OLD: u16 = 1001;
const NEW: u16 = 1002;

fn number(machine: &Machine, property: &str) -> u64 {
    machine.property(property).unwrap().as_u64().unwrap()
}

fn ids(flows: &[Value]) -> BTreeSet<u64> {
    flows.iter().map(|flow| flow["id"].as_u64().unwrap()).collect()
}

/// While the file is there, flowbusd does not get past the start of its next life; `more` are other lines of [Service].
fn hold(machine: &Machine, more: &str) {
    let text = format!(
        "[Service]
ExecStartPre=+/bin/sh -c 'while [ -e /run/hold ]; do sleep 0.05; done'
{more}"
    );
    machine.override_unit("flowbusd.service", "hold", &text);
    machine.run("touch /run/hold");
}

fn kill(machine: &Machine) {
    machine.run("systemctl kill --signal=KILL --kill-whom=main flowbusd.service");
}

/// flowbus-attribution hands a ring over when flowbusd has started, where the machine may load BPF programs.
fn wait_for_source(machine: &Machine, source: &str) {
    wait_for(source, || (machine.property("EventSource").ok()? == source).then_some(()));
}

/// A table of this many old flows: its epoch, and the flows' ids.
fn table(machine: &Machine, flows: u32) -> (Value, BTreeSet<u64>) {
    machine.wait_until_synchronized();
    inject::udp(machine.namespace(), OLD, flows);
    wait_for("all flows to be known", || (number(machine, "ActiveCount") == u64::from(flows)).then_some(()));
    (machine.property("Epoch").unwrap(), ids(&machine.list("ListActive", &[]).unwrap()))
}

/// The old flows end and as many new ones begin, while flowbusd is held.
fn change(machine: &Machine, flows: u32) {
    inject::udp(machine.namespace(), NEW, flows);
    conntrack::delete(machine.namespace(), &format!("-p udp --orig-port-dst {OLD}"));
}

/// All that happened meanwhile is there, under the same ids.
fn nothing_is_lost(machine: &Machine, before: &(Value, BTreeSet<u64>), flows: u32) {
    wait_for("the new life", || machine.property("Epoch").ok());
    wait_for("all events to be read", || (number(machine, "ClosedCount") == u64::from(flows)).then_some(()));
    machine.wait_until_synchronized();
    assert_eq!(machine.property("Epoch").unwrap(), before.0);
    assert_eq!(number(machine, "ActiveCount"), u64::from(flows));
    assert_eq!(number(machine, "EventsLost"), 0);
    let closed = machine.list("ListClosed", &[]).unwrap();
    assert_eq!(ids(&closed), before.1);
    assert!(closed.iter().all(|flow| flow["end_reason"] == "destroyed"), "{:?}", closed.first());
    assert!(ids(&machine.list("ListActive", &[]).unwrap()).is_disjoint(&before.1));
    assert_eq!(number(machine, "Resyncs"), 1);
}

#[test]
fn it_runs_without_a_capability_and_lists_the_machines_real_flows() {
    for bus in BOTH {
        let machine = Machine::installed(bus);
        machine.wait_until_synchronized();
        machine.wait_for_unit("flowbusd.service", "ActiveState", "active");
        machine.namespace().nft(TRACKING);
        let address = "127.0.0.1:9053".parse().unwrap();
        UdpService::bind(machine.namespace(), address).exchange(machine.namespace(), address, 3);
        let flows = wait_for("the flows of real packets", || {
            let flows = machine.list("ListActive", &[]).unwrap();
            assert!(flows.iter().all(|flow| flow["dport"] == 9053), "{flows:?}");
            (flows.len() == 3).then_some(flows)
        });
        let reply = machine.call(MEMBER, monitor("ListActive"), &["a{sv}", "0"]).unwrap();
        assert_eq!(ids(reply[0].as_array().unwrap()), ids(&flows));
        // The kernel's own numbers, which the sandbox cannot see, come from the helper.
        wait_for("the kernel's count, which may be a second old", || {
            let statistics = machine.monitor_call("GetStatistics", &[]).unwrap();
            (statistics[0]["kernel_count"] == 3).then_some(())
        });
        assert_eq!(machine.property("AccountingEnabled").unwrap(), true);

        let pid = machine.unit("flowbusd.service", "MainPID");
        let status = machine.run(&format!("cat /proc/{pid}/status"));
        for field in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
            assert!(status.contains(&format!("{field}:\t0000000000000000\n")), "{status}");
        }
        assert!(status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n"), "{status}");
        assert_ne!(
            machine.run(&format!("readlink /proc/{pid}/ns/net")),
            machine.run("readlink /proc/1/ns/net")
        );
        let text = wait_for("a status text with the flows", || {
            Some(machine.unit("flowbusd.service", "StatusText")).filter(|text| text.contains('3'))
        });
        assert!(!text.contains("127.0.0.1"), "{text}");
    }
}

#[test]
fn it_starts_by_the_bus_and_by_an_event() {
    for bus in BOTH {
        let machine = Machine::installed(bus);
        machine.wait_until_synchronized();
        machine.run("systemctl stop flowbusd.socket");
        assert_eq!(machine.unit("flowbusd.service", "ActiveState"), "inactive");
        // A stopped service does not come back by itself ...
        inject::udp(machine.namespace(), OLD, 1);
        assert_eq!(machine.unit("flowbusd.service", "ActiveState"), "inactive");
        // ... but by a call, with its sockets,
        machine.call(MEMBER, monitor("ListActive"), &["a{sv}", "0"]).unwrap();
        machine.wait_until_synchronized();
        machine.run("systemctl stop flowbusd.socket");
        // and with the sockets by an event.
        machine.run("systemctl start flowbusd.socket");
        assert_eq!(machine.unit("flowbusd.service", "ActiveState"), "inactive");
        inject::udp(machine.namespace(), NEW, 1);
        machine.wait_for_unit("flowbusd.service", "ActiveState", "active");
        machine.wait_until_synchronized();
    }
}

/// A call outside the units' lists is an error there, which a library may hide; here it ends the process.
#[test]
fn neither_process_makes_a_system_call_outside_its_list() {
    let machine = Machine::installed_with_bpf(SystemBus::Daemon);
    machine.wait_until_synchronized();
    machine.restart_with("kill", "[Service]\nSystemCallErrorNumber=");
    wait_for_source(&machine, "ring");
    let life = machine.unit("flowbusd.service", "InvocationID");
    table(&machine, 2_000);
    for (member, arguments) in [
        ("ListClosed", &["a{sv}", "0"][..]),
        ("OpenStream", &["a{sv}", "0"]),
        ("GetReport", &["a{sv}", "0"]),
        ("DecodeMark", &["u", "67895552"]),
        ("GetStatistics", &[]),
    ] {
        let _ = machine.monitor_call(member, arguments);
    }
    conntrack::delete(machine.namespace(), &format!("-p udp --orig-port-dst {OLD}"));
    machine.run("systemctl reload flowbusd.service");
    machine.wait_until_synchronized();
    assert_eq!(machine.unit("flowbusd.service", "InvocationID"), life);
    machine.run("systemctl stop flowbusd.socket flowbus-control.service");
    for unit in ["flowbusd.service", "flowbus-control.service"] {
        assert_eq!(machine.unit(unit, "Result"), "success", "{unit}");
    }
}

#[test]
fn nothing_is_lost_when_it_is_killed() {
    for (boot, source) in
        [(Machine::installed as fn(SystemBus) -> Machine, "socket"), (Machine::installed_with_bpf, "ring")]
    {
        let machine = boot(SystemBus::Daemon);
        wait_for_source(&machine, source);
        let before = table(&machine, 5_000);
        hold(&machine, "");
        kill(&machine);
        change(&machine, 5_000);
        machine.run("rm /run/hold");
        nothing_is_lost(&machine, &before, 5_000);
        assert_eq!(machine.property("EventSource").unwrap(), source);
    }
}

#[test]
fn nothing_is_lost_over_an_upgrade() {
    let mut machine = Machine::boot_with_bpf(SystemBus::Daemon);
    machine.install(previous_package());
    wait_for_source(&machine, "ring");
    let before = table(&machine, 5_000);
    hold(&machine, "");
    std::fs::copy(package(), machine.root().join("root/flowbus.deb")).unwrap();
    // dpkg ends when the service has started.
    let mut dpkg = machine
        .command("dpkg")
        .args(["--install", "/root/flowbus.deb"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    machine.wait_for_unit("flowbusd.service", "SubState", "start-pre");
    change(&machine, 5_000);
    machine.run("rm /run/hold");
    nothing_is_lost(&machine, &before, 5_000);
    assert!(dpkg.wait().unwrap().success());
}

#[test]
fn its_table_survives_a_restart_and_a_reexec_of_pid_1() {
    let machine = Machine::installed_with_bpf(SystemBus::Daemon);
    wait_for_source(&machine, "ring");
    let before = table(&machine, 100);
    let pid = machine.unit("flowbusd.service", "MainPID");
    machine.run("systemctl daemon-reexec");
    assert_eq!(machine.unit("flowbusd.service", "MainPID"), pid);
    for restart in [
        "systemctl restart flowbusd.service",
        "systemctl kill --signal=KILL --kill-whom=main flowbusd.service",
    ] {
        let life = machine.unit("flowbusd.service", "InvocationID");
        machine.run(restart);
        wait_for("another life", || (machine.unit("flowbusd.service", "InvocationID") != life).then_some(()));
        machine.wait_until_synchronized();
        assert_eq!(machine.property("Epoch").unwrap(), before.0, "after {restart}");
        assert_eq!(ids(&machine.list("ListActive", &[]).unwrap()), before.1, "after {restart}");
        assert_eq!(machine.property("EventSource").unwrap(), "ring", "after {restart}");
        assert_eq!(number(&machine, "Resyncs"), 1, "after {restart}");
    }
}

#[test]
fn an_overrun_while_it_is_down_is_told_and_the_socket_stays() {
    let machine = Machine::installed_with_bpf(SystemBus::Daemon);
    wait_for_source(&machine, "ring");
    let before = table(&machine, 1_000);
    // PID 1 watches the sockets between two lives.
    hold(&machine, "RestartSec=2");
    kill(&machine);
    // The buffer holds about 52,000 events; an update follows each flow's beginning, and its end.
    inject::udp(machine.namespace(), NEW, 40_000);
    conntrack::delete(machine.namespace(), &format!("-p udp --orig-port-dst {NEW}"));
    machine.wait_for_unit("flowbusd.service", "SubState", "start-pre");
    assert_eq!(machine.unit("flowbusd.socket", "ActiveState"), "active");
    // As long as nobody gives it the kernel's table, a list says what it may lack.
    machine.run("systemctl mask --runtime --now flowbus-control.service");
    machine.run("rm /run/hold");
    wait_for("the new life", || machine.property("Epoch").ok());
    let listed = machine.command("flowctl").args(["list", "--json"]).output().unwrap();
    assert!(listed.status.success() && !listed.stdout.is_empty(), "{listed:?}");
    assert!(String::from_utf8_lossy(&listed.stderr).contains("flows may be missing here"), "{listed:?}");
    machine.run("systemctl unmask --runtime flowbus-control.service");
    machine.wait_until_synchronized();
    assert_eq!(machine.property("Epoch").unwrap(), before.0);
    assert_eq!(ids(&machine.list("ListActive", &[]).unwrap()), before.1);
    assert!(number(&machine, "EventsLost") > 0);
    assert_eq!(machine.unit("flowbusd.socket", "ActiveState"), "active");
    let told = machine.journal(&["--identifier=flowbusd", "--priority=warning"]);
    assert!(told.iter().any(|entry| entry["MESSAGE_ID"].is_string()), "{told:?}");
}

#[test]
fn it_outlives_the_bus() {
    for bus in BOTH {
        let machine = Machine::installed(bus);
        let before = table(&machine, 100);
        let pid = machine.unit("flowbusd.service", "MainPID");
        machine.run("systemctl restart dbus.service");
        inject::udp(machine.namespace(), NEW, 10);
        wait_for("the flows of meanwhile", || {
            (machine.property("ActiveCount").ok()?.as_u64()? == 110).then_some(())
        });
        machine.wait_until_synchronized();
        assert_eq!(machine.property("Epoch").unwrap(), before.0);
        assert_eq!(machine.unit("flowbusd.service", "MainPID"), pid, "{bus:?}");
    }
}

#[test]
fn a_daemon_that_hangs_is_killed_and_keeps_its_table() {
    let machine = Machine::installed(SystemBus::Daemon);
    machine.override_unit("flowbusd.service", "watchdog", "[Service]\nWatchdogSec=3");
    machine.run("systemctl restart flowbusd.service");
    let before = table(&machine, 100);
    let life = machine.unit("flowbusd.service", "InvocationID");
    machine.run("systemctl kill --signal=STOP --kill-whom=main flowbusd.service");
    wait_for("another life", || (machine.unit("flowbusd.service", "InvocationID") != life).then_some(()));
    machine.wait_until_synchronized();
    assert_eq!(machine.property("Epoch").unwrap(), before.0);
    // Waiting for a helper that is not there is no hang.
    machine.run("systemctl mask --runtime --now flowbus-control.service");
    let life = machine.unit("flowbusd.service", "InvocationID");
    let _ = machine.list("ListActive", &[["refresh", "b", "true"]]);
    thread::sleep(std::time::Duration::from_secs(7));
    assert_eq!(machine.unit("flowbusd.service", "InvocationID"), life);
    assert_eq!(machine.property("ActiveCount").unwrap(), 100);
}

#[test]
fn wrong_and_missing_sockets_are_refused_by_name() {
    let machine = Machine::installed(SystemBus::Daemon);
    machine.run("systemctl stop flowbusd.socket");
    let cases = [
        // A route socket in the place of the event socket.
        ("wrong", "ListenNetlink=route 1\nFileDescriptorName=events", "User=flowbus\nPrivateNetwork=yes"),
        // No event socket, in a sandbox where one's own would see nothing, without and with the privilege to open it.
        ("missing", "ListenNetlink=netfilter 0\nFileDescriptorName=dump", "User=flowbus\nPrivateNetwork=yes"),
        ("private", "ListenNetlink=netfilter 0\nFileDescriptorName=dump", "PrivateNetwork=yes"),
        // A socket that receives nothing.
        (
            "groupless",
            "ListenNetlink=netfilter 0\nFileDescriptorName=events",
            "User=flowbus\nPrivateNetwork=yes",
        ),
    ];
    for (name, socket, service) in cases {
        let errors = || {
            // Not by unit: of a process that has ended before journald reads its message, that is not known.
            let said = machine.journal(&["--identifier=flowbusd", "--priority=err"]);
            said.iter()
                .filter_map(|entry| entry["MESSAGE"].as_str())
                .filter(|message| message.contains("events"))
                .count()
        };
        let before = errors();
        machine.shell(&format!(
            "cat >/run/systemd/system/{name}.socket <<END\n[Socket]\n{socket}\nEND
            cat >/run/systemd/system/{name}.service <<END\n[Service]\nType=notify\nExecStart=/usr/bin/flowbusd\n{service}\nEND
            systemctl daemon-reload
            systemctl start {name}.socket
            if systemctl start {name}.service; then exit 1; fi
            systemctl stop {name}.socket"
        ));
        // The journal may be behind.
        wait_for(&format!("{name} to say what is missing"), || (errors() > before).then_some(()));
    }
}

#[test]
fn the_journal_has_fields_and_no_address() {
    let machine = Machine::installed(SystemBus::Daemon);
    table(&machine, 50);
    machine.run("systemctl restart flowbusd.service");
    machine.wait_until_synchronized();
    let entries = machine.journal(&["--identifier=flowbusd"]);
    assert!(!entries.is_empty());
    machine.run("systemctl reload flowbusd.service");
    wait_for("the journal to tell of the reload", || {
        let entries = machine.journal(&["--identifier=flowbusd"]);
        entries.iter().any(|entry| entry["MESSAGE"] == "configuration reloaded").then_some(())
    });
    let synchronized =
        entries.iter().rfind(|entry| entry["MESSAGE"].as_str().unwrap().starts_with("table sync"));
    let synchronized = synchronized.unwrap();
    let message = synchronized["MESSAGE"].as_str().unwrap();
    let [lost, added] = ["LOST", "ADDED"].map(|name| synchronized[name].as_str().unwrap());
    assert!(message.starts_with("table synchronized reason="), "{message}");
    assert!(message.contains(&format!(" lost={lost} added={added} closed=")), "{message}");
    let of_programs = entries.iter().filter(|entry| {
        entry["_PID"] == synchronized["_PID"]
            && entry["MESSAGE"].as_str().unwrap().starts_with("BPF programs do not run")
    });
    assert!(of_programs.count() <= 1, "one line, however many do not run");
    // Each MESSAGE_ID is explained.
    let explained = machine.run(&format!(
        "journalctl --catalog --no-pager --identifier=flowbusd MESSAGE_ID={}",
        synchronized["MESSAGE_ID"].as_str().unwrap()
    ));
    assert!(explained.contains("Subject: The table of flowbusd agrees with the kernel's"), "{explained}");
    assert!(explained.contains(&format!("It added {added} flows")), "{explained}");
    let catalog = machine.run("journalctl --dump-catalog --no-pager");
    let ids = include_str!("../../../../logging/src/message_id.rs");
    let ids: Vec<&str> = ids.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert!(ids.len() > 5, "{ids:?}");
    for id in ids {
        assert!(catalog.contains(&format!("-- {id}")), "{id}");
    }
    for entry in &entries {
        assert!(entry["CODE_FILE"].is_string() && entry["TARGET"].is_string(), "{entry}");
        let text = entry.to_string();
        assert!(!text.contains("198.18.") && !text.contains("198.19."), "{entry}");
    }
}

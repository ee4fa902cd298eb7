//! The package on a booted Debian: units, users, bus policy, the privileged helper, upgrade and removal.

use flowbus_tests::booted::{MEMBER, STRANGER, control, package, previous_package};
use flowbus_tests::process::wait_for;
use flowbus_tests::traffic::UdpService;
use flowbus_tests::{Machine, SystemBus, conntrack, inject};

const SOCKETS: [&str; 3] = ["flowbusd.socket", "flowbusd-dump.socket", "flowbusd-links.socket"];

/// The exposure that systemd computes, from 0 (none) to 10.
fn exposure(machine: &Machine, unit: &str) -> f64 {
    let analysis = machine.run(&format!("systemd-analyze security --no-pager {unit}"));
    let level = analysis.lines().find_map(|line| line.split_once("Overall exposure level for "));
    let (_, level) = level.unwrap_or_else(|| panic!("no level in:\n{analysis}"));
    level.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The netlink sockets that PID 1 holds, by inode: a socket that was opened anew has another.
fn sockets_of_pid_1(machine: &Machine) -> Vec<String> {
    let names = machine.shell("for unit in flowbusd.socket flowbusd-dump.socket flowbusd-links.socket; do systemctl is-active $unit; done; ls -l /proc/1/fd | grep -o 'socket:.*' | sort");
    let netlink = machine.shell("awk 'NR > 1 { print \"socket:[\" $10 \"]\" }' /proc/net/netlink");
    assert!(names.starts_with("active\nactive\nactive\n"), "{names}");
    names.lines().filter(|name| netlink.lines().any(|line| line == *name)).map(str::to_owned).collect()
}

#[test]
fn the_services_are_as_confined_as_promised() {
    let machine = Machine::installed(SystemBus::Daemon);
    assert!(exposure(&machine, "flowbusd.service") <= 0.2);
    assert!(exposure(&machine, "flowbus-control.service") <= 1.3);
    machine.run("systemctl start flowbus-export@log.service");
    assert!(exposure(&machine, "flowbus-export@log.service") <= 0.3);
    let units = "flowbusd.service flowbusd.socket flowbusd-dump.socket flowbusd-links.socket flowbus-control.service flowbus-export@log.service flowbus-tracking.service";
    let complaints = machine.shell(&format!("systemd-analyze verify --man=no {units} 2>&1"));
    assert_eq!(complaints, "");
    // And they confine themselves further.
    machine.restart_with("log", "[Service]\nEnvironment=RUST_LOG=debug");
    machine.wait_until_synchronized();
    for program in ["flowbusd", "flowbus-control"] {
        // The daemon is synchronized with the state of the life before, maybe before the helper has started.
        let confined = wait_for(&format!("{program} to say that files are confined"), || {
            let told = machine.journal(&[&format!("--identifier={program}")]);
            told.into_iter()
                .find(|entry| entry["MESSAGE"].as_str().unwrap().starts_with("files are confined "))
        });
        // "Partly" before Linux 6.12, which does not keep them from sending signals.
        assert_ne!(confined["ENFORCED"], "Not", "{program}");
    }
}

#[test]
fn the_default_configuration_is_right_with_and_without_its_comments() {
    let machine = Machine::installed(SystemBus::Daemon);
    machine.run("flowbusd --check");
    // An option is written with its default behind a #, prose has a space after it.
    machine.shell("sed 's/^#\\([a-zA-Z]\\)/\\1/' /etc/flowbus/flowbusd.toml >/tmp/all.toml");
    let options = machine.shell("grep -c '^[a-zA-Z_]* = ' /tmp/all.toml");
    assert!(options.trim().parse::<u32>().unwrap() >= 9, "{options}");
    machine.run("flowbusd --check --config /tmp/all.toml");
}

/// On a root without the users the bus refuses the policy until the package has made them and reloaded the bus.
#[test]
fn only_the_daemons_user_may_ask_the_helper() {
    for bus in [SystemBus::Daemon, SystemBus::Broker] {
        let machine = Machine::installed(bus);
        machine.run("systemctl stop flowbusd.socket");
        inject::udp(machine.namespace(), 53, 3);
        // Counters and times are on, and events are sent for every flow: the package has set the parameters.
        let state = &machine.call("flowbus", control("GetKernelState"), &[]).unwrap()[0];
        assert_eq!((&state["count"], &state["events"]), (&3.into(), &1.into()), "{bus:?}");
        assert_eq!((&state["accounting"], &state["timestamping"]), (&true.into(), &true.into()));
        assert_eq!((&state["early_drop"], &state["insert_failed"]), (&0.into(), &0.into()));
        for user in ["root", MEMBER, STRANGER] {
            let error = machine.call(user, control("GetKernelState"), &[]).unwrap_err();
            assert_eq!(error.name, "org.freedesktop.DBus.Error.AccessDenied", "{user} on {bus:?}");
        }
        let pid = machine.unit("flowbus-control.service", "MainPID");
        let status = machine.run(&format!("cat /proc/{pid}/status"));
        for field in ["CapEff", "CapPrm", "CapBnd"] {
            // CAP_NET_ADMIN is bit 12.
            assert!(status.contains(&format!("{field}:\t0000000000001000\n")), "{status}");
        }
    }
}

#[test]
fn nobody_else_may_have_the_names() {
    for bus in [SystemBus::Daemon, SystemBus::Broker] {
        let machine = Machine::installed(bus);
        machine.run("systemctl stop flowbusd.socket");
        let request =
            ["org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "RequestName"];
        for name in ["org.flowbus.FlowMonitor1", "org.flowbus.FlowEvents1", "org.flowbus.FlowControl1"] {
            let owner = if name.contains("Control") { "flowbus-control" } else { "flowbus" };
            for user in ["root", "flowbus", "flowbus-control", MEMBER, STRANGER] {
                let reply = machine.call(user, request, &["su", name, "4"]);
                match reply {
                    Ok(_) => assert_eq!(user, owner, "{name} on {bus:?}"),
                    Err(error) => {
                        assert_eq!(error.name, "org.freedesktop.DBus.Error.AccessDenied");
                        assert_ne!(user, owner, "{name} on {bus:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_helper_leaves_when_idle_and_no_call_is_lost() {
    let machine = Machine::installed(SystemBus::Daemon);
    machine.run("systemctl stop flowbusd.socket");
    machine.override_unit(
        "flowbus-control.service",
        "idle",
        "[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=
ExecStart=/usr/libexec/flowbus-control --idle 1",
    );
    machine.run("systemctl stop flowbus-control.service");
    let mut lives = std::collections::BTreeSet::new();
    // Calls about as far apart as the helper waits: some of them meet its end.
    for number in 0..12_u64 {
        machine.call("flowbus", control("GetKernelState"), &[]).unwrap();
        lives.insert(machine.unit("flowbus-control.service", "InvocationID"));
        std::thread::sleep(std::time::Duration::from_millis(940 + 20 * number));
    }
    machine.wait_for_unit("flowbus-control.service", "ActiveState", "inactive");
    assert_eq!(machine.unit("flowbus-control.service", "Result"), "success");
    assert!(lives.len() > 1, "the helper never left: {lives:?}");
}

#[test]
fn the_event_socket_stops_and_starts_everything() {
    let machine = Machine::installed(SystemBus::Daemon);
    machine.wait_until_synchronized();
    let epoch = machine.property("Epoch").unwrap();
    machine.run("systemctl stop flowbusd.socket");
    for unit in SOCKETS.iter().chain(&["flowbusd.service"]) {
        assert_eq!(machine.unit(unit, "ActiveState"), "inactive", "{unit}");
    }
    inject::udp(machine.namespace(), 53, 10);
    assert_eq!(machine.unit("flowbusd.service", "ActiveState"), "inactive");
    machine.run("systemctl start --no-block flowbusd.service");
    for unit in SOCKETS {
        machine.wait_for_unit(unit, "ActiveState", "active");
    }
    // Nobody kept anything meanwhile: a new epoch, and the table by a dump.
    machine.wait_until_synchronized();
    assert_eq!(machine.list("ListActive", &[]).unwrap().len(), 10);
    assert_ne!(machine.property("Epoch").unwrap(), epoch);
    assert_eq!(machine.property("ClosedCount").unwrap(), 0);
}

#[test]
fn disabling_it_stops_it_and_keeps_it_stopped() {
    const ATTRIBUTION: &str = "flowbusd-attribution.socket";
    let machine = Machine::installed(SystemBus::Daemon);
    machine.wait_until_synchronized();
    machine.run("systemctl disable --now flowbusd");
    for unit in SOCKETS.iter().chain(&[ATTRIBUTION]) {
        machine.wait_for_unit(unit, "ActiveState", "inactive");
        assert_eq!(machine.unit(unit, "UnitFileState"), "disabled", "{unit}");
    }
    inject::udp(machine.namespace(), 53, 10);
    assert_eq!(machine.unit("flowbusd.service", "ActiveState"), "inactive");
    machine.run("systemctl enable --now flowbusd");
    machine.wait_until_synchronized();
    for unit in SOCKETS.iter().chain(&[ATTRIBUTION]) {
        assert_eq!(machine.unit(unit, "UnitFileState"), "enabled", "{unit}");
    }
}

#[test]
fn a_wrong_configuration_ends_in_a_failed_service_and_flowctl_says_so() {
    let machine = Machine::installed(SystemBus::Daemon);
    machine.wait_until_synchronized();
    machine.shell("echo nonsense >>/etc/flowbus/flowbusd.toml");
    machine.shell("systemctl restart flowbusd.service || true");
    machine.wait_for_unit("flowbusd.service", "ActiveState", "failed");
    assert_eq!(machine.unit("flowbusd.service", "ExecMainStatus"), "78");
    assert_eq!(machine.unit("flowbusd.service", "NRestarts"), "0");
    let told = machine.shell("flowctl status 2>&1 || true");
    assert!(told.contains("flowbusd does not start") && told.contains("journalctl -u flowbusd"), "{told}");
    // Nor do events start it for ever.
    let mut port = 1000;
    wait_for("the socket to give up", || {
        inject::udp(machine.namespace(), port, 1);
        port += 1;
        (machine.unit("flowbusd.socket", "Result") == "trigger-limit-hit").then_some(())
    });
    machine.shell("sed -i '$d' /etc/flowbus/flowbusd.toml");
    machine.run("systemctl start flowbusd.service");
    machine.wait_until_synchronized();
    assert!(machine.shell("flowctl status").contains("synchronized"));
}

#[test]
fn a_crash_loop_leaves_the_sockets_and_the_table_alone() {
    let machine = Machine::installed(SystemBus::Daemon);
    machine.wait_until_synchronized();
    inject::udp(machine.namespace(), 53, 100);
    wait_for("the flows", || (machine.property("ActiveCount").unwrap() == 100).then_some(()));
    let (epoch, flows) = (machine.property("Epoch").unwrap(), machine.list("ListActive", &[]).unwrap());
    machine.override_unit(
        "flowbusd.service",
        "crash",
        "[Service]
Type=simple
ExecStart=
ExecStart=/bin/false
RestartSec=50ms",
    );
    let before = sockets_of_pid_1(&machine);
    assert_eq!(before.len(), SOCKETS.len(), "{before:?}");
    machine.run("systemctl restart --no-block flowbusd.service");
    for round in 0..40 {
        inject::udp(machine.namespace(), 1000 + round, 5);
    }
    wait_for("more crashes than systemd's own limit lets pass", || {
        let restarts: u32 = machine.unit("flowbusd.service", "NRestarts").parse().ok()?;
        (restarts > 30).then_some(())
    });
    assert_eq!(sockets_of_pid_1(&machine), before);
    machine.run("rm /run/systemd/system/flowbusd.service.d/crash.conf");
    machine.run("systemctl daemon-reload");
    // The life that follows the last crash is a good one again, and has what was kept for it and what came meanwhile.
    wait_for("a good life", || machine.property("Epoch").ok());
    machine.wait_until_synchronized();
    assert_eq!(machine.property("Epoch").unwrap(), epoch);
    assert_eq!(machine.property("EventsLost").unwrap(), 0);
    let ids = |flows: &[serde_json::Value]| -> std::collections::BTreeSet<u64> {
        flows.iter().map(|flow| flow["id"].as_u64().unwrap()).collect()
    };
    let now = ids(&machine.list("ListActive", &[]).unwrap());
    assert_eq!(now.len(), 300);
    assert!(now.is_superset(&ids(&flows)));
}

#[test]
fn an_upgrade_keeps_the_sockets() {
    let mut machine = Machine::boot(SystemBus::Daemon);
    machine.install(previous_package());
    let before = sockets_of_pid_1(&machine);
    assert_eq!(before.len(), SOCKETS.len(), "{before:?}");
    machine.install(package());
    assert_eq!(sockets_of_pid_1(&machine), before);
    assert_ne!(machine.run("dpkg-query --show --showformat=${Version} flowbus"), "0.0.1");
    // What an administrator has stopped, an upgrade leaves stopped.
    machine.run("systemctl stop flowbusd.socket");
    machine.install(previous_package());
    assert_eq!(machine.unit("flowbusd.service", "ActiveState"), "inactive");
    assert_eq!(machine.unit("flowbusd.socket", "ActiveState"), "inactive");
}

#[test]
fn a_purge_leaves_nothing_behind() {
    // What dpkg and the systemd helpers remember of every package, and what useradd keeps a copy of.
    const FILES: &str = "find / -xdev \\( -path /var/lib/dpkg -o -path /var/log -o -path /root -o -path /var/cache \\) -prune -o -print | sort";
    const SETTINGS: &str = "acct timestamp events";
    const VALUES: &str =
        "cd /proc/sys/net/netfilter && cat nf_conntrack_acct nf_conntrack_timestamp nf_conntrack_events";
    const USERS: &str = "cat /etc/passwd /etc/group /etc/shadow /etc/gshadow";
    let mut machine = Machine::boot(SystemBus::Daemon);
    // Backups and locks of the user database are there after the first change of it.
    machine.run("useradd some-other");
    machine.run("userdel some-other");
    machine.run("groupadd --system some-group");
    let before = (machine.shell(FILES), machine.shell(USERS));
    // Connection tracking has its settings in this machine's namespace.
    machine.shell(&format!(
        "for name in {SETTINGS}; do echo 0 >/proc/sys/net/netfilter/nf_conntrack_$name; done"
    ));
    machine.install(package());
    assert_eq!(machine.shell(VALUES), "1\n1\n1\n");
    machine.run("systemctl enable --now flowbus-tracking.service flowbus-export@log.service");
    machine.run(&format!("userdel {MEMBER}"));
    machine.run(&format!("userdel {STRANGER}"));
    machine.run("dpkg --purge flowbus");
    assert_eq!(machine.run("nft list tables"), "");
    assert_eq!(machine.shell(VALUES), "0\n0\n0\n", "what the package set is as it was");
    wait_for("systemd to forget the units", || {
        machine.run("systemctl list-units --all --plain --no-legend flowbus*").is_empty().then_some(())
    });
    let after = (machine.shell(FILES), machine.shell(USERS));
    let left: Vec<_> = after.0.lines().filter(|file| !before.0.lines().any(|old| old == *file)).collect();
    assert_eq!(left, Vec::<&str>::new());
    assert_eq!(machine.shell("ls /var/log | grep flowbus || :"), "", "the flow log");
    assert_eq!(after.1, before.1);
}

#[test]
fn tracking_can_be_turned_on_where_no_firewall_does() {
    let machine = Machine::installed(SystemBus::Daemon);
    assert_eq!(machine.run("nft list tables"), "");
    machine.run("systemctl start flowbus-tracking.service");
    assert_eq!(machine.run("nft list tables"), "table inet flowbus_tracking\n");
    let address = "127.0.0.1:9053".parse().unwrap();
    UdpService::bind(machine.namespace(), address).exchange(machine.namespace(), address, 1);
    assert_eq!(conntrack::list(machine.namespace()).len(), 1);
    machine.run("systemctl stop flowbus-tracking.service");
    assert_eq!(machine.run("nft list tables"), "");
    // Without nft it fails, and says so.
    machine.run("mv /usr/sbin/nft /usr/sbin/nft.away");
    let told = machine.shell("systemctl start flowbus-tracking.service 2>&1 || echo refused");
    assert!(told.contains("refused"), "{told}");
    machine.run("mv /usr/sbin/nft.away /usr/sbin/nft");
}

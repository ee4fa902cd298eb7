//! The flow log of the package: off as it comes, on with one command, for members of the group flowbus alone.

use flowbus_tests::booted::{MEMBER, STRANGER, package};
use flowbus_tests::process::wait_for;
use flowbus_tests::{Machine, SystemBus, conntrack, inject};
use serde_json::Value;

const UNIT: &str = "flowbus-export@log.service";

/// Makes flows, ends them, and waits until this many ends are in the log.
fn end(machine: &Machine, port: u16, ends: usize) {
    inject::udp(machine.namespace(), port, 10);
    conntrack::delete(machine.namespace(), &format!("-p udp --orig-port-dst {port}"));
    let uncompressed = "cat /var/log/flowbus/flows-*.ndjson || :";
    wait_for(&format!("{ends} ends in the log"), || {
        let text = machine.shell(uncompressed);
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_end = |line: &Value| {
            ["closed", "destroy"].iter().any(|kind| line["type"] == *kind) && line["dport"] == port
        };
        (lines.filter(is_end).count() == ends).then_some(())
    });
}

#[test]
fn the_log_is_off_as_it_comes_and_for_members_of_the_group_alone() {
    for bus in [SystemBus::Daemon, SystemBus::Broker] {
        let mut machine = Machine::installed(bus);
        machine.wait_until_synchronized();
        assert_eq!(machine.shell("systemctl is-enabled flowbus-export@log.service || :"), "disabled\n");
        assert_eq!(machine.shell("ls /var/log/flowbus 2>/dev/null || echo none"), "none\n");
        machine.run(&format!("systemctl enable --now {UNIT}"));
        end(&machine, 1001, 10);

        let list = "stat -c '%a %U %G' /var/log/flowbus /var/log/flowbus/flows-*";
        let file = "640 flowbus-export flowbus";
        assert_eq!(machine.shell(list), format!("750 flowbus-export flowbus\n{file}\n"));
        let read = |user: &str| {
            let mut shell = machine.command_as(user, "sh");
            shell.args(["-c", "cat /var/log/flowbus/flows-*.ndjson"]).output().unwrap()
        };
        assert!(read(MEMBER).status.success() && !read(MEMBER).stdout.is_empty());
        assert!(!read(STRANGER).status.success() && read(STRANGER).stdout.is_empty());
        assert!(machine.unit(UNIT, "StatusText").starts_with("writing /var/log/flowbus/flows-"));

        // An upgrade starts it again where it was.
        let process = machine.unit(UNIT, "MainPID");
        machine.install(package());
        wait_for("the exporter to be started again", || {
            let now = machine.unit(UNIT, "MainPID");
            (now != process && now != "0").then_some(())
        });
        machine.wait_for_unit(UNIT, "ActiveState", "active");
        end(&machine, 1002, 10);
        wait_for("the first file to be compressed", || {
            machine.shell("ls /var/log/flowbus").contains(".zst").then_some(())
        });
        assert_eq!(machine.unit(UNIT, "NRestarts"), "0");
        let complaints = machine.journal(&["--identifier=flowbus-export", "--priority=warning"]);
        assert!(complaints.is_empty(), "{complaints:?}");

        // What cannot be right is not tried again.
        machine.shell("echo 'extra = 1' >/etc/flowbus/export/wrong.toml");
        machine.shell("systemctl start flowbus-export@wrong.service || :");
        machine.wait_for_unit("flowbus-export@wrong.service", "ActiveState", "failed");
        assert_eq!(machine.unit("flowbus-export@wrong.service", "ExecMainStatus"), "78");
        let others = [
            ("second", "[log]", "another flowbus-export writes to /var/log/flowbus"),
            ("sending", "[ipfix]\ncollector = \"198.18.0.1:4739\"", "flowbus-export(8)"),
        ];
        for (name, config, complaint) in others {
            let unit = format!("flowbus-export@{name}.service");
            machine.shell(&format!("echo '{config}' >/etc/flowbus/export/{name}.toml"));
            machine.shell(&format!("systemctl start {unit} || :"));
            machine.wait_for_unit(&unit, "ActiveState", "failed");
            assert_eq!(machine.unit(&unit, "ExecMainStatus"), "78");
            let said = machine.journal(&["--identifier=flowbus-export", "--priority=warning"]);
            assert!(format!("{said:?}").contains(complaint), "{said:?}");
        }
    }
}

//! Changing the kernel's table on a booted Debian is allowed to root, to users whom polkit grants it, and to nobody else.

use std::process::Stdio;

use ctnetlink::{Conntrack, Expectation, Flow};
use flowbus_tests::booted::{MEMBER, STRANGER, control};
use flowbus_tests::inject::tuple;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Machine, SystemBus, conntrack, inject};
use serde_json::Value;

/// What entries of the journal about changes have.
const TABLE_CHANGED: &str = "MESSAGE_ID=4a1f6d0b7b0d4d5c9a2e3f8f52c7d641";

const BOTH: [SystemBus; 2] = [SystemBus::Daemon, SystemBus::Broker];

/// Each method with polkit's name for it and arguments that are right.
const METHODS: [(&str, &str, &[&str]); 6] = [
    ("DeleteFlows", "delete", &["a{sv}a{sv}", "1", "dport", "q", "53", "0"]),
    ("SetMark", "set-mark", &["a{sv}uua{sv}", "1", "dport", "q", "53", "1", "1", "0"]),
    ("SetTimeout", "set-timeout", &["a{sv}ua{sv}", "1", "dport", "q", "53", "600", "0"]),
    ("FlushFlows", "flush", &["b", "true"]),
    ("ListExpectations", "list-expectations", &["a{sv}", "0"]),
    ("DeleteExpectations", "delete-expectations", &["a{sv}a{sv}", "1", "helper", "s", "ftp", "0"]),
];

/// The journal's entries about deleted flows.
fn deletions(machine: &Machine) -> Vec<Value> {
    let mut told = machine.journal(&["--identifier=flowbus-control", TABLE_CHANGED]);
    told.retain(|entry| entry["MESSAGE"].as_str().unwrap().starts_with("flows deleted "));
    told
}

#[test]
fn root_may_change_the_table_and_it_is_logged() {
    for bus in BOTH {
        let machine = Machine::installed(bus);
        inject::udp(machine.namespace(), 53, 30);
        inject::udp(machine.namespace(), 80, 1);
        for (member, _, arguments) in METHODS {
            let left = match member {
                "FlushFlows" => 0,
                _ => 1,
            };
            machine
                .call("root", control(member), arguments)
                .unwrap_or_else(|error| panic!("{member}: {error}"));
            if matches!(member, "DeleteFlows" | "FlushFlows") {
                assert_eq!(conntrack::list(machine.namespace()).len(), left, "{member}");
            }
        }
        machine.call(MEMBER, control("GetCpuStatistics"), &[]).unwrap();
        machine.call("root", control("GetCpuStatistics"), &[]).unwrap();
        let error = machine.call(STRANGER, control("GetCpuStatistics"), &[]).unwrap_err();
        assert_eq!(error.name, "org.freedesktop.DBus.Error.AccessDenied");

        let told = deletions(&machine);
        assert_eq!((told.len(), &told[0]["CALLER"], &told[0]["DELETED"]), (1, &"0".into(), &"30".into()));
        let message = told[0]["MESSAGE"].as_str().unwrap();
        assert!(message.starts_with("flows deleted caller=0 matched=30 deleted=30 "), "{message}");
        let all = machine.journal(&["--identifier=flowbus-control"]);
        assert!(all.iter().all(|entry| !entry.to_string().contains("198.18.")), "{all:?}");
    }
}

#[test]
fn others_may_what_a_rule_of_polkit_grants() {
    for bus in BOTH {
        let machine = Machine::installed(bus);
        inject::udp(machine.namespace(), 53, 30);
        let refused = |user: &str, member: &str, arguments: &[&str]| {
            let error = machine.call(user, control(member), arguments).unwrap_err();
            assert_eq!(error.name, "org.flowbus.Error.NotAuthorized", "{user} {member} on {bus:?}: {error}");
            error.message
        };
        for (member, action, arguments) in METHODS {
            for user in [STRANGER, MEMBER] {
                let message = refused(user, member, arguments);
                assert!(message.contains(&format!("org.flowbus.control.{action}")), "{message}");
            }
        }
        assert_eq!(conntrack::list(machine.namespace()).len(), 30);

        let uid = machine.run(&format!("id -u {STRANGER}"));
        for (member, action, arguments) in METHODS {
            machine.shell(&format!(
                "cat >/etc/polkit-1/rules.d/50-flowbus.rules <<END
polkit.addRule(function(action, subject) {{
    if (action.id == 'org.flowbus.control.{action}' && subject.user == '{STRANGER}') return polkit.Result.YES;
}});
END"
            ));
            wait_for("polkit to read the rule", || machine.call(STRANGER, control(member), arguments).ok());
            if member == "DeleteExpectations" {
                who_may_not_list_expectations_is_told_how_many_would_go(&machine);
            }
            refused(MEMBER, member, arguments);
            for (other, _, arguments) in METHODS.iter().filter(|(other, ..)| *other != member) {
                refused(STRANGER, other, arguments);
            }
        }
        assert_eq!(conntrack::list(machine.namespace()).len(), 0);
        let told = deletions(&machine);
        assert_eq!((&told[0]["CALLER"], &told[0]["DELETED"]), (&uid.trim().into(), &"30".into()));
    }
}

fn who_may_not_list_expectations_is_told_how_many_would_go(machine: &Machine) {
    let mask = tuple("255.255.255.255", "255.255.255.255", 6, 0, 0xffff);
    let mut table = machine.namespace().enter(|| Conntrack::open().unwrap());
    // The helper keeps one expectation of a connection.
    for port in 4000..4003 {
        let master = tuple("198.18.0.1", "198.18.0.2", 6, port, 21);
        let flow = Flow::new(master, tuple("198.18.0.2", "198.18.0.1", 6, 21, port));
        table.create(&Flow { helper: Some(b"ftp"), timeout: Some(600), ..flow }).unwrap();
        let expected = Expectation::new(master, tuple("198.18.0.2", "198.18.0.1", 6, 0, port), mask);
        let expected = Expectation { timeout: Some(300), helper: Some(b"ftp"), ..expected };
        table.create_expectation(&expected).unwrap();
    }
    let mut flowctl = machine.command_as(STRANGER, "flowctl");
    let output = flowctl
        .args(["expect", "delete", "helper=ftp", "--dry-run", "--limit", "2"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    table.flush(None).unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{said}");
    assert!(said.contains("org.flowbus.control.list-expectations"), "{said}");
    assert!(
        said.contains("2 expectations would be deleted, and more match than --limit lets through"),
        "{said}"
    );
}

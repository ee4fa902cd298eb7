//! A journald that is stuck.

use flowbus_tests::booted::control;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Machine, SystemBus};

#[test]
fn a_journald_that_takes_nothing_holds_up_no_daemon() {
    let machine = Machine::installed(SystemBus::Daemon);
    machine.wait_until_synchronized();
    machine.run("systemctl kill --signal=STOP systemd-journald.service");
    // Its queue is full when nobody can send any more.
    machine.shell("while echo MESSAGE=full | timeout 1 logger --journald; do :; done");
    for _ in 0..3 {
        machine.shell("kill -HUP $(systemctl show -P MainPID flowbusd.service)");
        machine.run("flowctl status");
        machine.call("root", control("DeleteFlows"), &["a{sv}a{sv}", "1", "dport", "q", "9", "0"]).unwrap();
    }
    machine.run("systemctl kill --signal=CONT systemd-journald.service");
    wait_for("the next message", || {
        machine.shell("kill -HUP $(systemctl show -P MainPID flowbusd.service)");
        let told = machine.journal(&["--identifier=flowbusd"]);
        told.iter().any(|entry| entry["LOST"].is_string()).then_some(())
    });
    assert_eq!(machine.unit("flowbusd.service", "NRestarts"), "0");
}

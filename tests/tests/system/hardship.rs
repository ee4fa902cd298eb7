//! What the services meet on a machine that has run short: a full /run, in which PID 1 and the services have their sockets.

use flowbus_tests::booted::{MEMBER, control, monitor};
use flowbus_tests::process::wait_for;
use flowbus_tests::{Machine, SystemBus, conntrack, inject};

const SERVICE: &str = "flowbusd.service";
const FLOWS: u32 = 500;

fn serves(machine: &Machine) {
    machine.wait_until_synchronized();
    machine.call(MEMBER, monitor("ListActive"), &["a{sv}", "0"]).unwrap();
    machine.call("root", control("DeleteFlows"), &["a{sv}a{sv}", "1", "dport", "q", "9", "0"]).unwrap();
    let before = machine.property("ClosedCount").unwrap().as_u64().unwrap();
    inject::udp(machine.namespace(), 1002, 100);
    conntrack::delete(machine.namespace(), "-p udp --orig-port-dst 1002");
    wait_for("flows that begin and end", || {
        (machine.property("ClosedCount").ok()? == before + 100).then_some(())
    });
}

fn reload(machine: &Machine, capacity: u32) {
    machine.shell(&format!("printf '[closed]\\ncapacity = {capacity}\\n' >/etc/flowbus/flowbusd.toml"));
    machine.run("systemctl reload flowbusd.service");
    wait_for("the new configuration", || {
        (machine.property("ClosedCapacity").ok()? == capacity).then_some(())
    });
}

/// Kills flowbusd and waits for its next life, once `room` has been made for it.
fn kill(machine: &Machine, room: impl FnOnce()) {
    let process = || machine.unit(SERVICE, "MainPID");
    let before = process();
    machine.run("systemctl kill --signal=KILL --kill-whom=main flowbusd.service");
    // What happens meanwhile waits in the socket.
    inject::udp(machine.namespace(), 1003, 10);
    room();
    wait_for("the next life", || Some(process()).filter(|now| *now != before && now != "0").map(drop));
    machine.wait_until_synchronized();
    conntrack::delete(machine.namespace(), "-p udp --orig-port-dst 1003");
    machine.wait_until_synchronized();
}

#[test]
fn a_full_run_stops_nothing_that_runs_and_a_life_after_it_has_lost_nothing() {
    let machine = Machine::installed(SystemBus::Daemon);
    machine.wait_until_synchronized();
    inject::udp(machine.namespace(), 1001, FLOWS);
    machine.wait_until_synchronized();
    let epoch = machine.property("Epoch").unwrap();

    // No byte is left.
    machine.shell("mount -o remount,size=8M /run; cat /dev/zero >/run/full || :");
    assert_eq!(machine.shell("df --output=avail /run").split_whitespace().last(), Some("0"));
    reload(&machine, 5_001);
    serves(&machine);
    machine.run("systemctl stop flowbus-control.service");
    serves(&machine);
    kill(&machine, || ());
    serves(&machine);
    machine.shell("rm /run/full");

    // No file can be made, so that PID 1 may be unable to start a service until one can.
    machine.shell(
        "mount -o remount,nr_inodes=1000 /run; mkdir /run/many; cd /run/many; seq 1000 | xargs touch || :",
    );
    assert!(!machine.command("touch").arg("/run/another").output().unwrap().status.success());
    reload(&machine, 5_002);
    serves(&machine);
    kill(&machine, || drop(machine.run("rm -r /run/many")));
    serves(&machine);
    assert_eq!(machine.property("Epoch").unwrap(), epoch);
    assert_eq!(machine.property("EventsLost").unwrap(), 0);
    assert_eq!(machine.property("ActiveCount").unwrap(), FLOWS);

    // At a start of everything, the sockets too.
    machine.shell("cat /dev/zero >/run/full || :");
    machine.run("systemctl stop flowbusd.socket flowbusd.service");
    machine.run("systemctl start flowbusd.service");
    serves(&machine);
}

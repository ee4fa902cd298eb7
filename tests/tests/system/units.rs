//! The units as systemd has them: what each may use, how often it may start, and how it ends.

use flowbus_tests::{Machine, SystemBus};

/// How many descriptors either bus holds for a connection that does not read them.
const OUTSTANDING: u64 = 64;
const MIB: u64 = 1 << 20;

#[test]
fn each_unit_has_room_in_its_limits_and_may_start_as_often_as_flowbusd() {
    let machine = Machine::installed(SystemBus::Daemon);
    // The memory that each takes at most, as its unit says, in MiB, and the descriptors.
    let needs = [
        ("flowbus-attribution.service", 20 + 44, OUTSTANDING),
        ("flowbus-control.service", 8 + 300, OUTSTANDING),
        ("flowbus-export@.service", 64, OUTSTANDING),
        ("flowbus-tracking.service", 16, 16),
        ("flowbusd.service", 5_632, 3 * OUTSTANDING),
    ];
    let listed = machine.run("systemctl list-unit-files --plain --no-legend flowbus*.service");
    let units: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(units, needs.map(|(unit, ..)| unit));
    for (unit, memory, descriptors) in needs {
        // A template has no properties, its instances do.
        let unit = &unit.replace('@', "@log");
        // "infinity" is no number.
        let limit = |name: &str| machine.unit(unit, name).parse::<u64>().expect(name);
        assert!(limit("MemoryMax") >= memory * MIB * 4 / 3, "{unit}");
        for name in ["LimitNOFILE", "LimitNOFILESoft"] {
            assert!(limit(name) >= descriptors * 2, "{name} of {unit}");
        }
        // An administrator alone starts this one.
        if unit != "flowbus-tracking.service" {
            assert_eq!(machine.unit(unit, "StartLimitIntervalUSec"), "0", "{unit}");
        }
    }
}

#[test]
fn a_loader_that_is_stopped_while_it_loads_has_not_failed() {
    const LOADER: &str = "flowbus-attribution.service";
    let machine = Machine::installed(SystemBus::Daemon);
    // The loader takes as long as where the kernel takes its time to verify.
    machine.override_unit(LOADER, "slow", "[Service]\nExecStart=\nExecStart=+/bin/sleep infinity");
    for end in
        ["systemctl stop flowbusd.socket", "systemctl restart flowbusd.service", "dpkg --remove flowbus"]
    {
        machine.run("systemctl restart flowbusd.service");
        machine.wait_for_unit(LOADER, "SubState", "start");
        machine.run(end);
        assert_ne!(machine.unit(LOADER, "ActiveState"), "failed", "after {end}");
        assert_eq!(machine.unit(LOADER, "Result"), "success", "after {end}");
    }
}

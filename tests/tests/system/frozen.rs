//! Members of the booted package who subscribe or call and read nothing: root hears on, and flowbusd can be restarted and upgraded.

use flowbus_interfaces::QueryMap;
use flowbus_tests::booted::{MEMBER, monitor, package};
use flowbus_tests::listener::FLOW_EVENTS;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Listener, Machine, RawConnection, SystemBus, conntrack, inject};

const PORT: u16 = 1001;

/// The package, with as many signals as flowbusd can send, in place of twenty a second.
fn installed_with_bus_keeping(bus: SystemBus, bytes: u64) -> Machine {
    let machine = Machine::installed_with_bus_keeping(bus, bytes);
    machine.shell("printf '[signals]\\nper_second = 1000\\nbatch_msec = 10\\n' >/etc/flowbus/flowbusd.toml");
    machine.run("systemctl restart flowbusd.service");
    machine.wait_until_synchronized();
    machine
}

/// A member who subscribes, asks for pages, and reads nothing.
fn frozen(machine: &Machine) -> RawConnection {
    let mut member = machine.raw_connection(MEMBER);
    member.add_match(FLOW_EVENTS);
    let query = QueryMap::from([("limit", 250_u32.into())]);
    (0..8).for_each(|_| _ = member.list_active(&query));
    member
}

fn journal_has(machine: &Machine, text: &str) -> bool {
    !machine.shell(&format!("journalctl --quiet --grep '{text}' || true")).is_empty()
}

fn delete(machine: &Machine) {
    conntrack::delete(machine.namespace(), &format!("-p udp --orig-port-dst {PORT}"));
}

fn hears_one_more(machine: &Machine, listener: &Listener) {
    let heard = listener.events();
    wait_for("one more event", || {
        inject::udp(machine.namespace(), PORT + 1, 1);
        conntrack::delete(machine.namespace(), &format!("-p udp --orig-port-dst {}", PORT + 1));
        (listener.events() > heard).then_some(())
    });
}

/// After a kill, and after an upgrade, another flowbusd serves and is heard, whoever is frozen.
fn is_restarted_and_upgraded(mut machine: Machine, listener: Listener) {
    let process = |machine: &Machine| machine.unit("flowbusd.service", "MainPID");
    let mut all = Vec::new();
    for ending in ["kill", "upgrade"] {
        inject::udp(machine.namespace(), PORT, 5_000);
        wait_for("the flows", || (machine.property("ActiveCount").ok()? == 5_000).then_some(()));
        all.push(frozen(&machine));
        let old = process(&machine);
        match ending {
            "kill" => _ = machine.run("systemctl kill --signal=KILL --kill-whom=main flowbusd.service"),
            _ => machine.install(package()),
        }
        wait_for("another flowbusd", || {
            let new = process(&machine);
            (new != old && new != "0").then_some(())
        });
        hears_one_more(&machine, &listener);
        delete(&machine);
        machine.wait_until_synchronized();
    }
    assert_eq!(machine.unit("flowbusd.service", "NRestarts"), "0", "counted since the upgrade");
    listener.end(machine.namespace());
}

/// dbus-daemon reads no more of a connection when it keeps too much of it.
#[test]
fn on_dbus_daemon_a_frozen_member_keeps_nothing_from_root_and_flowbusd_can_be_restarted_and_upgraded() {
    // Much less than the bytes after which flowbusd changes the connection by itself.
    let machine = installed_with_bus_keeping(SystemBus::Daemon, 1 << 20);
    let listener = Listener::over(machine.raw_connection("root"));
    let _frozen = frozen(&machine);
    wait_for("the stuck connection to be left", || {
        inject::udp(machine.namespace(), PORT, 5_000);
        delete(&machine);
        journal_has(&machine, "the bus read nothing").then_some(())
    });
    hears_one_more(&machine, &listener);
    is_restarted_and_upgraded(machine, listener);
}

/// dbus-broker disconnects a client that does not read, once it keeps too much for it.
#[test]
fn on_dbus_broker_a_frozen_member_keeps_nothing_from_root_and_flowbusd_can_be_restarted_and_upgraded() {
    let machine = installed_with_bus_keeping(SystemBus::Broker, 64 << 20);
    let number = |name: &str| machine.property(name).unwrap().as_u64().unwrap();
    let listener = Listener::over(machine.raw_connection("root"));
    let (start, frozen) = (number("Sequence"), frozen(&machine));
    while !journal_has(&machine, "is being disconnected") {
        inject::udp(machine.namespace(), PORT, 20_000);
        delete(&machine);
        wait_for("each event, or its loss", || {
            (listener.events() + listener.lost() == number("Sequence") - start).then_some(())
        });
    }
    let lost = machine.call("root", monitor("GetStatistics"), &[]).unwrap()[0]["signals_lost"].clone();
    assert_eq!(lost, listener.lost());
    // The broker keeps what it has for the user until this end is closed.
    drop(frozen);
    is_restarted_and_upgraded(machine, listener);
}

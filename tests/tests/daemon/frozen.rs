//! Clients that freeze: they subscribe or call, and read nothing. Others hear and are answered, and flowbusd can be restarted.

use std::collections::HashSet;

use flowbus_interfaces::QueryMap;
use flowbus_tests::booted::control;
use flowbus_tests::helper::CONTROL;
use flowbus_tests::listener::FLOW_EVENTS;
use flowbus_tests::process::{Directory, wait_for};
use flowbus_tests::{Bus, Daemon, Helper, Listener, Namespace, RawConnection, burst};
use rustix::process::Signal;
use zbus::fdo::RequestNameFlags;

const MONITOR: &str = "org.flowbus.FlowMonitor1";
const MONITOR_PATH: &str = "/org/flowbus/FlowMonitor1";
const EVENTS: &str = "org.flowbus.FlowEvents1";
const EVENTS_PATH: &str = "/org/flowbus/FlowEvents1";
const LIMIT_EXCEEDED: &str = "org.flowbus.Error.LimitExceeded";
/// A configuration with as many signals as flowbusd can send, in place of twenty a second.
const LOUD: &str = "[attribution]\ntier = \"none\"\n[signals]\nper_second = 1000\nbatch_msec = 10\n";

fn namespace() -> Namespace {
    let namespace = Namespace::tracked("frozen");
    burst::prepare(&namespace);
    namespace
}

/// A bus that reads no more of a connection of which this many bytes wait for readers, in place of 127 MiB.
fn bus_with(bytes: u64) -> Bus {
    Bus::start_with(&format!(r#"<limit name="max_incoming_bytes">{bytes}</limit>"#))
}

fn start(namespace: &Namespace, bus: &Bus, files: &Directory) -> Daemon {
    let configuration = files.file("loud.toml", LOUD);
    Daemon::start_with(namespace, bus, &["--config", configuration.to_str().unwrap()])
}

/// Subscribes and never reads.
fn frozen_subscriber(bus: &Bus) -> RawConnection {
    let mut connection = RawConnection::connect(bus);
    connection.add_match(FLOW_EVENTS);
    connection
}

fn sequence(bus: &Bus) -> u64 {
    bus.property("Sequence").unwrap().as_u64().unwrap()
}

fn statistic(bus: &Bus, name: &str) -> u64 {
    bus.monitor_call("GetStatistics", &[]).unwrap()[0][name].as_u64().unwrap()
}

/// The unique name behind a name.
fn owner(bus: &Bus, name: &str) -> String {
    let target = ["org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetNameOwner"];
    bus.call(target, &["s", name]).unwrap()[0].as_str().unwrap().to_owned()
}

/// After a crash, and after an orderly end as in an upgrade, the next flowbusd has the names and serves.
fn serves_when_restarted(daemon: Daemon, start: impl Fn() -> Daemon, serves: impl Fn()) {
    daemon.signal(Signal::KILL);
    drop(daemon);
    let next = start();
    serves();
    next.stop();
    let last = start();
    serves();
    last.stop();
}

/// Flows that come and go, while methods answer.
fn load(namespace: &Namespace, bus: &Bus) {
    let before = sequence(bus);
    burst::create(namespace, 0, 4_000);
    wait_for("new flows", || (sequence(bus) == before + 4_000).then_some(()));
    namespace.run("conntrack -F");
    wait_for("the end of the flows", || (sequence(bus) == before + 8_000).then_some(()));
}

#[test]
fn a_frozen_subscriber_keeps_nothing_from_another_and_flowbusd_can_be_restarted() {
    const LIMIT: u64 = 40 << 20;
    let (namespace, bus, files) = (namespace(), bus_with(LIMIT), Directory::new("loud"));
    let daemon = start(&namespace, &bus, &files);
    let _frozen = frozen_subscriber(&bus);
    let listener = Listener::over(RawConnection::connect(&bus));
    let (mut last, mut owners) = (owner(&bus, EVENTS), 1);
    while listener.bytes() < 3 * LIMIT {
        load(&namespace, &bus);
        let all = sequence(&bus);
        // Else the bus drops what is too much for a slow listener.
        wait_for("each event, or its loss", || (listener.events() + listener.lost() == all).then_some(()));
        let now = owner(&bus, EVENTS);
        owners += u32::from(now != last);
        last = now;
    }
    assert_eq!(statistic(&bus, "signals_lost"), listener.lost());
    // The connection was changed before the bus stopped reading it.
    assert!(owners > 2, "{owners}");
    assert!(!daemon.log().contains("the bus read nothing"), "{}", daemon.log());
    let heard = || listener.hears_one_more(&namespace);
    serves_when_restarted(daemon, || start(&namespace, &bus, &files), heard);
}

#[test]
fn a_connection_that_the_bus_does_not_read_is_left_with_its_name() {
    // Much less than the bytes after which flowbusd changes the connection by itself.
    const LIMIT: u64 = 1 << 20;
    let (namespace, bus, files) = (namespace(), bus_with(LIMIT), Directory::new("loud"));
    let daemon = start(&namespace, &bus, &files);
    let _frozen = frozen_subscriber(&bus);
    let listener = Listener::over(RawConnection::connect(&bus));
    load(&namespace, &bus);
    wait_for("the stuck connection to be left", || {
        daemon.log().contains("the bus read nothing").then_some(())
    });
    listener.hears_one_more(&namespace);
    assert!(statistic(&bus, "signals_lost") > 0);
    // Killed while the bus reads nothing of its connection, and so does not see its end.
    load(&namespace, &bus);
    let heard = || listener.hears_one_more(&namespace);
    serves_when_restarted(daemon, || start(&namespace, &bus, &files), heard);
}

#[test]
fn callers_that_read_nothing_keep_no_answer_from_another_and_flowbusd_can_be_restarted() {
    // The bus's own limits.
    let (namespace, bus, files) = (namespace(), Bus::start(), Directory::new("loud"));
    let daemon = start(&namespace, &bus, &files);
    burst::create(&namespace, 0, 3_000);
    wait_for("the flows", || (bus.property("ActiveCount").unwrap() == 3_000).then_some(()));
    let mut frozen: Vec<RawConnection> = (0..12).map(|_| RawConnection::connect(&bus)).collect();
    let query = QueryMap::from([("limit", 250_u32.into())]);
    let (mut last, mut owners) = (owner(&bus, MONITOR), HashSet::new());
    // Five times 32 MiB: more than the bus lets wait of one connection.
    while owners.len() < 5 {
        for connection in &mut frozen {
            (0..4).for_each(|_| _ = connection.list_active(&query));
        }
        // The frozen callers are of the same user, who may have no more calls in flight.
        if let Err(error) = bus.monitor_call("DecodeMark", &["u", "0"]) {
            assert_eq!(error.name, LIMIT_EXCEEDED, "{error}");
        }
        let now = owner(&bus, MONITOR);
        if now != last {
            owners.insert(std::mem::replace(&mut last, now));
        }
    }
    assert!(!daemon.log().contains("the bus read nothing"), "{}", daemon.log());
    let answers = || _ = bus.monitor_call("DecodeMark", &["u", "0"]).unwrap();
    serves_when_restarted(daemon, || start(&namespace, &bus, &files), answers);
}

#[test]
fn a_methods_connection_that_the_bus_does_not_read_is_left_with_its_name() {
    let (namespace, bus, files) = (namespace(), bus_with(1 << 20), Directory::new("loud"));
    let daemon = start(&namespace, &bus, &files);
    burst::create(&namespace, 0, 3_000);
    wait_for("the flows", || (bus.property("ActiveCount").unwrap() == 3_000).then_some(()));
    let mut frozen = RawConnection::connect(&bus);
    let query = QueryMap::from([("limit", 250_u32.into())]);
    (0..8).for_each(|_| _ = frozen.list_active(&query));
    wait_for("the stuck connection to be left", || {
        daemon.log().contains("the bus read nothing").then_some(())
    });
    wait_for("an answer", || bus.monitor_call("DecodeMark", &["u", "0"]).ok());
    let answers = || _ = bus.monitor_call("DecodeMark", &["u", "0"]).unwrap();
    serves_when_restarted(daemon, || start(&namespace, &bus, &files), answers);
}

#[test]
fn a_stranger_who_reads_nothing_keeps_no_answer_of_the_helper_from_another_and_it_can_be_restarted() {
    let arguments = ["--user", "root", "--idle", "3600"];
    let introspect = [CONTROL[0], CONTROL[1], "org.freedesktop.DBus.Introspectable", "Introspect"];
    // With the first, the helper changes the connection before the bus reads it no longer; with the second, after.
    for limit in [40 << 20, 1 << 20] {
        let helper = Helper::start_on(bus_with(limit), &arguments);
        let mut frozen = RawConnection::connect_as(&helper.bus, 65_534);
        let first = owner(&helper.bus, CONTROL[0]);
        while owner(&helper.bus, CONTROL[0]) == first {
            // These are as many calls as one may have in flight. Each answer has some 10 KiB.
            (0..16).for_each(|_| _ = frozen.call(introspect, &()));
            // While the bus does not read the connection, this waits and fails.
            let answered = helper.bus.call(control("GetKernelState"), &[]).is_ok();
            assert!(answered || limit == 1 << 20, "{}", helper.process.log());
        }
        assert_eq!(helper.process.log().contains("the bus read nothing"), limit == 1 << 20);
        wait_for("an answer", || helper.bus.call(control("GetKernelState"), &[]).ok());
        // Killed while the bus does not read it, if it does not.
        (0..200).for_each(|_| _ = frozen.call(introspect, &()));
        let Helper { namespace, bus, process } = helper;
        process.signal(Signal::KILL);
        drop(process);
        let next = Daemon::spawn(Helper::command(&namespace, &bus).args(arguments));
        wait_for("an answer of the next one", || bus.call(control("GetKernelState"), &[]).ok());
        next.stop();
    }
}

#[test]
fn calls_of_standard_interfaces_count_as_calls() {
    let (namespace, bus, files) = (namespace(), Bus::start(), Directory::new("loud"));
    let daemon = start(&namespace, &bus, &files);
    let mut refused = 0;
    for (name, path) in [(MONITOR, MONITOR_PATH), (EVENTS, EVENTS_PATH)] {
        for (interface, member) in [
            ("org.freedesktop.DBus.Introspectable", "Introspect"),
            ("org.freedesktop.DBus.Peer", "Ping"),
            ("org.flowbus.FlowMonitor1", "GetStatistics"),
        ] {
            let mut connection = RawConnection::connect(&bus);
            let mut calls: HashSet<u32> =
                (0..120).map(|_| connection.call([name, path, interface, member], &())).collect();
            while !calls.is_empty() {
                let received = connection.receive();
                if received.reply_serial().is_some_and(|serial| calls.remove(&serial))
                    && received.is_error()
                    && received.has(LIMIT_EXCEEDED)
                {
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 0);
    assert_eq!(statistic(&bus, "calls_refused"), refused);
    daemon.stop();
}

#[test]
fn calls_that_want_no_reply_are_counted_like_others_and_not_answered() {
    let (namespace, bus, files) = (namespace(), Bus::start(), Directory::new("loud"));
    let daemon = start(&namespace, &bus, &files);
    let mut connection = RawConnection::connect(&bus);
    (0..1_000).for_each(|_| connection.call_without_reply([MONITOR, MONITOR_PATH, MONITOR, "GetStatistics"]));
    let serial = connection.call([MONITOR, MONITOR_PATH, "org.freedesktop.DBus.Peer", "Ping"], &());
    loop {
        let received = connection.receive();
        match received.reply_serial() {
            // Refused, while the others are in flight.
            Some(reply) if reply == serial => break,
            reply => assert!(reply.is_none_or(|reply| reply == 1), "an answer to {reply:?}"),
        }
    }
    assert!(statistic(&bus, "calls_refused") > 0);
    daemon.stop();
}

#[test]
fn methods_do_not_wait_for_the_name_of_signals() {
    let (namespace, bus, files) = (namespace(), Bus::start(), Directory::new("loud"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let own = |name: &'static str, flags| {
        runtime.block_on(async {
            let address = bus.address();
            let builder = zbus::connection::Builder::address(address.as_str());
            let connection = builder.build().await.unwrap();
            let bus = zbus::fdo::DBusProxy::new(&connection).await.unwrap();
            bus.request_name(name.try_into().unwrap(), flags).await.unwrap();
            connection
        })
    };
    let other = own(EVENTS, RequestNameFlags::DO_NOT_QUEUE);
    let configuration = files.file("loud.toml", LOUD);
    let mut command = Daemon::command(&namespace, &bus);
    let mut daemon = Daemon::spawn(command.args(["--config", configuration.to_str().unwrap()]));
    daemon.wait_until_synchronized(&bus);
    assert_ne!(owner(&bus, EVENTS), owner(&bus, MONITOR));
    runtime.block_on(other.close()).unwrap();
    let log = daemon.log();
    wait_for("the name of signals", || {
        let pid = [
            "org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus",
            "GetConnectionUnixProcessID",
        ];
        let owner = bus.call(pid, &["s", EVENTS]).ok()?[0].as_u64()?;
        (owner == u64::from(daemon.pid())).then_some(())
    });
    assert_eq!(log.matches("already owned").count(), 1, "{log}");
    Listener::over(RawConnection::connect(&bus)).end(&namespace);
    // Where the bus lets others have the name for methods, one who takes it ends the daemon, which says so.
    let _thief = own(MONITOR, RequestNameFlags::REPLACE_EXISTING);
    let (status, log) = daemon.ended();
    assert!(!status.success());
    assert!(log.contains("another process has taken the name org.flowbus.FlowMonitor1"), "{log}");
}

//! Callers that occupy what others need: questions for a password that nobody answers, large calls, signals nobody asked for.

use std::collections::HashMap;

use flowbus_interfaces::QueryMap;
use flowbus_tests::booted::control;
use flowbus_tests::helper::CONTROL;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, CallError, Helper, RawConnection};
use serde_json::Value;
use zbus::fdo::RequestNameFlags;
use zbus::{Connection, Variant};

/// flowbusd's user here, so that root is not that.
const ARGUMENTS: [&str; 4] = ["--user", "daemon", "--idle", "3600"];

/// Every Debian has these: the bus takes no user that it does not know.
const USERS: [u32; 5] = [2, 3, 4, 5, 6];
const NOBODY: u32 = 65_534;

/// A polkit that never answers, as while an agent shows its window.
fn silent_polkit(bus: &Bus) -> (tokio::runtime::Runtime, Connection) {
    // Nothing runs on it later.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connection = runtime.block_on(async {
        let builder = zbus::connection::Builder::address(bus.address().as_str());
        let connection = builder.build().await.unwrap();
        let proxy = zbus::fdo::DBusProxy::new(&connection).await.unwrap();
        let name = "org.freedesktop.PolicyKit1".try_into().unwrap();
        proxy.request_name(name, RequestNameFlags::DO_NOT_QUEUE).await.unwrap();
        connection
    });
    (runtime, connection)
}

/// Has the user begin this many calls that need a password, each of about this many bytes.
fn ask_for_passwords(bus: &Bus, user: u32, calls: usize, bytes: usize) -> RawConnection {
    let mut connection = RawConnection::connect_as(bus, user);
    let text = "x".repeat(bytes);
    let query = QueryMap::from([("dport", Variant::from(9_u16)), ("helper", text.as_str().into())]);
    let options = HashMap::<&str, Variant<'_>>::new();
    for _ in 0..calls {
        connection.call(control("DeleteFlows"), &(&query, &options));
    }
    connection
}

fn roots_dry_run(bus: &Bus) -> Result<Value, CallError> {
    bus.call(control("DeleteFlows"), &["a{sv}a{sv}", "1", "dport", "q", "9", "1", "dry_run", "b", "true"])
}

#[test]
fn root_and_flowbusd_are_answered_however_many_users_wait_for_a_password() {
    let helper = Helper::start(&ARGUMENTS);
    let _polkit = silent_polkit(&helper.bus);
    let waiting = USERS.map(|user| ask_for_passwords(&helper.bus, user, 16, 1));
    // The last ones are refused: then all places of others are taken.
    wait_for("no room for others", || {
        let mut other = RawConnection::connect_as(&helper.bus, NOBODY);
        let ping = [CONTROL[0], CONTROL[1], "org.freedesktop.DBus.Peer", "Ping"];
        other.call_and_wait(ping, &()).has("LimitExceeded").then_some(())
    });
    for _ in 0..20 {
        roots_dry_run(&helper.bus).unwrap();
        let mut daemon = RawConnection::connect_as(&helper.bus, 1);
        assert!(!daemon.call_and_wait(control("GetKernelState"), &()).is_error());
    }
    drop(waiting);
    helper.process.stop();
}

#[test]
fn a_crowd_of_new_connections_leaves_room_for_a_caller_whom_the_helper_does_not_know_yet() {
    let helper = Helper::start(&ARGUMENTS);
    let introspect = [CONTROL[0], CONTROL[1], "org.freedesktop.DBus.Introspectable", "Introspect"];
    for _ in 0..5 {
        // As many connections as the system bus lets a user have.
        let mut crowd: Vec<_> = (0..250).map(|_| RawConnection::connect_as(&helper.bus, NOBODY)).collect();
        for connection in &mut crowd {
            (0..16).for_each(|_| connection.call_without_reply(introspect));
        }
        roots_dry_run(&helper.bus).unwrap();
    }
    helper.process.stop();
}

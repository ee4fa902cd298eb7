//! What the bus offers: pages, fields, refusals, marks, properties and statistics.

use std::collections::HashSet;

use flowbus_interfaces::{
    FLOW_MONITOR_INTERFACE, FLOW_MONITOR_NAME, FLOW_MONITOR_PATH, OwnedFlow, Page, QueryMap,
};
use flowbus_tests::bus::dictionary;
use flowbus_tests::conntrack;
use flowbus_tests::flow::agreed;
use flowbus_tests::network::{PLAIN, SERVER_V4, socket_address};
use flowbus_tests::process::{Directory, wait_for};
use flowbus_tests::{Bus, CallError, Daemon, Monitor, Namespace, Network, inject};
use futures_util::StreamExt;
use rustix::process::Signal;
use serde_json::{Value, json};
use zbus::wire::{BE, Endian, LE};
use zbus::{Message, MessageStream};

const INVALID_ARGUMENT: &str = "org.flowbus.Error.InvalidArgument";

fn call(bus: &Bus, member: &str, query: &[[&str; 3]]) -> Result<Value, CallError> {
    bus.monitor_call(member, &dictionary(query).iter().map(String::as_str).collect::<Vec<_>>())
}

fn ids(page: &Value) -> Vec<u64> {
    page[0].as_array().unwrap().iter().map(|flow| flow["id"].as_u64().unwrap()).collect()
}

#[test]
fn a_listing_comes_in_pages_without_a_hole_or_a_double() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    network.udp_service(SERVER_V4, PLAIN).exchange(&network.client, socket_address(SERVER_V4, PLAIN), 25);
    let (flows, _) = agreed(&bus, &network.router);
    let all: Vec<u64> = flows.iter().map(|flow| flow["id"].as_u64().unwrap()).collect();
    assert_eq!(all.len(), 25);

    for member in ["ListActive", "ListClosed"] {
        if member == "ListClosed" {
            conntrack::delete(&network.router, "-p udp");
            wait_for("the flows to be closed", || (bus.property("ClosedCount").unwrap() == 25).then_some(()));
        }
        let whole = ids(&call(&bus, member, &[]).unwrap());
        let mut paged = Vec::new();
        let mut after = None::<u64>;
        loop {
            let start = after.map(|after| after.to_string()).unwrap_or_default();
            let mut query = vec![["limit", "u", "10"]];
            query.extend(after.map(|_| ["after", "t", start.as_str()]));
            let page = call(&bus, member, &query).unwrap();
            assert!(ids(&page).len() <= 10);
            for key in ["sequence", "epoch", "synchronized"] {
                assert!(page[1].get(key).is_some(), "a page has {key}: {}", page[1]);
            }
            paged.extend(ids(&page));
            match page[1].get("next") {
                Some(next) => after = next.as_u64(),
                None => break,
            }
        }
        assert_eq!(paged.len(), 25);
        assert_eq!(paged, whole, "{member}");
    }
    assert_eq!(ids(&call(&bus, "ListActive", &[]).unwrap()), [0; 0]);
    let closed: HashSet<u64> = ids(&call(&bus, "ListClosed", &[]).unwrap()).into_iter().collect();
    assert_eq!(closed, all.into_iter().collect());
    let empty = call(&bus, "ListActive", &[]).unwrap();
    assert!(empty[1].get("next").is_none(), "an empty page has no next");
    daemon.stop();
}

#[test]
fn a_caller_of_the_other_byte_order_gets_the_same_page() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    network.udp_service(SERVER_V4, PLAIN).exchange(&network.client, socket_address(SERVER_V4, PLAIN), 3);
    let (flows, _) = agreed(&bus, &network.router);
    assert_eq!(flows.len(), 3);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let pages = runtime.block_on(async {
        let connection = zbus::connection::Builder::address(bus.address().as_str()).build().await.unwrap();
        let mut messages = MessageStream::from(&connection);
        let mut pages = Vec::new();
        for endian in [LE, BE] {
            let call = Message::method_call(FLOW_MONITOR_PATH, "ListActive")
                .destination(FLOW_MONITOR_NAME)
                .interface(FLOW_MONITOR_INTERFACE)
                .endian(endian)
                .build(&QueryMap::from([("refresh", false.into())]))
                .unwrap();
            connection.send(&call).await.unwrap();
            let serial = Some(call.primary_header().serial_num());
            let reply = loop {
                let message = messages.next().await.unwrap().unwrap();
                if message.header().reply_serial() == serial {
                    break message;
                }
            };
            assert_eq!(Endian::from(reply.primary_header().endian_sig()), endian);
            pages.push(reply.body().deserialize::<(Vec<OwnedFlow>, Page)>().unwrap());
        }
        pages
    });
    assert_eq!(pages[0].0.len(), 3);
    assert_eq!(pages[0].0, pages[1].0);
    daemon.stop();
}

#[test]
fn fields_choose_keys_and_getflow_finds_active_and_closed_flows() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    network.udp_service(SERVER_V4, PLAIN).exchange(&network.client, socket_address(SERVER_V4, PLAIN), 1);
    let (flows, _) = agreed(&bus, &network.router);
    let some = call(&bus, "ListActive", &[["fields", "as", "2 src dport"]]).unwrap();
    assert_eq!(some[0], json!([{ "src": "198.18.0.2", "dport": PLAIN }]));

    let id = flows[0]["id"].to_string();
    assert_eq!(bus.monitor_call("GetFlow", &["t", &id]).unwrap()[0]["id"], flows[0]["id"]);
    conntrack::delete(&network.router, "-p udp");
    wait_for("the flow to be closed", || (bus.property("ClosedCount").unwrap() == 1).then_some(()));
    assert_eq!(bus.monitor_call("GetFlow", &["t", &id]).unwrap()[0]["end_reason"], "destroyed");
    let error = bus.monitor_call("GetFlow", &["t", "18446744073709551615"]).unwrap_err();
    assert_eq!(error.name, "org.flowbus.Error.NotFound", "{error}");
    daemon.stop();
}

#[test]
fn a_resync_is_told_after_what_it_did() {
    const COUNT: u32 = 2_000;
    let namespace = Namespace::tracked("before");
    inject::udp(&namespace, 7000, COUNT);
    let bus = Bus::start();
    let monitor = Monitor::start(&bus, "org.flowbus.FlowEvents1");
    let daemon = Daemon::start(&namespace, &bus);
    // A Resynced among them would be passed over, and missed below.
    let (events, lost) = monitor.events_until(|events| events.len() >= COUNT as usize);
    assert_eq!((events.len(), lost), (COUNT as usize, 0));
    assert!(events.iter().all(|event| event["event"] == "new"));
    let resync = &monitor.signal("Resynced")[0];
    assert_eq!(*resync, json!({ "reason": "start", "lost": 0, "closed": 0, "added": COUNT }));
    daemon.stop();
}

#[test]
fn a_query_that_is_not_understood_is_refused_by_name() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    let daemon = Daemon::start(&namespace, &bus);
    let refused = [
        (["no_such_key", "s", "x"], "no_such_key"),
        (["limit", "u", "0"], "limit"),
        (["limit", "u", "1001"], "limit"),
        (["limit", "i", "-1"], "limit"),
        (["limit", "s", "many"], "limit"),
        (["after", "s", "later"], "after"),
        (["fields", "as", "1 no_such_field"], "no_such_field"),
        (["fields", "u", "3"], "fields"),
    ];
    for member in ["ListActive", "ListClosed"] {
        for (entry, named) in refused {
            let error = call(&bus, member, &[entry]).expect_err(named);
            assert_eq!(error.name, INVALID_ARGUMENT, "{member} {entry:?}: {error}");
            assert!(error.message.contains(named), "{member} {entry:?}: {error}");
        }
        let error = call(&bus, member, &[["limit", "u", "1"], ["limit", "u", "2"]]).unwrap_err();
        assert_eq!(error.name, INVALID_ARGUMENT, "a repeated key: {error}");
        assert!(error.message.contains("limit"), "a repeated key: {error}");
        for (signature, value) in [("u", "10"), ("t", "10"), ("i", "10"), ("y", "10"), ("s", "10")] {
            call(&bus, member, &[["limit", signature, value]])
                .unwrap_or_else(|error| panic!("limit {signature}: {error}"));
        }
    }
    daemon.stop();
}

#[test]
fn marks_decode_whatever_they_are() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    let daemon = Daemon::start(&namespace, &bus);
    let decode = |mark: u32| bus.monitor_call("DecodeMark", &["u", &mark.to_string()]).unwrap()[0].clone();
    let chrome = decode(0x040C_0100);
    assert_eq!((&chrome["source"], &chrome["source_id"]), (&json!("CHROME"), &json!(1)));
    assert_eq!((&chrome["routing_table"], &chrome["vpn"]), (&json!(1036), &json!("none")));
    assert_eq!((&chrome["qos"], &chrome["legacy_snat"]), (&json!("default"), &json!(false)));
    let unknown = decode(0x2900);
    assert_eq!((&unknown["source"], &unknown["source_id"]), (&json!("0x29"), &json!(0x29)));
    assert!(unknown.get("routing_table").is_none(), "no table below 1000: {unknown}");
    assert_eq!(decode(0)["source"], "UNKNOWN");
    let all = decode(u32::MAX);
    assert_eq!((&all["source"], &all["vpn"]), (&json!("0x3f"), &json!("route+bypass")));
    assert_eq!((&all["qos"], &all["routing_table"]), (&json!("0x7"), &json!(65535)));
    daemon.stop();
}

#[test]
fn properties_and_statistics_are_as_the_contract_has_them() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    network.udp_service(SERVER_V4, PLAIN).exchange(&network.client, socket_address(SERVER_V4, PLAIN), 5);
    let _ = agreed(&bus, &network.router);
    let property = |name: &str| bus.property(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(property("Version"), env!("CARGO_PKG_VERSION"));
    let epoch = property("Epoch");
    let epoch = epoch.as_str().unwrap();
    assert!(epoch.len() == 32 && epoch.bytes().all(|b| b.is_ascii_hexdigit()), "128 bits in hex: {epoch}");
    assert_eq!(property("Synchronized"), true);
    assert_eq!(property("Attribution"), "none");
    assert_eq!(property("EventSource"), "ring");
    assert_eq!(property("ClosedCapacity"), 20_000);
    assert_eq!((property("ActiveCount"), property("ClosedCount")), (json!(5), json!(0)));
    assert!(property("EventsReceived").as_u64() >= Some(5));
    assert!(property("Sequence").as_u64() >= Some(5));
    assert_eq!(property("EventsLost"), 0);
    assert!(property("Resyncs").is_u64());
    assert_eq!((property("AccountingEnabled"), property("TimestampingEnabled")), (json!(true), json!(true)));

    let statistics = bus.monitor_call("GetStatistics", &[]).unwrap()[0].clone();
    let keys = [
        "events_new",
        "events_update",
        "events_destroy",
        "events_lost",
        "events_invalid",
        "events_foreign",
        "events_repeated",
        "unknown_attributes",
        "resyncs",
        "sweeps",
        "dumps",
        "active",
        "closed",
        "closed_evicted",
        "signals_sent",
        "signals_lost",
        "calls_refused",
        "buffer_bytes",
        "kernel_count",
        "kernel_max",
    ];
    for key in keys {
        assert!(statistics[key].is_u64(), "{key} is not a number: {}", statistics[key]);
    }
    assert_eq!((&statistics["events_new"], &statistics["active"]), (&json!(5), &json!(5)));
    assert_eq!(statistics["kernel_count"], 5);
    assert_eq!((&statistics["events_invalid"], &statistics["unknown_attributes"]), (&json!(0), &json!(0)));
    daemon.stop();
}

#[test]
fn a_property_that_changes_is_announced() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    let directory = Directory::new("configuration");
    let file = directory.file("flowbusd.toml", "[closed]\ncapacity = 7\n");
    let mut daemon = Daemon::start_with(&namespace, &bus, &["--config", file.to_str().unwrap()]);
    assert_eq!(bus.property("ClosedCapacity").unwrap(), 7);

    let monitor = Monitor::start(&bus, "org.flowbus.FlowMonitor1");
    let _ = directory.file("flowbusd.toml", "[closed]\ncapacity = 8\n");
    daemon.signal(Signal::HUP);
    let changed = monitor.signal("PropertiesChanged");
    assert_eq!(changed, json!(["org.flowbus.FlowMonitor1", { "ClosedCapacity": 8 }, []]));

    let _ = directory.file("flowbusd.toml", "[closed]\ncapacity = \"none\"\n");
    daemon.signal(Signal::HUP);
    wait_for("the log to name the mistake", || daemon.log().contains("capacity").then_some(()));
    assert_eq!(bus.property("ClosedCapacity").unwrap(), 8, "a file that is wrong changes nothing");
    daemon.wait_until_synchronized(&bus);
    daemon.stop();
}

#[test]
fn the_closed_ring_keeps_the_newest_ends() {
    let network = Network::new();
    let bus = Bus::start();
    let directory = Directory::new("configuration");
    let file = directory.file("flowbusd.toml", "[closed]\ncapacity = 10\n");
    let daemon = Daemon::start_with(&network.router, &bus, &["--config", file.to_str().unwrap()]);
    network.udp_service(SERVER_V4, PLAIN).exchange(&network.client, socket_address(SERVER_V4, PLAIN), 25);
    conntrack::delete(&network.router, "-p udp");
    wait_for("25 ends", || {
        let statistics = bus.monitor_call("GetStatistics", &[]).unwrap()[0].clone();
        (statistics["events_destroy"] == 25).then_some(())
    });
    let closed = bus.list("ListClosed", &[]).unwrap();
    let sequences: Vec<u64> = closed.iter().map(|flow| flow["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences.len(), 10);
    assert_eq!(Some(sequences[0]), bus.property("Sequence").unwrap().as_u64(), "the last end is there");
    daemon.stop();
}

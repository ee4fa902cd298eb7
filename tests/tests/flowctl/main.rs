//! What people and programs see: flowctl, the examples, the demo.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod changes;
mod commands;
mod completion;
mod conditions;
mod conntrack_output;
mod cursor;
mod demo;
mod history;
mod names;
mod programmers;
mod recorded;
mod resolve;
mod stats;
mod terminal;
mod top;

use flowbus_tests::network::{
    CHROME, MASQUERADED, MASQUERADED_SERVER_V4, PLAIN, SERVER_V4, SERVER_V6, UNKNOWN_SOURCE, ip_address,
    socket_address,
};
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Network, traffic};
use serde_json::Value;

fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

/// A network with a daemon, one UDP flow to each of four ports, and two of ICMP.
fn network_with_flows() -> (Network, Bus, Daemon) {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    for (address, port) in
        [(SERVER_V4, PLAIN), (SERVER_V6, CHROME), (SERVER_V4, MASQUERADED), (SERVER_V4, UNKNOWN_SOURCE)]
    {
        network.udp_service(address, port).exchange(&network.client, socket_address(address, port), 1);
    }
    traffic::ping(&network.client, ip_address(SERVER_V6), 7);
    traffic::ping(&network.client, ip_address(MASQUERADED_SERVER_V4), 8);
    wait_for("the flows", || (bus.property("ActiveCount").unwrap() == 6).then_some(()));
    (network, bus, daemon)
}

//! What is measured in: a namespace that tracks flows, a bus, and a flowbusd.

use std::thread::sleep;
use std::time::Duration;

use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Namespace, burst};

use crate::client::Client;
use crate::cpu;

/// A namespace whose flows live for a day unless they are deleted.
pub(crate) fn namespace() -> Namespace {
    let namespace = Namespace::tracked("bench");
    burst::prepare(&namespace);
    namespace.sysctl("net.netfilter.nf_conntrack_udp_timeout", "86400");
    namespace
}

/// Ends all flows of the namespace.
pub(crate) fn flush(namespace: &Namespace) {
    namespace.run("conntrack -F");
}

/// A namespace with a flowbusd that is synchronized.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) daemon: Daemon,
    pub(crate) bus: Bus,
    pub(crate) namespace: Namespace,
}

impl World {
    /// A world with `count` flows, which the daemon has seen begin.
    pub(crate) fn with_flows(count: u32) -> Self {
        let (namespace, bus) = (namespace(), Bus::start());
        let daemon = Daemon::start(&namespace, &bus);
        let client = Client::connect(&bus);
        let world = Self { client, daemon, bus, namespace };
        world.settle();
        burst::create(&world.namespace, 0, count);
        world.client.wait_for_active(count);
        world.settle();
        world
    }

    /// Waits until the daemon has nothing to do any more: the signals of a burst go on for seconds.
    pub(crate) fn settle(&self) {
        let _ = cpu::settled(|| cpu::of_process(self.daemon.pid()));
    }
}

/// Waits until a process has joined conntrack's groups in the namespace, which most do not say otherwise.
pub(crate) fn wait_for_listener(namespace: &Namespace) {
    /// `NETLINK_NETFILTER`.
    const PROTOCOL: &str = "12";
    wait_for("a listener to conntrack's events", || {
        let sockets = namespace.run("cat /proc/net/netlink");
        let mut sockets = sockets.lines().map(|line| line.split_whitespace().skip(1));
        sockets
            .any(|mut fields| {
                let (protocol, groups) = (fields.next(), fields.nth(1));
                protocol == Some(PROTOCOL)
                    && groups.is_some_and(|groups| groups.contains(|digit| digit != '0'))
            })
            .then_some(())
    });
    sleep(Duration::from_millis(100)); // Some go on reading a dump before they listen.
}

/// A limit of the whole machine, raised for as long as this lives.
#[derive(Debug)]
pub(crate) struct Raised {
    path: &'static str,
    before: String,
}

impl Raised {
    /// Raises a kernel parameter, given by its file, where it is lower.
    pub(crate) fn to(path: &'static str, value: u32) -> Self {
        let before = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        if before.trim().parse::<u32>().is_ok_and(|before| before < value) {
            std::fs::write(path, value.to_string()).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        Self { path, before }
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        let _ = std::fs::write(self.path, &self.before);
    }
}

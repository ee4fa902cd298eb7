//! A client of flowbusd that costs the daemon as little as possible: one connection, one message a question.

use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use flowbus_interfaces::{FlowMonitorProxy, QueryMap};
use flowbus_tests::Bus;
use tokio::runtime::Runtime;
use zbus::connection::Builder;
use zbus::proxy::CacheProperties;

/// How long anything may take before the measurement is given up.
const DEADLINE: Duration = Duration::from_secs(60);

/// A connection to the bus.
#[derive(Debug)]
pub(crate) struct Client {
    runtime: Runtime,
    monitor: FlowMonitorProxy<'static>,
}

impl Client {
    pub(crate) fn connect(bus: &Bus) -> Self {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had");
        let monitor = runtime.block_on(async {
            let connection =
                Builder::address(bus.address().as_str()).build().await.expect("the bus takes clients");
            let monitor = FlowMonitorProxy::builder(&connection).cache_properties(CacheProperties::No);
            monitor.build().await.expect("a proxy needs nobody at its other end")
        });
        Self { runtime, monitor }
    }

    /// Whether there is a daemon whose table is synchronized.
    pub(crate) fn is_synchronized(&self) -> bool {
        self.runtime.block_on(self.monitor.synchronized()).unwrap_or(false)
    }

    /// Waits until the daemon's table is synchronized, asking every millisecond.
    pub(crate) fn wait_until_synchronized(&self) {
        let started = Instant::now();
        while !self.is_synchronized() {
            assert!(started.elapsed() < DEADLINE, "the table is not synchronized after {DEADLINE:?}");
            sleep(Duration::from_millis(1));
        }
    }

    /// The events that were received, and those that the kernel dropped.
    pub(crate) fn events(&self) -> (u64, u64) {
        let received = self.runtime.block_on(self.monitor.events_received()).expect("the daemon answers");
        (received, self.runtime.block_on(self.monitor.events_lost()).expect("the daemon answers"))
    }

    pub(crate) fn resyncs(&self) -> u64 {
        self.runtime.block_on(self.monitor.resyncs()).expect("the daemon answers")
    }

    pub(crate) fn active(&self) -> u32 {
        self.runtime.block_on(self.monitor.active_count()).expect("the daemon answers")
    }

    pub(crate) fn epoch(&self) -> String {
        self.runtime.block_on(self.monitor.epoch()).expect("the daemon answers")
    }

    /// Waits until `count` flows are active.
    pub(crate) fn wait_for_active(&self, count: u32) {
        let started = Instant::now();
        while self.active() != count {
            assert!(started.elapsed() < DEADLINE, "{} flows after {DEADLINE:?}, not {count}", self.active());
            sleep(Duration::from_millis(10));
        }
    }

    /// Opens a stream: the end of the pipe that is read.
    pub(crate) fn open_stream(&self, query: &QueryMap<'_>) -> OwnedFd {
        self.runtime.block_on(self.monitor.open_stream(query)).expect("the daemon answers").into()
    }
}

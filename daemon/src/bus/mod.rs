//! The two connections to the bus: one answers methods, the other sends signals, so that a subscriber who
//! stops reading never delays a method call.

mod batch;
mod calls;
mod emitter;
mod feedback;
mod flow_events;
mod flow_monitor;
mod listing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use zbus::Connection;
use zbus::object_server::InterfaceRef;

use flowbus_interfaces::{
    BusAddress, FLOW_EVENTS_NAME, FLOW_EVENTS_PATH, FLOW_MONITOR_NAME, FLOW_MONITOR_PATH,
};

use crate::config::Config;
use crate::dictionary::FlowNames;
use crate::event::{Change, ConnectionEvent};
use crate::handle::Handle;
use crate::kernel::{self, Kernel};
use crate::published::State;
use crate::streams::Streams;
use crate::{confinement, service};
use emitter::{Emitter, Pace};
use flow_events::FlowEvents;
use flow_monitor::FlowMonitor;

/// The version of the daemon.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// After the bus went away: the first wait before trying again, doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Why the bus cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusError {
    #[error("cannot reach the bus {address}: {source}; is a bus daemon running there?")]
    Unreachable { address: BusAddress, source: zbus::Error },
    #[error("the name {name} is already owned on the bus {address}: another flowbusd is running")]
    NameTaken { name: &'static str, address: BusAddress },
    #[error("the bus {address} does not let us own {name}: {source}; its policy has to allow it")]
    NotAllowed { name: &'static str, address: BusAddress, source: zbus::Error },
    #[error("the bus {address} failed: {source}")]
    Failed { address: BusAddress, source: zbus::Error },
}

/// What the methods answer from.
#[derive(Clone, Debug)]
pub(crate) struct Face {
    pub(crate) handle: Handle,
    pub(crate) names: FlowNames,
    pub(crate) streams: Streams,
    pub(crate) kernel: Kernel,
}

/// Counters of the bus side, as GetStatistics names them.
#[derive(Debug, Default)]
pub(crate) struct BusCounters {
    signals_sent: AtomicU64,
    signals_lost: AtomicU64,
    connection_events_lost: AtomicU64,
    calls_refused: AtomicU64,
}

impl BusCounters {
    fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    fn value(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Serves the table on the bus, again after the bus went away; ends with an error only when the first attempt
/// fails. `connection` shows the
/// methods' connection to those who call others.
pub(crate) async fn serve(
    address: &BusAddress,
    face: Face,
    connection: watch::Sender<Option<Connection>>,
    mut loading: Option<oneshot::Receiver<()>>,
    config: watch::Receiver<Arc<Config>>,
) -> Result<(), BusError> {
    let counters = Arc::new(BusCounters::default());
    let Face { handle, names, .. } = &face;
    let pace = Pace::new();
    let mut emitters = Emitters {
        changes: Emitter::new(
            handle.clone(),
            names.clone(),
            Arc::clone(&counters),
            config.clone(),
            pace.clone(),
        ),
        connections: Emitter::new(handle.clone(), names.clone(), Arc::clone(&counters), config, pace),
    };
    let mut first = true;
    let mut wait = FIRST_WAIT;
    loop {
        let monitor = FlowMonitor::new(face.clone(), Arc::clone(&counters));
        match connect(address, monitor).await {
            Ok((methods, signals)) => {
                tracing::info!(bus = %address, "serving");
                if std::mem::take(&mut first) {
                    tokio::spawn(confine(loading.take(), handle.clone()));
                }
                wait = FIRST_WAIT;
                connection.send_replace(Some(methods.clone()));
                tokio::spawn(kernel::warn_if_silent(face.kernel.clone()));
                serve_connected(address, &methods, signals, handle, &mut emitters).await;
                connection.send_replace(None);
                tracing::warn!(bus = %address, "the bus went away; the table is kept, reconnecting");
            }
            Err(error) if first => return Err(error),
            Err(error) if wait == FIRST_WAIT => tracing::warn!("{error}; trying again until it works"),
            Err(error) => tracing::debug!("{error}"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Makes no system calls any more but those of a daemon that serves, once BPF programs are loaded, and tells the manager.
async fn confine(loading: Option<oneshot::Receiver<()>>, handle: Handle) {
    if let Some(loading) = loading {
        let _ = loading.await; // Nobody sends: it ends when the loader does.
    }
    confinement::system_calls(&handle).await;
    service::ready(&handle);
}

/// What sends signals, each following a log of its own.
struct Emitters {
    changes: Emitter<Change>,
    connections: Emitter<ConnectionEvent>,
}

/// Serves until the bus closes the methods' connection.
async fn serve_connected(
    address: &BusAddress,
    methods: &Connection,
    signals: Connection,
    handle: &Handle,
    emitters: &mut Emitters,
) {
    tokio::select! {
        () = methods.closed() => {}
        () = emit(address, signals, emitters) => {}
        error = announce_state(methods, handle.state()) => {
            tracing::debug!(%error, "property changes are not announced");
        }
    }
}

/// Sends signals, over a new connection where a subscriber holds the old one up or the bus has closed it. The methods'
/// connection has no part in this.
async fn emit(address: &BusAddress, mut signals: Connection, emitters: &mut Emitters) {
    loop {
        tokio::select! {
            () = emitters.changes.run(&signals) => {}
            () = emitters.connections.run(&signals) => {}
        }
        let _ = signals.close().await;
        let mut wait = FIRST_WAIT;
        signals = loop {
            match connect_signals(address).await {
                Ok(connection) => break connection,
                // Also while the bus still counts the name as the old connection's.
                Err(error) => tracing::debug!("{error}"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        };
    }
}

/// Both connections, each serving its object before it asks for its name.
async fn connect(address: &BusAddress, monitor: FlowMonitor) -> Result<(Connection, Connection), BusError> {
    let signals = connect_signals(address).await?;
    let methods =
        own(address, address.connect().serve_at(FLOW_MONITOR_PATH, monitor), FLOW_MONITOR_NAME).await?;
    Ok((methods, signals))
}

async fn connect_signals(address: &BusAddress) -> Result<Connection, BusError> {
    own(address, address.connect().serve_at(FLOW_EVENTS_PATH, FlowEvents), FLOW_EVENTS_NAME).await
}

async fn own(
    address: &BusAddress,
    builder: zbus::connection::Builder<'_>,
    name: &'static str,
) -> Result<Connection, BusError> {
    let address = address.clone();
    let connection =
        builder.build().await.map_err(|source| BusError::Unreachable { address: address.clone(), source })?;
    // Neither replacing nor replaceable: a second daemon is told, the first goes on.
    let flags = zbus::fdo::RequestNameFlags::DO_NOT_QUEUE;
    match connection.request_name_with_flags(name, flags).await {
        Ok(_) => Ok(connection),
        Err(zbus::Error::NameTaken) => Err(BusError::NameTaken { name, address }),
        Err(zbus::Error::FDO(error)) if matches!(*error, zbus::fdo::Error::AccessDenied(_)) => {
            Err(BusError::NotAllowed { name, address, source: zbus::Error::FDO(error) })
        }
        Err(source) => Err(BusError::Failed { address, source }),
    }
}

/// Announces the properties that promise it, as they change.
async fn announce_state(methods: &Connection, mut state: watch::Receiver<State>) -> zbus::Error {
    let interface: InterfaceRef<FlowMonitor> =
        match methods.object_server().interface(FLOW_MONITOR_PATH).await {
            Ok(interface) => interface,
            Err(error) => return error,
        };
    let mut announced = *state.borrow_and_update();
    loop {
        if state.changed().await.is_err() {
            return zbus::Error::Failure("the tracker has ended".into());
        }
        let new = *state.borrow_and_update();
        let monitor = interface.get().await;
        let emitter = interface.signal_emitter();
        let result = async {
            if new.synchronized != announced.synchronized {
                monitor.synchronized_changed(emitter).await?;
            }
            if new.closed_capacity != announced.closed_capacity {
                monitor.closed_capacity_changed(emitter).await?;
            }
            if new.attribution != announced.attribution {
                monitor.attribution_changed(emitter).await?;
            }
            Ok::<(), zbus::Error>(())
        };
        if let Err(error) = result.await {
            return error;
        }
        announced = new;
    }
}

//! The two connections to the bus: one answers methods, the other sends signals, so that a subscriber who
//! stops reading never delays a method call.

mod batch;
mod emitter;
mod feedback;
mod flow_events;
mod flow_monitor;
mod listing;
mod outlet;
mod services;
mod statistics;

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use zbus::Connection;
use zbus::object_server::InterfaceRef;

use flowbus_guard::{CHANGE_AGAIN, End, Guard, Limits, Link, Service};
use flowbus_interfaces::{
    BusAddress, FLOW_EVENTS_NAME, FLOW_EVENTS_PATH, FLOW_MONITOR_NAME, FLOW_MONITOR_PATH,
};

use crate::change::FlowEvent;
use crate::config::Config;
use crate::connection::ConnectionEvent;
use crate::handle::Handle;
use crate::published::Properties;
use crate::{confinement, systemd};
use emitter::{Emitter, Pace};
use flow_events::FlowEvents;
use flow_monitor::FlowMonitor;
use outlet::Outlet;
use services::BusCounters;

pub(crate) use flowbus_guard::BusError;
pub(crate) use services::Services;

/// What callers may have in flight. Root looks after the machine: there is room for its calls whatever members do.
const LIMITS: Limits = Limits { sender: 16, user: 32, all: 64, reserved: [0; 2], descriptor: false };

/// Serves the table on the bus, again after the bus went away; ends with an error when the first attempt fails, or when another
/// process takes the name for methods. `connection` shows the methods' connection to those who call others.
pub(crate) async fn serve(
    address: &BusAddress,
    services: Services,
    connection: watch::Sender<Option<Connection>>,
    loading: Option<oneshot::Receiver<()>>,
    config: watch::Receiver<Arc<Config>>,
) -> Result<Infallible, BusError> {
    let counters = Arc::new(BusCounters::default());
    let guard = Arc::new(Guard::new(LIMITS));
    let Services { handle, names, .. } = &services;
    let pace = Pace::new();
    let emitters = Emitters {
        changes: Emitter::new(
            handle.clone(),
            names.clone(),
            Arc::clone(&counters),
            config.clone(),
            pace.clone(),
        ),
        connections: Emitter::new(handle.clone(), names.clone(), Arc::clone(&counters), config, pace),
    };
    let monitor = Service {
        address: address.clone(),
        name: FLOW_MONITOR_NAME,
        path: FLOW_MONITOR_PATH,
        interface: FlowMonitor::new(services.clone(), counters, Arc::clone(&guard)),
        guard: Arc::clone(&guard),
    };
    let events = Service {
        address: address.clone(),
        name: FLOW_EVENTS_NAME,
        path: FLOW_EVENTS_PATH,
        interface: FlowEvents,
        guard,
    };
    let methods = monitor.open().await?;
    // Without signals, methods are answered all the same.
    let signals = events.open().await;
    tracing::info!(bus = %address, "serving");
    tokio::spawn(confine(loading, handle.clone()));
    tokio::select! {
        error = serve_methods(&monitor, methods, &services, &connection) => Err(error),
        never = serve_signals(&events, signals, emitters) => match never {},
    }
}

/// Confines the process to the system calls of a daemon that serves, once BPF programs are loaded, and notifies the manager.
async fn confine(loading: Option<oneshot::Receiver<()>>, handle: Handle) {
    if let Some(loading) = loading {
        let _ = loading.await; // Nobody sends: it ends when the loader does.
    }
    confinement::system_calls(&handle).await;
    systemd::ready(&handle);
}

/// The emitters, each of which follows a log of its own.
struct Emitters {
    changes: Emitter<FlowEvent>,
    connections: Emitter<ConnectionEvent>,
}

/// Answers methods until another process takes the name.
async fn serve_methods(
    service: &Service<FlowMonitor>,
    mut link: Link,
    services: &Services,
    current: &watch::Sender<Option<Connection>>,
) -> BusError {
    let mut properties = services.handle.properties();
    let mut announced = *properties.borrow_and_update();
    loop {
        current.send_replace(Some(link.connection.clone()));
        let end = tokio::select! {
            end = link.ended() => end,
            error = announce_properties(&link.connection, &mut properties, &mut announced) => {
                tracing::debug!(%error, "property changes are not announced");
                link.ended().await
            }
        };
        match end {
            End::Full => {
                if !service.renew(&mut link).await {
                    tokio::time::sleep(CHANGE_AGAIN).await;
                }
            }
            End::Closed => {
                current.send_replace(None);
                tracing::warn!(bus = %service.address, "the bus went away; the table is kept, reconnecting");
                link.close().await;
                link = service.open_patiently(None).await;
                tracing::info!(bus = %service.address, "serving");
            }
            End::NameLost => {
                return BusError::NameLost { name: service.name, address: service.address.clone() };
            }
        }
    }
}

/// Sends signals, over a new connection where a subscriber holds the old one up or the bus has closed it. The methods'
/// connection has no part in this.
async fn serve_signals(
    service: &Service<FlowEvents>,
    first: Result<Link, BusError>,
    mut emitters: Emitters,
) -> Infallible {
    let mut next = first.map_err(Some);
    loop {
        let link = match next {
            Ok(link) => link,
            Err(error) => service.open_patiently(error).await,
        };
        let outlet = Outlet::new(link);
        tokio::select! {
            () = emitters.changes.run(&outlet) => {}
            () = emitters.connections.run(&outlet) => {}
            () = outlet.renew(service) => {}
        }
        outlet.close().await;
        next = Err(None);
    }
}

/// Announces the properties that promise it, as they change.
async fn announce_properties(
    methods: &Connection,
    properties: &mut watch::Receiver<Properties>,
    announced: &mut Properties,
) -> zbus::Error {
    let interface: InterfaceRef<FlowMonitor> =
        match methods.object_server().interface(FLOW_MONITOR_PATH).await {
            Ok(interface) => interface,
            Err(error) => return error,
        };
    loop {
        let new = *properties.borrow_and_update();
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
            if new.event_source != announced.event_source {
                monitor.event_source_changed(emitter).await?;
            }
            Ok::<(), zbus::Error>(())
        };
        if let Err(error) = result.await {
            return error;
        }
        *announced = new;
        drop(monitor);
        if properties.changed().await.is_err() {
            return zbus::Error::Failure("the tracker has ended".into());
        }
    }
}

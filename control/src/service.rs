//! The life on the bus: serve, and leave without losing a call that is on its way.

use std::sync::Arc;
use std::time::Duration;

use flowbus_interfaces::{BusAddress, FLOW_CONTROL_NAME, FLOW_CONTROL_PATH};
use flowbus_seccomp::{MACHINE_ID, NETWORK_SETTINGS, Policy, Refusal};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use zbus::Connection;
use zbus::fdo::RequestNameFlags;

use crate::caller::Permitted;
use crate::calls::Calls;
use crate::control::FlowControl;
use crate::worker::Worker;

/// So long a call has on the way out: it may wait for a password, or the bus stall.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the bus cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    #[error("cannot reach the bus {address}: {source}; is a bus daemon running there?")]
    Unreachable { address: BusAddress, source: zbus::Error },
    #[error("the bus {address} does not give us the name {FLOW_CONTROL_NAME}: {source}")]
    NoName { address: BusAddress, source: zbus::Error },
    #[error("cannot start a thread: {0}")]
    Worker(std::io::Error),
    #[error("the bus went away")]
    BusGone,
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
}

/// Serves until nobody has called for `idle`, or until it is told to stop.
pub(crate) async fn run(
    address: &BusAddress,
    permitted: Permitted,
    idle: Duration,
) -> Result<(), ServiceError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServiceError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServiceError::Signals)?;
    confine_files();
    let worker = Worker::start().await.map_err(ServiceError::Worker)?;
    let served = serve(address, permitted, idle, &worker, [&mut terminate, &mut interrupt]).await;
    // Whatever has ended it: a change that was begun is logged as far as it came.
    worker.finish();
    served
}

async fn serve(
    address: &BusAddress,
    permitted: Permitted,
    idle: Duration,
    worker: &Worker,
    [terminate, interrupt]: [&mut Signal; 2],
) -> Result<(), ServiceError> {
    let calls = Arc::new(Calls::default());
    let object = FlowControl::new(permitted, Arc::clone(&calls), worker.clone());
    let connection = connect(address, object).await?;
    notify(NotifyState::Ready);
    tracing::debug!(bus = %address, "serving");
    let told = loop {
        tokio::select! {
            active = timeout(idle, connection.monitor_activity()) => {
                // A call may wait for a password for long.
                if active.is_err() && !calls.any() {
                    break false;
                }
            }
            () = connection.closed() => return Err(ServiceError::BusGone),
            _ = terminate.recv() => break true,
            _ = interrupt.recv() => break true,
        }
    };
    // Who ends it does not wait for a million flows. Where it was idle, what comes meanwhile is still done.
    if told {
        worker.stop();
    }
    if timeout(DRAIN, leave(connection)).await.is_err() {
        tracing::warn!("calls were still unanswered after {DRAIN:?}, ignoring");
    }
    Ok(())
}

/// Serves the object, then asks for the name: a call never finds the name without the object.
async fn connect(address: &BusAddress, object: FlowControl) -> Result<Connection, ServiceError> {
    let connection = address
        .connect()
        .serve_at(FLOW_CONTROL_PATH, object)
        .build()
        .await
        .map_err(|source| ServiceError::Unreachable { address: address.clone(), source })?;
    // Who can call finds it confined.
    confine_system_calls();
    // Neither replacing nor replaceable.
    connection
        .request_name_with_flags(FLOW_CONTROL_NAME, RequestNameFlags::DO_NOT_QUEUE)
        .await
        .map_err(|source| ServiceError::NoName { address: address.clone(), source })?;
    Ok(connection)
}

/// Gives up files. This thread is the only one, and those that it starts do as it does.
fn confine_files() {
    let paths = [NETWORK_SETTINGS, MACHINE_ID[0], MACHINE_ID[1]];
    match flowbus_seccomp::read_only(&paths) {
        Ok(enforced) => tracing::debug!(?enforced, "files are confined"),
        Err(error) => tracing::warn!(%error, "files are not confined, ignoring"),
    }
}

/// Gives up system calls; all threads run.
fn confine_system_calls() {
    if let Err(error) = flowbus_seccomp::apply(Policy::FlowbusControl, Refusal::OF_THIS_BUILD) {
        tracing::warn!(%error, "system calls are not confined, ignoring");
    }
}

/// Gives the name up and answers what was sent to it before.
async fn leave(connection: Connection) {
    // First of all: PID 1 then queues the start that a later call asks for, instead of taking us for running.
    notify(NotifyState::Stopping);
    let left = async {
        connection.release_name(FLOW_CONTROL_NAME).await?;
        // The bus has sent every call that it still routed to us before its answer to that, and objects get calls in
        // the order of their coming: when this one is answered, all others have begun.
        let ourselves = connection.unique_name().cloned();
        connection.call_method(ourselves, "/", Some("org.freedesktop.DBus.Peer"), "Ping", &()).await
    };
    if let Err(error) = left.await {
        tracing::debug!(%error, "the bus was not left in order, ignoring");
    }
    // Waits for those that have begun.
    connection.graceful_shutdown().await;
}

fn notify(state: NotifyState<'_>) {
    // Without a service manager there is nobody to tell, which is no error.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager could not be told, ignoring");
    }
}

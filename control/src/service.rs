//! The life on the bus: serve, and leave without losing a call that is on its way.

use std::sync::Arc;
use std::time::Duration;

use flowbus_guard::Limits;
use flowbus_interfaces::{BusAddress, FLOW_CONTROL_NAME, FLOW_CONTROL_PATH};
use flowbus_seccomp::{MACHINE_ID, NETWORK_SETTINGS, Policy, Refusal};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};
use zbus::Connection;
use zbus::fdo::RequestNameFlags;

use crate::caller::Permitted;
use crate::calls::Calls;
use crate::control::FlowControl;
use crate::worker::Worker;

/// So long a call has on the way out: it may wait for a password, or the bus stall.
const DRAIN: Duration = Duration::from_secs(5);

/// After the bus went away: the first wait before connecting again, doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What callers may have in flight, before anybody is asked who they are. More than `calls` lets one user and all of them have,
/// because a call that is refused there is in flight until then.
const LIMITS: Limits = Limits {
    sender: 16,
    all: 128,
    // On the system bus flowbusd alone may call these: whatever others do, its dumps are requested.
    reserved: &["RequestDump", "GetKernelState"],
    // RequestDump's socket.
    descriptors: 1,
};

/// Why the bus cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    #[error("cannot reach the bus {address}: {source}; is a bus daemon running there?")]
    Unreachable { address: BusAddress, source: zbus::Error },
    #[error("the bus {address} does not give us the name {FLOW_CONTROL_NAME}: {source}")]
    NoName { address: BusAddress, source: zbus::Error },
    #[error("cannot start a thread: {0}")]
    Worker(std::io::Error),
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

/// Why serving one connection ended.
enum End {
    Idle,
    Signal,
    BusGone,
}

async fn serve(
    address: &BusAddress,
    permitted: Permitted,
    idle: Duration,
    worker: &Worker,
    [terminate, interrupt]: [&mut Signal; 2],
) -> Result<(), ServiceError> {
    let calls = Arc::new(Calls::default());
    let guard = Arc::new(flowbus_guard::Calls::new(LIMITS));
    let object = || FlowControl::new(permitted.clone(), Arc::clone(&calls), worker.clone());
    let mut connection = connect(address, &guard, object()).await?;
    // A caller that finds the name finds it confined.
    confine_system_calls();
    own(address, &connection).await?;
    notify(NotifyState::Ready);
    loop {
        tracing::debug!(bus = %address, "serving");
        let end = serve_connected(&connection, &calls, idle, [terminate, interrupt]).await;
        match end {
            // A caller who ends it does not wait for a million flows. Where it was idle, what comes meanwhile is still done.
            End::Signal => worker.stop(),
            End::Idle => {}
            End::BusGone => {
                // What is being done for callers goes on and is logged; they hear no answer.
                tracing::warn!(bus = %address, "the bus went away, connecting again");
                let again = connect_again(address, &guard, object, idle);
                connection = tokio::select! {
                    connection = again => connection?,
                    _ = terminate.recv() => return Ok(()),
                    _ = interrupt.recv() => return Ok(()),
                };
                continue;
            }
        }
        if timeout(DRAIN, leave(connection)).await.is_err() {
            tracing::warn!("calls were still unanswered after {DRAIN:?}, ignoring");
        }
        return Ok(());
    }
}

/// Serves one connection for as long as it lives and is used.
async fn serve_connected(
    connection: &Connection,
    calls: &Calls,
    idle: Duration,
    [terminate, interrupt]: [&mut Signal; 2],
) -> End {
    loop {
        tokio::select! {
            active = timeout(idle, connection.monitor_activity()) => {
                // A call may wait for a password for long.
                if active.is_err() && !calls.any() {
                    return End::Idle;
                }
            }
            () = connection.closed() => return End::BusGone,
            _ = terminate.recv() => return End::Signal,
            _ = interrupt.recv() => return End::Signal,
        }
    }
}

/// Connects again, for as long as the helper would wait for a call; without a bus there are none.
async fn connect_again(
    address: &BusAddress,
    guard: &Arc<flowbus_guard::Calls>,
    object: impl Fn() -> FlowControl,
    idle: Duration,
) -> Result<Connection, ServiceError> {
    let end = Instant::now() + idle;
    let mut wait = FIRST_WAIT;
    loop {
        sleep(wait).await;
        let again = async {
            let connection = connect(address, guard, object()).await?;
            own(address, &connection).await.map(|()| connection)
        };
        match again.await {
            Ok(connection) => return Ok(connection),
            Err(error) if Instant::now() >= end => return Err(error),
            // Also while the bus still counts the name as the old connection's.
            Err(error) => tracing::debug!("{error}"),
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Connects and serves the object, before the name is asked for: a call never finds the name without the object.
async fn connect(
    address: &BusAddress,
    guard: &Arc<flowbus_guard::Calls>,
    object: FlowControl,
) -> Result<Connection, ServiceError> {
    let unreachable = |source| ServiceError::Unreachable { address: address.clone(), source };
    let builder = flowbus_guard::connect(address, guard).await.map_err(unreachable)?;
    builder.serve_at(FLOW_CONTROL_PATH, object).build().await.map_err(unreachable)
}

async fn own(address: &BusAddress, connection: &Connection) -> Result<(), ServiceError> {
    // Neither replacing nor replaceable.
    let owned = connection.request_name_with_flags(FLOW_CONTROL_NAME, RequestNameFlags::DO_NOT_QUEUE).await;
    owned.map(drop).map_err(|source| ServiceError::NoName { address: address.clone(), source })
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

//! The life on the bus: serve, and leave without losing a call that is on its way.

use std::sync::Arc;
use std::time::Duration;

use flowbus_guard::{BusError, CHANGE_AGAIN, End, Guard, Limits, Link, Service};
use flowbus_interfaces::{BusAddress, FLOW_CONTROL_NAME, FLOW_CONTROL_PATH};
use flowbus_seccomp::{MACHINE_ID, NETWORK_SETTINGS, Policy, Refusal};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};

use crate::caller::Permitted;
use crate::control::FlowControl;
use crate::wait::Wait;
use crate::worker::Worker;

/// How long calls have to be answered on the way out: they may wait for a password, or the bus stall.
const DRAIN: Duration = Duration::from_secs(5);

/// The most calls in flight of all users but flowbusd's and root together, and of one user.
const CALLS: usize = 64;
const USER_CALLS: usize = 16;
const ROOT: u32 = 0;

/// Why the bus cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("cannot start a thread: {0}")]
    Worker(std::io::Error),
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
}

/// Serves until nobody has called for `idle`, or until a signal ends it.
pub(crate) async fn run(
    address: &BusAddress,
    permitted: Permitted,
    idle: Duration,
) -> Result<(), ServeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let wait = Arc::new(Wait::new());
    confine_files();
    let worker = Worker::start(CALLS + 2 * USER_CALLS).await.map_err(ServeError::Worker)?;
    let served = serve(address, permitted, idle, (&worker, &wait), [&mut terminate, &mut interrupt]).await;
    // Whatever has ended it: a change that was begun is logged as far as it came.
    worker.finish();
    served
}

/// Why serving ends, or one connection.
enum Cause {
    Idle,
    Signal,
    Link(End),
}

async fn serve(
    address: &BusAddress,
    permitted: Permitted,
    idle: Duration,
    (worker, wait): (&Worker, &Arc<Wait>),
    [terminate, interrupt]: [&mut Signal; 2],
) -> Result<(), ServeError> {
    let limits = Limits {
        sender: 16,
        user: USER_CALLS,
        all: CALLS,
        reserved: [permitted.daemon(), ROOT],
        descriptor: true,
    };
    let service = Service {
        address: address.clone(),
        name: FLOW_CONTROL_NAME,
        path: FLOW_CONTROL_PATH,
        interface: FlowControl::new(permitted, worker.clone(), Arc::clone(wait)),
        guard: Arc::new(Guard::new(limits)),
    };
    // A caller that finds the name finds it confined.
    confine_system_calls();
    let mut link = service.open().await?;
    notify(NotifyState::Ready);
    tracing::debug!(bus = %address, "serving");
    loop {
        match serve_connected(&link, &service.guard, idle, [terminate, interrupt]).await {
            // A caller who ends it does not wait for a million flows. Where it was idle, what comes meanwhile is still done.
            Cause::Signal => worker.stop(),
            Cause::Idle => {}
            Cause::Link(End::Full) => {
                // The old connection waits for its calls.
                wait.end();
                if !service.renew(&mut link).await {
                    sleep(CHANGE_AGAIN).await;
                }
                continue;
            }
            Cause::Link(End::NameLost) => {
                return Err(BusError::NameLost { name: FLOW_CONTROL_NAME, address: address.clone() }.into());
            }
            Cause::Link(End::Closed) => {
                // What is being done for callers goes on and is logged; they get no answer.
                tracing::warn!(bus = %address, "the bus went away, reconnecting");
                link = tokio::select! {
                    link = connect_again(&service, idle) => link?,
                    _ = terminate.recv() => return Ok(()),
                    _ = interrupt.recv() => return Ok(()),
                };
                continue;
            }
        }
        wait.end();
        // First of all: PID 1 then queues the start that a later call asks for, instead of taking us for running.
        notify(NotifyState::Stopping);
        if timeout(DRAIN, link.leave()).await.is_err() {
            tracing::warn!("calls were still unanswered after {DRAIN:?}, ignoring");
        }
        return Ok(());
    }
}

/// Serves one connection for as long as it lives and is used.
async fn serve_connected(
    link: &Link,
    guard: &Guard,
    idle: Duration,
    [terminate, interrupt]: [&mut Signal; 2],
) -> Cause {
    loop {
        tokio::select! {
            active = timeout(idle, link.connection.monitor_activity()) => {
                // A call may wait for a password for long.
                if active.is_err() && guard.is_idle() {
                    return Cause::Idle;
                }
            }
            end = link.ended() => return Cause::Link(end),
            _ = terminate.recv() => return Cause::Signal,
            _ = interrupt.recv() => return Cause::Signal,
        }
    }
}

/// Connects again, for as long as the helper would wait for a call; without a bus there are none.
async fn connect_again(service: &Service<FlowControl>, idle: Duration) -> Result<Link, BusError> {
    match timeout(idle, service.open_patiently(None)).await {
        Ok(link) => Ok(link),
        Err(_) => service.open().await,
    }
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

fn notify(state: NotifyState<'_>) {
    // Without a service manager nobody is notified, which is no error.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "notifying the service manager failed, ignoring");
    }
}

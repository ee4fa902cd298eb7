//! The kernel's settings, fill and counters: read here where the daemon may, else asked of flowbus-control.

use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::{Duration, Instant};

use ctnetlink::EventMasks;
use flowbus_interfaces::{FlowControlProxy, KernelState};
use tokio::sync::{Mutex, watch};
use zbus::Connection;

/// An answer of the helper serves so long.
const FRESH: Duration = Duration::from_secs(1);
/// The helper has so long to start and to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who knows the kernel's state.
#[derive(Clone, Debug)]
pub(crate) enum Kernel {
    /// This process, in its own network namespace; with what it knows of the rules there.
    Here(Arc<SyncMutex<EventMasks>>),
    /// The helper, in the host's: the sandbox would show its own, empty one.
    Helper(Arc<Helper>),
}

/// flowbus-control, over the connection that the bus side has at the moment.
#[derive(Debug)]
pub(crate) struct Helper {
    connection: watch::Receiver<Option<Connection>>,
    answer: Mutex<Option<(Instant, KernelState)>>,
}

impl Kernel {
    /// This process.
    pub(crate) fn here() -> Self {
        Self::Here(Arc::default())
    }

    /// The helper, to be asked over this connection.
    pub(crate) fn helper(connection: watch::Receiver<Option<Connection>>) -> Self {
        Self::Helper(Arc::new(Helper { connection, answer: Mutex::default() }))
    }

    /// The state, at most a second old; what is not known is absent.
    pub(crate) async fn state(&self) -> KernelState {
        self.state_within(FRESH).await
    }

    /// The state as it is now.
    pub(crate) async fn look(&self) -> KernelState {
        self.state_within(Duration::ZERO).await
    }

    async fn state_within(&self, age: Duration) -> KernelState {
        match self {
            Self::Here(masks) => {
                let mut masks = masks.lock().unwrap_or_else(PoisonError::into_inner);
                ctnetlink::KernelState::read(&mut masks).into()
            }
            Self::Helper(helper) => helper.state(age).await,
        }
    }
}

impl Helper {
    async fn state(&self, age: Duration) -> KernelState {
        // Callers wait for one another here: the helper is asked once for all of them.
        let mut answer = self.answer.lock().await;
        if let Some((since, state)) = &*answer
            && since.elapsed() < age
        {
            return state.clone();
        }
        let state = match tokio::time::timeout(PATIENCE, self.ask()).await {
            Ok(Ok(state)) => state,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the kernel's state is not known");
                KernelState::default()
            }
            Err(_) => KernelState::default(),
        };
        *answer = Some((Instant::now(), state.clone()));
        state
    }

    async fn ask(&self) -> Result<KernelState, flowbus_interfaces::Error> {
        let connection = self.connection.borrow().clone();
        let Some(connection) = connection else { return Ok(KernelState::default()) };
        FlowControlProxy::new(&connection).await?.get_kernel_state().await
    }
}

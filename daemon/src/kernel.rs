//! The kernel's settings, fill and counters: read here where the daemon may, else asked of flowbus-control.

use std::sync::Arc;
use std::time::{Duration, Instant};

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
    /// This process, in its own network namespace.
    Here,
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
    /// The helper, to be asked over this connection.
    pub(crate) fn helper(connection: watch::Receiver<Option<Connection>>) -> Self {
        Self::Helper(Arc::new(Helper { connection, answer: Mutex::default() }))
    }

    /// The state, at most a second old; what is not known is absent.
    pub(crate) async fn state(&self) -> KernelState {
        match self {
            Self::Here => ctnetlink::KernelState::read().into(),
            Self::Helper(helper) => helper.state().await,
        }
    }
}

/// Says so when the kernel is set to tell nobody of its flows: the table would stay empty in silence.
pub(crate) async fn warn_if_silent(kernel: Kernel) {
    if kernel.state().await.events == Some(0) {
        tracing::warn!(
            "nf_conntrack_events is 0: the kernel sends no events, and new flows are not seen; \
             set it with `sysctl net.netfilter.nf_conntrack_events=2`"
        );
    }
}

impl Helper {
    async fn state(&self) -> KernelState {
        // Callers wait for one another here: the helper is asked once for all of them.
        let mut answer = self.answer.lock().await;
        if let Some((since, state)) = *answer
            && since.elapsed() < FRESH
        {
            return state;
        }
        let state = match tokio::time::timeout(PATIENCE, self.ask()).await {
            Ok(Ok(state)) => state,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the kernel's state is not known");
                KernelState::default()
            }
            Err(_) => KernelState::default(),
        };
        *answer = Some((Instant::now(), state));
        state
    }

    async fn ask(&self) -> Result<KernelState, flowbus_interfaces::Error> {
        let connection = self.connection.borrow().clone();
        let Some(connection) = connection else { return Ok(KernelState::default()) };
        FlowControlProxy::new(&connection).await?.get_kernel_state().await
    }
}

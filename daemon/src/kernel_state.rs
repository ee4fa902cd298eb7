//! The kernel's settings, fill and counters: read here where the daemon may, else asked of flowbus-control.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use ctnetlink::{EventMasks, Notices};
use flowbus_interfaces::{FlowControlProxy, KernelState};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{Mutex, oneshot, watch};
use zbus::Connection;

/// How long an answer of the helper is used before it is asked again.
const FRESH: Duration = Duration::from_secs(1);
/// Time for the helper to start and to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Reads that wait at most; the calls that ask for one are fewer.
const READS: usize = 64;

/// Where the kernel's state is read.
#[derive(Clone, Debug)]
pub(crate) enum Kernel {
    /// In this process and its network namespace.
    Here(Arc<Reader>),
    /// In the helper and the host's network namespace: that of the sandbox is empty.
    Helper(Arc<Helper>),
}

/// A thread that reads the state, because a large ruleset takes milliseconds that the bus should not wait for.
#[derive(Debug)]
pub(crate) struct Reader {
    reads: SyncSender<oneshot::Sender<KernelState>>,
    notices: Option<Notices>,
}

/// flowbus-control, over the connection that the bus side has at the moment.
#[derive(Debug)]
pub(crate) struct Helper {
    connection: watch::Receiver<Option<Connection>>,
    answer: Mutex<Option<(Instant, KernelState)>>,
}

impl Kernel {
    /// The state as this process reads it.
    pub(crate) fn here(reader: Reader) -> Self {
        Self::Here(Arc::new(reader))
    }

    /// The state as the helper reads it, which is asked over this connection.
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
            Self::Here(reader) => reader.state().await,
            Self::Helper(helper) => helper.state(age).await,
        }
    }

    /// Waits until settings or rules may hide flows that a look did not find hidden, and uses no CPU time until then. It may
    /// return without a reason, so look. False where nobody can wait for that.
    pub(crate) async fn notice(&self) -> bool {
        match self {
            Self::Here(reader) => reader.notice().await.is_some(),
            Self::Helper(helper) => helper.notice().await.is_some(),
        }
    }
}

impl Reader {
    /// Starts the thread. Call it before anything is confined; it returns when the thread makes no more of the system calls
    /// that a thread begins with.
    pub(crate) fn start() -> std::io::Result<Self> {
        let notices = Notices::open()
            .inspect_err(|error| tracing::debug!(%error, "settings and rules are not watched"))
            .ok();
        let (reads, requests) = sync_channel::<oneshot::Sender<KernelState>>(READS);
        thread::Builder::new().name("kernel".into()).spawn(move || {
            let mut masks = EventMasks::default();
            for reply in requests {
                // A caller that has gone away needs no answer.
                let _ = reply.send(ctnetlink::KernelState::read(&mut masks).into());
            }
        })?;
        let (reply, first) = oneshot::channel();
        let _ = reads.send(reply);
        first.blocking_recv().map_err(std::io::Error::other)?;
        Ok(Self { reads, notices })
    }

    async fn state(&self) -> KernelState {
        let (reply, answer) = oneshot::channel();
        // A full queue drops the reply, and so does a thread that has ended: nothing is known then.
        let _ = self.reads.try_send(reply);
        answer.await.unwrap_or_default()
    }

    async fn notice(&self) -> Option<()> {
        let notices = self.notices.as_ref()?;
        // For tokio what is read is a pipe; its type for descriptors of any kind takes unsafe code.
        let [setting, rules] = notices.descriptors().ok()?.map(Receiver::from_owned_fd_unchecked);
        let (setting, rules) = (setting.ok()?, rules.ok()?);
        tokio::select! {
            readable = setting.readable() => readable.ok()?,
            readable = rules.readable() => readable.ok()?,
        }
        notices.discard();
        Some(())
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

    async fn notice(&self) -> Option<()> {
        let connection = self.connection.borrow().clone()?;
        let waited = async { FlowControlProxy::new(&connection).await?.await_kernel_state().await };
        waited
            .await
            .inspect_err(|error| tracing::debug!(%error, "nobody waits for the kernel's state"))
            .ok()?;
        Some(())
    }
}

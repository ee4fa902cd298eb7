//! Where signals leave: one connection after the other, without a loss in between.

use flowbus_guard::{CHANGE_AGAIN, End, Link, Service};
use flowbus_interfaces::FLOW_EVENTS_PATH;
use tokio::sync::Mutex;
use zbus::object_server::SignalEmitter;

use super::flow_events::FlowEvents;

/// The connection that sends signals. Whoever holds it changes it or sends one signal.
#[derive(Debug)]
pub(super) struct Outlet(Mutex<Link>);

impl Outlet {
    pub(super) fn new(link: Link) -> Self {
        Self(Mutex::new(link))
    }

    /// Sends a signal. It has been sent when the bus has handed it out: only then it counts as such, whatever becomes of the
    /// connection.
    pub(super) async fn send(
        &self,
        signal: impl AsyncFnOnce(&SignalEmitter<'_>) -> zbus::Result<()>,
    ) -> zbus::Result<()> {
        let link = self.0.lock().await;
        signal(&SignalEmitter::new(&link.connection, FLOW_EVENTS_PATH)?).await?;
        link.confirm().await
    }

    /// Changes the connection when it has sent enough; returns when it has ended otherwise.
    pub(super) async fn renew(&self, service: &Service<FlowEvents>) {
        loop {
            let current = self.0.lock().await.clone();
            match current.ended().await {
                End::Closed => return,
                End::NameLost => {
                    tracing::warn!(name = service.name, "another process has taken the name");
                    return;
                }
                End::Full => {
                    // Signals go on while it waits to be tried again.
                    let is_renewed = service.renew(&mut *self.0.lock().await).await;
                    if !is_renewed {
                        tokio::time::sleep(CHANGE_AGAIN).await;
                    }
                }
            }
        }
    }

    pub(super) async fn close(self) {
        self.0.into_inner().close().await;
    }
}

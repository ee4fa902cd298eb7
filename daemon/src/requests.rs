//! Dump requests of a daemon that may not send them itself: flowbus-control does, on our socket.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use flowbus_interfaces::{Error, FlowControlProxy};
use tokio::sync::{mpsc, watch};
use zbus::Connection;

use crate::handle::{Command, Handle};

/// The helper has so long to start and to send.
const PATIENCE: Duration = Duration::from_secs(10);

/// One dump to ask for.
#[derive(Debug)]
pub(crate) struct DumpRequest {
    /// A duplicate of the dump socket.
    pub(crate) socket: OwnedFd,
    /// The nlmsg_seq.
    pub(crate) sequence: u32,
}

/// Passes requests on, and tells the tracker of those that could not be sent.
pub(crate) async fn relay(
    mut requests: mpsc::Receiver<DumpRequest>,
    connection: watch::Receiver<Option<Connection>>,
    handle: Handle,
) {
    while let Some(DumpRequest { socket, sequence }) = requests.recv().await {
        let current = connection.borrow().clone();
        let reason = match tokio::time::timeout(PATIENCE, send(current, socket, sequence)).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("flowbus-control did not answer within {PATIENCE:?}"),
        };
        // The tracker that does not take the order any more needs no dump either.
        let _ = handle.order(Command::DumpFailed { sequence, reason });
    }
}

async fn send(connection: Option<Connection>, socket: OwnedFd, sequence: u32) -> Result<(), Error> {
    let Some(connection) = connection else {
        return Err(Error::Unavailable("the bus is away".to_owned()));
    };
    let control = FlowControlProxy::new(&connection).await?;
    control.request_dump(socket.into(), sequence, &HashMap::new()).await
}

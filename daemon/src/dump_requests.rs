//! Dump requests of a daemon that may not send them itself: flowbus-control does, on our socket.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use flowbus_interfaces::{Error, FlowControlProxy};
use tokio::sync::{mpsc, watch};
use zbus::Connection;

use crate::handle::{Command, Handle};

/// How long the helper has to start and to send.
const PATIENCE: Duration = Duration::from_secs(10);

/// One dump to ask for.
#[derive(Debug)]
pub(crate) struct DumpRequest {
    /// A duplicate of the dump socket.
    pub(crate) socket: OwnedFd,
    /// The nlmsg_seq of the request.
    pub(crate) sequence: u32,
}

/// Passes requests on, and reports to the tracker those that could not be sent.
pub(crate) async fn relay(
    mut requests: mpsc::Receiver<DumpRequest>,
    mut connection: watch::Receiver<Option<Connection>>,
    handle: Handle,
) {
    while let Some(DumpRequest { socket, sequence }) = requests.recv().await {
        let reason = match tokio::time::timeout(PATIENCE, send(&mut connection, socket, sequence)).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no bus or no answer of flowbus-control within {PATIENCE:?}"),
        };
        // The tracker that does not take the order any more needs no dump either.
        let _ = handle.send(Command::DumpFailed { sequence, reason });
    }
}

/// Sends as soon as there is a bus: at the start the request comes before the connection.
async fn send(
    connection: &mut watch::Receiver<Option<Connection>>,
    socket: OwnedFd,
    sequence: u32,
) -> Result<(), Error> {
    let connection =
        connection.wait_for(Option::is_some).await.ok().and_then(|connection| connection.clone());
    let Some(connection) = connection else {
        return Err(Error::Unavailable("the daemon is stopping".to_owned()));
    };
    let control = FlowControlProxy::new(&connection).await?;
    control.request_dump(socket.into(), sequence, &HashMap::new()).await
}

//! A connection to the bus that serves an object and owns a name, and the change to a new one before the bus stops reading it.

use std::sync::Arc;
use std::time::Duration;

use flowbus_interfaces::BusAddress;
use tokio::sync::mpsc;
use tokio::time::timeout;
use zbus::connection::{Builder, socket::Split};
use zbus::object_server::Interface;
use zbus::{Connection, Message};

use crate::gate::Gate;
use crate::guard::Guard;
use crate::halves;
use crate::transport::{self, within_reason};
use crate::{BusError, name};

/// A connection is changed for a new one when it has sent this many bytes. dbus-daemon reads no more of a connection of which 127 MiB
/// wait for readers; calls in flight add at most 64 MiB.
const RENEWAL: u64 = 32 << 20;
/// How long calls in flight, and this process's own, have to be answered on the old connection. They may wait for a password.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first wait before trying again when the bus went away, doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long after a connection could not be changed for a new one it is tried again.
pub const CHANGE_AGAIN: Duration = Duration::from_secs(1);
/// How often the bus is asked whether it reads a connection that is written to.
const CHECK: Duration = Duration::from_secs(1);

/// What is served, and where.
#[derive(Debug)]
pub struct Service<I> {
    /// The bus.
    pub address: BusAddress,
    /// The well-known name.
    pub name: &'static str,
    /// The object's path.
    pub path: &'static str,
    /// The object.
    pub interface: I,
    /// The guard, which all services of a process share.
    pub guard: Arc<Guard>,
}

/// A connection to the bus that serves an object and owns a name.
#[derive(Clone, Debug)]
pub struct Link {
    /// The connection as the library has it.
    pub connection: Connection,
    gate: Gate,
}

/// Why a connection is not to be used any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The connection was closed by the bus, or by this process because the bus does not read it.
    Closed,
    /// The connection has sent as much as one should.
    Full,
    /// Another process has taken the name.
    NameLost,
}

impl<I: Interface + Clone> Service<I> {
    /// Connects, serves the object, then requests the name: a call never finds the name without the object.
    ///
    /// # Errors
    /// If there is no bus, or the name cannot be had.
    pub async fn open(&self) -> Result<Link, BusError> {
        let unreachable = |source| BusError::Unreachable { address: self.address.clone(), source };
        let stream = transport::open(&self.address).await.map_err(unreachable)?;
        let (gate, reader, writer, outgoing) = halves::around(stream, self.name, Arc::clone(&self.guard));
        let builder = Builder::socket(Split::new(Box::new(reader) as _, Box::new(writer) as _));
        let connection =
            builder.serve_at(self.path, self.interface.clone()).build().await.map_err(unreachable)?;
        tokio::spawn(send(connection.clone(), outgoing));
        let link = Link { connection, gate };
        tokio::spawn(link.clone().check());
        match name::acquire(&link.connection, self.name, &self.address).await {
            Ok(()) => Ok(link),
            Err(error) => {
                link.close().await;
                Err(error)
            }
        }
    }

    /// Calls [`Service::open`] until it works. `failure` is logged once, if there is one already.
    pub async fn open_patiently(&self, mut failure: Option<BusError>) -> Link {
        let mut wait = FIRST_WAIT;
        loop {
            match &failure {
                Some(error) if wait == FIRST_WAIT => tracing::warn!("{error}; retrying with backoff"),
                Some(error) => tracing::debug!("{error}"),
                None => {}
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
            match self.open().await {
                Ok(link) => return link,
                Err(error) => failure = Some(error),
            }
        }
    }

    /// Moves the name to a new connection, which takes the place of `link`. Nothing may be sent on the old one meanwhile that
    /// goes by the name. False where there is no new connection: the old one stays, and is to be changed after
    /// [`CHANGE_AGAIN`].
    pub async fn renew(&self, link: &mut Link) -> bool {
        // The bus hands out by name what was sent, so it has to do that while the old connection has the name. One that it
        // does not read loses the name all the same.
        let _ = link.confirm().await;
        match self.open().await {
            Ok(new) => {
                tracing::debug!(name = self.name, "changed the connection");
                tokio::spawn(std::mem::replace(link, new).retire());
                true
            }
            Err(error) => {
                tracing::debug!(name = self.name, %error, "the connection stays");
                false
            }
        }
    }
}

impl Link {
    /// Waits until the connection is not to be used any longer.
    pub async fn ended(&self) -> End {
        let is_over = |gate: &Gate| gate.has_lost_name() || gate.written() >= RENEWAL;
        tokio::select! {
            () = self.connection.closed() => End::Closed,
            () = self.gate.wait(is_over) => if self.gate.has_lost_name() { End::NameLost } else { End::Full },
        }
    }

    /// Returns once the bus has read everything that was sent before, and has delivered everything that it routed to us before.
    ///
    /// # Errors
    /// If the connection ends meanwhile.
    pub async fn confirm(&self) -> zbus::Result<()> {
        const BUS: &str = "org.freedesktop.DBus";
        let answer = self.connection.call_method(Some(BUS), "/org/freedesktop/DBus", Some(BUS), "GetId", &());
        match within_reason(answer, || self.gate.written()).await {
            Some(answer) => answer.map(drop),
            None => {
                self.gate.hang_up();
                Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())
            }
        }
    }

    /// Finds out that the bus does not read the connection, as long as something is written to it.
    async fn check(self) {
        let mut confirmed = 0;
        loop {
            tokio::select! {
                () = self.connection.closed() => return,
                () = self.gate.wait(|gate| gate.written() > confirmed) => {}
            }
            if self.confirm().await.is_err() {
                return;
            }
            confirmed = self.gate.written();
            tokio::time::sleep(CHECK).await;
        }
    }

    /// Gives the name up, and closes the connection when the calls that came by the name are answered.
    pub async fn leave(self) {
        if let Err(error) = name::release(&self.connection, self.gate.name()).await {
            tracing::debug!(%error, "the name is not given up");
        }
        self.retire().await;
    }

    /// Closes a connection that no longer has its name, when the calls that it got before are answered, and ours on it too.
    async fn retire(self) {
        // What the bus has delivered comes before its answer.
        let answered = async {
            self.confirm().await?;
            self.gate.wait(Gate::is_idle).await;
            zbus::Result::Ok(())
        };
        if timeout(PATIENCE, answered).await.is_err() {
            tracing::debug!("calls of an old connection are not answered");
        }
        self.close().await;
    }

    /// Ends the connection, whatever waits on it.
    pub async fn close(self) {
        // It may be closed already.
        let _ = self.connection.close().await;
    }
}

/// Sends what the gate has to say, until the connection ends.
async fn send(connection: Connection, mut messages: mpsc::Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        if let Err(error) = connection.send(&message).await {
            tracing::debug!(%error, "an error cannot be sent");
        }
    }
}

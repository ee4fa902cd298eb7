//! A connection to a message bus that bounds its callers before anything of theirs is kept.
//!
//! A service on the bus cannot choose what it is sent: messages of 128 MiB, 253 descriptors with each, as many calls as a caller
//! cares to write, also of the interfaces that a library answers by itself (Introspectable, Properties, Peer). So the bytes pass
//! a gate before the library sees them. A message that is too large is read past without being stored, surplus descriptors are
//! never installed in the process, and a call beyond the limits is answered with an error at once. A call counts as in flight
//! until its reply has been written to the bus, because until then the reply takes memory.

mod calls;
mod head;
mod read;
mod write;

use std::io;
use std::sync::Arc;

use flowbus_interfaces::BusAddress;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use zbus::Message;
use zbus::address::Transport;
use zbus::address::transport::UnixSocket;
use zbus::connection::Builder;
use zbus::connection::socket::{ReadHalf, Split, WriteHalf};

pub use calls::{Calls, Limits};
use read::{Admission, GuardedRead};

/// The most bytes that a call or a signal has, header included. The largest useful one, a query with every key and long lists,
/// has some 100 KiB.
pub const MAXIMUM_MESSAGE: usize = 1024 * 1024;

/// How many refusals may wait until the bus takes them. Then nothing more is read.
const WAITING_REFUSALS: usize = 64;

/// The builder of a connection to the bus whose callers are held to the limits of `calls`.
///
/// # Errors
/// If the bus cannot be reached, or is at an address other than a Unix socket.
pub async fn connect(address: &BusAddress, calls: &Arc<Calls>) -> zbus::Result<Builder<'static>> {
    let stream = open(address).await?;
    let writer = Arc::new(write::Writer::new(Arc::clone(&stream)));
    let (refusals, waiting) = mpsc::channel(WAITING_REFUSALS);
    tokio::spawn(refuse(Arc::clone(&writer), waiting));
    let admission = Admission::Calls(Arc::clone(calls));
    let read: Box<dyn ReadHalf> = Box::new(GuardedRead::new(stream, admission, refusals));
    let write: Box<dyn WriteHalf> = Box::new(write::GuardedWrite::new(writer, Arc::clone(calls)));
    Ok(Builder::socket(Split::new(read, write)))
}

/// The reading half of a connection that bounds each message and counts its calls itself: what is above [`MAXIMUM_MESSAGE`]
/// or has descriptors is read past. Where its sender wants a reply, `refused` is called and the error goes to `refusals` to be sent.
pub fn bounded(
    stream: Arc<UnixStream>,
    refused: impl Fn() + Send + Sync + 'static,
    refusals: mpsc::Sender<Message>,
) -> Box<dyn ReadHalf> {
    Box::new(GuardedRead::new(stream, Admission::Size(Box::new(refused)), refusals))
}

/// Writes refusals, until the reader is gone or the bus.
async fn refuse(writer: Arc<write::Writer>, mut waiting: mpsc::Receiver<Message>) {
    while let Some(refusal) = waiting.recv().await {
        if let Err(error) = writer.write(&refusal).await {
            tracing::debug!(%error, "the bus does not take refusals any more");
            return;
        }
    }
}

/// Connects to the socket of the bus.
///
/// # Errors
/// As [`connect`].
pub async fn open(address: &BusAddress) -> zbus::Result<Arc<UnixStream>> {
    let address = match address {
        BusAddress::System => zbus::Address::system()?,
        BusAddress::Address(address) => (**address).clone(),
    };
    let unsupported = |text| io::Error::new(io::ErrorKind::Unsupported, text);
    let Transport::Unix(unix) = address.transport() else {
        return Err(unsupported("the bus has to be at a Unix socket").into());
    };
    let stream = match unix.path() {
        UnixSocket::File(path) => UnixStream::connect(path).await?,
        // The standard library and tokio write an abstract name as a path that begins with a zero.
        UnixSocket::Abstract(name) => {
            let mut path = std::ffi::OsString::from("\0");
            path.push(name);
            UnixStream::connect(path).await?
        }
        _ => return Err(unsupported("the bus's address has to name its socket").into()),
    };
    Ok(Arc::new(stream))
}

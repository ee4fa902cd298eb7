//! The socket of a connection to the bus, and what is written to it. A write without progress ends the connection.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use flowbus_interfaces::BusAddress;
use rustix::fd::BorrowedFd;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, sendmsg, shutdown};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;
use zbus::address::Transport;
use zbus::address::transport::UnixSocket;
use zbus::connection::socket::WriteHalf;

/// A bus that takes nothing for this long has stopped reading the connection: somebody does not read what was sent on it.
pub(crate) const STUCK: Duration = Duration::from_secs(5);
/// [`STUCK`] is waited for in steps of this length: while this process is busy, what the bus did is not seen, and one wait would
/// end too early.
const STEP: Duration = Duration::from_secs(1);
/// Steps that are waited for at most: the socket's buffer takes small messages for a while when nobody reads it.
const LONGEST: u32 = 30;
/// The most descriptors that the bus takes with one message.
const DESCRIPTORS: usize = 16;

/// Connects to the socket of the bus.
pub(crate) async fn open(address: &BusAddress) -> zbus::Result<Arc<UnixStream>> {
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

/// Waits for something that the bus does; `None` if it has stopped reading. While `progress` grows it reads, and what we wait for may be
/// behind much else that we have to read.
pub(crate) async fn within_reason<T>(deed: impl Future<Output = T>, progress: impl Fn() -> u64) -> Option<T> {
    tokio::pin!(deed);
    let (mut idle, mut before) = (0, progress());
    for _ in 0..LONGEST {
        if let Ok(output) = timeout(STEP, &mut deed).await {
            return Some(output);
        }
        let now = progress();
        idle = if now == before { idle + 1 } else { 0 };
        before = now;
        if idle == STUCK.as_secs() {
            break;
        }
    }
    None
}

/// Ends a connection for both of its halves, whatever they wait for.
pub(crate) fn hang_up(stream: &UnixStream) {
    // It may have ended already.
    let _ = shutdown(stream, Shutdown::Both);
}

/// The half that sends.
#[derive(Debug)]
pub(crate) struct Writer(pub(crate) Arc<UnixStream>);

#[async_trait::async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            Ok(sendmsg(&self.0, &[IoSlice::new(buffer)], &mut control, SendFlags::NOSIGNAL)?)
        };
        loop {
            let Some(writable) = within_reason(self.0.writable(), || 0).await else {
                hang_up(&self.0);
                return Err(io::ErrorKind::TimedOut.into());
            };
            writable?;
            match self.0.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        hang_up(&self.0);
        Ok(())
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

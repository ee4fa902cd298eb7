//! What goes to the bus, and with it the end of calls.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use zbus::Message;
use zbus::connection::socket::WriteHalf;
use zbus::message::Type;

use crate::calls::Calls;

/// Writes whole messages, for the library and for refusals by turns.
#[derive(Debug)]
pub(crate) struct Writer {
    stream: Arc<UnixStream>,
    turn: Mutex<()>,
}

impl Writer {
    pub(crate) fn new(stream: Arc<UnixStream>) -> Self {
        Self { stream, turn: Mutex::default() }
    }

    pub(crate) async fn write(&self, message: &Message) -> io::Result<()> {
        let _turn = self.turn.lock().await;
        let data = message.data();
        let descriptors: Vec<_> = data.fds().iter().map(AsFd::as_fd).collect();
        let mut written = 0;
        while let Some(rest) = data.bytes().get(written..).filter(|rest| !rest.is_empty()) {
            written += self.send(rest, if written == 0 { &descriptors } else { &[] }).await?;
        }
        Ok(())
    }

    /// Sends some bytes, descriptors with the first of them.
    async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let slices = [IoSlice::new(bytes)];
                Ok(rustix::net::sendmsg(&self.stream, &slices, &mut control, SendFlags::NOSIGNAL)?)
            })
            .await
    }
}

/// The writing half of a connection.
#[derive(Debug)]
pub(crate) struct GuardedWrite {
    writer: Arc<Writer>,
    calls: Arc<Calls>,
}

impl GuardedWrite {
    pub(crate) fn new(writer: Arc<Writer>, calls: Arc<Calls>) -> Self {
        Self { writer, calls }
    }
}

#[async_trait::async_trait]
impl WriteHalf for GuardedWrite {
    async fn send_message(&mut self, message: &Message) -> zbus::Result<()> {
        let header = message.header();
        let reply = match (message.message_type(), header.destination(), header.reply_serial()) {
            (Type::MethodReturn | Type::Error, Some(caller), Some(serial)) => Some((caller, serial.get())),
            _ => None,
        };
        let Some((caller, serial)) = reply else {
            return Ok(self.writer.write(message).await?);
        };
        if self.calls.wants_reply(caller, serial) {
            self.writer.write(message).await?;
        }
        self.calls.end(caller, serial);
        Ok(())
    }

    /// What the library says while it authenticates.
    async fn sendmsg(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.writer.send(bytes, descriptors).await
    }

    async fn close(&mut self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.writer.stream, rustix::net::Shutdown::Both)?)
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

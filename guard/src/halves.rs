//! The two halves of a gated connection, as zbus wants them.

use std::io;
use std::sync::Arc;

use rustix::fd::{BorrowedFd, OwnedFd};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use zbus::Message;
use zbus::connection::socket::{ReadHalf, WriteHalf};

use crate::gate::Gate;
use crate::guard::Guard;
use crate::read::GuardedRead;
use crate::transport::Writer;

/// Messages of the gate's own that wait to be written; then it receives no more. They are small, and whoever comes behind a flood of
/// calls waits until those have been received.
const OUTGOING: usize = 8_192;

/// Puts a gate around a socket: the gate, its halves, and the messages that somebody has to send on the connection.
pub(crate) fn around(
    stream: Arc<UnixStream>,
    name: &'static str,
    guard: Arc<Guard>,
) -> (Gate, GatedReader, GatedWriter, mpsc::Receiver<Message>) {
    let gate = Gate::new(Arc::clone(&stream), name, guard);
    let (sender, outgoing) = mpsc::channel(OUTGOING);
    let reader = Box::new(GuardedRead::new(Arc::clone(&stream), gate.clone(), sender.clone()));
    let reader = GatedReader { reader, gate: gate.clone(), outgoing: sender };
    let writer = GatedWriter { writer: Writer(stream), gate: gate.clone() };
    (gate, reader, writer, outgoing)
}

/// The half that receives, for zbus.
#[derive(Debug)]
pub(crate) struct GatedReader {
    reader: Box<dyn ReadHalf>,
    gate: Gate,
    /// Messages of the gate for the other half to send; the channel ends with this half.
    outgoing: mpsc::Sender<Message>,
}

/// The half that sends, for zbus.
#[derive(Debug)]
pub(crate) struct GatedWriter {
    writer: Writer,
    gate: Gate,
}

impl Drop for GatedReader {
    fn drop(&mut self) {
        self.gate.end();
    }
}

#[async_trait::async_trait]
impl ReadHalf for GatedReader {
    async fn receive_message(
        &mut self,
        position: u64,
        received: &mut Vec<u8>,
        descriptors: &mut Vec<OwnedFd>,
    ) -> zbus::Result<Message> {
        loop {
            if let Some(call) = self.gate.next_ready() {
                return Ok(call);
            }
            let message = self.reader.receive_message(position, received, descriptors).await?;
            let passed = self.gate.receive(message);
            for message in self.gate.take_outgoing() {
                // Nobody takes them once the connection is on its way out.
                let _ = self.outgoing.send(message).await;
            }
            if let Some(message) = passed {
                return Ok(message);
            }
        }
    }

    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        self.reader.recvmsg(buffer).await
    }

    fn can_pass_unix_fd(&self) -> bool {
        self.reader.can_pass_unix_fd()
    }
}

#[async_trait::async_trait]
impl WriteHalf for GatedWriter {
    async fn send_message(&mut self, message: &Message) -> zbus::Result<()> {
        if !self.gate.begin_write(message) {
            return Ok(());
        }
        match self.writer.send_message(message).await {
            Err(zbus::Error::InputOutput(error)) if error.kind() == io::ErrorKind::TimedOut => {
                self.gate.hang_up();
                Err(zbus::Error::InputOutput(error))
            }
            result => {
                result?;
                self.gate.count_written(message);
                Ok(())
            }
        }
    }

    async fn sendmsg(&mut self, buffer: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.writer.sendmsg(buffer, descriptors).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.writer.close().await
    }

    fn can_pass_unix_fd(&self) -> bool {
        self.writer.can_pass_unix_fd()
    }
}

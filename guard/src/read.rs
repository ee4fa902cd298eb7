//! What comes from the bus: message after message, of which only those that are admitted get through.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use flowbus_interfaces::Error;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use zbus::connection::socket::ReadHalf;
use zbus::message::Type;
use zbus::{DBusError, Message};

use crate::MAXIMUM_MESSAGE;
use crate::calls::Calls;
use crate::head::{FIXED, Head, Lengths, check_message};

/// Bytes of a refused message are read in pieces of this size.
const SCRATCH: usize = 64 * 1024;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Lines of authentication come, and the next byte begins one or does not.
    Lines { begins: bool },
    /// The first byte of the first message was read.
    First(u8),
    /// Messages come.
    Messages,
}

/// What decides whether a message gets through.
pub(crate) enum Admission {
    /// The calls in flight, which the writing half ends.
    Calls(Arc<Calls>),
    /// The size of the message alone, which may have no descriptors. Called before a refusal is sent.
    Size(Box<dyn Fn() + Send + Sync>),
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.counts_calls() { "Calls" } else { "Size" })
    }
}

impl Admission {
    /// How many descriptors a call may carry.
    fn descriptors(&self) -> usize {
        match self {
            Self::Calls(calls) => calls.limits().descriptors,
            Self::Size(_) => 0,
        }
    }

    fn admit(&self, head: &Head, descriptors: usize) -> Result<(), Error> {
        match self {
            Self::Calls(calls) => calls.admit(head, descriptors),
            Self::Size(refused) => check_message(head, descriptors, 0).inspect_err(|_| {
                if head.wants_reply() {
                    refused();
                }
            }),
        }
    }

    /// Whether the end of each call is waited for.
    fn counts_calls(&self) -> bool {
        matches!(self, Self::Calls(_))
    }
}

/// The reading half of a connection.
#[derive(Debug)]
pub(crate) struct GuardedRead {
    stream: Arc<UnixStream>,
    admission: Admission,
    refusals: mpsc::Sender<Message>,
    stage: Stage,
    /// The header of an admitted message, as far as it was not handed out yet.
    head: Vec<u8>,
    /// Bytes of its body that are still in the socket.
    body: usize,
    /// What came with it.
    descriptors: Vec<OwnedFd>,
}

impl GuardedRead {
    pub(crate) fn new(
        stream: Arc<UnixStream>,
        admission: Admission,
        refusals: mpsc::Sender<Message>,
    ) -> Self {
        if let Admission::Calls(calls) = &admission {
            calls.clear();
        }
        let stage = Stage::Lines { begins: true };
        Self { stream, admission, refusals, stage, head: Vec::new(), body: 0, descriptors: Vec::new() }
    }

    /// Reads the header of the next message, and the whole of it if it is refused. False at the end of the stream.
    async fn next(&mut self) -> io::Result<bool> {
        let mut fixed = [0; FIXED];
        let start = match std::mem::replace(&mut self.stage, Stage::Messages) {
            Stage::First(byte) => {
                fixed[0] = byte;
                1
            }
            _ => 0,
        };
        if !self.fill(&mut fixed[start..]).await? {
            return Ok(false);
        }
        let lengths = Lengths::of(&fixed).ok_or(io::ErrorKind::InvalidData)?;
        if lengths.head > MAXIMUM_MESSAGE {
            // Its sender is somewhere in a header that is not worth the memory: no answer.
            self.descriptors.clear();
            return self.skip(lengths.head - FIXED + lengths.body).await;
        }
        let mut head = vec![0; lengths.head];
        let (start, rest) = head.split_at_mut(FIXED);
        start.copy_from_slice(&fixed);
        if !self.fill(rest).await? {
            return Ok(false);
        }
        let Some(parsed) = Head::parse(&head, lengths) else {
            self.descriptors.clear();
            return self.skip(lengths.body).await;
        };
        match self.admission.admit(&parsed, self.descriptors.len()) {
            Ok(()) => {
                if parsed.silent && parsed.kind == Type::MethodCall && self.admission.counts_calls() {
                    Head::expect_reply(&mut head);
                }
                (self.head, self.body) = (head, lengths.body);
                Ok(true)
            }
            Err(error) => {
                self.descriptors.clear();
                let goes_on = self.skip(lengths.body).await?;
                self.refuse(&parsed, &error).await;
                Ok(goes_on)
            }
        }
    }

    async fn refuse(&self, head: &Head, error: &Error) {
        tracing::debug!(sender = head.sender, %error, "a message was refused");
        if !head.wants_reply() {
            return;
        }
        match reply(head, error) {
            // It waits while the bus takes nothing; when the bus is gone, nobody has to be answered.
            Ok(reply) => drop(self.refusals.send(reply).await),
            Err(error) => tracing::debug!(%error, "there is no way to refuse"),
        }
    }

    /// Fills the buffer. False if the stream ends first.
    async fn fill(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.receive(rest).await? {
                0 => return Ok(false),
                received => filled += received,
            }
        }
        Ok(true)
    }

    /// Reads past some bytes. False if the stream ends first.
    async fn skip(&mut self, mut bytes: usize) -> io::Result<bool> {
        let mut scratch = vec![0; bytes.min(SCRATCH)];
        while bytes > 0 {
            let end = bytes.min(SCRATCH);
            match self.receive(scratch.get_mut(..end).unwrap_or_default()).await? {
                0 => return Ok(false),
                received => bytes -= received,
            }
            self.descriptors.clear();
        }
        Ok(true)
    }

    /// Receives what is there, and descriptors up to the number that a call may have: the kernel does not install the others,
    /// so that they take no place in our table of descriptors, not even for a moment.
    async fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut one = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let (stream, descriptors) = (&self.stream, &mut self.descriptors);
        let space: &mut [MaybeUninit<u8>] = match self.admission.descriptors() {
            0 => &mut [],
            _ => &mut one,
        };
        stream
            .async_io(Interest::READABLE, || {
                let mut control = RecvAncillaryBuffer::new(&mut *space);
                let mut slices = [IoSliceMut::new(&mut *buffer)];
                let received =
                    rustix::net::recvmsg(stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(passed) = message {
                        descriptors.extend(passed);
                    }
                }
                Ok(received.bytes)
            })
            .await
    }
}

/// The error reply to a call of which only the header was read.
fn reply(head: &Head, error: &Error) -> zbus::Result<Message> {
    let serial = NonZeroU32::new(head.serial).ok_or(zbus::Error::InvalidSerial)?;
    // A header cannot be made alone: that of a call with the same sender and serial is answered.
    let call = Message::method_call("/", "Refused").sender(head.sender.clone()).serial(serial).build(&())?;
    error.create_reply(&call.header())
}

#[async_trait::async_trait]
impl ReadHalf for GuardedRead {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        // A few lines in capitals, byte by byte, until the byte order of the first message stands where a line would begin.
        if let Stage::Lines { begins } = self.stage {
            let mut byte = [0];
            let received = self.receive(&mut byte).await?;
            match byte {
                [b'l' | b'B'] if begins && received > 0 => self.stage = Stage::First(byte[0]),
                [byte] => {
                    self.stage = Stage::Lines { begins: byte == b'\n' };
                    buffer.iter_mut().take(received).for_each(|to| *to = byte);
                    return Ok((received, Vec::new()));
                }
            }
        }
        while self.head.is_empty() && self.body == 0 {
            if !self.next().await? {
                return Ok((0, Vec::new()));
            }
        }
        if self.head.is_empty() {
            let end = buffer.len().min(self.body);
            let received = self.receive(buffer.get_mut(..end).unwrap_or_default()).await?;
            self.body -= received;
            return Ok((received, Vec::new()));
        }
        let length = buffer.len().min(self.head.len());
        for (to, from) in buffer.iter_mut().zip(self.head.drain(..length)) {
            *to = from;
        }
        Ok((length, std::mem::take(&mut self.descriptors)))
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

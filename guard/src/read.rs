//! What comes from the bus: message after message, of which only those that are admitted get through.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use zbus::Message;
use zbus::connection::socket::ReadHalf;
use zbus::message::Type;

use crate::MAXIMUM_MESSAGE;
use crate::gate::Gate;
use crate::head::{FIXED, Head, Lengths};

/// Bytes of a refused message are read in pieces of this size.
const SCRATCH: usize = 64 * 1024;

/// A control header (its length, level and type) and a descriptor. cmsg_space! has padding, in which the kernel puts more of them.
const ONE_DESCRIPTOR: usize = size_of::<usize>() + 2 * size_of::<u32>() + size_of::<RawFd>();

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

/// The reading half of a connection.
#[derive(Debug)]
pub(crate) struct GuardedRead {
    stream: Arc<UnixStream>,
    gate: Gate,
    refusals: mpsc::Sender<Message>,
    stage: Stage,
    /// The header of an admitted message, as far as it has not been handed out.
    head: Vec<u8>,
    /// Bytes of the admitted message's body that are still in the socket.
    body: usize,
    /// The descriptors that came with the admitted message.
    descriptors: Vec<OwnedFd>,
}

impl GuardedRead {
    pub(crate) fn new(stream: Arc<UnixStream>, gate: Gate, refusals: mpsc::Sender<Message>) -> Self {
        let stage = Stage::Lines { begins: true };
        Self { stream, gate, refusals, stage, head: Vec::new(), body: 0, descriptors: Vec::new() }
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
        match self.gate.admit(&parsed, self.descriptors.len()) {
            Ok(()) => {
                if parsed.silent && parsed.kind == Type::MethodCall {
                    Head::expect_reply(&mut head);
                }
                (self.head, self.body) = (head, lengths.body);
                Ok(true)
            }
            Err(refusal) => {
                self.descriptors.clear();
                let goes_on = self.skip(lengths.body).await?;
                if let Some(refusal) = refusal {
                    // The send waits while the bus takes nothing; when the bus is gone, nobody has to be answered.
                    let _ = self.refusals.send(refusal).await;
                }
                Ok(goes_on)
            }
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

    async fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (stream, descriptors) = (&self.stream, &mut self.descriptors);
        let takes_one = self.gate.takes_descriptor();
        stream.async_io(Interest::READABLE, || receive(stream, buffer, takes_one, descriptors)).await
    }
}

/// Room for control data at the alignment that the kernel's headers have.
#[repr(align(8))]
struct Control([MaybeUninit<u8>; ONE_DESCRIPTOR]);

/// Receives what is there, and one descriptor if a call may have one: the kernel does not install the others, so that they take no
/// place in our table of descriptors, not even for a moment.
fn receive(
    stream: &UnixStream,
    buffer: &mut [u8],
    takes_one: bool,
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut one = Control([MaybeUninit::uninit(); ONE_DESCRIPTOR]);
    let space: &mut [MaybeUninit<u8>] = if takes_one { &mut one.0 } else { &mut [] };
    let mut control = RecvAncillaryBuffer::new(space);
    let mut slices = [IoSliceMut::new(buffer)];
    let received = rustix::net::recvmsg(stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    Ok(received.bytes)
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

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::fd::AsFd;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    /// How many of the descriptors sent with one byte are received.
    async fn received(sent: usize, takes_one: bool) -> usize {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let passed = vec![file.as_fd(); sent];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&passed)));
        sendmsg(&theirs, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        let mut descriptors = Vec::new();
        ours.readable().await.unwrap();
        assert_eq!(receive(&ours, &mut [0; 8], takes_one, &mut descriptors).unwrap(), 1);
        descriptors.len()
    }

    #[tokio::test]
    async fn one_descriptor_is_received_at_most() {
        for sent in [1, 2, 3, 16] {
            assert_eq!(received(sent, true).await, 1, "of {sent}");
            assert_eq!(received(sent, false).await, 0, "of {sent}");
        }
    }
}

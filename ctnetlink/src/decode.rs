//! From the bytes of one received datagram to messages.
//!
//! The functions that every event passes through are `inline(always)`: left to the compiler they become calls that
//! hand large results through memory, a tenth of the whole (measured with examples/speed.rs).

mod decoder;
mod expectation;
mod flow;
mod layout;
mod learn;
mod protocol;
mod stats;
mod tuple;

use crate::attribute::{Attributes, align, length_u32};
use crate::request::{CT_DELETE, CT_GET_STATS, CT_GET_STATS_CPU, CT_NEW, EXP_DELETE, EXP_NEW, NLM_F_NEW};
use crate::{DecodeError, EventKind, Header, Message};

pub use decoder::Decoder;

/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;
/// `sizeof(struct nfgenmsg)` (linux/netfilter/nfnetlink.h): family, version, `res_id` in network order.
const NFGENMSG: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// The messages of one datagram: an event brings one, the reply to a dump many.
///
/// An error is one message that could not be decoded; the iterator goes on with the next one. After
/// [`DecodeError::MessageLength`] it ends, for the next one cannot be found.
pub const fn messages(datagram: &[u8]) -> Messages<'_> {
    Messages { rest: datagram }
}

/// The iterator that [`messages`] returns.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.split()?.and_then(decode))
    }
}

impl<'a> Messages<'a> {
    /// The bytes of the next message.
    #[inline(always)]
    fn split(&mut self) -> Option<Result<&'a [u8], DecodeError>> {
        let available = self.rest.len();
        let length = match self.rest.first_chunk::<HEADER>() {
            Some(&[a, b, c, d, ..]) => u32::from_ne_bytes([a, b, c, d]),
            None if available == 0 => return None,
            None => length_u32(available),
        };
        let end = length as usize;
        match self.rest.get(..end) {
            Some(message) if end >= HEADER => {
                self.rest = self.rest.get(align(end)..).unwrap_or_default();
                Some(Ok(message))
            }
            _ => {
                self.rest = &[];
                Some(Err(DecodeError::MessageLength { length, available }))
            }
        }
    }
}

impl std::iter::FusedIterator for Messages<'_> {}

/// One whole message.
#[inline(always)]
fn decode(message: &[u8]) -> Result<Message<'_>, DecodeError> {
    let Some((header, body)) = message.split_first_chunk::<HEADER>() else {
        return Err(DecodeError::Truncated { attribute: "nlmsghdr", need: HEADER, got: message.len() });
    };
    let &[_, _, _, _, t0, t1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = header;
    let header = Header {
        sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        port: u32::from_ne_bytes([p0, p1, p2, p3]),
        flags: u16::from_ne_bytes([f0, f1]),
    };
    Ok(match u16::from_ne_bytes([t0, t1]) {
        kind @ (CT_NEW | CT_DELETE) => {
            let event = event(header, kind == CT_DELETE);
            Message::Flow(header, event, flow::decode(attributes(body)?.1)?)
        }
        kind @ (EXP_NEW | EXP_DELETE) => {
            let event = event(header, kind == EXP_DELETE);
            Message::Expectation(header, event, expectation::decode(attributes(body)?.1)?)
        }
        CT_GET_STATS => Message::Stats(header, stats::decode(attributes(body)?.1)?),
        CT_GET_STATS_CPU => {
            let (cpu, attributes) = attributes(body)?;
            Message::CpuStats(header, stats::decode_cpu(cpu, attributes)?)
        }
        NLMSG_DONE => Message::Done(header, errno(body, "NLMSG_DONE")?),
        NLMSG_ERROR => Message::Error(header, errno(body, "NLMSG_ERROR")?),
        kind => Message::Other(header, kind),
    })
}

#[inline(always)]
fn event(header: Header, delete: bool) -> EventKind {
    match header.flags & NLM_F_NEW {
        _ if delete => EventKind::Destroy,
        NLM_F_NEW => EventKind::New,
        _ => EventKind::Update,
    }
}

/// `res_id` of the `nfgenmsg`, and the attributes behind it.
fn attributes(body: &[u8]) -> Result<(u16, Attributes<'_>), DecodeError> {
    match body.split_first_chunk::<NFGENMSG>() {
        Some((&[_family, _version, high, low], rest)) => {
            Ok((u16::from_be_bytes([high, low]), Attributes::new(rest, "message")))
        }
        None => Err(DecodeError::Truncated { attribute: "nfgenmsg", need: NFGENMSG, got: body.len() }),
    }
}

/// The number that `NLMSG_DONE` and `NLMSG_ERROR` begin with, in host order.
fn errno(body: &[u8], name: &'static str) -> Result<i32, DecodeError> {
    match body.first_chunk() {
        Some(bytes) => Ok(i32::from_ne_bytes(*bytes)),
        None => Err(DecodeError::Truncated { attribute: name, need: 4, got: body.len() }),
    }
}

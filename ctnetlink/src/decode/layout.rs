//! Where the values of a message are. Messages of one kind differ in their values alone, so what was learned from one serves
//! the next: its headers are compared, its values copied, and nothing is walked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::request::CT_DELETE;
use crate::{Counters, EventKind, Flow, Header, Layer4, Message, ProtocolInfo, Status, TcpInfo, Tuple};

use super::event;
use super::learn::{self, LONGEST};

/// Every header in a message begins at a multiple of this.
const WORD: usize = 4;

/// The layout of one kind of message.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// The words that all messages of the kind have in common: lengths, types and flags; 0 where values are.
    fixed: Box<[u32]>,
    /// The bits of each word that are common to all.
    mask: Box<[u32]>,
    event: EventKind,
    places: Places,
}

/// Where a value begins. A message begins with its length: 0 stands for a value that is not there.
pub(super) type Place = u16;

/// Where the values of a flow are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Places {
    pub(super) original: TuplePlaces,
    pub(super) reply: TuplePlaces,
    pub(super) status: Place,
    pub(super) id: Place,
    pub(super) timeout: Place,
    pub(super) mark: Place,
    pub(super) use_count: Place,
    /// Packets and bytes.
    pub(super) original_counters: [Place; 2],
    pub(super) reply_counters: [Place; 2],
    /// Start and stop.
    pub(super) times: [Place; 2],
    pub(super) event_time: Place,
    /// State, window scales of both directions, flags of both.
    pub(super) tcp: [Place; 5],
    pub(super) labels: Place,
    pub(super) labels_len: u16,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TuplePlaces {
    pub(super) is_v6: bool,
    pub(super) addresses: [Place; 2],
    pub(super) protocol: Place,
    pub(super) ports: [Place; 2],
    /// Identifier, type and code.
    pub(super) icmp: [Place; 3],
    pub(super) zone: Place,
}

impl Layout {
    /// The layout of a message that the decoder could read; `None` where this module does not know a part of it.
    pub(super) fn of(message: &[u8]) -> Option<Self> {
        if message.len() > LONGEST || !message.len().is_multiple_of(WORD) {
            return None;
        }
        let (places, mask) = learn::places(message)?;
        let mask = words(mask.get(..message.len())?).collect::<Box<_>>();
        let fixed = words(message).zip(&mask).map(|(word, mask)| word & mask).collect();
        let is_delete = u16::from_ne_bytes(bytes(message, 4)) == CT_DELETE;
        Some(Self { fixed, mask, event: event(header(message), is_delete), places })
    }

    /// Whether a message has this layout.
    #[inline(always)]
    pub(super) fn fits(&self, message: &[u8]) -> bool {
        // All words and one branch at the end, so that wide instructions compare several at once.
        let words = words(message).zip(&self.fixed).zip(&self.mask);
        message.len() == self.fixed.len() * WORD
            && words.fold(0, |differing, ((word, fixed), mask)| differing | ((word & mask) ^ fixed)) == 0
    }

    /// What a message of this layout says.
    #[inline(always)]
    pub(super) fn read<'a>(&self, message: &'a [u8]) -> Message<'a> {
        Message::Flow(header(message), self.event, self.places.read(message))
    }

    /// A message of this layout with other values.
    pub(super) fn sample(&self, values: impl Iterator<Item = u32>) -> Vec<u8> {
        let words = self.fixed.iter().zip(&self.mask).zip(values);
        words.flat_map(|((fixed, mask), value)| (fixed | (value & !mask)).to_ne_bytes()).collect()
    }
}

impl Places {
    #[inline(always)]
    fn read<'a>(&self, message: &'a [u8]) -> Flow<'a> {
        let u32_at = |place| value(message, place).map(u32::from_be_bytes);
        let u64_at = |place| value(message, place).map(u64::from_be_bytes);
        let counters = |[packets, bytes]: [Place; 2]| {
            Some(Counters { packets: u64_at(packets)?, bytes: u64_at(bytes)? })
        };
        let [start, stop] = self.times;
        let labels = usize::from(self.labels)..usize::from(self.labels + self.labels_len);
        Flow {
            status: u32_at(self.status).map(Status::from_bits_retain),
            id: u32_at(self.id),
            timeout: u32_at(self.timeout),
            mark: u32_at(self.mark),
            use_count: u32_at(self.use_count),
            protocol_info: self.tcp(message),
            original_counters: counters(self.original_counters),
            reply_counters: counters(self.reply_counters),
            start_nsec: u64_at(start),
            stop_nsec: u64_at(stop),
            event_nsec: u64_at(self.event_time),
            labels: if labels.start == 0 { None } else { message.get(labels) },
            ..Flow::new(self.original.read(message), self.reply.read(message))
        }
    }

    #[inline(always)]
    fn tcp(&self, message: &[u8]) -> Option<ProtocolInfo> {
        let [state, wscale_original, wscale_reply, flags_original, flags_reply] = self.tcp;
        let u8_at = |place| value(message, place).map(u8::from_be_bytes);
        let flags_at = |place| value::<2>(message, place).map(Into::into);
        Some(ProtocolInfo::Tcp(TcpInfo {
            state: u8_at(state)?,
            wscale_original: u8_at(wscale_original),
            wscale_reply: u8_at(wscale_reply),
            flags_original: flags_at(flags_original),
            flags_reply: flags_at(flags_reply),
        }))
    }
}

impl TuplePlaces {
    #[inline(always)]
    fn read(&self, message: &[u8]) -> Tuple {
        let u8_at = |place| u8::from_be_bytes(bytes(message, place));
        let u16_at = |place| u16::from_be_bytes(bytes(message, place));
        let [src, dst] = self.addresses.map(|place| {
            if self.is_v6 {
                IpAddr::V6(Ipv6Addr::from(bytes::<16>(message, place)))
            } else {
                IpAddr::V4(Ipv4Addr::from(bytes::<4>(message, place)))
            }
        });
        let layer4 = match (self.ports, self.icmp) {
            ([0, _], [0, ..]) => Layer4::None,
            ([0, _], [id, kind, code]) => {
                Layer4::Icmp { kind: u8_at(kind), code: u8_at(code), id: u16_at(id) }
            }
            ([src, dst], _) => Layer4::Ports { src: u16_at(src), dst: u16_at(dst) },
        };
        let zone = value(message, self.zone).map_or(0, u16::from_be_bytes);
        Tuple { src, dst, protocol: u8_at(self.protocol), layer4, zone }
    }
}

#[inline(always)]
fn header(message: &[u8]) -> Header {
    Header {
        sequence: u32::from_ne_bytes(bytes(message, 8)),
        port: u32::from_ne_bytes(bytes(message, 12)),
        flags: u16::from_ne_bytes(bytes(message, 6)),
    }
}

#[inline(always)]
fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks::<WORD>().0.iter().map(|word| u32::from_ne_bytes(*word))
}

/// A value that is there, in every message of a layout.
#[inline(always)]
fn bytes<const N: usize>(message: &[u8], place: Place) -> [u8; N] {
    message.get(usize::from(place)..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// A value that may not be there.
#[inline(always)]
fn value<const N: usize>(message: &[u8], place: Place) -> Option<[u8; N]> {
    if place == 0 { None } else { Some(bytes(message, place)) }
}

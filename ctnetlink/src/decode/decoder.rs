//! A decoder that remembers layouts.

use crate::{DecodeError, Message};

use super::layout::Layout;
use super::{HEADER, NFGENMSG, decode, messages};

/// How many layouts are remembered.
const SLOTS: usize = 32;
/// A layout is in one of this many slots, the first of which the hash of its headers chooses.
const CHOICE: usize = 4;

/// A slot gets another layout after this many messages that its layout could have read and did not. Kinds that alternate are
/// thus not learned again and again, and a kind that has stopped coming does not stay.
const PATIENCE: u8 = 32;

/// Reads what [`messages`] reads, to the same messages and errors, for readers of many datagrams.
///
/// Most messages differ from an earlier one in their values alone. This remembers where the values of such a kind are and
/// copies the next message's from there, which takes a third of the time. A message whose lengths, types and flags are not
/// exactly those of a kind that is remembered is decoded as [`messages`] does it.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    slots: [Slot; SLOTS],
}

#[derive(Clone, Debug, Default)]
struct Slot {
    layout: Option<Layout>,
    patience: u8,
}

impl Decoder {
    /// The messages of one datagram.
    #[inline]
    pub fn messages<'a>(
        &mut self,
        datagram: &'a [u8],
    ) -> impl Iterator<Item = Result<Message<'a>, DecodeError>> {
        let mut messages = messages(datagram);
        // A flow is some 400 bytes: it is made where the caller gets it, not made and then wrapped.
        std::iter::from_fn(move || match messages.split()? {
            Ok(message) => match self.layout(message) {
                Some(layout) => Some(Ok(layout.read(message))),
                None => Some(self.miss(message)),
            },
            Err(error) => Some(Err(error)),
        })
    }

    /// The layout that is remembered of this message.
    #[inline(always)]
    fn layout(&mut self, message: &[u8]) -> Option<&Layout> {
        let fits = |slot: &Slot| slot.layout.as_ref().is_some_and(|layout| layout.fits(message));
        let number = slots_of(message).find(|number| fits(&self.slots[*number]))?;
        let slot = &mut self.slots[number];
        slot.patience = PATIENCE;
        slot.layout.as_ref()
    }

    /// Decodes a message that no layout fits, and learns its layout in time. A kind that cannot be learned takes a slot as well, so
    /// that it is not tried again with each message.
    #[inline(never)]
    fn miss<'a>(&mut self, message: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let decoded = decode(message);
        if let Ok(decoded @ Message::Flow(..)) = &decoded
            && let Some(number) = slots_of(message).min_by_key(|number| self.slots[*number].patience)
        {
            let slot = &mut self.slots[number];
            match slot.patience.checked_sub(1) {
                Some(patience) => slot.patience = patience,
                None => *slot = Slot { layout: learn(message, decoded), patience: PATIENCE },
            }
        }
        decoded
    }
}

/// The layout of a decoded message, if it reads this message and others, with other values, as the decoder does.
#[cold]
fn learn(message: &[u8], decoded: &Message<'_>) -> Option<Layout> {
    /// How many messages with other values the layout has to read.
    const SAMPLES: usize = 4;
    let layout = Layout::of(message)?;
    // The generator of Numerical Recipes: any numbers will do that differ from each other.
    let mut state = 1_u64;
    let mut values = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    });
    let mut agrees = layout.fits(message) && layout.read(message) == *decoded;
    for _ in 0..SAMPLES {
        let sample = layout.sample(&mut values);
        agrees &= messages(&sample).next() == Some(Ok(layout.read(&sample)));
    }
    agrees.then_some(layout)
}

/// The slots that a message's layout can be in, by the headers that every message has at the same place: its own and that of
/// its first attribute.
#[inline(always)]
fn slots_of(message: &[u8]) -> impl Iterator<Item = usize> {
    let [header, first] = [0, HEADER + NFGENMSG].map(|at| {
        let bytes = message.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    });
    // Lengths are in the lower half of both.
    let hash = (header ^ first.rotate_left(16)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The highest bits depend on all others.
    let [highest, ..] = hash.to_be_bytes();
    let number = usize::from(highest) * SLOTS / 256;
    (number..number + CHOICE).map(|number| number % SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProtocolInfo;

    const FIXTURES: [&[u8]; 9] = [
        include_bytes!("../../fixtures/ftp-dump.bin"),
        include_bytes!("../../fixtures/ftp-events.bin"),
        include_bytes!("../../fixtures/inserted-dump.bin"),
        include_bytes!("../../fixtures/nat-dump.bin"),
        include_bytes!("../../fixtures/tcp4-established-dump.bin"),
        include_bytes!("../../fixtures/tcp4-events.bin"),
        include_bytes!("../../fixtures/tcp6-udp6-icmp-events.bin"),
        include_bytes!("../../fixtures/udp4-plain-events.bin"),
        include_bytes!("../../fixtures/zones-events.bin"),
    ];

    fn remembers(decoder: &Decoder, message: &[u8]) -> bool {
        let mut layouts = slots_of(message).filter_map(|number| decoder.slots[number].layout.as_ref());
        layouts.any(|layout| layout.fits(message))
    }

    fn split(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
        let mut messages = messages(datagram);
        std::iter::from_fn(move || messages.split()?.ok())
    }

    #[test]
    fn every_kind_of_a_capture_is_remembered_but_those_with_text_and_rare_parts() {
        for datagram in FIXTURES {
            let mut decoder = Decoder::default();
            for _ in 0..PATIENCE {
                assert!(decoder.messages(datagram).eq(messages(datagram)));
            }
            for message in split(datagram) {
                let Ok(Message::Flow(_, _, flow)) = decode(message) else { continue };
                let is_rare =
                    flow.helper.is_some() || flow.master.is_some() || flow.security_context.is_some();
                let is_adjusted = flow.sequence_adjust_original.is_some() || flow.synproxy.is_some();
                let is_tcp = flow.protocol_info.is_none_or(|info| matches!(info, ProtocolInfo::Tcp(_)));
                assert_eq!(remembers(&decoder, message), is_tcp && !is_rare && !is_adjusted, "{flow:?}");
            }
        }
    }

    #[test]
    fn kinds_that_are_many_push_out_those_that_are_few() {
        let first = split(FIXTURES[7]).next().unwrap();
        // Kinds that differ in a reserved field alone have the same choice.
        let kinds: [Vec<u8>; CHOICE + 1] = std::array::from_fn(|version| {
            let mut message = first.to_vec();
            message[17] = u8::try_from(version).unwrap();
            message
        });
        let mut decoder = Decoder::default();
        let mut read = |kind: &Vec<u8>| {
            assert!(decoder.messages(kind).eq(messages(kind)));
            kinds.each_ref().map(|kind| remembers(&decoder, kind))
        };
        for kind in kinds.iter().cycle().take(kinds.len() * 2 * usize::from(PATIENCE)) {
            read(kind);
        }
        assert_eq!(read(&kinds[0]), [true, true, true, true, false]);
        for _ in 0..=PATIENCE {
            read(&kinds[CHOICE]);
        }
        let remembered = read(&kinds[CHOICE]);
        assert!(remembered[CHOICE]);
        assert_eq!(remembered.into_iter().filter(|is_remembered| *is_remembered).count(), CHOICE);
    }
}

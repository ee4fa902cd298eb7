//! Learns a layout from a message: walks its attributes once, and notes where each value is and which bytes are headers.
//!
//! What only the decoder can read has no layout: text, whose length is a matter of its bytes, and what few flows have.

use crate::attribute::{Attributes, HEADER as ATTRIBUTE_HEADER};
use crate::flow::{
    CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY, CTA_ID, CTA_LABELS, CTA_MARK, CTA_PROTOINFO, CTA_STATUS,
    CTA_TIMEOUT, CTA_TIMESTAMP, CTA_TIMESTAMP_EVENT, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_USE, CTA_ZONE,
};

use super::layout::{Place, Places, TuplePlaces};
use super::protocol::CTA_PROTOINFO_TCP;
use super::tuple::{CTA_TUPLE_IP, CTA_TUPLE_PROTO, CTA_TUPLE_ZONE};
use super::{HEADER, NFGENMSG};

/// The longest message that has a layout; the kernel's have 150 to 350 bytes.
pub(super) const LONGEST: usize = 512;

/// `CTA_COUNTERS_PAD`, `CTA_TIMESTAMP_PAD`.
const COUNTERS_PAD: u16 = 5;
const TIMESTAMP_PAD: u16 = 3;

/// Which bits of a message are the same in all of its kind, byte by byte.
type Mask = [u8; LONGEST];

/// Where the values of a message of at most [`LONGEST`] bytes are, and what is not a value.
pub(super) fn places(message: &[u8]) -> Option<(Places, Mask)> {
    let mut walk = Walk { message, mask: [0; LONGEST] };
    // nlmsg_seq and nlmsg_pid are values.
    walk.mask[..8].fill(0xff);
    walk.mask[HEADER..HEADER + NFGENMSG].fill(0xff);
    let mut places = Places::default();
    let mut zone = 0;
    walk.each(message.get(HEADER + NFGENMSG..)?, |walk, kind, place, payload| match kind {
        CTA_TUPLE_ORIG => walk.tuple(payload, &mut places.original),
        CTA_TUPLE_REPLY => walk.tuple(payload, &mut places.reply),
        // The padding of CTA_TIMESTAMP_EVENT.
        CTA_STATUS if payload.is_empty() => Some(()),
        CTA_STATUS => note(&mut places.status, place),
        CTA_PROTOINFO => walk.each(payload, |walk, kind, _, payload| match kind {
            CTA_PROTOINFO_TCP => walk.numbered(payload, &mut places.tcp, None),
            _ => None,
        }),
        CTA_TIMEOUT => note(&mut places.timeout, place),
        CTA_MARK => note(&mut places.mark, place),
        CTA_COUNTERS_ORIG => walk.numbered(payload, &mut places.original_counters, Some(COUNTERS_PAD)),
        CTA_COUNTERS_REPLY => walk.numbered(payload, &mut places.reply_counters, Some(COUNTERS_PAD)),
        CTA_USE => note(&mut places.use_count, place),
        CTA_ID => note(&mut places.id, place),
        CTA_ZONE => note(&mut zone, place),
        CTA_TIMESTAMP => walk.numbered(payload, &mut places.times, Some(TIMESTAMP_PAD)),
        CTA_LABELS => {
            places.labels_len = Place::try_from(payload.len()).ok()?;
            note(&mut places.labels, place)
        }
        CTA_TIMESTAMP_EVENT => note(&mut places.event_time, place),
        _ => None,
    })?;
    if zone != 0 {
        (places.original.zone, places.reply.zone) = (zone, zone);
    }
    Some((places, walk.mask))
}

struct Walk<'a> {
    message: &'a [u8],
    mask: Mask,
}

impl<'a> Walk<'a> {
    /// Visits attributes: the kind, the place and the payload of each.
    fn each(
        &mut self,
        attributes: &'a [u8],
        mut visit: impl FnMut(&mut Self, u16, Place, &'a [u8]) -> Option<()>,
    ) -> Option<()> {
        let mut attributes = Attributes::new(attributes, "message");
        while let Some(attribute) = attributes.next().ok()? {
            let payload = attribute.payload();
            let begin = payload.as_ptr().addr() - self.message.as_ptr().addr();
            self.mask.get_mut(begin - ATTRIBUTE_HEADER..begin)?.fill(0xff);
            visit(self, attribute.kind, Place::try_from(begin).ok()?, payload)?;
        }
        Some(())
    }

    /// Notes the places of values whose kinds are 1 and so on.
    fn numbered(&mut self, attributes: &'a [u8], places: &mut [Place], padding: Option<u16>) -> Option<()> {
        self.each(attributes, |_, kind, place, _| {
            if Some(kind) == padding {
                return Some(());
            }
            note(places.get_mut(usize::from(kind).checked_sub(1)?)?, place)
        })
    }

    fn tuple(&mut self, attributes: &'a [u8], tuple: &mut TuplePlaces) -> Option<()> {
        self.each(attributes, |walk, kind, place, payload| match kind {
            CTA_TUPLE_IP => {
                let mut addresses = [0; 4];
                walk.numbered(payload, &mut addresses, None)?;
                let [src, dst, src6, dst6] = addresses;
                tuple.is_v6 = src6 != 0;
                tuple.addresses = if tuple.is_v6 { [src6, dst6] } else { [src, dst] };
                Some(())
            }
            CTA_TUPLE_PROTO => {
                let mut numbers = [0; 9];
                walk.numbered(payload, &mut numbers, None)?;
                let [protocol, src, dst, id, kind, code, id6, kind6, code6] = numbers;
                tuple.protocol = protocol;
                tuple.ports = [src, dst];
                tuple.icmp = if id == 0 { [id6, kind6, code6] } else { [id, kind, code] };
                Some(())
            }
            CTA_TUPLE_ZONE => note(&mut tuple.zone, place),
            _ => None,
        })
    }
}

/// Notes where a value is; one that comes twice has no place.
fn note(known: &mut Place, place: Place) -> Option<()> {
    (std::mem::replace(known, place) == 0).then_some(())
}

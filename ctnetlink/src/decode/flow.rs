//! One flow: the attributes of `IPCTNL_MSG_CT_NEW` and `IPCTNL_MSG_CT_DELETE` (`enum ctattr_type`).

use crate::attribute::{Attribute, Attributes, Unknown};
use crate::error::present;
use crate::flow::{
    CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY, CTA_FILTER, CTA_HELP, CTA_ID, CTA_LABELS, CTA_LABELS_MASK,
    CTA_MARK, CTA_MARK_MASK, CTA_NAT_DST, CTA_NAT_SRC, CTA_PROTOINFO, CTA_SECCTX, CTA_SECMARK,
    CTA_SEQ_ADJ_ORIG, CTA_SEQ_ADJ_REPLY, CTA_STATUS, CTA_STATUS_MASK, CTA_SYNPROXY, CTA_TIMEOUT,
    CTA_TIMESTAMP, CTA_TIMESTAMP_EVENT, CTA_TUPLE_MASTER, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_USE, CTA_ZONE,
};
use crate::{Counters, DecodeError, Flow, SequenceAdjust, Status, Synproxy, Tuple};

use super::{protocol, tuple};

/// `NF_CT_LABELS_MAX_SIZE`.
const LABELS_MAX_SIZE: usize = 16;

/// The flow that a message's attributes describe.
#[inline(always)]
pub(super) fn decode(mut attributes: Attributes<'_>) -> Result<Flow<'_>, DecodeError> {
    let mut unknown = Unknown::default();
    let (mut original, mut reply, mut zone) = (None, None, None);
    let mut flow = Flow::EMPTY;
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            CTA_TUPLE_ORIG => original = Some(tuple::decode(attribute, "CTA_TUPLE_ORIG", &mut unknown)?),
            CTA_TUPLE_REPLY => reply = Some(tuple::decode(attribute, "CTA_TUPLE_REPLY", &mut unknown)?),
            // Where 64-bit values are aligned, the padding of CTA_TIMESTAMP_EVENT is an empty attribute numbered
            // CTA_TIMESTAMP_PAD, which out here is CTA_STATUS.
            CTA_STATUS if attribute.payload().is_empty() => {}
            CTA_STATUS => flow.status = Some(Status::from_bits_retain(attribute.u32("CTA_STATUS")?)),
            CTA_PROTOINFO => {
                flow.protocol_info = protocol::decode(attribute.nested("CTA_PROTOINFO"), &mut unknown)?;
            }
            CTA_HELP => flow.helper = decode_helper(attribute, &mut unknown)?,
            CTA_TIMEOUT => flow.timeout = Some(attribute.u32("CTA_TIMEOUT")?),
            CTA_MARK => flow.mark = Some(attribute.u32("CTA_MARK")?),
            CTA_COUNTERS_ORIG => {
                flow.original_counters = Some(decode_counters(attribute, "CTA_COUNTERS_ORIG", &mut unknown)?);
            }
            CTA_COUNTERS_REPLY => {
                flow.reply_counters = Some(decode_counters(attribute, "CTA_COUNTERS_REPLY", &mut unknown)?);
            }
            CTA_USE => flow.use_count = Some(attribute.u32("CTA_USE")?),
            CTA_ID => flow.id = Some(attribute.u32("CTA_ID")?),
            CTA_TUPLE_MASTER => {
                flow.master = Some(tuple::decode(attribute, "CTA_TUPLE_MASTER", &mut unknown)?);
            }
            CTA_SEQ_ADJ_ORIG => {
                flow.sequence_adjust_original =
                    Some(decode_sequence_adjust(attribute, "CTA_SEQ_ADJ_ORIG", &mut unknown)?);
            }
            CTA_SEQ_ADJ_REPLY => {
                flow.sequence_adjust_reply =
                    Some(decode_sequence_adjust(attribute, "CTA_SEQ_ADJ_REPLY", &mut unknown)?);
            }
            CTA_ZONE => zone = Some(attribute.u16("CTA_ZONE")?),
            CTA_SECCTX => flow.security_context = decode_security_context(attribute, &mut unknown)?,
            CTA_TIMESTAMP => decode_timestamps(attribute, &mut flow, &mut unknown)?,
            CTA_LABELS => flow.labels = Some(decode_labels(attribute)?),
            CTA_SYNPROXY => flow.synproxy = Some(decode_synproxy(attribute, &mut unknown)?),
            CTA_TIMESTAMP_EVENT => flow.event_nsec = Some(attribute.u64("CTA_TIMESTAMP_EVENT")?),
            // Sent in requests alone, or (CTA_SECMARK) by kernels before 2.6.37: none of them describes a flow.
            CTA_NAT_SRC | CTA_NAT_DST | CTA_SECMARK | CTA_MARK_MASK | CTA_LABELS_MASK | CTA_FILTER
            | CTA_STATUS_MASK => {}
            kind => unknown.skip(kind),
        }
    }
    flow.original = present(original, "message", "CTA_TUPLE_ORIG")?;
    flow.reply = present(reply, "message", "CTA_TUPLE_REPLY")?;
    if flow.original.family() != flow.reply.family() {
        return Err(DecodeError::MixedFamilies { within: "message" });
    }
    if let Some(zone) = zone {
        flow.original.zone = zone;
        flow.reply.zone = zone;
        // An expectation is matched in its master's zone, which CTA_TUPLE_MASTER does not repeat.
        flow.master = flow.master.map(|master| Tuple { zone, ..master });
    }
    flow.unknown_attributes = unknown.0;
    Ok(flow)
}

/// `CTA_COUNTERS_*`. The 32-bit forms are those of kernels before 2.6.29 and of hand-made messages.
fn decode_counters(
    attribute: Attribute<'_>,
    name: &'static str,
    unknown: &mut Unknown,
) -> Result<Counters, DecodeError> {
    let mut attributes = attribute.nested(name);
    let (mut packets, mut bytes) = (None, None);
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            1 => packets = Some(attribute.u64("CTA_COUNTERS_PACKETS")?),
            2 => bytes = Some(attribute.u64("CTA_COUNTERS_BYTES")?),
            3 => packets = Some(attribute.u32("CTA_COUNTERS32_PACKETS")?.into()),
            4 => bytes = Some(attribute.u32("CTA_COUNTERS32_BYTES")?.into()),
            5 => {} // CTA_COUNTERS_PAD
            kind => unknown.skip(kind),
        }
    }
    let missing = |attribute| DecodeError::Missing { within: name, attribute };
    Ok(Counters {
        packets: packets.ok_or(missing("CTA_COUNTERS_PACKETS"))?,
        bytes: bytes.ok_or(missing("CTA_COUNTERS_BYTES"))?,
    })
}

/// `CTA_HELP`.
fn decode_helper<'a>(
    attribute: Attribute<'a>,
    unknown: &mut Unknown,
) -> Result<Option<&'a [u8]>, DecodeError> {
    let mut attributes = attribute.nested("CTA_HELP");
    let mut name = None;
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            1 => name = Some(attribute.text()), // CTA_HELP_NAME
            2 => {}                             // CTA_HELP_INFO: opaque, of the helper
            kind => unknown.skip(kind),
        }
    }
    Ok(name)
}

/// `CTA_SECCTX`.
fn decode_security_context<'a>(
    attribute: Attribute<'a>,
    unknown: &mut Unknown,
) -> Result<Option<&'a [u8]>, DecodeError> {
    let mut attributes = attribute.nested("CTA_SECCTX");
    let mut name = None;
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            1 => name = Some(attribute.text()), // CTA_SECCTX_NAME
            kind => unknown.skip(kind),
        }
    }
    Ok(name)
}

/// `CTA_TIMESTAMP`.
fn decode_timestamps(
    attribute: Attribute<'_>,
    flow: &mut Flow<'_>,
    unknown: &mut Unknown,
) -> Result<(), DecodeError> {
    let mut attributes = attribute.nested("CTA_TIMESTAMP");
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            1 => flow.start_nsec = Some(attribute.u64("CTA_TIMESTAMP_START")?),
            2 => flow.stop_nsec = Some(attribute.u64("CTA_TIMESTAMP_STOP")?),
            3 => {} // CTA_TIMESTAMP_PAD
            kind => unknown.skip(kind),
        }
    }
    Ok(())
}

/// `CTA_LABELS`: native words, not network order.
fn decode_labels(attribute: Attribute<'_>) -> Result<&[u8], DecodeError> {
    match attribute.payload() {
        labels if labels.len() <= LABELS_MAX_SIZE => Ok(labels),
        labels => {
            Err(DecodeError::TooLong { attribute: "CTA_LABELS", most: LABELS_MAX_SIZE, got: labels.len() })
        }
    }
}

/// `CTA_SEQ_ADJ_*`.
fn decode_sequence_adjust(
    attribute: Attribute<'_>,
    name: &'static str,
    unknown: &mut Unknown,
) -> Result<SequenceAdjust, DecodeError> {
    let [correction_position, offset_before, offset_after] = decode_u32_triple(
        attribute.nested(name),
        ["CTA_SEQADJ_CORRECTION_POS", "CTA_SEQADJ_OFFSET_BEFORE", "CTA_SEQADJ_OFFSET_AFTER"],
        unknown,
    )?;
    Ok(SequenceAdjust { correction_position, offset_before, offset_after })
}

/// `CTA_SYNPROXY`.
fn decode_synproxy(attribute: Attribute<'_>, unknown: &mut Unknown) -> Result<Synproxy, DecodeError> {
    let [isn, its, tsoff] = decode_u32_triple(
        attribute.nested("CTA_SYNPROXY"),
        ["CTA_SYNPROXY_ISN", "CTA_SYNPROXY_ITS", "CTA_SYNPROXY_TSOFF"],
        unknown,
    )?;
    Ok(Synproxy { isn, its, tsoff })
}

/// A nest of three u32 attributes, numbered 1 to 3.
fn decode_u32_triple(
    mut attributes: Attributes<'_>,
    names: [&'static str; 3],
    unknown: &mut Unknown,
) -> Result<[u32; 3], DecodeError> {
    let mut values = [0; 3];
    while let Some(attribute) = attributes.next()? {
        let place = usize::from(attribute.kind).wrapping_sub(1);
        match (values.get_mut(place), names.get(place)) {
            (Some(value), Some(name)) => *value = attribute.u32(name)?,
            _ => unknown.skip(attribute.kind),
        }
    }
    Ok(values)
}

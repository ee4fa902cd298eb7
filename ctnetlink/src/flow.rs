//! A flow as one message describes it.

use crate::{ProtocolInfo, Status, Tuple};

/// `enum ctattr_type` (linux/netfilter/nfnetlink_conntrack.h).
pub(crate) const CTA_TUPLE_ORIG: u16 = 1;
pub(crate) const CTA_TUPLE_REPLY: u16 = 2;
pub(crate) const CTA_STATUS: u16 = 3;
pub(crate) const CTA_PROTOINFO: u16 = 4;
pub(crate) const CTA_HELP: u16 = 5;
pub(crate) const CTA_NAT_SRC: u16 = 6;
pub(crate) const CTA_TIMEOUT: u16 = 7;
pub(crate) const CTA_MARK: u16 = 8;
pub(crate) const CTA_COUNTERS_ORIG: u16 = 9;
pub(crate) const CTA_COUNTERS_REPLY: u16 = 10;
pub(crate) const CTA_USE: u16 = 11;
pub(crate) const CTA_ID: u16 = 12;
pub(crate) const CTA_NAT_DST: u16 = 13;
pub(crate) const CTA_TUPLE_MASTER: u16 = 14;
pub(crate) const CTA_SEQ_ADJ_ORIG: u16 = 15;
pub(crate) const CTA_SEQ_ADJ_REPLY: u16 = 16;
pub(crate) const CTA_SECMARK: u16 = 17;
pub(crate) const CTA_ZONE: u16 = 18;
pub(crate) const CTA_SECCTX: u16 = 19;
pub(crate) const CTA_TIMESTAMP: u16 = 20;
pub(crate) const CTA_MARK_MASK: u16 = 21;
pub(crate) const CTA_LABELS: u16 = 22;
pub(crate) const CTA_LABELS_MASK: u16 = 23;
pub(crate) const CTA_SYNPROXY: u16 = 24;
pub(crate) const CTA_FILTER: u16 = 25;
pub(crate) const CTA_STATUS_MASK: u16 = 26;
pub(crate) const CTA_TIMESTAMP_EVENT: u16 = 27;

/// What one message says of one flow. A field that the message does not carry is `None`: absent is not zero.
/// Byte strings borrow from the message, so that decoding allocates nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow<'a> {
    /// `CTA_TUPLE_ORIG`: the direction of the first packet.
    pub original: Tuple,
    /// `CTA_TUPLE_REPLY`: what an answer looks like; differs from the inverted original tuple under NAT.
    pub reply: Tuple,
    /// `CTA_STATUS`.
    pub status: Option<Status>,
    /// `CTA_ID`: a hash, not an identity (a recreated tuple usually has the same).
    pub id: Option<u32>,
    /// `CTA_TIMEOUT`: seconds until the flow ends without traffic. Not sent for offloaded flows.
    pub timeout: Option<u32>,
    /// `CTA_MARK`: sent when non-zero or just changed, so `None` in an event means 0.
    pub mark: Option<u32>,
    /// `CTA_USE`: the reference count.
    pub use_count: Option<u32>,
    /// `CTA_PROTOINFO`.
    pub protocol_info: Option<ProtocolInfo>,
    /// `CTA_COUNTERS_ORIG`: only with nf_conntrack_acct=1.
    pub original_counters: Option<Counters>,
    /// `CTA_COUNTERS_REPLY`: only with nf_conntrack_acct=1.
    pub reply_counters: Option<Counters>,
    /// `CTA_TIMESTAMP` START: CLOCK_REALTIME nanoseconds, only with nf_conntrack_timestamp=1.
    pub start_nsec: Option<u64>,
    /// `CTA_TIMESTAMP` STOP: CLOCK_REALTIME nanoseconds, only in a DESTROY with nf_conntrack_timestamp=1.
    pub stop_nsec: Option<u64>,
    /// `CTA_TIMESTAMP_EVENT`: when the event happened, CLOCK_REALTIME nanoseconds (Linux 6.14 and later, only with
    /// nf_conntrack_timestamp=1).
    pub event_nsec: Option<u64>,
    /// `CTA_HELP_NAME`, without the terminating zero.
    pub helper: Option<&'a [u8]>,
    /// `CTA_SECCTX_NAME`: the security context, without the terminating zero.
    pub security_context: Option<&'a [u8]>,
    /// `CTA_LABELS`: a bit mask in native words, at most 16 bytes.
    pub labels: Option<&'a [u8]>,
    /// `CTA_TUPLE_MASTER`: the original tuple of the flow that a helper expected this one from.
    pub master: Option<Tuple>,
    /// `CTA_SEQ_ADJ_ORIG`.
    pub sequence_adjust_original: Option<SequenceAdjust>,
    /// `CTA_SEQ_ADJ_REPLY`.
    pub sequence_adjust_reply: Option<SequenceAdjust>,
    /// `CTA_SYNPROXY`.
    pub synproxy: Option<Synproxy>,
    /// How many attributes of this message the decoder did not know and skipped.
    pub unknown_attributes: u16,
}

impl Flow<'_> {
    /// What decoding starts from: nothing known, tuples to be overwritten.
    pub(crate) const EMPTY: Self = Self::new(Tuple::UNSPECIFIED, Tuple::UNSPECIFIED);

    /// A flow of which nothing is known but its tuples.
    pub const fn new(original: Tuple, reply: Tuple) -> Self {
        Self {
            original,
            reply,
            status: None,
            id: None,
            timeout: None,
            mark: None,
            use_count: None,
            protocol_info: None,
            original_counters: None,
            reply_counters: None,
            start_nsec: None,
            stop_nsec: None,
            event_nsec: None,
            helper: None,
            security_context: None,
            labels: None,
            master: None,
            sequence_adjust_original: None,
            sequence_adjust_reply: None,
            synproxy: None,
            unknown_attributes: 0,
        }
    }
}

/// Traffic in one direction (`CTA_COUNTERS_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes, with IP headers.
    pub bytes: u64,
}

/// TCP sequence adjustment of one direction (`CTA_SEQADJ_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceAdjust {
    /// Sequence number from which `offset_after` applies.
    pub correction_position: u32,
    /// Offset before `correction_position`.
    pub offset_before: u32,
    /// Offset after `correction_position`.
    pub offset_after: u32,
}

/// `CTA_SYNPROXY_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synproxy {
    /// Initial sequence number of the client.
    pub isn: u32,
    /// Initial timestamp.
    pub its: u32,
    /// Timestamp offset.
    pub tsoff: u32,
}

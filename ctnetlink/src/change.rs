//! Requests that change the table, or ask for one entry of it. Each is acknowledged by a
//! [`Message::Error`](crate::Message::Error) with code 0, or refused by one with a negative errno;
//! [`Conntrack`](crate::Conntrack) sends them and reads the answers.

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_netfilter::conntrack::{ProtoInfo, ProtoInfoTCP};

use crate::encode::{bytes, nest, text, tuple, u8, u32, zone};
use crate::expectation::{
    CTA_EXPECT_CLASS, CTA_EXPECT_FLAGS, CTA_EXPECT_FN, CTA_EXPECT_HELP_NAME, CTA_EXPECT_ID, CTA_EXPECT_MASK,
    CTA_EXPECT_MASTER, CTA_EXPECT_TIMEOUT, CTA_EXPECT_TUPLE, CTA_EXPECT_ZONE,
};
use crate::flow::{
    CTA_HELP, CTA_ID, CTA_LABELS, CTA_LABELS_MASK, CTA_MARK, CTA_MARK_MASK, CTA_PROTOINFO, CTA_STATUS,
    CTA_TIMEOUT, CTA_TUPLE_MASTER, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ZONE,
};
use crate::request::{
    CT_DELETE, CT_GET, CT_NEW, EXP_DELETE, EXP_GET, EXP_NEW, NLM_F_NEW, header, request, serialize,
};
use crate::{Expectation, Family, Flow, ProtocolInfo, Status, Tuple};

/// What shall become of a flow; what is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Update<'a> {
    /// Seconds until it ends without traffic.
    pub timeout: Option<u32>,
    /// Value and mask: the bits of the mask become those of the value, the others stay.
    pub mark: Option<(u32, u32)>,
    /// Bits that shall be set, such as [`Status::ASSURED`] and [`Status::FIXED_TIMEOUT`]. The kernel answers EBUSY where
    /// EXPECTED, CONFIRMED or DYING would change, or SEEN_REPLY or ASSURED be cleared: pass the flow's own bits and more.
    pub status: Option<Status>,
    /// Labels and their mask, in native words: the bits of the mask become those of the labels. Needs a rule that used
    /// labels when the flow was made, else the kernel answers ENOSPC; EOPNOTSUPP if it has no labels at all.
    pub labels: Option<(&'a [u8], &'a [u8])>,
    /// The state of the protocol; of TCP the window scales and flags too.
    pub protocol_info: Option<ProtocolInfo>,
    /// The name of a helper, which the kernel gives to a flow that has none; "" takes a flow's helper away. EOPNOTSUPP where the
    /// kernel knows no such helper.
    pub helper: Option<&'a [u8]>,
}

/// Asks for the flow of this original tuple (and its zone): one [`Message::Flow`](crate::Message::Flow), or ENOENT.
pub fn get_request(sequence: u32, original: &Tuple) -> Vec<u8> {
    request(CT_GET, 0, sequence, Some(original.family()), identity(original))
}

/// Ends the flow of this original tuple (and its zone), with an `id` only if it still is that flow: ENOENT where it has ended,
/// or where the tuple belongs to a flow with another `CTA_ID` by now. A flow that got the same id, which is what usually happens
/// when a tuple is used again at once, cannot be distinguished.
pub fn delete_request(sequence: u32, original: &Tuple, id: Option<u32>) -> Vec<u8> {
    let mut attributes = identity(original);
    attributes.extend(id.map(|id| u32(CTA_ID, id)));
    request(CT_DELETE, NLM_F_ACK, sequence, Some(original.family()), attributes)
}

/// Ends every flow, or every flow of one family (since Linux 5.2; an older kernel ends all).
pub fn flush_request(sequence: u32, family: Option<Family>) -> Vec<u8> {
    // NFNETLINK_V0 means that the family is to be ignored.
    let header = header(family, family.is_some().into());
    serialize(header, CT_DELETE, NLM_F_ACK, sequence, Vec::new())
}

/// Makes a flow: tuples, zone, timeout (0 where the flow has none), mark, status, labels, helper, master, and the
/// state of its protocol. EEXIST where one of its tuples is taken. No address is translated for it: where the
/// reply is not the inverted original, packets are not touched.
pub fn create_request(sequence: u32, flow: &Flow<'_>) -> Vec<u8> {
    let mut attributes = vec![tuple(CTA_TUPLE_ORIG, &flow.original), tuple(CTA_TUPLE_REPLY, &flow.reply)];
    attributes.extend(zone(CTA_ZONE, flow.original.zone));
    attributes.push(u32(CTA_TIMEOUT, flow.timeout.unwrap_or(0)));
    attributes.extend(flow.master.as_ref().map(|master| tuple(CTA_TUPLE_MASTER, master)));
    attributes.extend(flow.mark.map(|mark| u32(CTA_MARK, mark)));
    attributes.extend(flow.labels.map(|labels| bytes(CTA_LABELS, labels)));
    attributes.extend(changes(&Update {
        // The kernel sets these itself, and refuses what differs.
        status: flow.status.map(|status| (status | Status::CONFIRMED) - Status::EXPECTED - Status::DYING),
        protocol_info: flow.protocol_info,
        helper: flow.helper,
        ..Update::default()
    }));
    request(CT_NEW, NLM_F_ACK | NLM_F_NEW, sequence, Some(flow.original.family()), attributes)
}

/// Changes the flow of this original tuple (and its zone): ENOENT where there is none. The kernel does not compare a
/// `CTA_ID` here.
pub fn update_request(sequence: u32, original: &Tuple, update: &Update<'_>) -> Vec<u8> {
    let mut attributes = identity(original);
    attributes.extend(changes(update));
    request(CT_NEW, NLM_F_ACK, sequence, Some(original.family()), attributes)
}

/// Asks for every expectation, or those of one family: [`Message::Expectation`](crate::Message::Expectation)s, then
/// [`Message::Done`](crate::Message::Done).
pub fn expectation_dump_request(sequence: u32, family: Option<Family>) -> Vec<u8> {
    request(EXP_GET, NLM_F_DUMP, sequence, family, Vec::new())
}

/// Takes back the expectation of this tuple (and its zone), with an `id` only if it still is that one: else ENOENT.
pub fn expectation_delete_request(sequence: u32, expected: &Tuple, id: Option<u32>) -> Vec<u8> {
    let mut attributes = vec![tuple(CTA_EXPECT_TUPLE, expected)];
    attributes.extend(zone(CTA_EXPECT_ZONE, expected.zone));
    attributes.extend(id.map(|id| u32(CTA_EXPECT_ID, id)));
    request(EXP_DELETE, NLM_F_ACK, sequence, Some(expected.family()), attributes)
}

/// Takes back every expectation.
pub fn expectation_flush_request(sequence: u32) -> Vec<u8> {
    request(EXP_DELETE, NLM_F_ACK, sequence, None, Vec::new())
}

/// Makes an expectation: master, tuple, mask, timeout (0 where it has none), helper, zone, flags, class and function. ENOENT
/// where the master is no flow. A helper of the kernel's has a timeout of its own, which the given one does not change.
pub fn expectation_create_request(sequence: u32, expectation: &Expectation<'_>) -> Vec<u8> {
    let expected = &expectation.tuple;
    let mut attributes = vec![
        tuple(CTA_EXPECT_MASTER, &expectation.master),
        tuple(CTA_EXPECT_TUPLE, expected),
        tuple(CTA_EXPECT_MASK, &expectation.mask),
    ];
    attributes.extend(zone(CTA_EXPECT_ZONE, expected.zone));
    attributes.push(u32(CTA_EXPECT_TIMEOUT, expectation.timeout.unwrap_or(0)));
    attributes.extend(expectation.flags.map(|flags| u32(CTA_EXPECT_FLAGS, flags.bits())));
    attributes.extend(expectation.class.map(|class| u32(CTA_EXPECT_CLASS, class)));
    attributes.extend(expectation.helper.map(|name| text(CTA_EXPECT_HELP_NAME, name)));
    attributes.extend(expectation.function.map(|name| text(CTA_EXPECT_FN, name)));
    request(EXP_NEW, NLM_F_ACK | NLM_F_NEW, sequence, Some(expected.family()), attributes)
}

/// What the kernel looks a flow up by: the original tuple and its zone, which is sent as the zone of both directions.
fn identity(original: &Tuple) -> Vec<DefaultNla> {
    let zone = zone(CTA_ZONE, original.zone);
    [tuple(CTA_TUPLE_ORIG, original)].into_iter().chain(zone).collect()
}

fn changes(update: &Update<'_>) -> Vec<DefaultNla> {
    let mut attributes = Vec::new();
    attributes.extend(update.status.map(|status| u32(CTA_STATUS, status.bits())));
    attributes.extend(update.timeout.map(|timeout| u32(CTA_TIMEOUT, timeout)));
    if let Some((value, mask)) = update.mark {
        // The kernel clears the mask's bits and flips the value's.
        attributes.extend([u32(CTA_MARK, value & mask), u32(CTA_MARK_MASK, mask)]);
    }
    if let Some((labels, mask)) = update.labels {
        attributes.extend([bytes(CTA_LABELS, labels), bytes(CTA_LABELS_MASK, mask)]);
    }
    attributes.extend(update.helper.map(|name| nest(CTA_HELP, &[text(1, name)]))); // CTA_HELP_NAME
    attributes.extend(update.protocol_info.as_ref().map(protocol_info));
    attributes
}

fn protocol_info(info: &ProtocolInfo) -> DefaultNla {
    match info {
        ProtocolInfo::Tcp(tcp) => {
            let mut parts = vec![ProtoInfoTCP::State(tcp.state)];
            parts.extend(tcp.wscale_original.map(ProtoInfoTCP::OriginalWindowScale));
            parts.extend(tcp.wscale_reply.map(ProtoInfoTCP::ReplyWindowScale));
            // CTA_PROTOINFO_TCP_FLAGS_ORIGINAL 4, FLAGS_REPLY 5: untyped, because the crate makes its TCPFlags by parsing alone.
            for (kind, flags) in [(4, tcp.flags_original), (5, tcp.flags_reply)] {
                parts.extend(flags.map(|(flags, mask)| ProtoInfoTCP::Other(bytes(kind, &[flags, mask]))));
            }
            nest(CTA_PROTOINFO, &[ProtoInfo::TCP(parts)])
        }
        // CTA_PROTOINFO_SCTP 3: STATE 1, VTAG_ORIGINAL 2, VTAG_REPLY 3. The kernel wants all of them.
        ProtocolInfo::Sctp(sctp) => {
            let [original, reply] = [sctp.vtag_original, sctp.vtag_reply].map(|tag| tag.unwrap_or(0));
            let parts = [u8(1, sctp.state), u32(2, original), u32(3, reply)];
            nest(CTA_PROTOINFO, &[nest(3, &parts)])
        }
        // CTA_PROTOINFO_DCCP 2: STATE 1, ROLE 2. The kernel wants both.
        ProtocolInfo::Dccp(dccp) => {
            let parts = [u8(1, dccp.state), u8(2, dccp.role.unwrap_or(0))];
            nest(CTA_PROTOINFO, &[nest(2, &parts)])
        }
    }
}

//! Requests that change the table, or ask for one entry of it. Each is acknowledged by a
//! [`Message::Error`](crate::Message::Error) with code 0, or refused by one with a negative errno;
//! [`Conntrack`](crate::Conntrack) sends them and reads the answers.

use crate::encode::Encoder;
use crate::expectation::{
    CTA_EXPECT_CLASS, CTA_EXPECT_FLAGS, CTA_EXPECT_FN, CTA_EXPECT_HELP_NAME, CTA_EXPECT_ID, CTA_EXPECT_MASK,
    CTA_EXPECT_MASTER, CTA_EXPECT_TIMEOUT, CTA_EXPECT_TUPLE, CTA_EXPECT_ZONE,
};
use crate::flow::{
    CTA_HELP, CTA_ID, CTA_LABELS, CTA_LABELS_MASK, CTA_MARK, CTA_MARK_MASK, CTA_PROTOINFO, CTA_STATUS,
    CTA_TIMEOUT, CTA_TUPLE_MASTER, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ZONE,
};
use crate::request::{
    CT_DELETE, CT_GET, CT_NEW, EXP_DELETE, EXP_GET, EXP_NEW, NLM_F_ACK, NLM_F_DUMP, NLM_F_NEW, NLM_F_REQUEST,
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
    /// one of EXPECTED, CONFIRMED, DYING would change, or SEEN_REPLY or ASSURED be taken away: give the flow's with more.
    pub status: Option<Status>,
    /// Labels and their mask, in native words: the bits of the mask become those of the labels. Needs a rule that used
    /// labels when the flow was made, else the kernel answers ENOSPC; EOPNOTSUPP if it knows none.
    pub labels: Option<(&'a [u8], &'a [u8])>,
    /// The state of the protocol; of TCP the window scales and flags too.
    pub protocol_info: Option<ProtocolInfo>,
    /// A helper's name; the kernel lets a flow have one that has none, or none ("") that has one. EOPNOTSUPP where it knows no
    /// such helper.
    pub helper: Option<&'a [u8]>,
}

/// Asks for the flow of this original tuple (and its zone): one [`Message::Flow`](crate::Message::Flow), or ENOENT.
pub fn get_request(sequence: u32, original: &Tuple) -> Vec<u8> {
    let mut request = Encoder::new(CT_GET, NLM_F_REQUEST, sequence, Some(original.family()));
    identify(&mut request, original);
    request.finish()
}

/// Ends the flow of this original tuple (and its zone), with an `id` only if it still is that flow: ENOENT where it has ended,
/// or where the tuple belongs to a flow with another `CTA_ID` by now. A flow that got the same id, which is what usually happens
/// when a tuple is used again at once, cannot be told apart.
pub fn delete_request(sequence: u32, original: &Tuple, id: Option<u32>) -> Vec<u8> {
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut request = Encoder::new(CT_DELETE, flags, sequence, Some(original.family()));
    identify(&mut request, original);
    if let Some(id) = id {
        request.u32(CTA_ID, id);
    }
    request.finish()
}

/// Ends every flow, or every flow of one family (since Linux 5.2; an older kernel ends all).
pub fn flush_request(sequence: u32, family: Option<Family>) -> Vec<u8> {
    let mut request = Encoder::new(CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, sequence, family);
    // NFNETLINK_V0 means that the family is to be ignored.
    request.version(u8::from(family.is_some()));
    request.finish()
}

/// Makes a flow: tuples, zone, timeout (0 where the flow has none), mark, status, labels, helper, master, and the
/// state of its protocol. EEXIST where one of its tuples is taken. No address is translated for it: where the
/// reply is not the inverted original, packets are not touched.
pub fn create_request(sequence: u32, flow: &Flow<'_>) -> Vec<u8> {
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_NEW;
    let mut request = Encoder::new(CT_NEW, flags, sequence, Some(flow.original.family()));
    request.tuple(CTA_TUPLE_ORIG, &flow.original);
    request.tuple(CTA_TUPLE_REPLY, &flow.reply);
    request.zone(CTA_ZONE, flow.original.zone);
    request.u32(CTA_TIMEOUT, flow.timeout.unwrap_or(0));
    if let Some(master) = &flow.master {
        request.tuple(CTA_TUPLE_MASTER, master);
    }
    if let Some(mark) = flow.mark {
        request.u32(CTA_MARK, mark);
    }
    if let Some(labels) = flow.labels {
        request.bytes(CTA_LABELS, labels);
    }
    write_update(
        &mut request,
        &Update {
            // The kernel sets these itself, and refuses what differs.
            status: flow.status.map(|status| (status | Status::CONFIRMED) - Status::EXPECTED - Status::DYING),
            protocol_info: flow.protocol_info,
            helper: flow.helper,
            ..Update::default()
        },
    );
    request.finish()
}

/// Changes the flow of this original tuple (and its zone): ENOENT where there is none. The kernel does not compare a
/// `CTA_ID` here.
pub fn update_request(sequence: u32, original: &Tuple, update: &Update<'_>) -> Vec<u8> {
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut request = Encoder::new(CT_NEW, flags, sequence, Some(original.family()));
    identify(&mut request, original);
    write_update(&mut request, update);
    request.finish()
}

/// Asks for every expectation, or those of one family: [`Message::Expectation`](crate::Message::Expectation)s, then
/// [`Message::Done`](crate::Message::Done).
pub fn expectation_dump_request(sequence: u32, family: Option<Family>) -> Vec<u8> {
    Encoder::new(EXP_GET, NLM_F_REQUEST | NLM_F_DUMP, sequence, family).finish()
}

/// Takes back the expectation of this tuple (and its zone), with an `id` only if it still is that one: else ENOENT.
pub fn expectation_delete_request(sequence: u32, tuple: &Tuple, id: Option<u32>) -> Vec<u8> {
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut request = Encoder::new(EXP_DELETE, flags, sequence, Some(tuple.family()));
    request.tuple(CTA_EXPECT_TUPLE, tuple);
    request.zone(CTA_EXPECT_ZONE, tuple.zone);
    if let Some(id) = id {
        request.u32(CTA_EXPECT_ID, id);
    }
    request.finish()
}

/// Takes back every expectation.
pub fn expectation_flush_request(sequence: u32) -> Vec<u8> {
    Encoder::new(EXP_DELETE, NLM_F_REQUEST | NLM_F_ACK, sequence, None).finish()
}

/// Makes an expectation: master, tuple, mask, timeout (0 where it has none), helper, zone, flags, class and function. ENOENT
/// where the master is no flow. A helper of the kernel's has a timeout of its own, which the given one does not change.
pub fn expectation_create_request(sequence: u32, expectation: &Expectation<'_>) -> Vec<u8> {
    let Expectation { master, tuple, mask, .. } = expectation;
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_NEW;
    let mut request = Encoder::new(EXP_NEW, flags, sequence, Some(tuple.family()));
    request.tuple(CTA_EXPECT_MASTER, master);
    request.tuple(CTA_EXPECT_TUPLE, tuple);
    request.tuple(CTA_EXPECT_MASK, mask);
    request.zone(CTA_EXPECT_ZONE, tuple.zone);
    request.u32(CTA_EXPECT_TIMEOUT, expectation.timeout.unwrap_or(0));
    if let Some(flags) = expectation.flags {
        request.u32(CTA_EXPECT_FLAGS, flags.bits());
    }
    if let Some(class) = expectation.class {
        request.u32(CTA_EXPECT_CLASS, class);
    }
    for (kind, text) in [(CTA_EXPECT_HELP_NAME, expectation.helper), (CTA_EXPECT_FN, expectation.function)] {
        if let Some(text) = text {
            request.text(kind, text);
        }
    }
    request.finish()
}

/// The original direction's zone is what the kernel looks a flow up by, told as that of both.
fn identify(request: &mut Encoder, original: &Tuple) {
    request.tuple(CTA_TUPLE_ORIG, original);
    request.zone(CTA_ZONE, original.zone);
}

fn write_update(request: &mut Encoder, update: &Update<'_>) {
    if let Some(status) = update.status {
        request.u32(CTA_STATUS, status.bits());
    }
    if let Some(timeout) = update.timeout {
        request.u32(CTA_TIMEOUT, timeout);
    }
    if let Some((value, mask)) = update.mark {
        // The kernel clears the mask's bits and flips the value's.
        request.u32(CTA_MARK, value & mask);
        request.u32(CTA_MARK_MASK, mask);
    }
    if let Some((labels, mask)) = update.labels {
        request.bytes(CTA_LABELS, labels);
        request.bytes(CTA_LABELS_MASK, mask);
    }
    if let Some(name) = update.helper {
        request.nest(CTA_HELP, |nest| nest.text(1, name)); // CTA_HELP_NAME
    }
    match update.protocol_info {
        // CTA_PROTOINFO_TCP 1: STATE 1, WSCALE_ORIGINAL 2, WSCALE_REPLY 3, FLAGS_ORIGINAL 4, FLAGS_REPLY 5.
        Some(ProtocolInfo::Tcp(tcp)) => request.nest(CTA_PROTOINFO, |nest| {
            nest.nest(1, |nest| {
                nest.u8(1, tcp.state);
                for (kind, scale) in [(2, tcp.wscale_original), (3, tcp.wscale_reply)] {
                    if let Some(scale) = scale {
                        nest.u8(kind, scale);
                    }
                }
                for (kind, flags) in [(4, tcp.flags_original), (5, tcp.flags_reply)] {
                    if let Some((flags, mask)) = flags {
                        nest.bytes(kind, &[flags, mask]);
                    }
                }
            });
        }),
        // CTA_PROTOINFO_SCTP 3: STATE 1, VTAG_ORIGINAL 2, VTAG_REPLY 3. The kernel wants all of them.
        Some(ProtocolInfo::Sctp(sctp)) => request.nest(CTA_PROTOINFO, |nest| {
            nest.nest(3, |nest| {
                nest.u8(1, sctp.state);
                nest.u32(2, sctp.vtag_original.unwrap_or(0));
                nest.u32(3, sctp.vtag_reply.unwrap_or(0));
            });
        }),
        // CTA_PROTOINFO_DCCP 2: STATE 1, ROLE 2. The kernel wants both.
        Some(ProtocolInfo::Dccp(dccp)) => request.nest(CTA_PROTOINFO, |nest| {
            nest.nest(2, |nest| {
                nest.u8(1, dccp.state);
                nest.u8(2, dccp.role.unwrap_or(0));
            });
        }),
        None => {}
    }
}

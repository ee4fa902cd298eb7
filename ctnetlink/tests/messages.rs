//! Messages made by hand: what the capturing kernel did not send, and what no kernel should.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod common;

use common::{attribute, message, messages, nest, ports, tuple, tuples};
use ctnetlink::{Counters, DccpInfo, DecodeError, EventKind, Flow, Layer4, Message, ProtocolInfo};

const NEW: u16 = 0x100;

fn with(extra: &[Vec<u8>]) -> Vec<u8> {
    message(NEW, 0, &[&tuples(6), extra].concat())
}

fn decode(bytes: &[u8]) -> Flow<'_> {
    match messages(bytes).pop() {
        Some(Message::Flow(_, _, flow)) => flow,
        other => panic!("{other:?}"),
    }
}

fn error(bytes: &[u8]) -> DecodeError {
    ctnetlink::messages(bytes).next().expect("a message").expect_err("an error")
}

#[test]
fn the_flags_and_the_type_tell_new_update_and_destroy() {
    for (kind, flags, event) in [
        (0x100, 0x600, EventKind::New),
        (0x100, 0, EventKind::Update),
        (0x100, 0x200, EventKind::Update),
        (0x102, 0, EventKind::Destroy),
        (0x102, 0x600, EventKind::Destroy),
    ] {
        let bytes = message(kind, flags, &tuples(6));
        assert!(matches!(messages(&bytes)[..], [Message::Flow(_, found, _)] if found == event));
    }
}

#[test]
fn other_subsystems_and_control_messages_are_passed_on_by_number() {
    for kind in [1, 4, 0x101, 0x201, 0xa00] {
        let bytes = message(kind, 0, &tuples(6));
        assert!(matches!(messages(&bytes)[..], [Message::Other(_, found)] if found == kind));
    }
}

#[test]
fn unknown_attributes_are_skipped_and_counted_at_every_depth() {
    let unknown = attribute(99, &[1, 2, 3]);
    let counters =
        vec![attribute(1, &7u64.to_be_bytes()), attribute(2, &8u64.to_be_bytes()), unknown.clone()];
    let protocol = nest(1, &[attribute(1, &[3]), unknown.clone()]);
    let bytes = message(
        NEW,
        0,
        &[
            tuple(1, 6, &[ports(), vec![unknown.clone()]].concat()),
            unknown.clone(),
            tuple(2, 6, &ports()),
            nest(9, &counters),
            nest(4, &[protocol, unknown.clone()]),
            nest(20, std::slice::from_ref(&unknown)),
            nest(24, std::slice::from_ref(&unknown)),
        ],
    );
    let flow = decode(&bytes);
    assert_eq!(flow.unknown_attributes, 7);
    assert_eq!(flow.original_counters, Some(Counters { packets: 7, bytes: 8 }));
    assert_eq!(flow.original.layer4, Layer4::Ports { src: 1000, dst: 2000 });
}

#[test]
fn padding_and_attributes_of_requests_are_not_counted() {
    let empty = |kind| attribute(kind, &[]);
    let counters = [attribute(1, &7u64.to_be_bytes()), empty(5), attribute(2, &8u64.to_be_bytes()), empty(0)];
    let bytes = with(&[
        nest(9, &counters),
        nest(20, &[empty(3)]),
        empty(6),
        empty(13),
        empty(17),
        empty(21),
        empty(23),
        empty(25),
        empty(26),
        empty(0),
    ]);
    assert_eq!(decode(&bytes).unknown_attributes, 0);
}

#[test]
fn the_padding_before_an_event_time_is_not_a_status() {
    let bytes =
        with(&[attribute(3, &14u32.to_be_bytes()), attribute(3, &[]), attribute(27, &5u64.to_be_bytes())]);
    let flow = decode(&bytes);
    assert_eq!(flow.status.map(|status| status.bits()), Some(14));
    assert_eq!(flow.event_nsec, Some(5));
}

#[test]
fn type_bits_are_masked() {
    let bytes = with(&[attribute(8 | 0x4000, &[0, 0, 0, 41]), attribute(7 | 0x8000, &[0, 0, 1, 0])]);
    let flow = decode(&bytes);
    assert_eq!((flow.mark, flow.timeout, flow.unknown_attributes), (Some(41), Some(256), 0));
}

#[test]
fn status_bits_without_a_name_are_kept() {
    let bytes = with(&[attribute(3, &0xdead_beefu32.to_be_bytes())]);
    assert_eq!(decode(&bytes).status.unwrap().bits(), 0xdead_beef);
}

#[test]
fn counters_of_32_bits_decode_too() {
    let bytes = with(&[nest(10, &[attribute(3, &[0, 0, 0, 3]), attribute(4, &[0, 0, 1, 0])])]);
    assert_eq!(decode(&bytes).reply_counters, Some(Counters { packets: 3, bytes: 256 }));
}

#[test]
fn dccp_of_kernels_that_track_it_decodes() {
    let dccp = nest(
        2,
        &[attribute(1, &[4]), attribute(2, &[1]), attribute(4, &[]), attribute(3, &9u64.to_be_bytes())],
    );
    let bytes = message(NEW, 0, &[tuples(33), vec![nest(4, &[dccp])]].concat());
    let info = DccpInfo { state: 4, role: Some(1), handshake_sequence: Some(9) };
    assert_eq!(decode(&bytes).protocol_info, Some(ProtocolInfo::Dccp(info)));
}

#[test]
fn helper_and_security_context_lose_their_terminating_zero() {
    let bytes = with(&[
        nest(5, &[attribute(1, b"sip\0"), attribute(2, &[1, 2])]),
        nest(19, &[attribute(1, b"system_u:object_r:x\0")]),
    ]);
    let flow = decode(&bytes);
    assert_eq!(flow.helper, Some(&b"sip"[..]));
    assert_eq!(flow.security_context, Some(&b"system_u:object_r:x"[..]));
    assert_eq!(flow.unknown_attributes, 0);
}

#[test]
fn a_master_is_in_the_zone_of_its_flow() {
    let bytes = with(&[tuple(14, 6, &ports()), attribute(18, &[0, 7])]);
    let flow = decode(&bytes);
    assert_eq!((flow.original.zone, flow.reply.zone, flow.master.unwrap().zone), (7, 7, 7));
}

#[test]
fn a_message_may_lack_the_padding_of_its_last_attribute() {
    let mut bytes = with(&[nest(5, &[attribute(1, b"tftp\0")])]);
    // helper: 4 + 4 + 5 bytes and 3 of padding, which both lengths include.
    let cut = bytes.len() - 3;
    bytes.truncate(cut);
    let length = u32::try_from(cut).unwrap();
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[cut - 13..cut - 11].copy_from_slice(&13u16.to_ne_bytes());
    assert_eq!(decode(&bytes).helper, Some(&b"tftp"[..]));
}

#[test]
fn each_error_says_what_was_wrong_and_what_would_be_right() {
    let v6 = nest(1, &[attribute(3, &[0; 16]), attribute(2, &[198, 18, 0, 2])]);
    let protocol = nest(2, &[attribute(1, &[6])]);
    let [original, reply] = <[Vec<u8>; 2]>::try_from(tuples(6)).unwrap();
    for (bytes, says) in [
        (with(&[attribute(8, &[1])]), "CTA_MARK: need 4 bytes, got 1"),
        (with(&[nest(9, &[attribute(1, &[0; 4])])]), "CTA_COUNTERS_PACKETS: need 8 bytes, got 4"),
        (with(&[nest(9, &[])]), "CTA_COUNTERS_ORIG: no CTA_COUNTERS_PACKETS"),
        (with(&[attribute(22, &[0; 17])]), "CTA_LABELS: at most 16 bytes, got 17"),
        (with(&[nest(4, &[nest(1, &[])])]), "CTA_PROTOINFO_TCP: no CTA_PROTOINFO_TCP_STATE"),
        (with(&[vec![9, 0, 8, 0]]), "message: nla_len is 9, it has to be 4 to 4, what is left"),
        (with(&[vec![3, 0, 8, 0]]), "message: nla_len is 3, it has to be 4 to 4, what is left"),
        (with(&[vec![1, 2]]), "message: need 4 bytes, got 2"),
        (message(NEW, 0, std::slice::from_ref(&reply)), "message: no CTA_TUPLE_ORIG"),
        (message(NEW, 0, std::slice::from_ref(&original)), "message: no CTA_TUPLE_REPLY"),
        (message(NEW, 0, &[nest(1, std::slice::from_ref(&protocol))]), "CTA_TUPLE_ORIG: no CTA_TUPLE_IP"),
        (
            message(NEW, 0, &[nest(1, &[v6, protocol])]),
            "CTA_TUPLE_IP: IPv4 and IPv6 addresses, a flow has one family",
        ),
        (message(NEW, 0, &[tuple(1, 6, &ports()[..1])]), "CTA_TUPLE_PROTO: no CTA_PROTO_DST_PORT"),
        (message(NEW, 0, &[tuple(1, 6, &ports()[1..])]), "CTA_TUPLE_PROTO: no CTA_PROTO_SRC_PORT"),
        (vec![19, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0], "nfgenmsg: need 4 bytes, got 3"),
        (vec![18, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "NLMSG_DONE: need 4 bytes, got 2"),
        (vec![1, 2, 3], "nlmsghdr: nlmsg_len is 3, it has to be 16 to 3, what the datagram has left"),
    ] {
        assert_eq!(error(&bytes).to_string(), says);
    }
}

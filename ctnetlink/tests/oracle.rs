//! netlink-packet-netfilter, which shares no code with this crate, reads the same from the same bytes: all that it
//! types (tuples without ICMP and zone, status, TCP, timeout, mark).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod common;

use std::net::IpAddr;

use common::{FIXTURES, bounds, messages};
use ctnetlink::{Flow, Layer4, Message, ProtocolInfo, Tuple};
use netlink_packet_core::ParseableParametrized;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Tuple as TheirTuple,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};

/// What both can say of a direction.
#[derive(Debug, Default, PartialEq)]
struct Direction {
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
    protocol: Option<u8>,
    sport: Option<u16>,
    dport: Option<u16>,
}

/// What both can say of a flow.
#[derive(Debug, Default, PartialEq)]
struct View {
    original: Direction,
    reply: Direction,
    status: Option<u32>,
    timeout: Option<u32>,
    mark: Option<u32>,
    tcp_state: Option<u8>,
    wscales: [Option<u8>; 2],
    flags: [Option<(u8, u8)>; 2],
}

fn our_direction(tuple: Tuple) -> Direction {
    let (sport, dport) = match tuple.layer4 {
        Layer4::Ports { src, dst } => (Some(src), Some(dst)),
        _ => (None, None),
    };
    Direction { src: Some(tuple.src), dst: Some(tuple.dst), protocol: Some(tuple.protocol), sport, dport }
}

fn ours(flow: &Flow<'_>) -> View {
    let mut view = View {
        original: our_direction(flow.original),
        reply: our_direction(flow.reply),
        status: flow.status.map(|status| status.bits()),
        timeout: flow.timeout,
        mark: flow.mark,
        ..View::default()
    };
    if let Some(ProtocolInfo::Tcp(tcp)) = flow.protocol_info {
        view.tcp_state = Some(tcp.state);
        view.wscales = [tcp.wscale_original, tcp.wscale_reply];
        view.flags = [tcp.flags_original, tcp.flags_reply];
    }
    view
}

fn their_direction(tuples: Vec<TheirTuple>) -> Direction {
    let mut direction = Direction::default();
    for tuple in tuples {
        match tuple {
            TheirTuple::Ip(parts) => {
                for part in parts {
                    match part {
                        IPTuple::SourceAddress(address) => direction.src = Some(address),
                        IPTuple::DestinationAddress(address) => direction.dst = Some(address),
                        _ => {}
                    }
                }
            }
            TheirTuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(protocol) => direction.protocol = Some(protocol.into()),
                        ProtoTuple::SourcePort(port) => direction.sport = Some(port),
                        ProtoTuple::DestinationPort(port) => direction.dport = Some(port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    direction
}

/// `None` for a message that is not a flow.
fn theirs(message: &[u8]) -> Option<View> {
    let kind = u16::from_ne_bytes([message[4], message[5]]);
    if kind >> 8 != 1 {
        return None;
    }
    let parsed = NetfilterMessage::parse_with_param(&message[16..], kind).expect("the oracle decodes");
    let attributes = match parsed.inner {
        NetfilterMessageInner::Conntrack(
            ConntrackMessage::New(attributes) | ConntrackMessage::Delete(attributes),
        ) => attributes,
        _ => return None,
    };
    let mut view = View::default();
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuples) => view.original = their_direction(tuples),
            ConntrackAttribute::CtaTupleReply(tuples) => view.reply = their_direction(tuples),
            ConntrackAttribute::CtaStatus(status) => view.status = Some(status.bits()),
            ConntrackAttribute::CtaTimeout(timeout) => view.timeout = Some(timeout),
            ConntrackAttribute::CtaMark(mark) => view.mark = Some(mark),
            ConntrackAttribute::CtaProtoInfo(infos) => {
                for info in infos {
                    let ProtoInfo::TCP(parts) = info else { continue };
                    for part in parts {
                        match part {
                            ProtoInfoTCP::State(state) => view.tcp_state = Some(state),
                            ProtoInfoTCP::OriginalWindowScale(scale) => view.wscales[0] = Some(scale),
                            ProtoInfoTCP::ReplyWindowScale(scale) => view.wscales[1] = Some(scale),
                            ProtoInfoTCP::OriginalFlags(flags) => {
                                view.flags[0] = Some((flags.flags, flags.mask))
                            }
                            ProtoInfoTCP::ReplyFlags(flags) => {
                                view.flags[1] = Some((flags.flags, flags.mask))
                            }
                            _ => {}
                        }
                    }
                }
            }
            _ => {}
        }
    }
    Some(view)
}

#[test]
fn the_oracle_agrees_on_every_fixture() {
    let mut compared = 0;
    for (name, bytes) in FIXTURES {
        let messages = messages(bytes);
        let bounds = bounds(bytes);
        assert_eq!(messages.len(), bounds.len(), "{name}");
        for (message, (start, end)) in messages.iter().zip(bounds) {
            let ours = match message {
                Message::Flow(_, _, flow) => Some(ours(flow)),
                _ => None,
            };
            assert_eq!(ours, theirs(&bytes[start..end]), "{name}, message at {start}");
            compared += usize::from(ours.is_some());
        }
    }
    assert!(compared > 50, "only {compared} flows in all fixtures");
}

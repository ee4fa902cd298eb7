//! What the tests share: the fixtures, and messages made by hand.
#![allow(dead_code, reason = "each test file uses its part")]

use ctnetlink::{EventKind, Flow, Message};

macro_rules! fixtures {
    ($($name:literal),* $(,)?) => {
        /// Every fixture: name and bytes. fixtures/README.md says what each is.
        pub(crate) const FIXTURES: &[(&str, &[u8])] = &[
            $(($name, include_bytes!(concat!("../../fixtures/", $name, ".bin")))),*
        ];
    };
}

fixtures![
    "cpu-stats",
    "empty-dump",
    "error",
    "ftp-dump",
    "ftp-events",
    "ftp-expectation-events",
    "inserted-dump",
    "nat-dump",
    "stats",
    "synproxy-dump",
    "tcp4-established-dump",
    "tcp4-events",
    "tcp6-udp6-icmp-events",
    "udp4-plain-events",
    "zones-events",
];

/// The bytes of a fixture.
pub(crate) fn fixture(name: &str) -> &'static [u8] {
    FIXTURES.iter().find(|(known, _)| *known == name).expect("a fixture of that name").1
}

/// The messages of a fixture, all of which decode.
pub(crate) fn messages(bytes: &[u8]) -> Vec<Message<'_>> {
    ctnetlink::messages(bytes).map(|message| message.expect("decodes")).collect()
}

/// The flows among the messages of a fixture.
pub(crate) fn flows(bytes: &[u8]) -> Vec<(EventKind, Flow<'_>)> {
    messages(bytes)
        .into_iter()
        .filter_map(|message| match message {
            Message::Flow(_, kind, flow) => Some((kind, flow)),
            _ => None,
        })
        .collect()
}

/// The one flow of that protocol and original destination port (0: without ports) with that event.
pub(crate) fn flow(name: &str, kind: EventKind, protocol: u8, port: u16) -> Flow<'static> {
    let mut found = flows(fixture(name)).into_iter().filter(|(event, flow)| {
        let dst = match flow.original.layer4 {
            ctnetlink::Layer4::Ports { dst, .. } => dst,
            _ => 0,
        };
        *event == kind && flow.original.protocol == protocol && dst == port
    });
    found.next().expect("such a flow").1
}

/// Start and end of every message in `bytes`.
pub(crate) fn bounds(bytes: &[u8]) -> Vec<(usize, usize)> {
    let (mut bounds, mut at) = (Vec::new(), 0);
    while let Some(length) = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        let end = at + u32::from_ne_bytes(*length) as usize;
        bounds.push((at, end));
        at = (end + 3) & !3;
    }
    bounds
}

/// One attribute, padded.
pub(crate) fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(payload.len() + 4).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute that holds others, with NLA_F_NESTED.
pub(crate) fn nest(kind: u16, inner: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | 0x8000, &inner.concat())
}

/// A message of `kind` (`nlmsg_type`) with an `nfgenmsg` and attributes.
pub(crate) fn message(kind: u16, flags: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    let body = attributes.concat();
    let mut bytes = u32::try_from(body.len() + 20).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([2, 0, 0, 0]);
    bytes.extend(body);
    bytes
}

/// A tuple attribute of kind 1, 2 or 14: IPv4, `protocol` and what else CTA_TUPLE_PROTO shall hold.
pub(crate) fn tuple(kind: u16, protocol: u8, layer4: &[Vec<u8>]) -> Vec<u8> {
    let addresses = nest(1, &[attribute(1, &[198, 18, 0, 1]), attribute(2, &[198, 18, 0, 2])]);
    let protocol = nest(2, &[&[attribute(1, &[protocol])], layer4].concat());
    nest(kind, &[addresses, protocol])
}

/// Ports 1000 and 2000.
pub(crate) fn ports() -> Vec<Vec<u8>> {
    vec![attribute(2, &1000u16.to_be_bytes()), attribute(3, &2000u16.to_be_bytes())]
}

/// Both tuples of a flow with ports.
pub(crate) fn tuples(protocol: u8) -> Vec<Vec<u8>> {
    vec![tuple(1, protocol, &ports()), tuple(2, protocol, &ports())]
}

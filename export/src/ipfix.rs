//! IPFIX messages (RFC 7011) of flows: information elements of RFC 7012, NAT events of RFC 8158.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowbus_interfaces::{FlowRef, Key};

use crate::log::now_usec;

/// What fits into an Ethernet frame of IPv6 without fragments.
const MESSAGE_BYTES: usize = 1_420;
const HEADER_BYTES: usize = 16;
const VERSION: u16 = 10;
/// The set that holds templates.
const TEMPLATES: u16 = 2;
/// The templates' ids: flows of IPv4, and of IPv6.
const IPV4: u16 = 256;
const IPV6: u16 = 257;

/// The information elements of a record and their lengths, in order. Those of addresses are of IPv4, with the element of IPv6 behind them.
const ELEMENTS: [(u16, u16, u16); 24] = [
    (323, 323, 8), // observationTimeMilliseconds
    (230, 230, 1), // natEvent
    (148, 148, 8), // flowId
    (4, 4, 1),     // protocolIdentifier
    (8, 27, 0),    // source address
    (7, 7, 2),     // sourceTransportPort
    (12, 28, 0),   // destination address
    (11, 11, 2),   // destinationTransportPort
    (225, 281, 0), // post-NAT source address
    (227, 227, 2), // postNAPTSourceTransportPort
    (226, 282, 0), // post-NAT destination address
    (228, 228, 2), // postNAPTDestinationTransportPort
    (152, 152, 8), // flowStartMilliseconds
    (153, 153, 8), // flowEndMilliseconds
    (1, 1, 8),     // octetDeltaCount
    (2, 2, 8),     // packetDeltaCount
    (23, 23, 8),   // postOctetDeltaCount, of the reply
    (24, 24, 8),   // postPacketDeltaCount, of the reply
    (176, 178, 1), // icmpType
    (177, 179, 1), // icmpCode
    (234, 234, 4), // ingressVRFID: the zone of the original direction
    (235, 235, 4), // egressVRFID: the zone of the reply
    (136, 136, 1), // flowEndReason
    (0, 0, 0),     // the end of the list
];

/// A flow began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Create,
    Delete,
}

/// Makes messages of records.
#[derive(Debug)]
pub(crate) struct Encoder {
    domain: u32,
    /// How many data records were sent, modulo 2^32.
    sequence: u32,
    /// A message without its header's length, and how many records it has.
    message: Vec<u8>,
    records: u32,
    /// Where the open set begins, and its id.
    set: Option<(usize, u16)>,
}

impl Encoder {
    pub(crate) fn new(domain: u32) -> Self {
        Self { domain, sequence: 0, message: vec![0; HEADER_BYTES], records: 0, set: None }
    }

    /// Adds the templates; a collector knows none until it has them.
    pub(crate) fn push_templates(&mut self) {
        for (template, column) in [(IPV4, 0), (IPV6, 1)] {
            self.open_set(TEMPLATES);
            let elements = ELEMENTS.iter().filter(|(element, ..)| *element != 0);
            self.put(template.to_be_bytes());
            self.put(u16::try_from(elements.clone().count()).unwrap_or(0).to_be_bytes());
            for &(v4, v6, length) in elements {
                self.put(if column == 0 { v4 } else { v6 }.to_be_bytes());
                let length = if length == 0 { [4_u16, 16][column] } else { length };
                self.put(length.to_be_bytes());
            }
        }
    }

    /// Adds a record. A flow without a source address is none.
    pub(crate) fn push(&mut self, event: Event, flow: &FlowRef<'_>) {
        let address = |key| flow.text(key)?.parse::<IpAddr>().ok();
        let Some(src) = address(Key::Src).or_else(|| address(Key::NatSrc)) else { return };
        let is_v6 = src.is_ipv6();
        let number = |key| flow.number(key).unwrap_or(0);
        let short = |key| u16::try_from(number(key)).unwrap_or(0).to_be_bytes();
        let byte = |key| [u8::try_from(number(key)).unwrap_or(0)];
        let usec = |key| flow.number(key).map(|usec| usec / 1_000);
        // The original value where nothing is translated.
        let translated = |address_key, port_key, address: Option<IpAddr>, port| match flow.text(address_key) {
            Some(text) => (text.parse().ok(), short(port_key)),
            None => (address, port),
        };
        let (dst, sport, dport) = (address(Key::Dst), short(Key::Sport), short(Key::Dport));
        let (nat_src, nat_sport) = translated(Key::NatSrc, Key::NatSport, Some(src), sport);
        let (nat_dst, nat_dport) = translated(Key::NatDst, Key::NatDport, dst, dport);
        let zone = |key| u32::try_from(flow.number(Key::Zone).unwrap_or_else(|| number(key))).unwrap_or(0);

        let now = now_usec() / 1_000;
        let start = usec(Key::StartUsec).unwrap_or(now);
        // nfdump shows a create without an end as of 1970.
        let (time, end) = match event {
            Event::Create => (start, start),
            Event::Delete => {
                let end = usec(Key::EndUsec).unwrap_or(now);
                (end, end)
            }
        };
        // 4 and 5 are NAT44 create and delete, 6 and 7 NAT64's.
        let nat_event = match (event, is_v6) {
            (Event::Create, false) => 4,
            (Event::Delete, false) => 5,
            (Event::Create, true) => 6,
            (Event::Delete, true) => 7,
        };
        let reason = match (event, flow.text(Key::EndReason).as_deref()) {
            (Event::Create, _) | (_, None) => 0,
            (_, Some("replaced")) => 4,                  // forced end
            (_, Some("resync")) => 5,                    // lack of resources
            _ if number(Key::ProtocolNumber) == 17 => 1, // idle timeout
            _ => 3,                                      // end of flow detected
        };

        self.open_set(if is_v6 { IPV6 } else { IPV4 });
        self.put(time.to_be_bytes());
        self.put([nat_event]);
        self.put(number(Key::Id).to_be_bytes());
        self.put(byte(Key::ProtocolNumber));
        self.put_address(Some(src), is_v6);
        self.put(sport);
        self.put_address(dst, is_v6);
        self.put(dport);
        self.put_address(nat_src, is_v6);
        self.put(nat_sport);
        self.put_address(nat_dst, is_v6);
        self.put(nat_dport);
        self.put(start.to_be_bytes());
        self.put(end.to_be_bytes());
        for key in [Key::OrigBytes, Key::OrigPackets, Key::ReplyBytes, Key::ReplyPackets] {
            self.put(number(key).to_be_bytes());
        }
        self.put(byte(Key::IcmpType));
        self.put(byte(Key::IcmpCode));
        self.put(zone(Key::OrigZone).to_be_bytes());
        self.put(zone(Key::ReplyZone).to_be_bytes());
        self.put([reason]);
        self.records += 1;
    }

    /// Whether the next record, or the templates, may not fit.
    pub(crate) fn is_full(&self) -> bool {
        self.message.len() + 256 > MESSAGE_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.message.len() == HEADER_BYTES
    }

    /// Ends the message and gives it to `send`; the next one is empty.
    pub(crate) fn finish<T>(&mut self, send: impl FnOnce(&[u8]) -> T) -> T {
        self.close_set();
        let length = u16::try_from(self.message.len()).unwrap_or(u16::MAX);
        let seconds = u32::try_from(now_usec() / 1_000_000).unwrap_or(u32::MAX);
        self.message[0..2].copy_from_slice(&VERSION.to_be_bytes());
        self.message[2..4].copy_from_slice(&length.to_be_bytes());
        self.message[4..8].copy_from_slice(&seconds.to_be_bytes());
        self.message[8..12].copy_from_slice(&self.sequence.to_be_bytes());
        self.message[12..16].copy_from_slice(&self.domain.to_be_bytes());
        let sent = send(&self.message);
        self.sequence = self.sequence.wrapping_add(self.records);
        self.message.truncate(HEADER_BYTES);
        self.records = 0;
        sent
    }

    fn open_set(&mut self, id: u16) {
        if self.set.is_some_and(|(_, open)| open == id) {
            return;
        }
        self.close_set();
        self.set = Some((self.message.len(), id));
        self.put(id.to_be_bytes());
        self.put([0, 0]);
    }

    fn close_set(&mut self) {
        if let Some((start, _)) = self.set.take() {
            let length = u16::try_from(self.message.len() - start).unwrap_or(u16::MAX);
            self.message[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
        }
    }

    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.message.extend_from_slice(&bytes);
    }

    /// An address that the flow does not have, or of the other family, is unspecified.
    fn put_address(&mut self, address: Option<IpAddr>, is_v6: bool) {
        match (address, is_v6) {
            (Some(IpAddr::V4(address)), false) => self.put(address.octets()),
            (Some(IpAddr::V6(address)), true) => self.put(address.octets()),
            (_, false) => self.put(Ipv4Addr::UNSPECIFIED.octets()),
            (_, true) => self.put(Ipv6Addr::UNSPECIFIED.octets()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: &str = r#"{"type":"destroy","id":7,"protocol_number":17,"src":"198.18.0.2","sport":4000,"dst":"198.18.1.2","dport":53,"nat_src":"198.18.1.1","nat_sport":32768,"start_usec":1795810500000009,"end_usec":1795810501500009,"orig_bytes":60,"orig_packets":1,"end_reason":"destroyed","zone":7}"#;

    fn message(encoder: &mut Encoder) -> Vec<u8> {
        encoder.finish(<[u8]>::to_vec)
    }

    fn number(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    #[test]
    fn a_record_is_as_long_as_its_template_says() {
        for (flow, template) in
            [(FLOW.to_owned(), 256), (r#"{"type":"new","src":"2001:2::1"}"#.to_owned(), 257)]
        {
            let mut encoder = Encoder::new(1);
            encoder.push_templates();
            let templates = message(&mut encoder);
            assert!(templates.len() < MESSAGE_BYTES && number(&templates[2..4]) == templates.len() as u64);
            // Both templates are in one set, after its header.
            let mut rest = &templates[HEADER_BYTES + 4..];
            let mut lengths = std::collections::BTreeMap::new();
            while !rest.is_empty() {
                let (id, count) = (number(&rest[..2]), usize::try_from(number(&rest[2..4])).unwrap());
                let length: u64 = rest[4..4 + 4 * count].chunks(4).map(|field| number(&field[2..])).sum();
                lengths.insert(id, length);
                rest = &rest[4 + 4 * count..];
            }
            encoder.push(Event::Delete, &FlowRef::parse(&flow).unwrap());
            let data = message(&mut encoder);
            assert_eq!(number(&data[16..18]), template);
            assert_eq!(number(&data[18..20]), lengths[&template] + 4);
            assert_eq!(data.len() as u64, lengths[&template] + 20);
        }
    }

    #[test]
    fn a_record_has_both_sides_of_a_translation_and_exact_times() {
        let mut encoder = Encoder::new(9);
        encoder.push(Event::Delete, &FlowRef::parse(FLOW).unwrap());
        let data = message(&mut encoder);
        assert_eq!((number(&data[..2]), number(&data[12..16])), (10, 9));
        let record = &data[20..];
        assert_eq!(number(&record[..8]), 1_795_810_501_500);
        assert_eq!((record[8], number(&record[9..17]), record[17]), (5, 7, 17));
        assert_eq!(
            record[18..30],
            [198, 18, 0, 2, 4000_u16.to_be_bytes()[0], 4000_u16.to_be_bytes()[1], 198, 18, 1, 2, 0, 53]
        );
        assert_eq!(
            record[30..42],
            [198, 18, 1, 1, 128, 0, 198, 18, 1, 2, 0, 53],
            "the destination is not translated"
        );
        assert_eq!(
            (number(&record[42..50]), number(&record[50..58])),
            (1_795_810_500_000, 1_795_810_501_500)
        );
        assert_eq!((number(&record[92..96]), number(&record[96..100]), record[100]), (7, 7, 1));
    }

    #[test]
    fn the_sequence_counts_data_records() {
        let mut encoder = Encoder::new(1);
        let flow = FlowRef::parse(FLOW).unwrap();
        encoder.push_templates();
        (0..3).for_each(|_| encoder.push(Event::Create, &flow));
        assert_eq!(number(&message(&mut encoder)[8..12]), 0);
        encoder.push(Event::Create, &flow);
        assert_eq!(number(&message(&mut encoder)[8..12]), 3);
        assert!(encoder.is_empty());
        assert_eq!(number(&message(&mut encoder)[8..12]), 4);
        while !encoder.is_full() {
            encoder.push(Event::Create, &flow);
        }
        assert!(message(&mut encoder).len() <= MESSAGE_BYTES);
    }
}

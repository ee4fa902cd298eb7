//! A flow as the table holds it: plain, fixed-size data, 128 bytes, without a heap allocation of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ctnetlink::{Counters, Family, Layer4, Status, Tuple};
use flowbus_interfaces::{EndReason, TimeSource};

/// What identifies a live flow: family, protocol, original tuple, zone of the original direction. `CTA_ID` is
/// data and not part of it: the kernel hands the same one out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub(crate) struct Key {
    addresses: Addresses,
    zone: u16,
    protocol: u8,
    shape: Shape,
}

impl Key {
    pub(crate) fn new(original: &Tuple) -> Self {
        Self {
            addresses: Addresses::pack(original),
            zone: original.zone,
            protocol: original.protocol,
            shape: Shape::of(original),
        }
    }

    pub(crate) fn original(&self) -> Tuple {
        self.addresses.unpack(self.shape, self.protocol, self.zone)
    }
}

/// The addresses and layer-4 numbers of a tuple; IPv4 takes the first four bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub(crate) struct Addresses {
    src: [u8; 16],
    dst: [u8; 16],
    /// Source and destination port; of ICMP the identifier, then type and code.
    layer4: [u16; 2],
}

impl Addresses {
    fn pack(tuple: &Tuple) -> Self {
        let layer4 = match tuple.layer4 {
            Layer4::Ports { src, dst } => [src, dst],
            Layer4::Icmp { kind, code, id } => [id, u16::from_be_bytes([kind, code])],
            Layer4::None => [0, 0],
        };
        Self { src: pack_address(tuple.src), dst: pack_address(tuple.dst), layer4 }
    }

    fn unpack(&self, shape: Shape, protocol: u8, zone: u16) -> Tuple {
        let layer4 = match shape.layer4() {
            Shape::PORTS => Layer4::Ports { src: self.layer4[0], dst: self.layer4[1] },
            Shape::ICMP => {
                let [kind, code] = self.layer4[1].to_be_bytes();
                Layer4::Icmp { kind, code, id: self.layer4[0] }
            }
            _ => Layer4::None,
        };
        Tuple {
            src: unpack_address(shape, self.src),
            dst: unpack_address(shape, self.dst),
            protocol,
            layer4,
            zone,
        }
    }
}

fn pack_address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn unpack_address(shape: Shape, bytes: [u8; 16]) -> IpAddr {
    match shape.family() {
        Family::Ipv4 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        Family::Ipv6 => Ipv6Addr::from(bytes).into(),
    }
}

/// How packed addresses are to be read: the family and what the layer-4 numbers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
struct Shape(u8);

impl Shape {
    const V6: u8 = 1;
    const PORTS: u8 = 2;
    const ICMP: u8 = 4;

    fn of(tuple: &Tuple) -> Self {
        let family = match tuple.family() {
            Family::Ipv4 => 0,
            Family::Ipv6 => Self::V6,
        };
        let layer4 = match tuple.layer4 {
            Layer4::Ports { .. } => Self::PORTS,
            Layer4::Icmp { .. } => Self::ICMP,
            Layer4::None => 0,
        };
        Self(family | layer4)
    }

    const fn family(self) -> Family {
        if self.0 & Self::V6 == 0 { Family::Ipv4 } else { Family::Ipv6 }
    }

    const fn layer4(self) -> u8 {
        self.0 & !Self::V6
    }
}

/// What the table keeps of every flow. Present bits tell a value from its absence.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Record {
    pub(crate) key: Key,
    /// Ours: never used twice within an epoch.
    pub(crate) id: u64,
    /// CLOCK_REALTIME microseconds; `start_source` says what is known of it.
    pub(crate) start_usec: u64,
    original_counters: RawCounters,
    reply_counters: RawCounters,
    pub(crate) status: Status,
    pub(crate) mark: u32,
    conntrack_id: u32,
    timeout: u32,
    use_count: u32,
    /// The table's stamp when a message last told of this flow; see `Table::stamp`.
    pub(crate) seen: u32,
    /// Where the flow has an [`Extra`] of its own; [`NO_EXTRA`] where the reply is the plain inversion.
    pub(crate) extra: u32,
    pub(crate) reply_zone: u16,
    state: u8,
    present: Present,
    pub(crate) start_source: TimeSource,
}

/// `Record::extra` of a flow that has none.
pub(crate) const NO_EXTRA: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct RawCounters {
    packets: u64,
    bytes: u64,
}

impl From<Counters> for RawCounters {
    fn from(counters: Counters) -> Self {
        Self { packets: counters.packets, bytes: counters.bytes }
    }
}

bitflags::bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Present: u8 {
        const CONNTRACK_ID = 1;
        const TIMEOUT = 2;
        const USE = 4;
        const STATE = 8;
        const ORIGINAL_COUNTERS = 16;
        const REPLY_COUNTERS = 32;
    }
}

impl Record {
    /// A record of what the first message about a flow says.
    pub(crate) fn new(id: u64, flow: &ctnetlink::Flow<'_>, start_usec: u64, source: TimeSource) -> Self {
        let mut record = Self {
            key: Key::new(&flow.original),
            id,
            start_usec,
            original_counters: RawCounters::default(),
            reply_counters: RawCounters::default(),
            status: Status::empty(),
            mark: 0,
            conntrack_id: 0,
            timeout: 0,
            use_count: 0,
            seen: 0,
            extra: NO_EXTRA,
            reply_zone: flow.reply.zone,
            state: 0,
            present: Present::empty(),
            start_source: source,
        };
        record.merge(flow);
        record.merge_counters(flow);
        record
    }

    /// Takes over what a message says; what it does not carry is kept. True when something changed that is
    /// worth an event: the timeout counts here, the counters of a dump do not.
    pub(crate) fn merge(&mut self, flow: &ctnetlink::Flow<'_>) -> bool {
        let before = (self.status, self.mark, self.state, self.timeout, self.present, self.conntrack_id);
        if let Some(status) = flow.status {
            self.status = status;
        }
        // Sent when non-zero or just changed: absent means 0.
        self.mark = flow.mark.unwrap_or(0);
        self.set(Present::CONNTRACK_ID, flow.id, |record, id| record.conntrack_id = id);
        self.set(Present::TIMEOUT, flow.timeout, |record, timeout| record.timeout = timeout);
        let state = flow.protocol_info.map(|info| info.state());
        self.set(Present::STATE, state, |record, state| record.state = state);
        before != (self.status, self.mark, self.state, self.timeout, self.present, self.conntrack_id)
    }

    /// Takes over a dump's entry. True when something changed besides counters, timeout and start, which a dump
    /// brings up to date without an event.
    pub(crate) fn merge_dumped(&mut self, flow: &ctnetlink::Flow<'_>) -> bool {
        // Taken over first, so that `merge` does not see it move.
        self.set(Present::TIMEOUT, flow.timeout, |record, timeout| record.timeout = timeout);
        let changed = self.merge(flow);
        self.merge_counters(flow);
        changed
    }

    /// Takes over what only dumps and DESTROY carry.
    pub(crate) fn merge_counters(&mut self, flow: &ctnetlink::Flow<'_>) {
        self.set(Present::USE, flow.use_count, |record, count| record.use_count = count);
        self.set(Present::ORIGINAL_COUNTERS, flow.original_counters, |record, counters| {
            record.original_counters = counters.into();
        });
        self.set(Present::REPLY_COUNTERS, flow.reply_counters, |record, counters| {
            record.reply_counters = counters.into();
        });
        if let Some(start) = flow.start_nsec {
            self.start_usec = start / 1_000;
            self.start_source = TimeSource::Kernel;
        }
    }

    /// Forgets the timeout: the kernel has none for an offloaded flow.
    pub(crate) fn clear_timeout(&mut self) {
        self.present -= Present::TIMEOUT;
    }

    fn set<T>(&mut self, bit: Present, value: Option<T>, store: impl FnOnce(&mut Self, T)) {
        if let Some(value) = value {
            self.present |= bit;
            store(self, value);
        }
    }

    fn get<T>(&self, bit: Present, value: T) -> Option<T> {
        self.present.contains(bit).then_some(value)
    }

    pub(crate) fn conntrack_id(&self) -> Option<u32> {
        self.get(Present::CONNTRACK_ID, self.conntrack_id)
    }

    pub(crate) fn timeout(&self) -> Option<u32> {
        self.get(Present::TIMEOUT, self.timeout)
    }

    pub(crate) fn use_count(&self) -> Option<u32> {
        self.get(Present::USE, self.use_count)
    }

    /// The name of the protocol's state.
    pub(crate) fn state(&self) -> Option<&'static str> {
        self.get(Present::STATE, self.state).and_then(|state| ctnetlink::state_name(self.key.protocol, state))
    }

    pub(crate) fn counters(&self) -> (Option<Counters>, Option<Counters>) {
        let counters =
            |bit, raw: RawCounters| self.get(bit, Counters { packets: raw.packets, bytes: raw.bytes });
        (
            counters(Present::ORIGINAL_COUNTERS, self.original_counters),
            counters(Present::REPLY_COUNTERS, self.reply_counters),
        )
    }
}

/// What few flows have: a translated reply, labels, a helper, a security context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Extra {
    reply: Addresses,
    reply_shape: Shape,
    labels_len: u8,
    labels: [u8; 16],
    pub(crate) helper: Name,
    pub(crate) security_context: Name,
}

/// The number of an interned string; 0 is none. See `names.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Name(pub(crate) u16);

impl Extra {
    /// The extra part of a flow that has nothing but this reply tuple.
    pub(crate) fn new(reply: &Tuple) -> Self {
        Self {
            reply: Addresses::pack(reply),
            reply_shape: Shape::of(reply),
            labels_len: 0,
            labels: [0; 16],
            helper: Name(0),
            security_context: Name(0),
        }
    }

    /// Keeps the labels; the kernel has at most 128 of them, longer ones are cut.
    pub(crate) fn set_labels(&mut self, labels: &[u8]) {
        let length = labels.len().min(self.labels.len());
        self.labels = [0; 16];
        self.labels[..length].copy_from_slice(&labels[..length]);
        self.labels_len = u8::try_from(length).unwrap_or(16);
    }

    /// The labels, if the flow has ever had any.
    pub(crate) fn labels(&self) -> Option<&[u8]> {
        let length = usize::from(self.labels_len);
        (length > 0).then(|| &self.labels[..length.min(16)])
    }
}

/// The reply tuple of a flow without translation, which is how the kernel inverts the original one.
pub(crate) fn inverted(original: &Tuple, reply_zone: u16) -> Tuple {
    let layer4 = match original.layer4 {
        Layer4::Ports { src, dst } => Layer4::Ports { src: dst, dst: src },
        Layer4::Icmp { kind, code, id } => {
            Layer4::Icmp { kind: inverted_icmp_type(original.family(), kind), code, id }
        }
        Layer4::None => Layer4::None,
    };
    Tuple { src: original.dst, dst: original.src, protocol: original.protocol, layer4, zone: reply_zone }
}

/// `invmap` of nf_conntrack_proto_icmp.c and nf_conntrack_proto_icmpv6.c: what answers a request.
fn inverted_icmp_type(family: Family, kind: u8) -> u8 {
    match (family, kind) {
        (Family::Ipv4, 8) => 0,
        (Family::Ipv4, 0) => 8,
        (Family::Ipv4, 13 | 15 | 17) | (Family::Ipv6, 128 | 139) => kind + 1,
        (Family::Ipv4, 14 | 16 | 18) | (Family::Ipv6, 129 | 140) => kind - 1,
        _ => kind,
    }
}

/// A flow taken out of the table: what a page, a change and the closed ring hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot {
    pub(crate) record: Record,
    pub(crate) extra: Extra,
    /// Of a flow that ended.
    pub(crate) end: Option<End>,
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// CLOCK_REALTIME microseconds.
    pub(crate) usec: u64,
    pub(crate) source: TimeSource,
    pub(crate) reason: EndReason,
    /// The number of the change that ended it: the closed flows' order.
    pub(crate) sequence: u64,
}

impl Snapshot {
    pub(crate) fn original(&self) -> Tuple {
        self.record.key.original()
    }

    pub(crate) fn reply(&self) -> Tuple {
        let Record { key, reply_zone, .. } = &self.record;
        self.extra.reply.unpack(self.extra.reply_shape, key.protocol, *reply_zone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_fits_two_cache_lines() {
        assert!(size_of::<Record>() <= 128, "{}", size_of::<Record>());
    }

    #[test]
    fn a_tuple_survives_packing() {
        let tuples = [
            ("198.18.0.1", "198.18.0.2", 6, Layer4::Ports { src: 1, dst: 65535 }),
            ("198.18.0.1", "198.18.0.2", 1, Layer4::Icmp { kind: 8, code: 3, id: 77 }),
            ("2001:2::1", "2001:2::2", 58, Layer4::Icmp { kind: 128, code: 0, id: 65535 }),
            ("2001:2::1", "2001:2::2", 50, Layer4::None),
        ];
        for (src, dst, protocol, layer4) in tuples {
            let tuple =
                Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap(), protocol, layer4, zone: 7 };
            assert_eq!(Key::new(&tuple).original(), tuple);
        }
    }
}

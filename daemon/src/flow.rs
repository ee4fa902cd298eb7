//! A flow as the table holds it: plain data of a fixed size, 136 bytes, without a heap allocation of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ctnetlink::{Counters, Family, Layer4, Status, Tuple};
use flowbus_interfaces::{EndReason, TimeSource};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::clock::Now;
use crate::state::Checked;

/// What identifies a live flow: family, protocol, original tuple, zone of the original direction. `CTA_ID` is
/// data and not part of it: the kernel hands the same one out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
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

    fn has_port(&self, shape: Shape, port: u16) -> bool {
        shape.layer4() == Shape::PORTS && self.layer4.contains(&port)
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub(crate) struct Shape(u8);

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
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Record {
    pub(crate) key: Key,
    /// Ours: never used twice within an epoch; 0 in a free place.
    pub(crate) id: u64,
    /// CLOCK_REALTIME microseconds; `start_source` says what is known of it.
    pub(crate) start_usec: u64,
    /// The same on CLOCK_BOOTTIME, which does not step.
    pub(crate) start_boottime_usec: u64,
    original_counters: RawCounters,
    reply_counters: RawCounters,
    status: u32,
    pub(crate) mark: u32,
    conntrack_id: u32,
    timeout: u32,
    use_count: u32,
    /// The table's stamp when a message last told of this flow; see `Header::stamp`.
    pub(crate) seen: u32,
    /// Where the flow has an [`Extra`] of its own; [`NO_EXTRA`] where the reply is the plain inversion.
    pub(crate) extra: u32,
    check: u32,
    pub(crate) reply_zone: u16,
    state: u8,
    present: u8,
    start_source: u8,
    /// 1 while no event has told of the flow: it may be one that sends none.
    silent: u8,
    padding: [u8; 2],
}

/// `Record::extra` of a flow that has none.
pub(crate) const NO_EXTRA: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RawCounters {
    packets: u64,
    bytes: u64,
}

impl From<Counters> for RawCounters {
    fn from(counters: Counters) -> Self {
        Self { packets: counters.packets, bytes: counters.bytes }
    }
}

/// Bits of `Record::present`.
#[derive(Clone, Copy)]
enum Present {
    ConntrackId = 1,
    Timeout = 2,
    Use = 4,
    State = 8,
    OriginalCounters = 16,
    ReplyCounters = 32,
}

impl Checked for Record {
    fn check_mut(&mut self) -> &mut u32 {
        &mut self.check
    }
}

/// When a flow began, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) usec: u64,
    pub(crate) boottime_usec: u64,
    pub(crate) source: TimeSource,
}

/// The inverse of `as u8`; what another version might have written counts as estimated.
pub(crate) fn time_source(number: u8) -> TimeSource {
    use TimeSource::{Event, Kernel, Observed};
    [Kernel, Event, Observed]
        .into_iter()
        .find(|source| *source as u8 == number)
        .unwrap_or(TimeSource::Estimated)
}

impl Record {
    /// Where the id stands in a record.
    pub(crate) const ID_OFFSET: usize = std::mem::offset_of!(Self, id);

    /// A record of what the first message about a flow says.
    pub(crate) fn new(id: u64, flow: &ctnetlink::Flow<'_>, start: Start) -> Self {
        let mut record = Self {
            key: Key::new(&flow.original),
            id,
            start_usec: start.usec,
            start_boottime_usec: start.boottime_usec,
            original_counters: RawCounters::default(),
            reply_counters: RawCounters::default(),
            status: 0,
            mark: 0,
            conntrack_id: 0,
            timeout: 0,
            use_count: 0,
            seen: 0,
            extra: NO_EXTRA,
            reply_zone: flow.reply.zone,
            state: 0,
            present: 0,
            start_source: start.source as u8,
            check: 0,
            silent: 0,
            padding: [0; 2],
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
            self.status = status.bits();
        }
        // Sent when non-zero or just changed: absent means 0.
        self.mark = flow.mark.unwrap_or(0);
        self.set(Present::ConntrackId, flow.id, |record, id| record.conntrack_id = id);
        self.set(Present::Timeout, flow.timeout, |record, timeout| record.timeout = timeout);
        let state = flow.protocol_info.map(|info| info.state());
        self.set(Present::State, state, |record, state| record.state = state);
        before != (self.status, self.mark, self.state, self.timeout, self.present, self.conntrack_id)
    }

    /// Takes over a dump's entry. True when something changed besides counters, timeout and start, which a dump
    /// brings up to date without an event.
    pub(crate) fn merge_dumped(&mut self, flow: &ctnetlink::Flow<'_>) -> bool {
        // Taken over first, so that `merge` does not see it move.
        self.set(Present::Timeout, flow.timeout, |record, timeout| record.timeout = timeout);
        let changed = self.merge(flow);
        self.merge_counters(flow);
        changed
    }

    /// Takes over what only dumps and DESTROY carry.
    pub(crate) fn merge_counters(&mut self, flow: &ctnetlink::Flow<'_>) {
        self.set(Present::Use, flow.use_count, |record, count| record.use_count = count);
        self.set(Present::OriginalCounters, flow.original_counters, |record, counters| {
            record.original_counters = counters.into();
        });
        self.set(Present::ReplyCounters, flow.reply_counters, |record, counters| {
            record.reply_counters = counters.into();
        });
        if let Some(start) = flow.start_nsec {
            self.start_usec = start / 1_000;
            self.start_source = TimeSource::Kernel as u8;
        }
    }

    /// Microseconds from the start to `end_usec`, which was learned at `now`. Where the wall clock was set in
    /// between, the clock that does not step tells.
    pub(crate) fn duration_usec(&self, end_usec: u64, now: Now) -> u64 {
        /// The two clocks differ by less when neither was set: by how late a message is read, and by slewing.
        const TOLERANCE_USEC: u64 = 1_000_000;
        let steady = now.boottime_usec_at(end_usec).saturating_sub(self.start_boottime_usec);
        match end_usec.checked_sub(self.start_usec) {
            Some(stamped) if stamped.abs_diff(steady) <= TOLERANCE_USEC => stamped,
            _ => steady,
        }
    }

    /// Forgets the timeout: the kernel has none for an offloaded flow.
    pub(crate) fn clear_timeout(&mut self) {
        self.present &= !(Present::Timeout as u8);
    }

    fn set<T>(&mut self, bit: Present, value: Option<T>, store: impl FnOnce(&mut Self, T)) {
        if let Some(value) = value {
            self.present |= bit as u8;
            store(self, value);
        }
    }

    fn get<T>(&self, bit: Present, value: T) -> Option<T> {
        (self.present & bit as u8 != 0).then_some(value)
    }

    pub(crate) fn conntrack_id(&self) -> Option<u32> {
        self.get(Present::ConntrackId, self.conntrack_id)
    }

    pub(crate) fn timeout(&self) -> Option<u32> {
        self.get(Present::Timeout, self.timeout)
    }

    pub(crate) fn use_count(&self) -> Option<u32> {
        self.get(Present::Use, self.use_count)
    }

    pub(crate) fn status(&self) -> Status {
        Status::from_bits_retain(self.status)
    }

    pub(crate) fn start_source(&self) -> TimeSource {
        time_source(self.start_source)
    }

    /// True while no event has told of the flow.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent != 0
    }

    pub(crate) fn set_silent(&mut self, silent: bool) {
        self.silent = silent.into();
    }

    /// True when the original direction has this port.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        self.key.addresses.has_port(self.key.shape, port)
    }

    /// The name of the protocol's state.
    pub(crate) fn state(&self) -> Option<&'static str> {
        self.get(Present::State, self.state).and_then(|state| ctnetlink::state_name(self.key.protocol, state))
    }

    pub(crate) fn counters(&self) -> (Option<Counters>, Option<Counters>) {
        let counters =
            |bit, raw: RawCounters| self.get(bit, Counters { packets: raw.packets, bytes: raw.bytes });
        (
            counters(Present::OriginalCounters, self.original_counters),
            counters(Present::ReplyCounters, self.reply_counters),
        )
    }
}

/// What few flows have: a translated reply, labels, a helper, a security context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Extra {
    reply: Addresses,
    labels: [u8; 16],
    check: u32,
    pub(crate) helper: Name,
    pub(crate) security_context: Name,
    reply_shape: Shape,
    labels_len: u8,
    padding: [u8; 2],
}

impl Checked for Extra {
    fn check_mut(&mut self) -> &mut u32 {
        &mut self.check
    }
}

/// The number of an interned string; 0 is none. See `names.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
            check: 0,
            padding: [0; 2],
            helper: Name(0),
            security_context: Name(0),
        }
    }

    /// True when the reply direction has this port.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        self.reply.has_port(self.reply_shape, port)
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

/// The parts of a flow that an update can change and a filter can ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before {
    status: u32,
    mark: u32,
    labels: [u8; 16],
    labels_len: u8,
    helper: Name,
    state: u8,
    present: u8,
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// CLOCK_REALTIME microseconds.
    pub(crate) usec: u64,
    pub(crate) source: TimeSource,
    pub(crate) reason: EndReason,
    /// Microseconds from the start.
    pub(crate) duration_usec: u64,
    /// The number of the change that ended it: the closed flows' order.
    pub(crate) sequence: u64,
}

impl Snapshot {
    /// What an update may change of this flow.
    pub(crate) fn changeable(&self) -> Before {
        let Record { status, mark, state, present, .. } = self.record;
        let Extra { labels, labels_len, helper, .. } = self.extra;
        Before { status, mark, labels, labels_len, helper, state, present }
    }

    /// This flow as it was before an update.
    pub(crate) fn with(mut self, before: Before) -> Self {
        let Before { status, mark, labels, labels_len, helper, state, present } = before;
        self.record = Record { status, mark, state, present, ..self.record };
        self.extra = Extra { labels, labels_len, helper, ..self.extra };
        self
    }

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
    fn sizes_are_what_the_documents_say() {
        assert_eq!((size_of::<Record>(), size_of::<Extra>()), (136, 64));
    }

    fn udp() -> Tuple {
        Tuple {
            src: "198.18.0.1".parse().unwrap(),
            dst: "198.18.0.2".parse().unwrap(),
            protocol: 17,
            layer4: Layer4::Ports { src: 1, dst: 2 },
            zone: 0,
        }
    }

    #[test]
    fn a_duration_survives_a_step_of_the_clock() {
        let flow = ctnetlink::Flow::new(udp(), inverted(&udp(), 0));
        const HOUR: u64 = 3_600_000_000;
        let start = Start { usec: 10 * HOUR, boottime_usec: HOUR, source: TimeSource::Event };
        let record = Record::new(1, &flow, start);
        let two_seconds_later = |step: i64| Now {
            realtime_usec: (10 * HOUR + 2_000_000).checked_add_signed(step).unwrap(),
            boottime_usec: HOUR + 2_000_000,
        };
        for step in [0, 3_600_000_000, -3_600_000_000] {
            let now = two_seconds_later(step);
            assert_eq!(record.duration_usec(now.realtime_usec, now), 2_000_000, "step {step}");
        }
        // To the microsecond what the stamps say, while nobody set the clock.
        let now = two_seconds_later(0);
        assert_eq!(record.duration_usec(now.realtime_usec - 7, now), 1_999_993);
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

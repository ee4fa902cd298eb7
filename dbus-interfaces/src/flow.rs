//! A flow as the bus shows it, and the one place where its fields are computed.

use std::net::IpAddr;

use ctnetlink::{Counters, EventKind, Family, Layer4, Status, Tuple, protocol_name};

use crate::text::Text;
use crate::{EndReason, FieldSet, Key, Mark, Owner, SourceNames, Time, TimeSource, Value};

/// What is known of a flow. It borrows, so that a service builds one on the stack for every flow it shows; what
/// follows from other fields (NAT, the mark's parts, names) is computed by [`Flow::visit`].
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// flowbus's own number, never reused within an epoch.
    pub id: u64,
    /// What happened; in events alone.
    pub event: Option<EventKind>,
    /// The number of the change in an event, of the end in a closed flow.
    pub sequence: Option<u64>,
    /// When the change was, microseconds since 1970; in events alone.
    pub event_usec: Option<u64>,
    /// `CTA_ID`.
    pub conntrack_id: Option<u32>,
    /// The original direction.
    pub original: Tuple,
    /// The reply direction.
    pub reply: Tuple,
    /// The name of the protocol's state, from [`ctnetlink::state_name`].
    pub state: Option<&'static str>,
    /// `CTA_STATUS`.
    pub status: Option<Status>,
    /// Seconds until the flow ends without traffic.
    pub timeout: Option<u32>,
    /// The kernel's reference count.
    pub use_count: Option<u32>,
    /// `CTA_MARK`; 0 where the kernel sends none.
    pub mark: u32,
    /// The name of the interface with index [`Mark::interface_index`], also when it is gone, until the
    /// index is used again.
    pub interface: Option<&'a str>,
    /// `CTA_LABELS`.
    pub labels: Option<&'a [u8]>,
    /// The helper's name.
    pub helper: Option<&'a str>,
    /// The security context.
    pub security_context: Option<&'a str>,
    /// Traffic of the original direction.
    pub original_counters: Option<Counters>,
    /// Traffic of the reply direction.
    pub reply_counters: Option<Counters>,
    /// When the flow started.
    pub start: Option<Time>,
    /// When the flow ended.
    pub end: Option<Time>,
    /// Microseconds from start to end, by a clock that does not step.
    pub duration_usec: Option<u64>,
    /// Why the flow ended.
    pub end_reason: Option<EndReason>,
    /// The local process that opened the connection.
    pub initiator: Option<&'a Owner<'a>>,
    /// The local process that accepted the connection.
    pub responder: Option<&'a Owner<'a>>,
}

/// Which ends of a flow are translated, in address or port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translated {
    pub(crate) source: bool,
    pub(crate) destination: bool,
}

impl<'a> Flow<'a> {
    /// A flow of which nothing is known but its number and tuples.
    pub const fn new(id: u64, original: Tuple, reply: Tuple) -> Self {
        Self {
            id,
            event: None,
            sequence: None,
            event_usec: None,
            conntrack_id: None,
            original,
            reply,
            state: None,
            status: None,
            timeout: None,
            use_count: None,
            mark: 0,
            interface: None,
            labels: None,
            helper: None,
            security_context: None,
            original_counters: None,
            reply_counters: None,
            start: None,
            end: None,
            duration_usec: None,
            end_reason: None,
            initiator: None,
            responder: None,
        }
    }

    /// A flow as the kernel reports it, with 0 for the id, which is flowbus's own, and without an interface's name.
    pub fn of_kernel(flow: &'a ctnetlink::Flow<'_>) -> Self {
        let text = |bytes: Option<&'a [u8]>| bytes.and_then(|bytes| std::str::from_utf8(bytes).ok());
        let state = flow.protocol_info.as_ref();
        Self {
            conntrack_id: flow.id,
            state: state.and_then(|state| ctnetlink::state_name(flow.original.protocol, state.state())),
            status: flow.status,
            timeout: flow.timeout,
            use_count: flow.use_count,
            mark: flow.mark.unwrap_or(0),
            labels: flow.labels,
            helper: text(flow.helper),
            security_context: text(flow.security_context),
            original_counters: flow.original_counters,
            reply_counters: flow.reply_counters,
            start: flow.start_nsec.map(|nsec| Time { usec: nsec / 1000, source: TimeSource::Kernel }),
            ..Self::new(0, flow.original, flow.reply)
        }
    }

    /// Hands every field of `fields` that has a value to `sink`, in the order of [`Key`]. Allocates nothing.
    pub fn visit<F>(&self, names: &SourceNames, fields: FieldSet, sink: F)
    where
        F: FnMut(Key, Value<'_>),
    {
        let mut show = Show { fields, sink };
        show.some(Key::Event, self.event.map(|event| Value::Text(event_name(event))));
        show.some(Key::Sequence, self.sequence.map(Value::U64));
        show.some(Key::EventUsec, self.event_usec.map(Value::U64));
        show.value(Key::Id, Value::U64(self.id));
        show.some(Key::ConntrackId, self.conntrack_id.map(Value::U32));
        self.visit_protocol(&mut show);
        self.visit_tuples(&mut show);
        self.visit_nat(&mut show);
        self.visit_icmp(&mut show);
        self.visit_zones(&mut show);
        show.some(Key::State, self.state.map(Value::Text));
        show.some(Key::Status, self.status.map(Value::Status));
        show.some(Key::Timeout, self.timeout.map(Value::U32));
        show.some(Key::Use, self.use_count.map(Value::U32));
        visit_mark(Mark(self.mark), self.interface, names, &mut show);
        show.some(Key::Labels, self.labels.map(Value::Bytes));
        show.some(Key::Helper, self.helper.map(Value::Text));
        show.some(Key::Secctx, self.security_context.map(Value::Text));
        if let Some(Counters { packets, bytes }) = self.original_counters {
            show.value(Key::OrigPackets, Value::U64(packets));
            show.value(Key::OrigBytes, Value::U64(bytes));
        }
        if let Some(Counters { packets, bytes }) = self.reply_counters {
            show.value(Key::ReplyPackets, Value::U64(packets));
            show.value(Key::ReplyBytes, Value::U64(bytes));
        }
        self.visit_times(&mut show);
        show.some(Key::Initiator, self.initiator.map(Value::Owner));
        show.some(Key::Responder, self.responder.map(Value::Owner));
    }

    fn visit_protocol<F: FnMut(Key, Value<'_>)>(&self, show: &mut Show<F>) {
        let family = match self.original.family() {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        };
        show.value(Key::Family, Value::Text(family));
        if show.fields.contains(Key::Protocol) {
            match protocol_name(self.original.protocol) {
                Some(name) => show.value(Key::Protocol, Value::Text(name)),
                None => {
                    let number = Text::number(self.original.protocol);
                    show.value(Key::Protocol, Value::Text(number.as_str()));
                }
            }
        }
        show.value(Key::ProtocolNumber, Value::U8(self.original.protocol));
    }

    fn visit_tuples<F: FnMut(Key, Value<'_>)>(&self, show: &mut Show<F>) {
        const ORIGINAL: [Key; 4] = [Key::Src, Key::Sport, Key::Dst, Key::Dport];
        const REPLY: [Key; 4] = [Key::ReplySrc, Key::ReplySport, Key::ReplyDst, Key::ReplyDport];
        for (tuple, [src, sport, dst, dport]) in [(&self.original, ORIGINAL), (&self.reply, REPLY)] {
            let ports = ports(tuple);
            show.address(src, tuple.src);
            show.some(sport, ports.map(|(src, _)| Value::U16(src)));
            show.address(dst, tuple.dst);
            show.some(dport, ports.map(|(_, dst)| Value::U16(dst)));
        }
    }

    /// Which ends are translated. The identifier of ICMP counts as the source's port.
    pub(crate) fn translated(&self) -> Translated {
        let (original, reply) = (&self.original, &self.reply);
        let (source, destination) = match (original.layer4, reply.layer4) {
            (Layer4::Ports { src, dst }, Layer4::Ports { src: reply_src, dst: reply_dst }) => {
                (src != reply_dst, dst != reply_src)
            }
            (Layer4::Icmp { id, .. }, Layer4::Icmp { id: reply_id, .. }) => (id != reply_id, false),
            _ => (false, false),
        };
        Translated {
            source: source || original.src != reply.dst,
            destination: destination || original.dst != reply.src,
        }
    }

    /// A translated address comes with its port, though that may be unchanged: together they are the translated
    /// endpoint. The identifier of ICMP is shown as `reply_icmp_id` alone.
    fn visit_nat<F: FnMut(Key, Value<'_>)>(&self, show: &mut Show<F>) {
        const NAT: FieldSet =
            FieldSet::EMPTY.with(Key::NatSrc).with(Key::NatSport).with(Key::NatDst).with(Key::NatDport);
        if !show.fields.intersects(NAT) {
            return;
        }
        let (translated, ports) = (self.translated(), ports(&self.reply));
        if translated.source {
            show.address(Key::NatSrc, self.reply.dst);
            show.some(Key::NatSport, ports.map(|(_, dst)| Value::U16(dst)));
        }
        if translated.destination {
            show.address(Key::NatDst, self.reply.src);
            show.some(Key::NatDport, ports.map(|(src, _)| Value::U16(src)));
        }
    }

    fn visit_icmp<F: FnMut(Key, Value<'_>)>(&self, show: &mut Show<F>) {
        const ORIGINAL: [Key; 3] = [Key::IcmpType, Key::IcmpCode, Key::IcmpId];
        const REPLY: [Key; 3] = [Key::ReplyIcmpType, Key::ReplyIcmpCode, Key::ReplyIcmpId];
        for (layer4, keys) in [(self.original.layer4, ORIGINAL), (self.reply.layer4, REPLY)] {
            if let Layer4::Icmp { kind, code, id } = layer4 {
                show.value(keys[0], Value::U8(kind));
                show.value(keys[1], Value::U8(code));
                show.value(keys[2], Value::U16(id));
            }
        }
    }

    fn visit_zones<F: FnMut(Key, Value<'_>)>(&self, show: &mut Show<F>) {
        match (self.original.zone, self.reply.zone) {
            (0, 0) => {}
            (original, reply) if original == reply => show.value(Key::Zone, Value::U16(original)),
            (original, reply) => {
                show.some(Key::OrigZone, (original != 0).then_some(Value::U16(original)));
                show.some(Key::ReplyZone, (reply != 0).then_some(Value::U16(reply)));
            }
        }
    }

    fn visit_times<F: FnMut(Key, Value<'_>)>(&self, show: &mut Show<F>) {
        show.some(Key::StartUsec, self.start.map(|start| Value::U64(start.usec)));
        show.some(Key::EndUsec, self.end.map(|end| Value::U64(end.usec)));
        show.some(Key::StartSource, self.start.map(|start| Value::Text(start.source.name())));
        show.some(Key::EndSource, self.end.map(|end| Value::Text(end.source.name())));
        show.some(Key::DurationUsec, self.duration_usec.map(Value::U64));
        show.some(Key::EndReason, self.end_reason.map(|reason| Value::Text(reason.name())));
    }
}

/// Hands the fields of a mark to `sink`: what `DecodeMark` answers.
pub fn visit_mark_fields(
    mark: Mark,
    interface: Option<&str>,
    names: &SourceNames,
    sink: impl FnMut(Key, Value<'_>),
) {
    visit_mark(mark, interface, names, &mut Show { fields: FieldSet::ALL, sink });
}

fn visit_mark<F: FnMut(Key, Value<'_>)>(
    mark: Mark,
    interface: Option<&str>,
    names: &SourceNames,
    show: &mut Show<F>,
) {
    show.value(Key::Mark, Value::U32(mark.0));
    show.value(Key::Source, Value::Text(names.name(mark.source_id())));
    show.value(Key::SourceId, Value::U8(mark.source_id()));
    show.value(Key::Vpn, Value::Text(mark.vpn()));
    show.value(Key::Qos, Value::Text(mark.qos().name()));
    show.some(Key::RoutingTable, mark.routing_table().map(Value::U16));
    show.some(Key::Interface, interface.map(Value::Text));
    show.value(Key::LegacySnat, Value::Bool(mark.legacy_snat()));
}

/// A sink that takes only the chosen fields.
struct Show<F> {
    fields: FieldSet,
    sink: F,
}

impl<F: FnMut(Key, Value<'_>)> Show<F> {
    #[inline]
    fn value(&mut self, key: Key, value: Value<'_>) {
        if self.fields.contains(key) {
            (self.sink)(key, value);
        }
    }

    #[inline]
    fn some(&mut self, key: Key, value: Option<Value<'_>>) {
        if let Some(value) = value {
            self.value(key, value);
        }
    }

    #[inline]
    fn address(&mut self, key: Key, address: IpAddr) {
        if self.fields.contains(key) {
            (self.sink)(key, Value::Text(Text::address(address).as_str()));
        }
    }
}

pub(crate) const fn ports(tuple: &Tuple) -> Option<(u16, u16)> {
    match tuple.layer4 {
        Layer4::Ports { src, dst } => Some((src, dst)),
        _ => None,
    }
}

/// The name of what happened, as `event` shows it.
pub const fn event_name(event: EventKind) -> &'static str {
    match event {
        EventKind::New => "new",
        EventKind::Update => "update",
        EventKind::Destroy => "destroy",
    }
}

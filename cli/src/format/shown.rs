//! What conntrack's forms show of a flow, the line as well as XML.

use flowbus_interfaces::{EventKind, Key};

use super::labels::LabelNames;
use crate::fields::Fields;

/// conntrack's modifiers of `-o`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Modifiers {
    /// Family and its number first.
    pub(crate) extended: bool,
    /// The kernel's id.
    pub(crate) id: bool,
    /// When the event was.
    pub(crate) timestamp: bool,
    /// Start and end.
    pub(crate) ktimestamp: bool,
    /// Labels by name.
    pub(crate) labels: Option<LabelNames>,
}

impl Modifiers {
    /// The names of the flow's labels, where they are to be shown and there are some.
    pub(super) fn labels(&self, flow: &dyn Fields) -> Option<Vec<String>> {
        let names = self.labels.as_ref()?.names(&flow.value(Key::Labels)?.to_string());
        (!names.is_empty()).then_some(names)
    }
}

/// What a line shows.
pub(super) const KEYS: &[Key] = &[
    Key::EventUsec,
    Key::ConntrackId,
    Key::Family,
    Key::Protocol,
    Key::ProtocolNumber,
    Key::Src,
    Key::Sport,
    Key::Dst,
    Key::Dport,
    Key::ReplySrc,
    Key::ReplySport,
    Key::ReplyDst,
    Key::ReplyDport,
    Key::IcmpType,
    Key::IcmpCode,
    Key::IcmpId,
    Key::ReplyIcmpType,
    Key::ReplyIcmpCode,
    Key::ReplyIcmpId,
    Key::Zone,
    Key::OrigZone,
    Key::ReplyZone,
    Key::State,
    Key::Status,
    Key::Timeout,
    Key::Use,
    Key::Mark,
    Key::Labels,
    Key::Helper,
    Key::Secctx,
    Key::OrigPackets,
    Key::OrigBytes,
    Key::ReplyPackets,
    Key::ReplyBytes,
    Key::StartUsec,
    Key::EndUsec,
    Key::StartSource,
    Key::EndSource,
];

/// The keys of one direction.
pub(super) struct Direction {
    pub(super) name: &'static str,
    pub(super) zone_word: &'static str,
    pub(super) src: Key,
    pub(super) dst: Key,
    pub(super) sport: Key,
    pub(super) dport: Key,
    pub(super) icmp: [Key; 3],
    pub(super) zone: Key,
    pub(super) packets: Key,
    pub(super) bytes: Key,
}

pub(super) const ORIGINAL: Direction = Direction {
    name: "original",
    zone_word: "zone-orig",
    src: Key::Src,
    dst: Key::Dst,
    sport: Key::Sport,
    dport: Key::Dport,
    icmp: [Key::IcmpType, Key::IcmpCode, Key::IcmpId],
    zone: Key::OrigZone,
    packets: Key::OrigPackets,
    bytes: Key::OrigBytes,
};

pub(super) const REPLY: Direction = Direction {
    name: "reply",
    zone_word: "zone-reply",
    src: Key::ReplySrc,
    dst: Key::ReplyDst,
    sport: Key::ReplySport,
    dport: Key::ReplyDport,
    icmp: [Key::ReplyIcmpType, Key::ReplyIcmpCode, Key::ReplyIcmpId],
    zone: Key::ReplyZone,
    packets: Key::ReplyPackets,
    bytes: Key::ReplyBytes,
};

/// GRE has keys where others have ports.
pub(super) const GRE: u64 = 47;

/// The protocol's name as conntrack has it: those without one are all `unknown`.
pub(super) fn protocol(flow: &dyn Fields) -> String {
    let name = flow.text(Key::Protocol).unwrap_or_default();
    let number = name.bytes().all(|byte| byte.is_ascii_digit());
    if number { "unknown".to_owned() } else { name.into_owned() }
}

/// The family's number in the kernel: `AF_INET`, `AF_INET6`.
pub(super) fn family_number(family: &str) -> u8 {
    if family == "ipv6" { 10 } else { 2 }
}

/// Microseconds since 1970 of the kernel's own stamp; what was seen otherwise is no stamp of the kernel.
pub(super) fn stamp(flow: &dyn Fields, time: Key, source: Key) -> Option<u64> {
    (flow.text(source)? == "kernel").then(|| flow.number(time)).flatten()
}

/// Seconds from the kernel's start to its stop, to the event that is shown, or to `now` (microseconds since 1970).
///
/// conntrack subtracts whole seconds, but in its XML whole nanoseconds where the kernel gives both times: `exact` is that.
pub(super) fn delta_time(flow: &dyn Fields, now: u64, exact: bool) -> Option<u64> {
    let start = stamp(flow, Key::StartUsec, Key::StartSource)?;
    let stop = stamp(flow, Key::EndUsec, Key::EndSource);
    if let Some(stop) = stop.filter(|_| exact) {
        return Some(stop.saturating_sub(start) / 1_000_000);
    }
    let stop = stop.or_else(|| flow.number(Key::EventUsec)).unwrap_or(now);
    Some((stop / 1_000_000).saturating_sub(start / 1_000_000))
}

/// What the kernel's event of this kind does not carry, though the flow has it: conntrack cannot show it, and
/// whoever reads its lines does not expect it.
pub(super) struct Shown {
    pub(super) counters: bool,
    pub(super) delta: bool,
    pub(super) references: bool,
    pub(super) mark_zero: bool,
    /// Labels, helper, security context.
    pub(super) extensions: bool,
}

impl Shown {
    pub(super) fn of(event: Option<EventKind>) -> Self {
        let (listing, destroy) = (event.is_none(), event == Some(EventKind::Destroy));
        Self {
            counters: listing || destroy,
            delta: listing || destroy,
            references: listing,
            mark_zero: listing,
            extensions: !destroy,
        }
    }
}

/// When an event was. A daemon that does not say so knows of a start and an end their own time; else it is `now`.
pub(super) fn event_time(flow: &dyn Fields, event: EventKind, now: u64) -> u64 {
    let known = flow.number(Key::EventUsec).or_else(|| match event {
        EventKind::New => flow.number(Key::StartUsec),
        EventKind::Destroy => flow.number(Key::EndUsec),
        EventKind::Update => None,
    });
    known.unwrap_or(now)
}

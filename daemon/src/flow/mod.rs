//! A flow as the table holds it: plain data of a fixed size, 136 bytes, without a heap allocation of its own.

mod closed;
mod extra;
mod key;
mod owners;
mod process;
mod record;

use ctnetlink::Tuple;
use flowbus_interfaces::{EndReason, TimeSource};

pub(crate) use closed::{ClosedFlow, ClosedLimits, Ends};
pub(crate) use extra::{Extra, NameNumber};
pub(crate) use key::{Key, TCP, UDP, inverted};
pub(crate) use owners::{OwnerNumber, Owners, ProcessNumber};
pub(crate) use process::{Identity, ProcessEntry, ProcessText, ProcessTexts};
#[cfg(test)]
pub(crate) use record::present_bits;
pub(crate) use record::{NO_EXTRA, Record, Silence, Start, time_source};

/// The layouts of all types here that lie in the restart state, for its tests.
#[cfg(test)]
pub(crate) fn layouts() -> [String; 12] {
    [
        ClosedFlow::layout(),
        Record::layout(),
        record::RawCounters::layout(),
        Key::layout(),
        key::Addresses::layout(),
        key::Shape::layout(),
        Extra::layout(),
        NameNumber::layout(),
        Owners::layout(),
        OwnerNumber::layout(),
        ProcessEntry::layout(),
        Identity::layout(),
    ]
}

/// A flow taken out of the table: what a page, a change and the closed ring hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot {
    pub(crate) record: Record,
    /// The extra part of a flow that has one.
    pub(crate) extra: Option<Extra>,
    pub(crate) owners: Owners,
    /// The end of a flow that ended.
    pub(crate) end: Option<End>,
}

/// The parts of a flow that an update can change and a filter can ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prior {
    status: u32,
    mark: u32,
    owners: Owners,
    state: u8,
    present: u8,
}

/// Those parts of a flow's extra part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PriorExtra {
    labels: [u8; 16],
    labels_len: u8,
    helper: NameNumber,
}

impl Prior {
    pub(crate) fn new(record: &Record, owners: Owners) -> Self {
        let Record { status, mark, state, present, .. } = *record;
        Self { status, mark, owners, state, present }
    }
}

impl PriorExtra {
    pub(crate) const EMPTY: Self = Self { labels: [0; 16], labels_len: 0, helper: NameNumber(0) };

    pub(crate) fn new(extra: &Extra) -> Self {
        let Extra { labels, labels_len, helper, .. } = *extra;
        Self { labels, labels_len, helper }
    }
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
    pub(crate) fn prior(&self) -> (Prior, PriorExtra) {
        let extra = self.extra.as_ref().map_or(PriorExtra::EMPTY, PriorExtra::new);
        (Prior::new(&self.record, self.owners), extra)
    }

    /// This flow as it was before an update.
    pub(crate) fn with(mut self, before: Prior, extra_before: PriorExtra) -> Self {
        let Prior { status, mark, owners, state, present } = before;
        let PriorExtra { labels, labels_len, helper } = extra_before;
        self.owners = owners;
        let Self { record, extra, .. } = &mut self;
        (record.status, record.mark, record.state, record.present) = (status, mark, state, present);
        // Without an extra part now it had none before.
        if let Some(extra) = extra {
            (extra.labels, extra.labels_len, extra.helper) = (labels, labels_len, helper);
        }
        self
    }

    pub(crate) fn original(&self) -> Tuple {
        self.record.key.original()
    }

    pub(crate) fn reply(&self) -> Tuple {
        let Record { key, reply_zone, .. } = &self.record;
        match &self.extra {
            Some(extra) => extra.reply(key.protocol, *reply_zone),
            None => inverted(&key.original(), *reply_zone),
        }
    }

    /// The labels, if the flow has ever had any.
    pub(crate) fn labels(&self) -> Option<&[u8]> {
        self.extra.as_ref().and_then(Extra::labels)
    }

    pub(crate) fn helper(&self) -> NameNumber {
        self.extra.map_or(NameNumber(0), |extra| extra.helper)
    }

    pub(crate) fn security_context(&self) -> NameNumber {
        self.extra.map_or(NameNumber(0), |extra| extra.security_context)
    }
}

#[cfg(test)]
mod tests {
    use ctnetlink::Layer4;

    use super::*;
    use crate::clock::Now;

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

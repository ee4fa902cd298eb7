//! The part that every flow has.

use std::hint::black_box;

use ctnetlink::{Counters, Status};
use flowbus_interfaces::TimeSource;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::key::{Key, TCP};
use crate::checksum::{Checksummed, layout_of};
use crate::clock::Now;

/// What the table keeps of every flow. Present bits distinguish a value from its absence.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Record {
    pub(crate) key: Key,
    /// flowbus's own number, never used twice within an epoch; 0 in a free slot.
    pub(crate) id: u64,
    /// CLOCK_REALTIME microseconds; `start_source` says what is known of it.
    pub(crate) start_usec: u64,
    /// The start in microseconds of CLOCK_BOOTTIME, which does not step.
    pub(crate) start_boottime_usec: u64,
    original_counters: RawCounters,
    reply_counters: RawCounters,
    pub(super) status: u32,
    pub(crate) mark: u32,
    conntrack_id: u32,
    timeout: u32,
    use_count: u32,
    /// The table's stamp when a message last reported this flow; see `Header::stamp`.
    pub(crate) seen: u32,
    /// The slot of the flow's [`Extra`]; [`NO_EXTRA`] where the reply is the plain inversion.
    pub(crate) extra: u32,
    check: u32,
    pub(crate) reply_zone: u16,
    pub(super) state: u8,
    pub(super) present: u8,
    start_source: u8,
    /// A `Silence`.
    silent: u8,
    /// 1 where an end has an owner: the state has them beside the record.
    owned: u8,
    padding: u8,
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

layout_of!(Record {
    key,
    id,
    start_usec,
    start_boottime_usec,
    original_counters,
    reply_counters,
    status,
    mark,
    conntrack_id,
    timeout,
    use_count,
    seen,
    extra,
    check,
    reply_zone,
    state,
    present,
    start_source,
    silent,
    owned,
    padding,
});
layout_of!(RawCounters { packets, bytes });

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

/// The bits, for the tests that pin them.
#[cfg(test)]
pub(crate) fn present_bits() -> [u8; 6] {
    use Present::{ConntrackId, OriginalCounters, ReplyCounters, State, Timeout, Use};
    [ConntrackId, Timeout, Use, State, OriginalCounters, ReplyCounters].map(|bit| bit as u8)
}

impl Checksummed for Record {
    const CHECK: usize = std::mem::offset_of!(Self, check);
}

/// Whether a flow sends all its events, as far as is known. The numbers stand in the restart state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Silence {
    /// The flow sends all its events.
    Tells = 0,
    /// A dump showed of the flow what no event had: it may send none, until an event of it arrives.
    Unheard = 1,
    /// The flow does not send all, or need not: its events are masked, or a second dump found what no event reported.
    Masked = 2,
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
            owned: 0,
            padding: 0,
        };
        record.merge(flow);
        record.merge_counters(flow);
        record
    }

    /// Reads a byte of each cache line that the record lies in.
    pub(crate) fn prefetch(&self) {
        black_box((self.key.words()[0], self.original_counters.packets, self.reply_zone));
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
            // The start moves by the same distance on the other clock.
            let (start_usec, before) = (start / 1_000, self.start_usec);
            self.start_boottime_usec = (self.start_boottime_usec + start_usec.saturating_sub(before))
                .saturating_sub(before.saturating_sub(start_usec));
            self.start_usec = start_usec;
            self.start_source = TimeSource::Kernel as u8;
        }
    }

    /// Whether a message has the start that the kernel gave this flow.
    pub(crate) fn has_start_of(&self, flow: &ctnetlink::Flow<'_>) -> bool {
        let is_known = self.start_source() == TimeSource::Kernel;
        is_known && flow.start_nsec.is_some_and(|start| start / 1_000 == self.start_usec)
    }

    /// Microseconds from the start to `end_usec`, which was learned at `now`. Where the wall clock was set in
    /// between, the clock that does not step decides.
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

    /// True while events need not report what becomes of the flow.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent != Silence::Tells as u8
    }

    pub(crate) fn set_silence(&mut self, silence: Silence) {
        self.silent = silence as u8;
    }

    /// Notes an event of the flow.
    pub(crate) fn hear(&mut self) {
        if self.silent == Silence::Unheard as u8 {
            self.set_silence(Silence::Tells);
        }
    }

    /// Notes that a dump found what no event reported. The event may still be on its way, so it takes a second time for the flow to
    /// count as masked.
    pub(crate) fn miss(&mut self) {
        self.set_silence(if self.is_silent() { Silence::Masked } else { Silence::Unheard });
    }

    /// True when an end of the flow has an owner.
    pub(crate) fn is_owned(&self) -> bool {
        self.owned != 0
    }

    pub(crate) fn set_owned(&mut self, owned: bool) {
        self.owned = owned.into();
    }

    /// The ports of the original direction, where its protocol has some.
    pub(crate) fn ports(&self) -> &[u16] {
        self.key.addresses.ports(self.key.shape)
    }

    /// Whether the end that the flow was opened to takes part in it: a connection was established, a datagram answered.
    pub(crate) fn is_answered(&self) -> bool {
        let sign = if self.key.protocol() == TCP { Status::ASSURED } else { Status::SEEN_REPLY };
        self.status().contains(sign)
    }

    /// Whether the flow is neither answered nor refused.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.is_answered() && self.state() != Some("CLOSE")
    }

    /// How far the flow has come. The kernel sends an event for each step.
    pub(crate) fn progress(&self) -> (Status, u8) {
        (self.status() & (Status::SEEN_REPLY | Status::ASSURED), self.state)
    }

    /// Whether this is a TCP connection that was established and has ended: both ends closed it, or one reset it.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.state(), Some("TIME_WAIT" | "CLOSE")) && self.status().contains(Status::ASSURED)
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

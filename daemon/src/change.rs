//! What changed in the table, and the log of it.

use ctnetlink::EventKind;

use crate::flow::{End, Extra, Owners, Prior, PriorExtra, Record, Snapshot};
use crate::log::{Log, Numbered, PIECE};

/// A change that sends an event, without what few flows have: that is in its [`Details`].
#[derive(Clone, Copy, Debug)]
struct Change {
    /// The change's number, larger by one than that of the change before.
    sequence: u64,
    /// When it was, CLOCK_REALTIME microseconds.
    time_usec: u64,
    /// The flow after the change.
    record: Record,
    owners: Owners,
    what: What,
}

/// What happened to the flow.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    New,
    /// What an update changed, as it was.
    Update(Prior),
    Destroy(End),
}

/// The extra part of a change whose flow has one.
#[derive(Clone, Copy, Debug)]
struct Details {
    /// The change's number.
    sequence: u64,
    extra: Extra,
    /// What an update changed of it, as it was.
    before: PriorExtra,
}

/// The log keeps about 2.3 MiB, 50 ms of the fastest burst that was measured.
impl Numbered for Change {
    const KEPT: usize = 12 * 1024;

    fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// Enough for each change that is kept to have one, about 1.3 MiB; nothing where no flow has an extra part. The newest are kept, also
/// where their changes are not any more.
impl Numbered for Details {
    const KEPT: usize = Change::KEPT + PIECE;

    fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// A change as its followers read it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowEvent {
    pub(crate) sequence: u64,
    pub(crate) time_usec: u64,
    pub(crate) kind: EventKind,
    /// The flow after the change.
    pub(crate) flow: Snapshot,
    /// What an update changed, as it was: a follower's filter may have let the flow pass then.
    before: Option<(Prior, PriorExtra)>,
}

impl FlowEvent {
    fn new(change: &Change, details: Option<&Details>) -> Self {
        let Change { sequence, time_usec, record, owners, what } = *change;
        let (kind, prior, end) = match what {
            What::New => (EventKind::New, None, None),
            What::Update(prior) => (EventKind::Update, Some(prior), None),
            What::Destroy(end) => (EventKind::Destroy, None, Some(end)),
        };
        let flow = Snapshot { record, extra: details.map(|details| details.extra), owners, end };
        let extra_before = details.map_or(PriorExtra::EMPTY, |details| details.before);
        Self { sequence, time_usec, kind, flow, before: prior.map(|prior| (prior, extra_before)) }
    }

    /// The flow before the change; `None` of a new one.
    pub(crate) fn flow_before(&self) -> Option<Snapshot> {
        match (self.kind, self.before) {
            (EventKind::New, _) => None,
            (EventKind::Update, before) => before.map(|(prior, extra)| self.flow.with(prior, extra)),
            (EventKind::Destroy, _) => Some(Snapshot { end: None, ..self.flow }),
        }
    }
}

/// Changes that are not in the log yet.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    changes: Vec<Change>,
    details: Vec<Details>,
}

impl Changes {
    /// Adds the next change. `before`: what an update changed of the extra part, as it was.
    pub(crate) fn push(
        &mut self,
        sequence: u64,
        time_usec: u64,
        flow: &Snapshot,
        what: What,
        before: PriorExtra,
    ) {
        let Snapshot { record, owners, .. } = *flow;
        self.changes.push(Change { sequence, time_usec, record, owners, what });
        if let Some(extra) = flow.extra {
            self.details.push(Details { sequence, extra, before });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = FlowEvent> + '_ {
        joined(self.changes.iter(), self.details.iter())
    }
}

#[cfg(test)]
impl Changes {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { changes: Vec::with_capacity(capacity), details: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.changes.len()
    }

    pub(crate) fn truncate(&mut self, length: usize) {
        self.changes.truncate(length);
        let newest = self.changes.last().map_or(0, |change| change.sequence);
        self.details.retain(|details| details.sequence <= newest);
    }

    pub(crate) fn clear(&mut self) {
        self.truncate(0);
    }
}

/// The newest changes.
#[derive(Debug, Default)]
pub(crate) struct ChangeLog {
    changes: Log<Change>,
    details: Log<Details>,
}

impl ChangeLog {
    /// An empty log after the change with this number.
    pub(crate) fn starting_after(newest: u64) -> Self {
        Self { changes: Log::starting_after(newest), details: Log::default() }
    }

    /// Appends changes, leaving `changes` empty for its next use.
    pub(crate) fn append(&mut self, changes: &mut Changes) {
        self.changes.append(&mut changes.changes);
        self.details.append(&mut changes.details);
    }

    /// The number of the newest change.
    pub(crate) fn newest(&self) -> u64 {
        self.changes.newest()
    }

    /// The changes numbered above `after` that are still there, as [`Log::after`] returns them.
    pub(crate) fn after(&self, after: u64) -> impl Iterator<Item = FlowEvent> + '_ {
        joined(self.changes.after(after), self.details.after(after))
    }
}

/// Each change with its details; both are in the order of the numbers, and details can be older than the first change.
fn joined<'a>(
    changes: impl Iterator<Item = &'a Change> + 'a,
    details: impl Iterator<Item = &'a Details> + 'a,
) -> impl Iterator<Item = FlowEvent> + 'a {
    let mut details = details.peekable();
    changes.map(move |change| {
        while details.next_if(|details| details.sequence < change.sequence).is_some() {}
        FlowEvent::new(change, details.next_if(|details| details.sequence == change.sequence))
    })
}

#[cfg(test)]
mod tests {
    use ctnetlink::{Layer4, Tuple};

    use super::*;
    use crate::flow::{Start, inverted};

    #[test]
    fn sizes_are_what_the_documents_say() {
        assert_eq!((size_of::<Change>(), size_of::<Details>(), size_of::<FlowEvent>()), (192, 96, 312));
    }

    /// A new flow, which has labels where `labels` is not 0.
    fn flow(labels: u8) -> Snapshot {
        let original = Tuple {
            src: "198.18.0.1".parse().unwrap(),
            dst: "198.18.0.2".parse().unwrap(),
            protocol: 17,
            layer4: Layer4::Ports { src: 1, dst: 2 },
            zone: 0,
        };
        let flow = ctnetlink::Flow::new(original, inverted(&original, 0));
        let start = Start { usec: 0, boottime_usec: 0, source: flowbus_interfaces::TimeSource::Event };
        let mut extra = Extra::new(&flow.reply);
        extra.set_labels(&[labels; 16]);
        let extra = (labels != 0).then_some(extra);
        Snapshot { record: Record::new(1, &flow, start), extra, owners: Owners::default(), end: None }
    }

    /// Labels of a change, and those before it.
    fn labels(event: &FlowEvent) -> [Option<u8>; 2] {
        let first = |flow: &Snapshot| flow.labels().map(|labels| labels[0]);
        [first(&event.flow), event.flow_before().and_then(|flow| first(&flow))]
    }

    #[test]
    fn the_log_gives_each_change_its_own_details() {
        // Turns of all sizes: one that shares a piece, one that fills it, and one that is cut into pieces.
        for turn in [1, 600, PIECE, 3 * PIECE + 7, 2 * Change::KEPT] {
            let (mut log, mut changes) = (ChangeLog::starting_after(100), Changes::default());
            // Nearly every change has details, and those of the earliest outlive it in the log.
            let labels_of =
                |sequence: u64| if sequence.is_multiple_of(1000) { 0 } else { 1 + (sequence % 200) as u8 };
            let last = 100 + 3 * Change::KEPT as u64;
            for sequence in 101..=last {
                let (flow, (prior, _)) = (flow(labels_of(sequence)), flow(0).prior());
                let (_, before) = self::flow(7).prior();
                changes.push(sequence, sequence, &flow, What::Update(prior), before);
                if changes.len() == turn || sequence == last {
                    log.append(&mut changes);
                }
            }
            assert_eq!(log.newest(), last);
            for after in [0, 100, last - Change::KEPT as u64, last - 5, last] {
                let events: Vec<FlowEvent> = log.after(after).collect();
                let kept = (last - after).min(Change::KEPT as u64);
                assert!(events.len() as u64 >= kept, "{turn} {after}: {} of {kept}", events.len());
                for (event, sequence) in events.iter().rev().zip((0..=last).rev()) {
                    let number = labels_of(sequence);
                    let expected = if number == 0 { [None, None] } else { [Some(number), Some(7)] };
                    assert_eq!((event.sequence, labels(event)), (sequence, expected), "{turn} {after}");
                }
            }
        }
    }
}

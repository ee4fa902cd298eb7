//! When the table is compared with the kernel's although no loss was seen.
//!
//! Some flows do not send all their events: those older than the first listener, those whose events a rule masks, all
//! of them where nf_conntrack_events is 0. While there is one, or a sign of one, sweeps follow each other at a pace that
//! slows down while they find nothing. The signs: rules that set masks, a kernel's count that is not ours at two looks,
//! an event of a flow whose birth was not reported. And rarely everything is swept: a dump can skip an entry.
//!
//! A mask that nobody can see leaves the count as it is. What it hides is a flow that seems to wait for an answer, or a step
//! that a later event shows to have been left out. Either makes a *check* due, a sweep that costs less time and comes ever
//! less often: waiting is what flows without an answer do.

use std::time::{Duration, Instant};

use crate::handle::Look;
use crate::table::{Merged, Table};

/// The pace while flows may change or end unseen.
const SHORTEST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(16);
/// A dump costs the kernel time: sweeps take at most one part in `SHARE` of it, checks one in `SHARE_OF_CHECKS`.
const SHARE: u32 = 20;
const SHARE_OF_CHECKS: u32 = 100;
/// How long after the last dump the first check comes, the next after twice as long.
const CHECK: Duration = LONGEST;
/// How long an event of a flow whose birth was not reported is a sign that more such flows follow.
const MEMORY: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Sweeps {
    /// The pace when every flow sends all its events.
    interval: Duration,
    /// The pace while some flows do not send all their events.
    silent_interval: Duration,
    /// The last dump, and how long it took.
    last_dump: Instant,
    took: Duration,
    /// Whether the kernel's setting or its rules keep flows from sending events, and the kernel has flows.
    muted: bool,
    /// How much larger the kernel's count was than ours at the last look.
    difference: i64,
    /// Whether the difference was there at two looks.
    differs: bool,
    /// A difference that a sweep did not end, and how long it is left alone.
    known: Option<(i64, Duration)>,
    /// `Table::unannounced` at the last look, and when it last moved.
    unannounced: u64,
    /// `events_lost` at the last look: births may be among the lost events.
    lost: u64,
    surprised: Option<Instant>,
    /// `Table::left_out` at the last look.
    left_out: u64,
    /// The newest flow at the last look, and at the one before: up to there it is known which flows wait.
    newest: u64,
    looked_at: u64,
    check: Option<Check>,
}

/// A sweep that a flow which waits, or a step that was left out, makes due.
#[derive(Clone, Copy, Debug)]
struct Check {
    due: Instant,
    /// How long after the dump before it the check is due.
    wait: Duration,
}

impl Sweeps {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            silent_interval: SHORTEST,
            last_dump: Instant::now(),
            took: Duration::ZERO,
            muted: false,
            difference: 0,
            differs: false,
            known: None,
            unannounced: 0,
            lost: 0,
            surprised: None,
            left_out: 0,
            newest: 0,
            looked_at: 0,
            check: None,
        }
    }

    /// Notes a dump that was merged, and how long it took.
    pub(super) fn dump_ended(&mut self, merged: Merged, took: Duration, now: Instant) {
        (self.last_dump, self.took) = (now, took);
        let next = if merged.is_empty() { (self.silent_interval * 2).min(LONGEST) } else { SHORTEST };
        self.silent_interval = next.max(took * SHARE);
        // The kernel counts entries that it does not show, such as those that wait for a listener of its reliable mode.
        self.known = (self.differs && merged.is_empty()).then(|| {
            let wait = self.known.map_or(LONGEST, |(_, wait)| wait * 2);
            (self.difference, wait.min(self.interval.max(LONGEST)))
        });
        (self.difference, self.differs) = (0, false);
        let again = self.check.map(|check| check.wait * 2).filter(|wait| *wait < self.interval);
        self.check = again.map(|wait| self.check_after(wait));
    }

    /// Notes a look at the kernel's count and settings, when all events are read that were sent before it. True when
    /// events of unannounced flows begin to be a sign.
    pub(super) fn looked(&mut self, look: Look, table: &Table, now: Instant) -> bool {
        let header = table.header();
        self.muted = look.is_muted() && (header.active > 0 || look.count.is_some_and(|count| count > 0));
        let before = std::mem::take(&mut self.difference);
        if let Some(count) = look.count {
            let moved = header.counters.births_and_ends() - look.births_and_ends;
            let difference = i64::from(count) - i64::from(header.active);
            // What was born or ended meanwhile is in one of the numbers and not in the other.
            if difference.unsigned_abs() > moved {
                self.difference = difference;
            }
        }
        self.differs = before != 0 && self.difference.signum() == before.signum();
        if self.difference == 0 {
            self.known = None;
        }
        let unannounced = table.unannounced();
        let lost = header.counters.events_lost;
        let has_lost = std::mem::replace(&mut self.lost, lost) != lost;
        let surprise = std::mem::replace(&mut self.unannounced, unannounced) != unannounced && !has_lost;
        let first = surprise && !self.is_surprised(now);
        if surprise {
            self.surprised = Some(now);
        }
        self.look_for_waiting(table, now);
        first
    }

    /// Makes a check due where a flow waits that was there at the last look, or a step was left out.
    fn look_for_waiting(&mut self, table: &Table, now: Instant) {
        let newest = std::mem::replace(&mut self.newest, table.header().last_id);
        let first = std::mem::replace(&mut self.looked_at, newest) + 1;
        let left_out = table.left_out();
        if std::mem::replace(&mut self.left_out, left_out) != left_out || table.has_waiting(first..=newest) {
            let Check { due, wait } = self.check_after(CHECK);
            let due = self.check.map_or(due.max(now), |before| before.due.min(due.max(now)));
            self.check = Some(Check { due, wait });
        }
    }

    /// A check that comes `wait` after the last dump, or later where dumps take long.
    fn check_after(&self, wait: Duration) -> Check {
        Check { due: self.last_dump + wait.max(self.took * SHARE_OF_CHECKS), wait }
    }

    fn is_surprised(&self, now: Instant) -> bool {
        self.surprised.is_some_and(|since| now.saturating_duration_since(since) < MEMORY)
    }

    /// True while the table is right by sweeps alone.
    pub(super) fn are_needed(&self, table: &Table, now: Instant) -> bool {
        self.muted
            || self.differs
            || table.silent_count() > 0
            || self.is_surprised(now)
            || self.check.is_some_and(|check| now.saturating_duration_since(check.due) > LONGEST)
    }

    pub(super) fn is_due(&self, table: &Table, now: Instant) -> bool {
        self.until_due(table, now).is_some_and(|duration| duration.is_zero())
    }

    /// How long until the next sweep; `None` while there is nothing to look for.
    pub(super) fn until_due(&self, table: &Table, now: Instant) -> Option<Duration> {
        let mut interval = None;
        let mut within = |duration: Duration| {
            interval = Some(interval.map_or(duration, |interval: Duration| interval.min(duration)));
        };
        if table.header().active > 0 {
            within(self.interval);
            if let Some(check) = self.check {
                within(check.due.saturating_duration_since(self.last_dump));
            }
        }
        if self.muted || table.silent_count() > 0 || self.is_surprised(now) {
            within(self.silent_interval);
        }
        match self.known {
            _ if !self.differs => {}
            Some((known, wait)) if known == self.difference => within(wait),
            _ => within(self.took * SHARE),
        }
        interval.map(|interval| (self.last_dump + interval).saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use ctnetlink::{EventKind, Flow, Layer4, Status, Tuple};

    use super::*;
    use crate::change::Changes;
    use crate::clock::Now;
    use crate::flow::{ClosedLimits, inverted};
    use crate::state::State;

    const INTERVAL: Duration = Duration::from_secs(300);

    fn table(active: u32) -> Table {
        let limits = ClosedLimits { capacity: 8, maximum_age: INTERVAL };
        let mut table = Table::new(State::create().unwrap(), limits);
        table.change().header().active = active;
        table
    }

    fn look(count: u32) -> Look {
        Look { count: Some(count), off: false, masked: false, births_and_ends: 0 }
    }

    #[test]
    fn nothing_is_swept_while_there_is_nothing_to_look_for() {
        let (mut sweeps, table, now) = (Sweeps::new(INTERVAL), table(0), Instant::now());
        assert_eq!(sweeps.until_due(&table, now), None);
        sweeps.looked(look(0), &table, now);
        assert_eq!(sweeps.until_due(&table, now), None);
    }

    #[test]
    fn a_count_that_is_not_ours_at_two_looks_makes_a_sweep_due() {
        let (mut sweeps, table, now) = (Sweeps::new(INTERVAL), table(3), Instant::now());
        sweeps.looked(look(4), &table, now);
        assert!(!sweeps.is_due(&table, now), "one look may have been between two flows");
        sweeps.looked(look(5), &table, now);
        assert!(sweeps.is_due(&table, now));
        sweeps.looked(look(2), &table, now);
        assert!(!sweeps.is_due(&table, now), "more, then fewer: flows come and go");
    }

    #[test]
    fn what_moved_during_a_look_is_no_difference() {
        let (mut sweeps, mut table, now) = (Sweeps::new(INTERVAL), table(3), Instant::now());
        table.change().header().counters.events_new = 2;
        for _ in 0..3 {
            sweeps.looked(look(5), &table, now);
            assert!(!sweeps.is_due(&table, now));
        }
    }

    #[test]
    fn a_difference_that_a_sweep_does_not_end_is_swept_for_ever_less_often() {
        let (mut sweeps, table, mut now) = (Sweeps::new(INTERVAL), table(3), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..7 {
            sweeps.looked(look(4), &table, now);
            sweeps.looked(look(4), &table, now);
            let wait = sweeps.until_due(&table, now).unwrap();
            waits.push(wait.as_secs());
            now += wait;
            sweeps.dump_ended(Merged::default(), Duration::ZERO, now);
        }
        assert_eq!(waits, [0, 16, 32, 64, 128, 256, 300]);
        // Another difference is another flow.
        sweeps.looked(look(5), &table, now);
        sweeps.looked(look(5), &table, now);
        assert!(sweeps.is_due(&table, now));
    }

    fn tell(table: &mut Table, kind: EventKind, status: Status) {
        let original = Tuple {
            src: "198.18.0.1".parse().unwrap(),
            dst: "198.18.0.2".parse().unwrap(),
            protocol: 17,
            layer4: Layer4::Ports { src: 1024, dst: 53 },
            zone: 0,
        };
        let flow = Flow { status: Some(status), ..Flow::new(original, inverted(&original, 0)) };
        table.change().apply(kind, &flow, Now::read(), &mut Changes::default());
    }

    /// The table was the kernel's now.
    fn swept(table: &Table, took: Duration) -> (Sweeps, Instant) {
        let (mut sweeps, now) = (Sweeps::new(INTERVAL), Instant::now());
        sweeps.looked(look(0), table, now);
        sweeps.dump_ended(Merged::default(), took, now);
        (sweeps, now)
    }

    #[test]
    fn a_flow_that_waits_from_one_look_to_the_next_is_compared_for_ever_less_often() {
        let mut table = table(0);
        let (mut sweeps, mut now) = swept(&table, Duration::ZERO);
        tell(&mut table, EventKind::New, Status::CONFIRMED);
        sweeps.looked(look(1), &table, now);
        assert_eq!(sweeps.until_due(&table, now), Some(INTERVAL), "it may be answered at any moment");
        let mut waits = Vec::new();
        for _ in 0..6 {
            sweeps.looked(look(1), &table, now);
            let wait = sweeps.until_due(&table, now).unwrap();
            waits.push(wait.as_secs());
            now += wait;
            sweeps.dump_ended(Merged::default(), Duration::ZERO, now);
        }
        assert_eq!(waits, [16, 32, 64, 128, 256, 300]);
        tell(&mut table, EventKind::Destroy, Status::CONFIRMED);
        assert_eq!(sweeps.until_due(&table, now), None, "no flow, no sweep");
    }

    #[test]
    fn a_flow_that_is_answered_from_one_look_to_the_next_needs_no_check() {
        let mut table = table(0);
        let (mut sweeps, now) = swept(&table, Duration::ZERO);
        tell(&mut table, EventKind::New, Status::CONFIRMED);
        sweeps.looked(look(1), &table, now);
        tell(&mut table, EventKind::Update, Status::SEEN_REPLY);
        sweeps.looked(look(1), &table, now);
        assert_eq!(sweeps.until_due(&table, now), Some(INTERVAL));
    }

    #[test]
    fn checks_take_a_hundredth_of_the_time_and_are_missed_only_after_it() {
        let mut table = table(0);
        let (mut sweeps, now) = swept(&table, Duration::from_secs(1));
        tell(&mut table, EventKind::New, Status::CONFIRMED);
        for _ in 0..2 {
            sweeps.looked(look(1), &table, now);
        }
        let wait = Duration::from_secs(100);
        assert_eq!(sweeps.until_due(&table, now), Some(wait));
        assert!(!sweeps.are_needed(&table, now + wait));
        assert!(sweeps.are_needed(&table, now + wait + 2 * LONGEST));
    }

    #[test]
    fn a_step_that_was_left_out_makes_a_check_due() {
        let mut table = table(0);
        let (mut sweeps, now) = swept(&table, Duration::ZERO);
        tell(&mut table, EventKind::New, Status::CONFIRMED);
        tell(&mut table, EventKind::Update, Status::SEEN_REPLY | Status::ASSURED);
        sweeps.looked(look(1), &table, now);
        assert_eq!(sweeps.until_due(&table, now), Some(CHECK));
    }

    #[test]
    fn muted_flows_are_swept_at_the_pace_of_silence() {
        let (mut sweeps, table, now) = (Sweeps::new(INTERVAL), table(0), Instant::now());
        let off = Look { off: true, ..look(0) };
        sweeps.looked(off, &table, now);
        assert_eq!(sweeps.until_due(&table, now), None, "the kernel has no flow");
        sweeps.looked(Look { count: Some(1), ..off }, &table, now);
        assert!(sweeps.until_due(&table, now).is_some_and(|wait| wait <= SHORTEST));
        assert!(sweeps.are_needed(&table, now));
    }
}

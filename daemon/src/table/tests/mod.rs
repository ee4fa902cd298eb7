//! The rules, one by one; in `model` against a kernel, in any order.

mod model;
mod silence;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use ctnetlink::{Counters, EventKind, Flow, Layer4, Status, Tuple};
use flowbus_interfaces::{EndReason, TimeSource};

use super::{Merged, Outcome, Table};
use crate::change::Changes;
use crate::clock::Now;
use crate::flow::{ClosedLimits, Snapshot, inverted};
use crate::state::{KNOWN_ENDS, State};

const LIMITS: ClosedLimits =
    ClosedLimits { capacity: 50_000, maximum_age: Duration::from_secs(24 * 60 * 60) };
const NOW: Now = Now { realtime_usec: 1_000_000_000, boottime_usec: 5_000_000 };

fn original(number: u16) -> Tuple {
    Tuple {
        src: Ipv4Addr::new(198, 18, 0, 1).into(),
        dst: Ipv4Addr::new(198, 18, 0, 2).into(),
        protocol: 17,
        layer4: Layer4::Ports { src: number, dst: 53 },
        zone: 0,
    }
}

fn flow(number: u16, id: u32) -> Flow<'static> {
    let original = original(number);
    Flow {
        status: Some(Status::CONFIRMED),
        id: Some(id),
        timeout: Some(30),
        ..Flow::new(original, inverted(&original, 0))
    }
}

/// A table and the changes that it published.
struct World {
    table: Table,
    changes: Changes,
}

impl World {
    fn new() -> Self {
        Self { table: Table::new(State::create().unwrap(), LIMITS), changes: Changes::default() }
    }

    fn apply(&mut self, kind: EventKind, flow: &Flow<'_>) -> Outcome {
        let outcome = self.table.apply(kind, flow, NOW, &mut self.changes);
        self.table.change().commit();
        outcome
    }

    /// Applies what was received at once, as the tracker does.
    fn apply_batch<'a>(&mut self, events: impl Iterator<Item = &'a (EventKind, Flow<'static>)> + Clone) {
        self.table.prefetch(events.clone().map(|(kind, flow)| (*kind, flow)));
        for (kind, flow) in events {
            self.table.apply(*kind, flow, NOW, &mut self.changes);
        }
    }

    /// Merges what came of a dump at once.
    fn merge_batch<'a>(&mut self, entries: impl Iterator<Item = &'a Flow<'static>> + Clone) {
        self.table.prefetch(entries.clone().map(|flow| (EventKind::New, flow)));
        for flow in entries {
            self.table.apply_dump_entry(flow, NOW, &mut self.changes);
        }
    }

    /// Ends this life in the middle of a change, before it is published.
    fn restart(self, told: usize) -> Self {
        let Self { table, mut changes } = self;
        let memfd = table.state().memfd().try_clone_to_owned().unwrap();
        drop(table);
        let (state, refused) = State::open(memfd).unwrap();
        assert!(refused.is_none(), "{refused:?}");
        changes.truncate(told);
        let limits = ClosedLimits { capacity: state.header.closed_capacity, ..LIMITS };
        Self { table: Table::new(state, limits), changes }
    }

    fn active(&self) -> Vec<Snapshot> {
        self.table.active_after(0).collect()
    }

    fn closed(&mut self) -> Vec<Snapshot> {
        self.table.closed_before(u64::MAX, NOW).collect()
    }

    fn kinds(&self) -> Vec<EventKind> {
        self.changes.iter().map(|change| change.kind).collect()
    }
}

#[test]
fn a_flow_is_born_changes_and_ends_with_numbered_changes() {
    let mut world = World::new();
    world.apply(EventKind::New, &flow(1, 7));
    world.apply(EventKind::Update, &Flow { status: Some(Status::ASSURED), ..flow(1, 7) });
    let end = Flow {
        original_counters: Some(Counters { packets: 2, bytes: 99 }),
        stop_nsec: Some(3_000),
        timeout: None,
        ..flow(1, 7)
    };
    world.apply(EventKind::Destroy, &end);
    assert_eq!(world.kinds(), [EventKind::New, EventKind::Update, EventKind::Destroy]);
    assert_eq!(world.changes.iter().map(|change| change.sequence).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(world.active().is_empty());
    let closed = world.closed();
    assert_eq!(closed.len(), 1);
    let end = closed[0].end.unwrap();
    assert_eq!((end.usec, end.source, end.reason), (3, TimeSource::Kernel, EndReason::Destroyed));
    assert_eq!(closed[0].record.counters().0, Some(Counters { packets: 2, bytes: 99 }));
    assert_eq!(closed[0].record.timeout(), Some(30), "what DESTROY does not carry is kept");
}

#[test]
fn helper_labels_and_start_are_kept_from_before() {
    let mut world = World::new();
    let first = Flow { helper: Some(b"ftp"), labels: Some(&[1, 0, 0, 0]), ..flow(1, 7) };
    world.apply(EventKind::New, &first);
    let before = world.active()[0];
    world.apply(EventKind::Update, &Flow { status: Some(Status::ASSURED), ..flow(1, 7) });
    let after = world.active()[0];
    assert_eq!(after.extra, before.extra);
    assert_eq!(after.record.start_usec, before.record.start_usec);
    assert_eq!(after.labels(), Some(&[1, 0, 0, 0][..]));
    assert_eq!(&*world.table.name_strings().get(after.helper()).unwrap(), "ftp");
}

#[test]
fn the_mark_goes_back_to_zero_when_a_message_has_none() {
    let mut world = World::new();
    world.apply(EventKind::New, &Flow { mark: Some(5), ..flow(1, 7) });
    world.apply(EventKind::Update, &flow(1, 7));
    assert_eq!(world.active()[0].record.mark, 0);
}

#[test]
fn a_repeated_new_changes_nothing() {
    let mut world = World::new();
    assert_eq!(world.apply(EventKind::New, &flow(1, 7)), Outcome::Applied);
    assert_eq!(world.apply(EventKind::New, &flow(1, 7)), Outcome::Repeated);
    assert_eq!(world.changes.len(), 1);
}

#[test]
fn a_late_destroy_of_an_older_incarnation_closes_nobody() {
    let mut world = World::new();
    world.apply(EventKind::New, &flow(1, 7));
    world.apply(EventKind::Destroy, &flow(1, 7));
    world.apply(EventKind::New, &flow(1, 8));
    for _ in 0..90 {
        assert_eq!(world.apply(EventKind::Destroy, &flow(1, 7)), Outcome::Repeated);
    }
    assert_eq!(world.active().len(), 1);
    assert_eq!(world.closed().len(), 1);
}

#[test]
fn a_late_update_of_a_closed_flow_does_not_raise_it() {
    let mut world = World::new();
    world.apply(EventKind::New, &flow(1, 7));
    world.apply(EventKind::Destroy, &flow(1, 7));
    assert_eq!(world.apply(EventKind::Update, &flow(1, 7)), Outcome::Repeated);
    assert!(world.active().is_empty());
}

#[test]
fn a_new_with_another_id_replaces_the_live_flow() {
    let mut world = World::new();
    world.apply(EventKind::New, &flow(1, 7));
    world.apply(EventKind::New, &flow(1, 8));
    assert_eq!(world.active()[0].record.id, 2);
    let end = world.closed()[0].end.unwrap();
    assert_eq!((end.reason, end.source), (EndReason::Replaced, TimeSource::Estimated));
}

#[test]
fn a_new_with_the_same_id_is_another_flow_after_a_loss() {
    let mut world = World::new();
    world.apply(EventKind::New, &flow(1, 7));
    world.table.note_loss();
    world.apply(EventKind::New, &flow(1, 7));
    assert_eq!(world.active()[0].record.id, 2);
    assert_eq!(world.apply(EventKind::New, &flow(1, 7)), Outcome::Repeated, "it was seen since the loss");
}

#[test]
fn an_update_of_an_unknown_flow_adds_it_as_observed() {
    let mut world = World::new();
    world.apply(EventKind::Update, &flow(1, 7));
    assert_eq!(world.kinds(), [EventKind::New]);
    assert_eq!(world.active()[0].record.start_source(), TimeSource::Observed);
}

#[test]
fn a_destroy_of_an_unknown_flow_is_told_once() {
    let mut world = World::new();
    assert_eq!(world.apply(EventKind::Destroy, &flow(1, 7)), Outcome::Applied);
    assert_eq!(world.apply(EventKind::Destroy, &flow(1, 7)), Outcome::Repeated);
    assert_eq!(world.kinds(), [EventKind::Destroy]);
    assert_eq!(world.closed().len(), 1);
}

#[test]
fn the_same_tuple_recreated_has_a_new_id_every_time() {
    let mut world = World::new();
    for _ in 0..20_000 {
        world.apply(EventKind::New, &flow(1, 7));
        world.apply(EventKind::Destroy, &flow(1, 7));
    }
    let ids: HashSet<u64> = world.closed().iter().map(|flow| flow.record.id).collect();
    assert_eq!(ids.len(), 20_000);
}

#[test]
fn equal_tuples_in_two_zones_are_two_flows() {
    let mut world = World::new();
    let mut other = flow(1, 7);
    other.original.zone = 9;
    other.reply.zone = 9;
    world.apply(EventKind::New, &flow(1, 7));
    world.apply(EventKind::New, &other);
    assert_eq!(world.active().len(), 2);
    world.apply(EventKind::Destroy, &other);
    assert_eq!(world.active()[0].original().zone, 0);
}

#[test]
fn a_dump_brings_counters_and_timeouts_without_an_event() {
    let mut world = World::new();
    world.apply(EventKind::New, &flow(1, 7));
    world.table.begin_dump();
    let entry = Flow {
        timeout: Some(3),
        use_count: Some(2),
        original_counters: Some(Counters { packets: 4, bytes: 400 }),
        start_nsec: Some(77_000),
        ..flow(1, 7)
    };
    world.table.apply_dump_entry(&entry, NOW, &mut world.changes);
    world.table.end_dump(true, NOW, &mut world.changes);
    assert_eq!(world.changes.len(), 1);
    let record = world.active()[0].record;
    assert_eq!((record.timeout(), record.use_count(), record.start_usec), (Some(3), Some(2), 77));
    assert_eq!(record.start_source(), TimeSource::Kernel);
}

#[test]
fn an_incomplete_dump_closes_nothing() {
    let mut world = World::new();
    world.apply(EventKind::New, &flow(1, 7));
    world.table.begin_dump();
    let merged = world.table.end_dump(false, NOW, &mut world.changes);
    assert_eq!(merged.closed, 0);
    assert_eq!(world.active().len(), 1);
}

/// A table in which this many flows began and ended, of which it keeps `capacity` for ten seconds.
fn table_of_ended(count: u16, capacity: u32) -> Table {
    let limits = ClosedLimits { capacity, maximum_age: Duration::from_secs(10) };
    let mut table = Table::new(State::create().unwrap(), limits);
    for number in 0..count {
        for kind in [EventKind::New, EventKind::Destroy] {
            table.apply(kind, &flow(number, 7), NOW, &mut Changes::default());
        }
    }
    table
}

#[test]
fn closed_flows_are_bounded_by_count_and_age() {
    let mut table = table_of_ended(5, 3);
    assert_eq!((table.header().closed_count, table.header().counters.closed_evicted), (3, 2));
    assert_eq!(table.closed_before(u64::MAX, NOW).count(), 3);
    let later = Now { boottime_usec: NOW.boottime_usec + 11_000_000, ..NOW };
    assert_eq!(table.closed_before(u64::MAX, later).count(), 0);
}

#[test]
fn what_is_forgotten_of_the_ends_is_known_exactly() {
    let mut table = table_of_ended(5, 3);
    // Ends have the numbers 2, 4, 6, 8 and 10, of which the first two are forgotten.
    let mut forgotten =
        |first, last, now| table.forgotten(first, last, now).map(|ends| (ends.count, ends.last));
    assert_eq!(forgotten(1, 10, NOW), Some((2, 4)));
    assert_eq!(forgotten(3, 10, NOW), Some((1, 4)));
    assert_eq!(forgotten(1, 3, NOW), Some((1, 2)));
    assert_eq!([forgotten(3, 3, NOW), forgotten(5, 10, NOW), forgotten(11, 10, NOW)], [None; 3]);
    let later = Now { boottime_usec: NOW.boottime_usec + 11_000_000, ..NOW };
    assert_eq!(forgotten(3, 10, later), Some((4, 10)));
    assert_eq!(forgotten(3, 9, later), Some((3, 8)));
}

#[test]
fn no_fewer_ends_are_forgotten_than_there_were_however_long_ago() {
    let mut table = table_of_ended(3, 1);
    table.change().header().sequence += KNOWN_ENDS;
    let mut forgotten = |first, last| table.forgotten(first, last, NOW).map(|ends| (ends.count, ends.last));
    assert_eq!(forgotten(1, u64::MAX), Some((2, 5)));
    assert_eq!(forgotten(2, u64::MAX), Some((2, 5)));
    assert_eq!(forgotten(5, u64::MAX), Some((1, 5)), "no more than there were changes");
    assert_eq!(forgotten(6, u64::MAX), None);
}

#[test]
fn the_closed_are_listed_newest_first_and_by_the_number_of_their_end() {
    let mut world = World::new();
    for number in 0..4 {
        world.apply(EventKind::New, &flow(number, 7));
    }
    for number in [2, 0, 3] {
        world.apply(EventKind::Destroy, &flow(number, 7));
    }
    let ends: Vec<u64> = world.closed().iter().map(|flow| flow.end.unwrap().sequence).collect();
    assert_eq!(ends, [7, 6, 5]);
    let older: Vec<u64> = world.table.closed_before(7, NOW).map(|flow| flow.end.unwrap().sequence).collect();
    assert_eq!(older, [6, 5]);
}

#[test]
fn a_kill_in_a_change_that_ends_more_flows_than_the_ring_has_spare_places_takes_nothing_away() {
    let limits = ClosedLimits { capacity: 100, ..LIMITS };
    let mut world =
        World { table: Table::new(State::create().unwrap(), limits), changes: Changes::default() };
    for number in 0..300 {
        world.apply(EventKind::New, &flow(number, 7));
    }
    for number in 0..100 {
        world.apply(EventKind::Destroy, &flow(number, 7));
    }
    let show = |world: &mut World| -> Vec<String> {
        let closed = world.closed();
        world.active().iter().chain(&closed).map(|flow| format!("{flow:?}")).collect()
    };
    let (before, told) = (show(&mut world), world.changes.len());
    let ends: Vec<_> = (100..250).map(|number| (EventKind::Destroy, flow(number, 7))).collect();
    world.apply_batch(ends.iter());
    assert_eq!(world.active().len(), 50);
    let mut world = world.restart(told);
    assert!(show(&mut world) == before, "{:?}", world.table.header());
}

#[test]
fn a_change_has_the_kernels_time_or_that_of_its_reception() {
    let mut world = World::new();
    let born = Flow { start_nsec: Some(7_000), ..flow(1, 1) };
    let told = Flow { event_nsec: Some(9_000), status: Some(Status::ASSURED), ..flow(1, 1) };
    let later = Flow { status: Some(Status::SEEN_REPLY), ..flow(1, 1) };
    let ended = Flow { stop_nsec: Some(11_000), ..flow(1, 1) };
    for (kind, flow) in [
        (EventKind::New, born),
        (EventKind::Update, told),
        (EventKind::Update, later),
        (EventKind::Destroy, ended),
    ] {
        world.apply(kind, &flow);
    }
    let times: Vec<u64> = world.changes.iter().map(|change| change.time_usec).collect();
    assert_eq!(times, [7, 9, NOW.realtime_usec, 11]);
}

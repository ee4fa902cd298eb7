//! Flows that do not send all their events, and the signs of them.

use super::*;

/// A dump that shows this flow, and has no event.
fn sweep(world: &mut World, entry: &Flow<'static>) -> Merged {
    world.table.begin_dump();
    world.merge_batch([entry].into_iter());
    world.table.end_dump(true, NOW, &mut world.changes)
}

#[test]
fn a_flow_that_a_dump_changes_is_silent_until_an_event_tells_of_it() {
    let mut world = World::new();
    let changed = |status| Flow { status: Some(status), ..flow(1, 7) };
    world.apply(EventKind::New, &flow(1, 7));
    assert!(sweep(&mut world, &flow(1, 7)).is_empty());
    assert_eq!(world.table.silent_count(), 0, "a dump that changes nothing");
    assert_eq!(sweep(&mut world, &changed(Status::SEEN_REPLY)).changed, 1);
    assert_eq!(world.table.silent_count(), 1);
    // The event was only late.
    world.apply(EventKind::Update, &changed(Status::SEEN_REPLY));
    assert_eq!(world.table.silent_count(), 0);
    // Missed twice it is masked, whatever comes.
    sweep(&mut world, &changed(Status::ASSURED));
    sweep(&mut world, &changed(Status::ASSURED | Status::SEEN_REPLY));
    world.apply(EventKind::Update, &changed(Status::SEEN_REPLY));
    assert_eq!(world.table.silent_count(), 1);
    world.apply(EventKind::Destroy, &flow(1, 7));
    assert_eq!(world.table.silent_count(), 0);
}

#[test]
fn a_flow_that_enters_a_flow_table_is_not_silent() {
    let mut world = World::new();
    world.apply(EventKind::New, &flow(1, 7));
    let offloaded = Status::CONFIRMED | Status::OFFLOAD;
    sweep(&mut world, &Flow { status: Some(offloaded), timeout: None, ..flow(1, 7) });
    assert_eq!((world.table.silent_count(), world.active()[0].record.status()), (0, offloaded));
}

#[test]
fn while_rules_mask_events_every_flow_is_silent_and_stays_it() {
    let mut world = World::new();
    world.apply(EventKind::New, &flow(1, 7));
    world.table.set_masked(true);
    world.apply(EventKind::New, &flow(2, 8));
    world.apply(EventKind::Update, &Flow { status: Some(Status::ASSURED), ..flow(1, 7) });
    assert_eq!(world.table.silent_count(), 2);
    world.table.set_masked(false);
    world.apply(EventKind::New, &flow(3, 9));
    assert_eq!(world.table.silent_count(), 2);
    let world = world.restart(0);
    assert_eq!(world.table.silent_count(), 2, "a mask stays with its flow, also over a restart");
}

#[test]
fn an_end_whose_birth_was_not_told_is_a_sign_but_not_before_the_first_dump() {
    let mut world = World::new();
    world.table.change().header().resync = 1;
    world.apply(EventKind::Destroy, &flow(1, 7));
    assert_eq!(world.table.unannounced(), 0);
    world.table.change().header().resync = 0;
    world.apply(EventKind::Destroy, &flow(2, 8));
    world.apply(EventKind::Update, &flow(3, 9));
    assert_eq!(world.table.unannounced(), 2);
}

#[test]
fn an_event_that_shows_a_step_that_none_told_is_a_sign() {
    let answered = |number, status| Flow { status: Some(status), ..flow(number, 7) };
    let steps = [Status::CONFIRMED, Status::SEEN_REPLY, Status::SEEN_REPLY | Status::ASSURED];
    let mut world = World::new();
    for number in [1, 2] {
        world.apply(EventKind::New, &answered(number, steps[0]));
    }
    for status in &steps[1..] {
        world.apply(EventKind::Update, &answered(1, *status));
    }
    world.apply(EventKind::Destroy, &answered(1, steps[2] | Status::DYING));
    assert_eq!(world.table.left_out(), 0, "every step had its event");
    world.apply(EventKind::Update, &answered(2, steps[2]));
    assert_eq!(world.table.left_out(), 1);
    world.apply(EventKind::New, &answered(3, steps[0]));
    world.apply(EventKind::Destroy, &answered(3, steps[1] | Status::DYING));
    assert_eq!(world.table.left_out(), 2);
}

//! Reports that need not be settled, because a flow was given their owner when it began: whatever happens, flows have the owners that they
//! have where all is settled.

use ctnetlink::{EventKind, Flow};
use flowbus_attribution::{Confidence, Event, Kind, Process};
use proptest::prelude::*;

use crate::flow::Snapshot;

use super::world::{OwnersWorld, UDP, answered, in_zone, plain, process, socket, tuple};

const HERE: &str = "198.18.0.1:4000";
const ANYWHERE: &str = "0.0.0.0:4000";
const SERVER: &str = "198.18.0.2:53";
const NOBODY: &str = "0.0.0.0:0";

/// What happens in both worlds.
#[derive(Clone, Debug)]
enum Step {
    Report(Box<Event>),
    Flow(EventKind, Box<Flow<'static>>),
    Settle,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let who = || (1..3_u32).prop_map(|pid| process(pid, "client"));
    let report = |kind: Kind, ends: &'static [(&str, &str)]| {
        (who(), prop::sample::select(ends)).prop_map(move |(process, (local, remote))| {
            let confidence = if kind == Kind::Snapshot { Confidence::Snapshot } else { Confidence::Exact };
            Step::Report(Box::new(socket(kind, UDP, local, remote, Process { confidence, ..process })))
        })
    };
    let flows = vec![
        plain(UDP, HERE, SERVER),
        in_zone(1, plain(UDP, HERE, SERVER)),
        // The socket's packets are its replies.
        plain(UDP, SERVER, HERE),
        Flow { id: Some(2), ..Flow::new(tuple(UDP, SERVER, "198.18.0.9:53"), tuple(UDP, HERE, SERVER)) },
    ];
    let flow = (prop::sample::select(flows), any::<bool>());
    let flow = flow.prop_map(|(flow, is_answered)| if is_answered { answered(flow) } else { flow });
    let kinds = vec![EventKind::New, EventKind::New, EventKind::Update, EventKind::Destroy];
    prop_oneof![
        4 => report(Kind::Send, &[(HERE, SERVER), (HERE, SERVER), (ANYWHERE, SERVER)]),
        1 => report(Kind::Bind, &[(HERE, NOBODY), (ANYWHERE, NOBODY)]),
        1 => report(Kind::Snapshot, &[(HERE, NOBODY), (HERE, SERVER), (ANYWHERE, NOBODY)]),
        1 => report(Kind::Release, &[(HERE, NOBODY)]),
        5 => (prop::sample::select(kinds), flow).prop_map(|(kind, flow)| Step::Flow(kind, Box::new(flow))),
        3 => Just(Step::Settle),
        1 => prop::sample::select(&[1_u64, 12, 30][..]).prop_map(Step::Pass),
    ]
}

impl Step {
    fn happen(&self, world: &mut OwnersWorld) {
        match self {
            Self::Report(event) => world.report(event),
            Self::Flow(EventKind::Destroy, flow) => world.apply(EventKind::Destroy, flow),
            Self::Flow(kind, flow) => {
                // The kernel gives each direction of a zone to one flow.
                let directions = [flow.original, flow.reply];
                let is_there = |other: Snapshot| {
                    other.original() != flow.original
                        && [other.original(), other.reply()].iter().any(|sent| directions.contains(sent))
                };
                if !world.table.active_after(0).any(is_there) {
                    world.apply(*kind, flow);
                }
            }
            Self::Settle => world.settle(),
            Self::Pass(seconds) => world.pass(*seconds),
        }
    }
}

#[test]
fn another_process_that_sends_the_same_way_is_noticed_though_the_flow_was_given_an_owner() {
    let mut world = OwnersWorld::with_addresses(&["198.18.0.1"]);
    world.report(&socket(Kind::Send, UDP, HERE, SERVER, process(1, "client")));
    world.born(&plain(UDP, HERE, SERVER));
    assert_eq!(world.owners(), [Some(1), None]);
    world.report(&socket(Kind::Send, UDP, HERE, SERVER, process(2, "client")));
    world.settle();
    let flow = world.table.active_after(0).next().unwrap();
    assert_eq!(world.owner(flow.owners.initiator), Some((2, "shared")));
}

#[test]
fn what_was_given_to_a_flow_is_given_to_the_next_one_in_its_place() {
    let mut world = OwnersWorld::with_addresses(&["198.18.0.1"]);
    world.report(&socket(Kind::Send, UDP, HERE, SERVER, process(1, "client")));
    world.born(&plain(UDP, HERE, SERVER));
    world.apply(EventKind::Destroy, &plain(UDP, HERE, SERVER));
    world.born(&plain(UDP, SERVER, HERE));
    assert_eq!(world.owners(), [None, None]);
    world.settle();
    assert_eq!(world.owners(), [None, Some(1)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_not_settled_again_would_change_nothing(steps in prop::collection::vec(step(), 1..30)) {
        let [mut world, mut settled] = [(); 2].map(|()| OwnersWorld::with_addresses(&["198.18.0.1"]));
        for step in steps {
            settled.table.attribution_mut().unwrap().sockets.forget_given();
            step.happen(&mut world);
            step.happen(&mut settled);
            let owners = |world: &OwnersWorld| -> Vec<_> {
                world.table.active_after(0).map(|flow| (flow.record.id, flow.owners)).collect()
            };
            prop_assert_eq!(owners(&world), owners(&settled));
            prop_assert_eq!(world.changes.len(), settled.changes.len());
            let pending = |world: &OwnersWorld| world.table.attribution().unwrap().sockets.pending();
            prop_assert_eq!(pending(&world), pending(&settled));
        }
    }
}

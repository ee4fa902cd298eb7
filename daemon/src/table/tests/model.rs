//! Any order of events, dumps, losses and kills, against a model of the kernel.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use ctnetlink::{EventKind, Flow, Layer4, Tuple};
use flowbus_interfaces::EndReason;
use proptest::prelude::*;

use super::{NOW, World, flow};

/// What the kernel and the world around the table may do.
#[derive(Clone, Debug)]
enum Step {
    Create(u16),
    Change(u16, u32),
    Destroy(u16),
    /// The table reads this many events, as one change.
    Read(usize),
    /// The table reads this many events and is killed before they are committed: the next life reads them again.
    Kill(usize),
    /// The kernel sends the last event again.
    Repeat,
    BeginDump,
    /// The kernel walks over this many tuples.
    Walk(usize),
    /// The table reads this many dump entries, as one change.
    ReadDump(usize),
    /// The table reads this many dump entries and is killed before they are committed.
    KillInDump(usize),
    /// The queue overflows.
    Overrun,
}

fn step() -> impl Strategy<Value = Step> {
    let tuple = 0_u16..12;
    prop_oneof![
        5 => tuple.clone().prop_map(Step::Create),
        3 => (tuple.clone(), 0_u32..4).prop_map(|(tuple, mark)| Step::Change(tuple, mark)),
        5 => tuple.prop_map(Step::Destroy),
        5 => (1_usize..8).prop_map(Step::Read),
        1 => (1_usize..8).prop_map(Step::Kill),
        1 => Just(Step::Repeat),
        2 => Just(Step::BeginDump),
        3 => (1_usize..8).prop_map(Step::Walk),
        3 => (1_usize..8).prop_map(Step::ReadDump),
        1 => (1_usize..8).prop_map(Step::KillInDump),
        1 => Just(Step::Overrun),
    ]
}

/// The kernel's table, the queue of events and a dump on its way.
struct ModelKernel {
    live: BTreeMap<u16, Flow<'static>>,
    events: VecDeque<(EventKind, Flow<'static>)>,
    last: Option<(EventKind, Flow<'static>)>,
    created: u32,
    /// Whether a recreated tuple gets its old id again.
    same_id: bool,
    /// Where the walk is, and what it has shown.
    dump: Option<(u16, VecDeque<Flow<'static>>)>,
}

impl ModelKernel {
    fn send(&mut self, kind: EventKind, flow: Flow<'static>) {
        self.last = Some((kind, flow.clone()));
        self.events.push_back((kind, flow));
    }

    fn create(&mut self, tuple: u16) {
        if self.live.contains_key(&tuple) {
            return;
        }
        self.created += 1;
        let flow = flow(tuple, if self.same_id { 7 } else { self.created });
        self.live.insert(tuple, flow.clone());
        self.send(EventKind::New, flow);
    }

    fn change(&mut self, tuple: u16, mark: u32) {
        if let Some(flow) = self.live.get_mut(&tuple) {
            flow.mark = (mark != 0).then_some(mark);
            let flow = flow.clone();
            self.send(EventKind::Update, flow);
        }
    }

    fn destroy(&mut self, tuple: u16) {
        if let Some(flow) = self.live.remove(&tuple) {
            self.send(EventKind::Destroy, flow);
        }
    }

    fn walk(&mut self, count: usize) {
        if let Some((position, shown)) = &mut self.dump {
            for _ in 0..count {
                shown.extend(self.live.get(position).cloned());
                *position += 1;
            }
        }
    }
}

/// Runs the steps, then lets everything arrive, with one more dump where events were lost.
fn converge(steps: Vec<Step>, same_id: bool, repeats: bool) -> (World, ModelKernel, bool) {
    let mut world = World::new();
    let mut kernel = ModelKernel {
        live: BTreeMap::new(),
        events: VecDeque::new(),
        last: None,
        created: 0,
        same_id,
        dump: None,
    };
    let (mut lost, mut lost_ever) = (false, false);
    let read = |world: &mut World, kernel: &mut ModelKernel, count: usize| {
        let batch: Vec<_> = kernel.events.drain(..count.min(kernel.events.len())).collect();
        world.apply_batch(batch.iter());
        world.table.change().commit();
    };
    let read_dump = |world: &mut World, kernel: &mut ModelKernel, count: usize| -> bool {
        let Some((position, shown)) = &mut kernel.dump else { return false };
        let batch: Vec<_> = shown.drain(..count.min(shown.len())).collect();
        world.merge_batch(batch.iter());
        world.table.change().commit();
        if batch.len() == count || *position <= 12 {
            return false;
        }
        kernel.dump = None;
        // The tracker reads what the kernel sent until then before it ends the merge.
        while let Some((kind, flow)) = kernel.events.pop_front() {
            world.apply(kind, &flow);
        }
        world.table.end_dump(true, NOW, &mut world.changes);
        true
    };
    for step in steps {
        match step {
            Step::Create(tuple) => kernel.create(tuple),
            Step::Change(tuple, mark) => kernel.change(tuple, mark),
            Step::Destroy(tuple) => kernel.destroy(tuple),
            Step::Read(count) => read(&mut world, &mut kernel, count),
            Step::Kill(count) => {
                let told = world.changes.len();
                world.apply_batch(kernel.events.iter().take(count));
                world = world.restart(told);
                kernel.dump = None;
            }
            Step::KillInDump(count) => {
                let told = world.changes.len();
                if let Some((_, shown)) = kernel.dump.take() {
                    world.merge_batch(shown.iter().take(count));
                }
                world = world.restart(told);
            }
            Step::Repeat if repeats => kernel.events.extend(kernel.last.clone()),
            Step::Repeat => {}
            Step::BeginDump => {
                if kernel.dump.is_none() {
                    // The tracker reads what waits before it begins a dump.
                    read(&mut world, &mut kernel, usize::MAX);
                    world.table.begin_dump();
                    kernel.dump = Some((0, VecDeque::new()));
                }
            }
            Step::Walk(count) => kernel.walk(count),
            Step::ReadDump(count) => {
                if read_dump(&mut world, &mut kernel, count) {
                    lost = false;
                }
            }
            Step::Overrun => {
                if !kernel.events.is_empty() {
                    // What is queued stays; what comes next is dropped: here the newest of the queue.
                    kernel.events.pop_back();
                    read(&mut world, &mut kernel, usize::MAX);
                    world.table.change().note_loss();
                    world.table.abandon_dump();
                    kernel.dump = None;
                    (lost, lost_ever) = (true, true);
                }
            }
        }
    }
    read(&mut world, &mut kernel, usize::MAX);
    if kernel.dump.is_some() {
        kernel.walk(13);
        if read_dump(&mut world, &mut kernel, usize::MAX) {
            lost = false;
        }
    }
    read(&mut world, &mut kernel, usize::MAX);
    if lost {
        world.table.begin_dump();
        kernel.dump = Some((0, VecDeque::new()));
        kernel.walk(13);
        read_dump(&mut world, &mut kernel, usize::MAX);
    }
    (world, kernel, lost_ever)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn any_order_of_events_and_dumps_ends_in_the_kernels_state(
        steps in proptest::collection::vec(step(), 0..120),
        same_id: bool,
        repeats: bool,
    ) {
        let (mut world, kernel, lost_ever) = converge(steps, same_id, repeats && !same_id);
        let table: BTreeMap<Tuple2, u32> =
            world.active().iter().map(|flow| (key(&flow.original()), flow.record.mark)).collect();
        let expected: BTreeMap<Tuple2, u32> =
            kernel.live.values().map(|flow| (key(&flow.original), flow.mark.unwrap_or(0))).collect();
        prop_assert_eq!(table, expected);

        // Numbers without holes; every flow begins and ends once.
        let mut begun = HashMap::new();
        let mut ended = HashSet::new();
        for (change, sequence) in world.changes.iter().zip(1..) {
            prop_assert_eq!(change.sequence, sequence);
            let id = change.flow.record.id;
            match change.kind {
                EventKind::New => prop_assert_eq!(begun.insert(id, ()), None),
                EventKind::Update => prop_assert!(begun.contains_key(&id) && !ended.contains(&id)),
                EventKind::Destroy => prop_assert!(ended.insert(id)),
            }
        }
        prop_assert_eq!(world.closed().len(), ended.len());
        if !lost_ever {
            // Without a loss every flow that the kernel made is published, and none is invented; but where a dump shows a
            // recreated flow before the events of the one before are read, that one's NEW seems to replace it.
            let told = world.table.header().active as usize + ended.len();
            let created = kernel.created as usize;
            let replaced = world.closed().iter().any(|flow| flow.end.unwrap().reason == EndReason::Replaced);
            prop_assert!(told == created || told > created && replaced, "{} of {}", told, created);
            let unseen = world.closed().iter().any(|flow| flow.end.unwrap().reason == EndReason::Resync);
            prop_assert!(!unseen, "every flow tells its end, so no dump has to find one");
        }
    }
}

/// A tuple in an order.
type Tuple2 = (String, u16);

fn key(tuple: &Tuple) -> Tuple2 {
    let Layer4::Ports { src, .. } = tuple.layer4 else { return (tuple.src.to_string(), 0) };
    (tuple.src.to_string(), src)
}

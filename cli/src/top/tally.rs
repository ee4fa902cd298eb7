//! A snapshot in the making: the first rows, the groups and the rates of a stream's lines, without keeping the lines.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use flowbus_interfaces::{FlowRef, Key, StreamItem};

use super::group::group;
use super::traffic::Traffic;
use super::view::{Grouping, Order, View};

/// The most rows that are kept: the daemon takes as many ids in one question.
pub(super) const ROWS: usize = 256;
/// The most groups that are counted separately; the flows of all others form one group.
const GROUPS: usize = 65_536;
/// The most flows whose counters are remembered, in 24 MiB; the others have no rate.
const REMEMBERED: usize = 524_288;
/// Counters move by dumps, of which there is one a second: between two, the rates of the last one are as good as any.
const SHORTEST: Duration = Duration::from_secs(1);

/// What one snapshot leaves for the rates of the next.
#[derive(Debug)]
pub(super) struct Memory {
    epoch: String,
    /// Number of the last change that the snapshot includes.
    sequence: u64,
    /// The greatest id: greater ones are of flows that began later.
    highest: u64,
    /// When the counters were brought up to date.
    pub(super) at: Instant,
    /// Which flows the snapshot has; of others nothing is known.
    pub(super) view: View,
    /// The flows by ascending id, as a stream has them.
    flows: Vec<Remembered>,
    /// The flows that were among the first rows.
    first: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    id: u64,
    bytes: Traffic,
    rate: Option<Traffic>,
}

impl Memory {
    /// Whether a snapshot at `now` comes so soon that it shows the rates of this one.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < SHORTEST
    }

    /// Whether any flow counts bytes.
    pub(super) fn has_counters(&self) -> bool {
        !self.flows.is_empty()
    }

    fn find(&self, id: u64) -> Option<Remembered> {
        self.flows.binary_search_by_key(&id, |flow| flow.id).ok().map(|index| self.flows[index])
    }
}

/// A row: a flow, or a group of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TallyRow {
    /// Id of a flow; 0 for a group.
    pub(super) id: u64,
    /// Name of a group; empty for the flows that are in none.
    pub(super) name: String,
    /// Bytes a second.
    pub(super) rate: Option<Traffic>,
    pub(super) bytes: Option<Traffic>,
    /// When the flow began, or the first flow of the group. Microseconds since 1970.
    pub(super) start: Option<u64>,
    pub(super) flows: u64,
    /// How many flows began since the snapshot before.
    pub(super) new: u64,
    /// When a snapshot came without the flow, which is shown a moment longer.
    pub(super) ended: Option<Instant>,
}

/// What happened between two snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// Bytes a second.
    pub(super) rate: Traffic,
    /// How many flows began.
    pub(super) new: u64,
    pub(super) interval: Duration,
}

/// What a tally has counted.
#[derive(Debug)]
pub(super) struct Counted {
    /// The first [`ROWS`] in the order of the view.
    pub(super) rows: Vec<TallyRow>,
    /// How many flows there are.
    pub(super) flows: u64,
    /// How many rows there are.
    pub(super) all_rows: u64,
    /// What happened since the snapshot before; absent after another filter, or too soon after it.
    pub(super) sample: Option<Sample>,
    /// How many flows have no rate, because they are too many to remember.
    pub(super) unremembered: u64,
    /// Ids of flows in the first rows of the snapshot before that have ended.
    pub(super) ended: Vec<u64>,
    /// The memory for the next snapshot; absent if the one that there is stays.
    pub(super) memory: Option<Memory>,
}

/// Takes the lines of a stream.
pub(super) struct Tally<'a> {
    before: Option<&'a Memory>,
    /// The time since the snapshot before, once the first flow has come.
    interval: Option<Duration>,
    next: Memory,
    /// The first rows, and up to as many that are not.
    rows: Vec<TallyRow>,
    groups: HashMap<String, TallyRow>,
    flows: u64,
    rate: Traffic,
    new: u64,
    ended: Vec<u64>,
    unremembered: u64,
    begun: bool,
}

impl<'a> Tally<'a> {
    pub(super) fn new(view: View, before: Option<&'a Memory>, now: Instant) -> Self {
        let next = Memory {
            epoch: String::new(),
            sequence: 0,
            highest: 0,
            at: now,
            view,
            flows: Vec::new(),
            first: Vec::new(),
        };
        Self {
            before,
            interval: None,
            next,
            rows: Vec::new(),
            groups: HashMap::new(),
            flows: 0,
            rate: Traffic::default(),
            new: 0,
            ended: Vec::new(),
            unremembered: 0,
            begun: false,
        }
    }

    /// Takes what was read at `now`.
    pub(super) fn add(&mut self, item: &StreamItem<'_>, now: Instant) {
        match item {
            StreamItem::Begin { epoch, .. } => {
                // Ids and numbers of another epoch mean nothing in this one.
                self.before = self.before.filter(|before| before.epoch == *epoch);
                epoch.as_ref().clone_into(&mut self.next.epoch);
            }
            StreamItem::Closed(flow) => {
                self.begin(now);
                self.add_closed(flow);
            }
            StreamItem::Flow(flow) => {
                self.begin(now);
                self.add_flow(flow);
            }
            StreamItem::SnapshotEnd { sequence } => {
                self.begin(now);
                self.next.sequence = *sequence;
            }
            _ => {}
        }
    }

    /// The first line of a flow comes when the counters have been brought up to date.
    fn begin(&mut self, now: Instant) {
        if !self.begun {
            self.begun = true;
            self.next.at = now;
            let fresh = |before: &&Memory| !before.is_fresh(now);
            self.interval = self.before.filter(fresh).map(|before| now.saturating_duration_since(before.at));
        }
    }

    fn add_flow(&mut self, flow: &FlowRef<'_>) {
        // Asked for, and so there.
        let Some(id) = flow.number(Key::Id) else { return };
        self.flows += 1;
        let is_new = self.is_new(id);
        self.next.highest = self.next.highest.max(id);
        let bytes = Traffic::of(flow);
        let before = self.before.and_then(|before| before.find(id));
        let rate = match (bytes, self.interval, before) {
            (None, ..) => None,
            (_, None, before) => before.and_then(|before| before.rate),
            (Some(bytes), Some(interval), Some(before)) => Some(bytes.rate_since(before.bytes, interval)),
            (Some(bytes), Some(interval), None) => {
                is_new.then(|| bytes.rate_since(Traffic::default(), interval))
            }
        };
        if let Some(bytes) = bytes {
            if self.next.flows.len() < REMEMBERED {
                self.next.flows.push(Remembered { id, bytes, rate });
            } else {
                self.unremembered += 1;
            }
        }
        let new = u64::from(is_new);
        self.new += new;
        let [rate, bytes] = [rate, bytes].map(|traffic| Some(traffic?.seen_by_owner(flow)));
        self.rate = self.rate.plus(rate.unwrap_or_default());
        let start = flow.number(Key::StartUsec);
        let row = TallyRow { id, rate, bytes, start, flows: 1, new, ..TallyRow::default() };
        match self.next.view.grouping {
            Grouping::Flow => self.keep(row),
            grouping => {
                self.add_to_group(&group(flow, grouping), &row);
            }
        }
    }

    /// What a flow that ended since the snapshot before still adds to the rates.
    fn add_closed(&mut self, flow: &FlowRef<'_>) {
        let (Some(id), Some(sequence)) = (flow.number(Key::Id), flow.number(Key::Sequence)) else { return };
        let (Some(before), Some(interval)) = (self.before, self.interval) else { return };
        if sequence <= before.sequence {
            return;
        }
        // The flow may have been counted in this snapshot already, and have ended before that was complete.
        let counted = self.next.flows.binary_search_by_key(&id, |flow| flow.id).ok();
        let known = counted.map(|index| self.next.flows[index]).or_else(|| before.find(id));
        let new = u64::from(counted.is_none() && self.is_new(id));
        let known = known.map(|known| known.bytes).or_else(|| (new == 1).then(Traffic::default));
        let rate = Traffic::of(flow).zip(known).map(|(bytes, known)| bytes.rate_since(known, interval));
        let rate = rate.map(|rate| rate.seen_by_owner(flow));
        self.new += new;
        self.rate = self.rate.plus(rate.unwrap_or_default());
        if before.first.contains(&id) {
            self.ended.push(id);
        }
        if self.next.view.grouping != Grouping::Flow {
            let name = group(flow, self.next.view.grouping);
            self.add_to_group(&name, &TallyRow { rate, new, ..TallyRow::default() });
        }
        self.next.highest = self.next.highest.max(id);
    }

    /// Whether the flow began since the snapshot before; unknown, and so false, after one of other flows.
    fn is_new(&self, id: u64) -> bool {
        let of_the_same = |before: &&Memory| before.view.filter == self.next.view.filter;
        self.interval.is_some() && self.before.filter(of_the_same).is_some_and(|before| id > before.highest)
    }

    fn add_to_group(&mut self, name: &str, row: &TallyRow) {
        const OTHERS: &str = "(others)";
        let known = self.groups.len() < GROUPS || self.groups.contains_key(name);
        let name = if known { name } else { OTHERS };
        if let Some(group) = self.groups.get_mut(name) {
            group.rate = sum(group.rate, row.rate);
            group.bytes = sum(group.bytes, row.bytes);
            group.start = group.start.into_iter().chain(row.start).min();
            group.flows += row.flows;
            group.new += row.new;
        } else {
            let group = TallyRow { id: 0, name: name.to_owned(), ..row.clone() };
            self.groups.insert(name.to_owned(), group);
        }
    }

    /// Keeps the row as long as it may be among the first.
    fn keep(&mut self, row: TallyRow) {
        if self.rows.len() == 2 * ROWS {
            sort(&mut self.rows, self.next.view.order);
            self.rows.truncate(ROWS);
        }
        self.rows.push(row);
    }

    /// The rows in order.
    pub(super) fn finish(self) -> Counted {
        let order = self.next.view.order;
        let (mut rows, all_rows) = match self.next.view.grouping {
            Grouping::Flow => (self.rows, self.flows),
            _ => {
                let rows: Vec<TallyRow> = self.groups.into_values().collect();
                let all = rows.len() as u64;
                (rows, all)
            }
        };
        sort(&mut rows, order);
        rows.truncate(ROWS);
        let comparable = self.before.is_some_and(|before| before.view.filter == self.next.view.filter);
        let sample = self.interval.filter(|_| comparable).map(|interval| Sample {
            rate: self.rate,
            new: self.new,
            interval,
        });
        let mut next = self.next;
        next.first = rows.iter().map(|row| row.id).filter(|id| *id > 0).collect();
        // Flows that ended may have had the greatest ids.
        if let Some(before) = self.before.filter(|_| comparable) {
            next.highest = next.highest.max(before.highest);
        }
        let keep = self.interval.is_none() && self.before.is_some();
        let (flows, unremembered) = (self.flows, self.unremembered);
        let ended = self.ended;
        Counted { rows, flows, all_rows, sample, ended, unremembered, memory: (!keep).then_some(next) }
    }
}

/// Puts the rows in order.
pub(super) fn sort(rows: &mut [TallyRow], order: Order) {
    rows.sort_by(|a, b| rank(b, order).cmp(&rank(a, order)).then_with(|| a.name.cmp(&b.name)));
}

/// What comes first is greatest.
fn rank(row: &TallyRow, order: Order) -> (u64, u64, u64) {
    let [rate, bytes] = [row.rate, row.bytes].map(|traffic| traffic.map_or(0, Traffic::total));
    let is_group = row.id == 0;
    match order {
        Order::Rate => (rate, bytes, if is_group { row.flows } else { row.id }),
        Order::Bytes => (bytes, rate, if is_group { row.flows } else { row.id }),
        Order::New if is_group => (row.new, row.flows, rate),
        Order::New => (row.start.unwrap_or(0), row.id, 0),
        Order::Age => (row.start.map_or(0, |start| u64::MAX - start), u64::MAX - row.id, 0),
    }
}

fn sum(a: Option<Traffic>, b: Option<Traffic>) -> Option<Traffic> {
    a.into_iter().chain(b).reduce(Traffic::plus)
}

#[cfg(test)]
mod tests;

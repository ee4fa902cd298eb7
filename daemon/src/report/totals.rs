//! How many flows there are of each kind.

use std::fmt::Write as _;

use flowbus_interfaces::{Flow, Mark, SourceNames, protocol_name};

/// Active flows and closed ones.
type Counts = [u32; 2];

/// Flows by traffic source, protocol and state.
#[derive(Debug, Default)]
pub(super) struct Totals {
    sources: Vec<(u8, Counts)>,
    protocols: Vec<(u8, Counts)>,
    states: Vec<(&'static str, Counts)>,
}

impl Totals {
    pub(super) fn add(&mut self, flow: &Flow<'_>) {
        let column = usize::from(flow.end.is_some());
        count(&mut self.sources, Mark(flow.mark).source_id(), column);
        count(&mut self.protocols, flow.original.protocol, column);
        if let Some(state) = flow.state {
            count(&mut self.states, state, column);
        }
    }

    pub(super) fn write(&self, out: &mut String, names: &SourceNames) {
        out.push_str("\nFlows by source, protocol and state (active, closed):\n");
        lines(out, "source", &self.sources, |source| names.name(source).to_owned());
        lines(out, "protocol", &self.protocols, |number| {
            protocol_name(number).map_or_else(|| number.to_string(), str::to_owned)
        });
        lines(out, "state", &self.states, str::to_owned);
    }
}

/// A list is quick enough: there are few kinds, and few of them make up most flows.
fn count<K: PartialEq>(counts: &mut Vec<(K, Counts)>, key: K, column: usize) {
    match counts.iter_mut().find(|(other, _)| *other == key) {
        Some((_, counts)) => counts[column] += 1,
        None => {
            let mut first = [0; 2];
            first[column] = 1;
            counts.push((key, first));
        }
    }
}

/// The kinds with most flows; the others are summed up, so that the shortest report has room for them.
fn lines<K: Copy>(out: &mut String, what: &str, counts: &[(K, Counts)], name: impl Fn(K) -> String) {
    const MOST: usize = 8;
    let mut sorted = counts.to_vec();
    sorted.sort_by_key(|&(_, [active, closed])| std::cmp::Reverse(u64::from(active) + u64::from(closed)));
    let mut line = |name: &str, [active, closed]: Counts| {
        let _ = writeln!(out, "  {what} {name}: {active}, {closed}");
    };
    let (shown, others) = sorted.split_at(sorted.len().min(MOST));
    for &(key, counts) in shown {
        line(&name(key), counts);
    }
    if !others.is_empty() {
        let sum = others.iter().fold([0; 2], |[a, c], (_, [active, closed])| [a + active, c + closed]);
        line(&format!("({} others)", others.len()), sum);
    }
}

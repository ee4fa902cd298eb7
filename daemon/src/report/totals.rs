//! How many flows there are of each kind.

use flowbus_interfaces::{Flow, Mark, SourceNames, protocol_name};

use super::redact::{Container, Interface};

/// Active flows and closed ones.
type Counts = [u32; 2];

/// Flows by traffic source, interface, container, protocol and state.
#[derive(Debug, Default)]
pub(super) struct Totals {
    sources: Vec<(u8, Counts)>,
    interfaces: Vec<(Box<str>, Counts)>,
    containers: Vec<(Box<str>, Counts)>,
    protocols: Vec<(u8, Counts)>,
    states: Vec<(&'static str, Counts)>,
}

impl Totals {
    /// Adds a flow; containers, as processes, only where they were asked for.
    pub(super) fn add(&mut self, flow: &Flow<'_>, with_processes: bool) {
        let column = usize::from(flow.end.is_some());
        let source = Mark(flow.mark).source_id();
        let protocol = flow.original.protocol;
        count(&mut self.sources, column, |&other| other == source, || source);
        count(&mut self.protocols, column, |&other| other == protocol, || protocol);
        if let Some(interface) = flow.interface {
            count(&mut self.interfaces, column, |other| **other == *interface, || interface.into());
        }
        let owners =
            [flow.initiator, flow.responder].map(|owner| owner.filter(|_| with_processes)?.container);
        // A flow between two processes of one container is one flow of it.
        let second = owners[1].filter(|container| owners[0] != Some(container));
        for container in owners[0].into_iter().chain(second) {
            count(&mut self.containers, column, |other| **other == *container, || container.into());
        }
        if let Some(state) = flow.state {
            count(&mut self.states, column, |&other| other == state, || state);
        }
    }

    /// Writes the totals of all sources that fit into half of `max_bytes`, and of the others the kinds with most flows: the
    /// shortest report has room for them.
    pub(super) fn write(&self, out: &mut String, names: &SourceNames, max_bytes: usize) {
        const MOST: usize = 8;
        out.push_str("\nFlows by source, interface, container, protocol and state (active, closed):\n");
        let room = max_bytes / 2;
        lines(out, "source", &self.sources, room, |source| names.name(*source).to_owned());
        lines(out, "interface", &self.interfaces, MOST * LINE, |name| Interface(name).to_string());
        lines(out, "container", &self.containers, MOST * LINE, |id| Container(id).to_string());
        lines(out, "protocol", &self.protocols, MOST * LINE, |&number| {
            protocol_name(number).map_or_else(|| number.to_string(), str::to_owned)
        });
        lines(out, "state", &self.states, MOST * LINE, |&state| state.to_owned());
    }
}

/// The bytes of a long line of totals.
const LINE: usize = 40;

/// Counts a flow for the kind that `is` finds, or for a new one. A list is quick enough: there are few kinds, and few of
/// them make up most flows.
fn count<K>(counts: &mut Vec<(K, Counts)>, column: usize, is: impl Fn(&K) -> bool, new: impl FnOnce() -> K) {
    match counts.iter_mut().find(|(kind, _)| is(kind)) {
        Some((_, counts)) => counts[column] += 1,
        None => {
            let mut first = [0; 2];
            first[column] = 1;
            counts.push((new(), first));
        }
    }
}

/// The kinds with most flows, a line each, in at most `room` bytes; the others are summed up in one.
fn lines<K>(out: &mut String, what: &str, counts: &[(K, Counts)], room: usize, name: impl Fn(&K) -> String) {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_by_key(|(_, [active, closed])| std::cmp::Reverse(u64::from(*active) + u64::from(*closed)));
    let line = |name: &str, [active, closed]: Counts| format!("  {what} {name}: {active}, {closed}\n");
    let mut left = room;
    let mut rest = sorted.into_iter().peekable();
    while let Some((key, counts)) = rest.peek() {
        let text = line(&name(key), *counts);
        let Some(now_left) = left.checked_sub(text.len()) else { break };
        left = now_left;
        out.push_str(&text);
        rest.next();
    }
    let others: Vec<_> = rest.collect();
    if !others.is_empty() {
        let sum = others.iter().fold([0; 2], |[a, c], (_, [active, closed])| [a + active, c + closed]);
        out.push_str(&line(&format!("({} others)", others.len()), sum));
    }
}

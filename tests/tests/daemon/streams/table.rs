//! The table of a client.

use std::collections::BTreeMap;

use serde_json::Value;

use super::id;

/// A line or an event without what says that it is one, and a flow without what changes unannounced.
pub(crate) fn lasting(flow: &Value) -> Value {
    const PASSING: [&str; 12] = [
        "type",
        "event",
        "sequence",
        "event_usec",
        "timeout",
        "use",
        "orig_packets",
        "orig_bytes",
        "reply_packets",
        "reply_bytes",
        "start_usec",
        "start_source",
    ];
    let mut flow = flow.as_object().unwrap().clone();
    flow.retain(|key, _| !PASSING.contains(&key.as_str()));
    flow.into()
}

/// The flows that are alive, as a client puts them together.
#[derive(Default)]
pub(crate) struct Table(pub(crate) BTreeMap<u64, Value>);

impl Table {
    /// Takes in a flow of a snapshot or a listing, which must not be there yet.
    pub(crate) fn insert(&mut self, flow: &Value) {
        assert!(self.0.insert(id(flow), lasting(flow)).is_none(), "twice: {flow}");
    }

    /// Takes in an event that follows what the table holds.
    pub(crate) fn apply(&mut self, kind: &str, flow: &Value) {
        match kind {
            "new" => self.insert(flow),
            "update" => {
                let before = self.0.insert(id(flow), lasting(flow));
                assert!(before.is_some(), "an update of what was not told: {flow}");
            }
            "destroy" => {
                assert!(self.0.remove(&id(flow)).is_some(), "the end of what was not told: {flow}");
            }
            _ => panic!("{kind} is no event: {flow}"),
        }
    }

    /// Takes in an event that the listing may include already, as later pages of it do.
    pub(crate) fn apply_again(&mut self, kind: &str, flow: &Value) {
        match kind {
            "new" | "update" => drop(self.0.insert(id(flow), lasting(flow))),
            "destroy" => drop(self.0.remove(&id(flow))),
            _ => panic!("{kind} is no event: {flow}"),
        }
    }

    pub(crate) fn assert_is(&self, flows: &[Value]) {
        let flows: BTreeMap<u64, Value> = flows.iter().map(|flow| (id(flow), lasting(flow))).collect();
        for (id, flow) in &flows {
            assert_eq!(self.0.get(id), Some(flow), "flow {id}");
        }
        assert_eq!(self.0.len(), flows.len(), "the client has flows that have ended");
    }
}

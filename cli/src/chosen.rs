//! Flows that a condition of flowbusd's table chooses, such as a process, for the helper, which knows the kernel's alone: they
//! are listed, and then meant one by one, by tuple and by the kernel's number.

use flowbus_interfaces::{Changes, Key, OwnedFlow, QueryMap, StreamItem, fit};
use zbus::Variant;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::flows::Listing;
use crate::format::{Kind, names_of};

/// Flows of one call: as many as a query takes values of a key.
const CALL: usize = 256;

/// What distinguishes a flow from every other: its tuple and the kernel's number, by which the helper finds it again.
const IDENTITY: [Key; 9] = [
    Key::ConntrackId,
    Key::Family,
    Key::ProtocolNumber,
    Key::Src,
    Key::Dst,
    Key::Sport,
    Key::Dport,
    Key::IcmpType,
    Key::IcmpId,
];

/// The flows that were found.
pub(crate) struct Chosen {
    pub(crate) flows: Vec<OwnedFlow>,
    /// Whether there are more than the limit.
    pub(crate) more: bool,
}

impl Chosen {
    /// Lists the flows of a query, up to a limit.
    pub(crate) async fn list(daemon: &Daemon, mut query: QueryMap<'_>, limit: usize) -> Result<Self, Error> {
        let shown: Vec<_> = Kind::Active.fields().iter().flat_map(|field| field.keys(true, false)).collect();
        query.insert("fields", names_of(&[&shown[..], &IDENTITY].concat()).into());
        let mut listing = Listing::open(daemon, query).await?;
        let mut chosen = Self { flows: Vec::new(), more: false };
        while let Some(item) = listing.next().await? {
            let StreamItem::Flow(flow) = item else { continue };
            if chosen.flows.len() == limit {
                chosen.more = true;
                break;
            }
            let flow = flow.to_owned_flow().map_err(|error| Error::Refused(error.to_string()))?;
            chosen.flows.push(flow);
        }
        Ok(chosen)
    }

    /// The queries that mean these flows and no others.
    pub(crate) fn queries(&self) -> impl Iterator<Item = QueryMap<'static>> {
        // Without the kernel's number a flow could be another one by now. Kernels since 2.6 send it.
        let known: Vec<_> =
            self.flows.iter().filter(|flow| flow.number(Key::ConntrackId).is_some()).collect();
        // The flows of one call are of one kind, so that each has every key of its query.
        let kind = |flow: &OwnedFlow| IDENTITY.map(|key| flow.get(key).is_some());
        let mut kinds: Vec<Vec<&OwnedFlow>> = Vec::new();
        for flow in known {
            match kinds.iter_mut().find(|known| kind(known[0]) == kind(flow)) {
                Some(known) => known.push(flow),
                None => kinds.push(vec![flow]),
            }
        }
        let queries: Vec<_> = kinds.iter().flat_map(|flows| flows.chunks(CALL)).map(query_of).collect();
        queries.into_iter()
    }

    /// What became of all flows: the sum of what the calls answered.
    pub(crate) fn sum(&self, answers: &[Changes]) -> Changes {
        let total = |part: fn(&Changes) -> u32| answers.iter().map(part).sum::<u32>();
        let number = |part: fn(&Changes) -> Option<u32>| answers.iter().map(part).sum::<Option<u32>>();
        let matched = fit(self.flows.len());
        Changes {
            matched,
            deleted: number(|answer| answer.deleted),
            changed: number(|answer| answer.changed),
            // Flows that the helper did not find ended after they were listed.
            gone: matched.saturating_sub(total(|answer| answer.matched)) + total(|answer| answer.gone),
            failed: total(|answer| answer.failed),
            more: self.more.then_some(true),
            flows: None,
        }
    }
}

fn query_of(flows: &[&OwnedFlow]) -> QueryMap<'static> {
    let mut query = QueryMap::new();
    for key in IDENTITY {
        let mut values: Vec<_> =
            flows.iter().filter_map(|flow| flow.get(key)).map(ToString::to_string).collect();
        values.sort();
        values.dedup();
        if !values.is_empty() {
            let name = if key == Key::ProtocolNumber { Key::Protocol.name() } else { key.name() };
            query.insert(name, Variant::from(values));
        }
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(json: &str) -> OwnedFlow {
        OwnedFlow::from_json(json).unwrap()
    }

    #[test]
    fn flows_are_meant_by_tuple_and_number() {
        let udp = |id: u32| {
            flow(&format!(
                r#"{{"id":{id},"conntrack_id":{id},"protocol_number":17,"src":"198.18.0.1","sport":{id},"dport":53}}"#
            ))
        };
        let mut flows: Vec<_> = (1..=300).map(udp).collect();
        flows.push(flow(r#"{"conntrack_id":7,"protocol_number":1,"icmp_type":8,"icmp_id":9}"#));
        flows.push(flow(r#"{"protocol_number":1}"#));
        let chosen = Chosen { flows, more: false };
        let queries: Vec<_> = chosen.queries().collect();
        let length = |query: &QueryMap<'_>, key| match query.get(key) {
            Some(Variant::Array(values)) => values.len(),
            _ => 0,
        };
        assert_eq!(
            queries.iter().map(|query| length(query, "conntrack_id")).collect::<Vec<_>>(),
            [256, 44, 1]
        );
        assert_eq!((length(&queries[0], "dport"), length(&queries[0], "protocol")), (1, 1));
        assert_eq!((length(&queries[2], "dport"), length(&queries[2], "icmp_id")), (0, 1));
        let answer = Changes { matched: 299, deleted: Some(298), failed: 1, ..Changes::default() };
        let sum = chosen.sum(&[answer]);
        assert_eq!(
            (sum.matched, sum.deleted, sum.changed, sum.gone, sum.failed),
            (302, Some(298), None, 3, 1)
        );
    }
}

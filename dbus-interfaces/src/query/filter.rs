//! Which flows a query is about.

use std::net::SocketAddr;

use ctnetlink::{Layer4, Tuple};

use super::condition::Condition;
use super::{Argument, QueryError, QueryKey};
use crate::{Connection, Flow, SourceNames};

/// What a query asks of a flow: each of its keys, of which one value has to fit and no excluded one. The empty filter
/// lets every flow pass. It is made for scans: nothing is allocated or looked up by name, and what is cheap is asked
/// first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The conditions, cheap ones first.
    pub(super) conditions: Vec<Asked>,
}

/// A key's values, or those that it excludes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) key: QueryKey,
    pub(super) excluded: bool,
    pub(super) condition: Condition,
}

impl Asked {
    pub(super) fn matches(&self, flow: &Flow<'_>) -> bool {
        self.condition.matches(flow) != self.excluded
    }
}

/// What an index can find the flows of a filter by. It finds all of them, and others: the filter decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// The flows' ids are among these.
    Ids(&'a [u64]),
    /// One of a flow's four ports is this one: original or reply, source or destination.
    Port(u16),
}

impl Filter {
    /// Adds what a key asks; false for a key that is not one of a filter.
    pub(super) fn add(
        &mut self,
        key: QueryKey,
        value: &Argument,
        names: &SourceNames,
    ) -> Result<bool, QueryError> {
        let (included, excluded) = value.split();
        for (value, excluded) in [(included, false), (excluded, true)] {
            let Some(value) = value else { continue };
            let condition = Condition::parse(key, &value, names).map_err(|error| error.of(excluded))?;
            let Some(condition) = condition else { return Ok(false) };
            // By key where it costs the same, so that a query written in another order is the same one.
            let rank = (condition.cost(), key, excluded);
            let place = self
                .conditions
                .partition_point(|other| (other.condition.cost(), other.key, other.excluded) < rank);
            self.conditions.insert(place, Asked { key, excluded, condition });
        }
        self.check_interval().map(|()| true)
    }

    /// Refuses an interval whose end is before its begin, in which no flow is alive.
    fn check_interval(&self) -> Result<(), QueryError> {
        match (self.condition(QueryKey::Since), self.condition(QueryKey::Until)) {
            (Some(Condition::Since(since)), Some(Condition::Until(until))) if since > until => {
                let takes = format!("a time from since ({since}) on");
                Err(QueryError::Value { key: QueryKey::Until.name(), takes, value: until.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// Whether the flow passes.
    pub fn matches(&self, flow: &Flow<'_>) -> bool {
        self.conditions.iter().all(|asked| asked.matches(flow))
    }

    /// Whether a connection event passes: as a flow from the socket's own end to the other one. A filter that asks for
    /// what only the table knows of a flow, such as its mark or its state, lets none pass.
    pub fn matches_connection(&self, connection: &Connection<'_>) -> bool {
        const KNOWN: [QueryKey; 9] = [
            QueryKey::Family,
            QueryKey::Protocol,
            QueryKey::Src,
            QueryKey::Dst,
            QueryKey::Address,
            QueryKey::Sport,
            QueryKey::Dport,
            QueryKey::Port,
            QueryKey::Id,
        ];
        let tuple = |from: SocketAddr, to: SocketAddr| Tuple {
            src: from.ip(),
            dst: to.ip(),
            protocol: connection.protocol,
            layer4: Layer4::Ports { src: from.port(), dst: to.port() },
            zone: 0,
        };
        let Connection { local, remote, .. } = *connection;
        let flow = Flow {
            initiator: connection.owner.as_ref(),
            ..Flow::new(connection.flow.unwrap_or(0), tuple(local, remote), tuple(remote, local))
        };
        let is_known = |key| KNOWN.contains(key) || QueryKey::OF_OWNERS.contains(key);
        self.conditions.iter().all(|asked| is_known(&asked.key) && asked.matches(&flow))
    }

    /// Whether every flow passes.
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty()
    }

    /// Whether the filter asks for this key: what no filter asks for need not be looked up for it.
    pub fn has(&self, key: QueryKey) -> bool {
        self.conditions.iter().any(|asked| asked.key == key)
    }

    /// Whether only flows with an owner can pass.
    pub fn asks_for_owner(&self) -> bool {
        QueryKey::OF_OWNERS.into_iter().any(|key| self.condition(key).is_some())
    }

    /// What an index can find the flows by; `None` where all flows have to be asked.
    pub fn lookup(&self) -> Option<Lookup<'_>> {
        const PORTS: [QueryKey; 7] = [
            QueryKey::Sport,
            QueryKey::Dport,
            QueryKey::ReplySport,
            QueryKey::ReplyDport,
            QueryKey::NatSport,
            QueryKey::NatDport,
            QueryKey::Port,
        ];
        if let Some(Condition::Ids(ids)) = self.condition(QueryKey::Id) {
            return Some(Lookup::Ids(ids));
        }
        PORTS.into_iter().find_map(|key| self.port(key)).map(Lookup::Port)
    }

    /// What a flow has to have of a key, exclusions apart.
    fn condition(&self, key: QueryKey) -> Option<&Condition> {
        self.conditions.iter().find(|asked| asked.key == key && !asked.excluded).map(|asked| &asked.condition)
    }

    /// The one port that a key asks for.
    fn port(&self, key: QueryKey) -> Option<u16> {
        match self.condition(key)? {
            Condition::Ports(_, ranges) => match &**ranges {
                [range] if range.start() == range.end() => Some(*range.start()),
                _ => None,
            },
            _ => None,
        }
    }
}

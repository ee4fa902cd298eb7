//! Filters of flows that were written down as lines.
//!
//! What the line lacks because the log leaves it out is not known. That is something else than a value which the flow does not have,
//! such as an address after translation: a condition on it has no answer. Which of the two it is depends on the fields of the log.

use super::condition::{Condition, End, IcmpField, Zone};
use super::parse::{Masked, Nat, State};
use super::record::{Record, RecordedOwner};
use super::{Filter, QueryKey};
use crate::{FieldSet, Flow, FlowRef, Key, Mark};

/// Why a line of a flow cannot be compared with a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The line does not have what the key is about, though every flow has it.
    #[error("{0} is not recorded")]
    NotRecorded(QueryKey),
    /// A value has another type than its key, or there is no id.
    #[error("{0} cannot be read")]
    Invalid(Key),
}

impl Key {
    /// Where a record lacks this value of the reply direction, it is the first of these that the record has: what translation made of
    /// the original direction, or the original direction as it is.
    pub const fn substitutes(self) -> &'static [Self] {
        match self {
            Self::ReplySrc => &[Self::NatDst, Self::Dst],
            Self::ReplySport => &[Self::NatDport, Self::Dport],
            Self::ReplyDst => &[Self::NatSrc, Self::Src],
            Self::ReplyDport => &[Self::NatSport, Self::Sport],
            _ => &[],
        }
    }
}

impl Filter {
    /// Whether the flow of a line passes; `recorded` are the fields that the log has of each flow.
    ///
    /// # Errors
    /// If the line lacks what decides it, or cannot be read.
    pub fn matches_line(&self, line: &FlowRef<'_>, recorded: FieldSet) -> Result<bool, RecordError> {
        let has_owners = QueryKey::OF_OWNERS.into_iter().any(|key| self.has(key));
        let record = Record::read(line, has_owners, recorded)?;
        let owners = record.owners.each_ref().map(|owner| owner.as_ref().map(RecordedOwner::owner));
        let flow = Flow {
            initiator: owners[0].as_ref(),
            responder: owners[1].as_ref(),
            interface: record.interface.as_deref(),
            helper: record.helper.as_deref(),
            labels: record.labels.as_deref(),
            ..record.flow
        };
        let mut unknown = None;
        for asked in &self.conditions {
            let is_known = asked.condition.is_known(record.known, &flow);
            match is_known && asked.matches(&flow) {
                true => {}
                false if is_known => return Ok(false),
                false => unknown = unknown.or(Some(asked.key)),
            }
        }
        unknown.map_or(Ok(true), |key| Err(RecordError::NotRecorded(key)))
    }
}

impl Condition {
    /// Whether a record that has these keys says whether the condition holds.
    fn is_known(&self, known: FieldSet, flow: &Flow<'_>) -> bool {
        let has = |keys: &[Key]| keys.iter().all(|&key| known.contains(key));
        match self {
            Self::Ids(_) => true,
            Self::ConntrackIds(_) => has(&[Key::ConntrackId]),
            Self::Families(_) => has(&[Key::Family]),
            Self::Protocols(_) => has(&[Key::ProtocolNumber]),
            // The source alone is known where its name or number is recorded without the mark.
            Self::Marks(marks) => {
                has(&[Key::Mark])
                    || has(&[Key::SourceId])
                        && marks.iter().all(|Masked { mask, .. }| mask & !Mark::SOURCE == 0)
            }
            Self::Ports(end, _) => match end {
                End::Src => has(&[Key::Sport]),
                End::Dst => has(&[Key::Dport]),
                End::ReplySrc => has(&[Key::ReplySport]),
                End::ReplyDst => has(&[Key::ReplyDport]),
                End::NatSrc => has(&[Key::NatSport]),
                End::NatDst => has(&[Key::NatDport]),
                End::Any => {
                    self.matches(flow) || has(&[Key::Sport, Key::Dport, Key::ReplySport, Key::ReplyDport])
                }
            },
            Self::Addresses(end, _) => match end {
                End::Src => has(&[Key::Src]),
                End::Dst => has(&[Key::Dst]),
                End::ReplySrc => has(&[Key::ReplySrc]),
                End::ReplyDst => has(&[Key::ReplyDst]),
                End::NatSrc => has(&[Key::NatSrc]),
                End::NatDst => has(&[Key::NatDst]),
                End::Any => self.matches(flow) || has(&[Key::Src, Key::Dst, Key::ReplySrc, Key::ReplyDst]),
            },
            Self::Icmp(IcmpField::Type, _) => has(&[Key::IcmpType]),
            Self::Icmp(IcmpField::Code, _) => has(&[Key::IcmpCode]),
            Self::Icmp(IcmpField::Id, _) => has(&[Key::IcmpId]),
            Self::States(states) => {
                let stateless = |state: &State| matches!(state, State::Stateless(_));
                has(&[Key::State]) && (has(&[Key::Status]) || !states.iter().any(stateless))
            }
            Self::Status(_) => has(&[Key::Status]),
            // Not every flow has these: where the log has the field and the line lacks it, the flow lacks it too.
            Self::Nat(kinds) => {
                let is_enough = |kind: &Nat| match kind {
                    Nat::Source => has(&[Key::NatSrc]),
                    Nat::Destination => has(&[Key::NatDst]),
                    Nat::Any | Nat::None => has(&[Key::NatSrc, Key::NatDst]),
                };
                kinds.iter().all(is_enough) || !kinds.contains(&Nat::None) && self.matches(flow)
            }
            // A flow of which the directions differ has no `zone`, nor has one without a zone.
            Self::Zones(Zone::Both, zones) => {
                has(&[Key::Zone]) && (!zones.contains(&0) || has(&[Key::OrigZone, Key::ReplyZone]))
            }
            Self::Zones(Zone::Original, _) => has(&[Key::OrigZone]),
            Self::Zones(Zone::Reply, _) => has(&[Key::ReplyZone]),
            Self::Labels(_) => has(&[Key::Labels]),
            Self::Interfaces(_) => has(&[Key::Interface]),
            Self::Helpers(_) => has(&[Key::Helper]),
            Self::Pids(_)
            | Self::Comms(_)
            | Self::Uids(_)
            | Self::Units(_)
            | Self::Containers(_)
            | Self::Pods(_)
            | Self::Exes(_) => self.matches(flow) || has(&[Key::Initiator, Key::Responder]),
            Self::MinBytes(_) => self.matches(flow) || has(&[Key::OrigBytes, Key::ReplyBytes]),
            Self::Since(_) => has(&[Key::EndUsec]),
            Self::Until(_) => has(&[Key::StartUsec]),
        }
    }
}

#[cfg(test)]
mod tests;

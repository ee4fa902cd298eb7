//! One key of a query with its values: what is asked of a flow.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ctnetlink::{Family, Layer4, Tuple, label_bits};
use ipnet::IpNet;

use super::parse::{self, Masked, Nat, State, each, one};
use super::{Argument, QueryError, QueryKey};
use crate::flow::Translated;
use crate::{Flow, Owner, SourceNames};

/// What a key asks of a flow; one of its values has to fit. Names were resolved when the query was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Ids(Box<[u64]>),
    ConntrackIds(Box<[u32]>),
    Families(Box<[Family]>),
    Protocols(Box<[u8]>),
    /// Values of the mark, or of the parts that it is made of.
    Marks(Box<[Masked]>),
    Ports(End, Box<[RangeInclusive<u16>]>),
    Addresses(End, Box<[IpNet]>),
    Icmp(IcmpField, Box<[u16]>),
    Nat(Box<[Nat]>),
    Zones(Zone, Box<[u16]>),
    States(Box<[State]>),
    Status(Box<[u32]>),
    Labels(Box<[u128]>),
    Interfaces(Box<[Box<str>]>),
    Helpers(Box<[Box<str>]>),
    Pids(Box<[u32]>),
    Comms(Box<[Box<str>]>),
    Uids(Box<[u32]>),
    Units(Box<[Box<str>]>),
    Containers(Box<[Box<str>]>),
    Pods(Box<[Box<str>]>),
    Exes(Box<[Box<str>]>),
    MinBytes(u64),
    Since(u64),
    Until(u64),
}

/// An end of a direction, which has an address and may have a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Src,
    Dst,
    ReplySrc,
    ReplyDst,
    NatSrc,
    NatDst,
    Any,
}

/// A number of an ICMP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IcmpField {
    Type,
    Code,
    Id,
}

/// Which direction's zone is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zone {
    Both,
    Original,
    Reply,
}

impl Condition {
    /// Reads the value of a key that filters; `None` for one that does not.
    pub(super) fn parse(
        key: QueryKey,
        value: &Argument,
        names: &SourceNames,
    ) -> Result<Option<Self>, QueryError> {
        /// The longest name of an interface, a process or a helper: one less than IFNAMSIZ, TASK_COMM_LEN and
        /// NF_CT_HELPER_NAME_LEN.
        const NAME: usize = 15;
        /// UNIT_NAME_MAX of systemd, without its zero; NAME_MAX of what else has a directory of its name.
        const UNIT: usize = 255;
        let (name, takes) = (key.name(), key.takes());
        let addresses = |end| each(name, takes, value, parse::network).map(|nets| Self::Addresses(end, nets));
        let ports = |end| each(name, takes, value, parse::ports).map(|ports| Self::Ports(end, ports));
        let zones = |zone| each(name, takes, value, parse::integer).map(|zones| Self::Zones(zone, zones));
        let icmp = |field, maximum| {
            each(name, takes, value, parse::within(0..=maximum)).map(|numbers| Self::Icmp(field, numbers))
        };
        let condition = match key {
            QueryKey::Family => Self::Families(each(name, takes, value, parse::family)?),
            QueryKey::Protocol => Self::Protocols(each(name, takes, value, parse::protocol)?),
            QueryKey::Src => addresses(End::Src)?,
            QueryKey::Dst => addresses(End::Dst)?,
            QueryKey::ReplySrc => addresses(End::ReplySrc)?,
            QueryKey::ReplyDst => addresses(End::ReplyDst)?,
            QueryKey::NatSrc => addresses(End::NatSrc)?,
            QueryKey::NatDst => addresses(End::NatDst)?,
            QueryKey::Address => addresses(End::Any)?,
            QueryKey::Sport => ports(End::Src)?,
            QueryKey::Dport => ports(End::Dst)?,
            QueryKey::ReplySport => ports(End::ReplySrc)?,
            QueryKey::ReplyDport => ports(End::ReplyDst)?,
            QueryKey::NatSport => ports(End::NatSrc)?,
            QueryKey::NatDport => ports(End::NatDst)?,
            QueryKey::Port => ports(End::Any)?,
            QueryKey::IcmpType => icmp(IcmpField::Type, u16::from(u8::MAX))?,
            QueryKey::IcmpCode => icmp(IcmpField::Code, u16::from(u8::MAX))?,
            QueryKey::IcmpId => icmp(IcmpField::Id, u16::MAX)?,
            QueryKey::Nat => Self::Nat(each(name, takes, value, parse::nat)?),
            QueryKey::Mark => Self::Marks(each(name, takes, value, parse::mark)?),
            QueryKey::Source => {
                let known: Vec<_> = names.iter().map(|(_, name)| name).collect();
                let takes = format!("a traffic source: {}, or a number from 0 to 63", known.join(", "));
                let sources: Vec<Vec<_>> = each(name, &takes, value, parse::sources(names))?;
                Self::Marks(sources.concat().into())
            }
            QueryKey::Vpn => Self::Marks(each(name, takes, value, parse::vpn)?),
            QueryKey::Qos => Self::Marks(each(name, takes, value, parse::qos)?),
            QueryKey::RoutingTable => Self::Marks(each(name, takes, value, parse::routing_table)?),
            QueryKey::Interface => Self::Interfaces(each(name, takes, value, parse::name(NAME))?),
            QueryKey::Zone => zones(Zone::Both)?,
            QueryKey::OrigZone => zones(Zone::Original)?,
            QueryKey::ReplyZone => zones(Zone::Reply)?,
            QueryKey::State => Self::States(each(name, takes, value, parse::state)?),
            QueryKey::Status => Self::Status(each(name, takes, value, parse::status)?),
            QueryKey::Helper => Self::Helpers(each(name, takes, value, parse::name(NAME))?),
            QueryKey::Labels => Self::Labels(each(name, takes, value, parse::labels)?),
            QueryKey::Id => Self::Ids(each(name, takes, value, parse::integer)?),
            QueryKey::ConntrackId => Self::ConntrackIds(each(name, takes, value, parse::integer)?),
            QueryKey::Pid => Self::Pids(each(name, takes, value, parse::integer)?),
            QueryKey::Comm => Self::Comms(each(name, takes, value, parse::name(NAME))?),
            QueryKey::Uid => Self::Uids(each(name, takes, value, parse::integer)?),
            QueryKey::Unit => Self::Units(each(name, takes, value, parse::name(UNIT))?),
            QueryKey::Container => Self::Containers(each(name, takes, value, parse::name(UNIT))?),
            QueryKey::Pod => Self::Pods(each(name, takes, value, parse::name(UNIT))?),
            QueryKey::Exe => Self::Exes(each(name, takes, value, parse::name(UNIT))?),
            QueryKey::MinBytes => Self::MinBytes(one(name, takes, value, parse::integer)?),
            QueryKey::Since => Self::Since(one(name, takes, value, parse::integer)?),
            QueryKey::Until => Self::Until(one(name, takes, value, parse::integer)?),
            _ => return Ok(None),
        };
        Ok(Some(condition))
    }

    /// A rough cost of asking for this: what is asked first should be quick and refuse much.
    pub(super) const fn cost(&self) -> u8 {
        match self {
            Self::Ids(_) | Self::ConntrackIds(_) => 0,
            Self::Protocols(_) | Self::Marks(_) | Self::Since(_) | Self::Until(_) | Self::MinBytes(_) => 1,
            Self::Families(_) | Self::Zones(..) | Self::Status(_) | Self::Labels(_) => 2,
            Self::Ports(..) | Self::Icmp(..) | Self::Pids(_) | Self::Uids(_) => 3,
            Self::Addresses(..) | Self::Nat(_) => 4,
            Self::States(_) | Self::Interfaces(_) | Self::Helpers(_) => 5,
            Self::Comms(_) | Self::Units(_) | Self::Containers(_) | Self::Pods(_) | Self::Exes(_) => 6,
        }
    }

    /// Whether one of the values fits the flow. What the flow does not have fits none.
    pub(super) fn matches(&self, flow: &Flow<'_>) -> bool {
        match self {
            Self::Ids(ids) => ids.contains(&flow.id),
            Self::ConntrackIds(ids) => flow.conntrack_id.is_some_and(|id| ids.contains(&id)),
            Self::Families(families) => families.contains(&flow.original.family()),
            Self::Protocols(protocols) => protocols.contains(&flow.original.protocol),
            Self::Marks(marks) => marks.iter().any(|Masked { value, mask }| flow.mark & mask == *value),
            Self::Ports(end, ranges) => {
                end.any_port(flow, |port| ranges.iter().any(|range| range.contains(&port)))
            }
            Self::Addresses(end, networks) => end.any_address(flow, |address| contain(networks, address)),
            Self::Icmp(field, numbers) => field.of(&flow.original).is_some_and(|n| numbers.contains(&n)),
            Self::Nat(kinds) => {
                let translated = flow.translated();
                kinds.iter().any(|kind| kind.fits(translated))
            }
            Self::Zones(zone, zones) => {
                let (original, reply) = (flow.original.zone, flow.reply.zone);
                match zone {
                    Zone::Both => original == reply && zones.contains(&original),
                    Zone::Original => zones.contains(&original),
                    Zone::Reply => zones.contains(&reply),
                }
            }
            Self::States(states) => states.iter().any(|state| state.is_of(flow)),
            Self::Status(bits) => {
                flow.status.is_some_and(|status| bits.iter().any(|bit| status.bits() & bit != 0))
            }
            Self::Labels(masks) => {
                flow.labels.map(label_bits).is_some_and(|bits| masks.iter().any(|mask| bits & mask == *mask))
            }
            Self::Interfaces(names) => is_one_of(flow.interface, names),
            Self::Helpers(names) => is_one_of(flow.helper, names),
            Self::Pids(pids) => any_owner(flow, |owner| owner.pid.is_some_and(|pid| pids.contains(&pid))),
            Self::Uids(uids) => any_owner(flow, |owner| owner.uid.is_some_and(|uid| uids.contains(&uid))),
            // The thread's name or its process's: people know the latter.
            Self::Comms(names) => {
                any_owner(flow, |owner| is_one_of(owner.comm, names) || is_one_of(owner.leader_comm, names))
            }
            Self::Units(names) => any_owner(flow, |owner| is_one_of(owner.unit, names)),
            Self::Containers(ids) => any_owner(flow, |owner| {
                owner.container.is_some_and(|container| ids.iter().any(|id| is_container(container, id)))
            }),
            Self::Pods(uids) => any_owner(flow, |owner| is_one_of(owner.pod, uids)),
            Self::Exes(paths) => {
                any_owner(flow, |owner| owner.exe.is_some_and(|exe| paths.iter().any(|path| **path == *exe)))
            }
            Self::MinBytes(least) => {
                let bytes = [flow.original_counters, flow.reply_counters].into_iter().flatten();
                bytes
                    .map(|counters| counters.bytes)
                    .reduce(u64::saturating_add)
                    .is_some_and(|sum| sum >= *least)
            }
            Self::Since(since) => flow.end.is_none_or(|end| end.usec >= *since),
            Self::Until(until) => flow.start.is_none_or(|start| start.usec <= *until),
        }
    }
}

impl End {
    #[inline]
    fn any_address(self, flow: &Flow<'_>, test: impl Fn(IpAddr) -> bool) -> bool {
        let (original, reply) = (&flow.original, &flow.reply);
        match self {
            Self::Src => test(original.src),
            Self::Dst => test(original.dst),
            Self::ReplySrc => test(reply.src),
            Self::ReplyDst => test(reply.dst),
            Self::NatSrc => test(reply.dst) && flow.translated().source,
            Self::NatDst => test(reply.src) && flow.translated().destination,
            Self::Any => test(original.src) || test(original.dst) || test(reply.src) || test(reply.dst),
        }
    }

    #[inline]
    fn any_port(self, flow: &Flow<'_>, test: impl Fn(u16) -> bool) -> bool {
        let (original, reply) = (&flow.original.layer4, &flow.reply.layer4);
        let src = |layer4: &Layer4| matches!(*layer4, Layer4::Ports { src, .. } if test(src));
        let dst = |layer4: &Layer4| matches!(*layer4, Layer4::Ports { dst, .. } if test(dst));
        match self {
            Self::Src => src(original),
            Self::Dst => dst(original),
            Self::ReplySrc => src(reply),
            Self::ReplyDst => dst(reply),
            Self::NatSrc => dst(reply) && flow.translated().source,
            Self::NatDst => src(reply) && flow.translated().destination,
            Self::Any => src(original) || dst(original) || src(reply) || dst(reply),
        }
    }
}

impl IcmpField {
    fn of(self, tuple: &Tuple) -> Option<u16> {
        let Layer4::Icmp { kind, code, id } = tuple.layer4 else { return None };
        Some(match self {
            Self::Type => kind.into(),
            Self::Code => code.into(),
            Self::Id => id,
        })
    }
}

impl Nat {
    const fn fits(self, translated: Translated) -> bool {
        match self {
            Self::Source => translated.source,
            Self::Destination => translated.destination,
            Self::Any => translated.source || translated.destination,
            Self::None => !translated.source && !translated.destination,
        }
    }
}

/// An IPv4-mapped address is also the IPv4 address inside.
fn contain(networks: &[IpNet], address: IpAddr) -> bool {
    let inner = match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map(IpAddr::V4),
    };
    networks.iter().any(|network| {
        network.contains(&address) || inner.as_ref().is_some_and(|inner| network.contains(inner))
    })
}

fn is_one_of(name: Option<&str>, names: &[Box<str>]) -> bool {
    name.is_some_and(|name| names.iter().any(|other| other.eq_ignore_ascii_case(name)))
}

/// An id of hexadecimal digits is known by the first of them, as the engines have it; a name has to be whole.
fn is_container(container: &str, id: &str) -> bool {
    let is_long = container.len() == 64 && container.bytes().all(|digit| digit.is_ascii_hexdigit());
    let beginning = if is_long { container.get(..id.len()) } else { Some(container) };
    beginning.is_some_and(|beginning| beginning.eq_ignore_ascii_case(id))
}

fn any_owner(flow: &Flow<'_>, test: impl Fn(&Owner<'_>) -> bool) -> bool {
    flow.initiator.is_some_and(&test) || flow.responder.is_some_and(&test)
}

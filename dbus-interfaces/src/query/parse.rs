//! Values of a query, by what they are. `None` is a value that does not fit.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ctnetlink::{EventKind, Family, PROTOCOLS, Status, state_names};
use ipnet::{IpNet, Ipv4Net};

use super::{Argument, QueryError, QueryKey};
use crate::stream::parse_epoch;
use crate::value::STATUS_NAMES;
use crate::{FieldSet, Flow, Key, Mark, SourceNames, event_name, parse_number, protocol_number, status_bit};

impl QueryKey {
    /// The names that the key takes, to be offered; none where they are not fixed, such as traffic sources, to which a
    /// configuration adds. Names that are but numbers, those of bits and values without a meaning, are left out.
    pub fn names(self) -> Vec<&'static str> {
        match self {
            Self::Family => FAMILIES.map(|(name, _)| name).to_vec(),
            Self::Protocol => PROTOCOLS.map(|(_, name)| name).to_vec(),
            Self::Nat => NATS.map(|(name, _)| name).to_vec(),
            Self::Vpn => Masked::names(Mark::VPN, Mark::vpn).map(|(_, name)| name).collect(),
            Self::Qos => words(Masked::names(Mark::QOS, qos_name).map(|(_, name)| name)),
            Self::State => STATEFUL
                .into_iter()
                .flat_map(state_names)
                .copied()
                .chain(REPLIES.map(|(name, _)| name))
                .collect(),
            Self::Status => words(STATUS_NAMES.into_iter()),
            Self::Events => EVENTS.map(event_name).to_vec(),
            _ => Vec::new(),
        }
    }
}

/// The names that are no numbers.
fn words(names: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    names.filter(|name| !name.starts_with("0x")).collect()
}

/// The one value of a key.
pub(super) fn one<T>(
    key: &'static str,
    takes: &str,
    argument: &Argument,
    parse: impl Fn(&Argument) -> Option<T>,
) -> Result<T, QueryError> {
    parse(argument).ok_or_else(|| QueryError::Value {
        key,
        takes: takes.to_owned(),
        value: argument.to_string(),
    })
}

/// The values of a key that takes several: an array, or a single one.
pub(super) fn each<T, C: FromIterator<T>>(
    key: &'static str,
    takes: &str,
    argument: &Argument,
    parse: impl Fn(&Argument) -> Option<T>,
) -> Result<C, QueryError> {
    match argument {
        // An empty array would match nothing or everything: neither was meant.
        Argument::List(list) if !list.is_empty() => {
            list.iter().map(|element| one(key, takes, element, &parse)).collect()
        }
        single => one(key, takes, single, parse).map(|value| std::iter::once(value).collect()),
    }
}

/// An integer of any D-Bus type, or a decimal string.
pub(super) fn integer<T: TryFrom<u64>>(argument: &Argument) -> Option<T> {
    let number = match argument {
        Argument::Unsigned(number) => *number,
        Argument::Signed(number) => u64::try_from(*number).ok()?,
        // from_str accepts a sign, which neither a port nor a mark has.
        Argument::Text(text) if text.bytes().all(|digit| digit.is_ascii_digit()) => text.parse().ok()?,
        _ => return None,
    };
    T::try_from(number).ok()
}

/// An integer of a range.
pub(super) fn within<T>(range: RangeInclusive<T>) -> impl Fn(&Argument) -> Option<T>
where
    T: TryFrom<u64> + PartialOrd,
{
    move |argument| integer(argument).filter(|number| range.contains(number))
}

pub(super) fn boolean(argument: &Argument) -> Option<bool> {
    match argument {
        Argument::Bool(value) => Some(*value),
        _ => None,
    }
}

fn text(argument: &Argument) -> Option<&str> {
    match argument {
        Argument::Text(text) => Some(text),
        _ => None,
    }
}

/// A name that is kept as it is, of at most `maximum` bytes.
pub(super) fn name(maximum: usize) -> impl Fn(&Argument) -> Option<Box<str>> {
    move |argument| text(argument).filter(|name| (1..=maximum).contains(&name.len())).map(Box::from)
}

/// One of some names, without regard to case.
fn named<T: Copy>(argument: &Argument, names: &[(&str, T)]) -> Option<T> {
    let text = text(argument)?;
    names.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|&(_, value)| value)
}

/// The fields of a flow. An unknown one is answered with those that flows of this answer can have.
pub(super) fn fields(argument: &Argument, known: impl Fn(Key) -> bool) -> Result<FieldSet, QueryError> {
    let field = |argument: &Argument| Key::parse(text(argument)?);
    each("fields", QueryKey::Fields.takes(), argument, field).map_err(|error| match error {
        QueryError::Value { key, takes, value } => {
            let known: Vec<_> = Key::ALL.iter().filter(|&&key| known(key)).map(|key| key.name()).collect();
            QueryError::Value { key, takes: format!("{takes} of {}", known.join(", ")), value }
        }
        other => other,
    })
}

/// An epoch, as `begin` has it.
pub(super) fn epoch(argument: &Argument) -> Option<String> {
    text(argument).and_then(parse_epoch)
}

const EVENTS: [EventKind; 3] = [EventKind::New, EventKind::Update, EventKind::Destroy];

/// One kind of change, or none.
pub(super) fn event(argument: &Argument) -> Option<Option<EventKind>> {
    let [new, update, destroy] = EVENTS.map(|kind| (event_name(kind), Some(kind)));
    named(argument, &[new, update, destroy, ("none", None)])
}

const FAMILIES: [(&str, Family); 2] = [("ipv4", Family::Ipv4), ("ipv6", Family::Ipv6)];

pub(super) fn family(argument: &Argument) -> Option<Family> {
    named(argument, &FAMILIES)
}

pub(super) fn protocol(argument: &Argument) -> Option<u8> {
    text(argument).and_then(protocol_number).or_else(|| integer(argument))
}

/// An address or a network. Bits behind the prefix are ignored, as conntrack and iptables do; an IPv4-mapped
/// address is the IPv4 address inside.
pub(super) fn network(argument: &Argument) -> Option<IpNet> {
    let text = text(argument)?;
    let network = text.parse::<IpAddr>().map(IpNet::from).ok().or_else(|| text.parse().ok())?;
    if let IpNet::V6(v6) = network
        && let (Some(mapped), Some(prefix)) = (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96))
    {
        return Ipv4Net::new(mapped, prefix).ok().map(|v4| IpNet::V4(v4.trunc()));
    }
    Some(network.trunc())
}

/// A port, or `low-high`.
pub(super) fn ports(argument: &Argument) -> Option<RangeInclusive<u16>> {
    if let Some(port) = integer(argument) {
        return Some(port..=port);
    }
    let (low, high) = text(argument)?.split_once('-')?;
    let port = |text: &str| integer::<u16>(&Argument::Text(text.to_owned()));
    let (low, high) = (port(low)?, port(high)?);
    (low <= high).then_some(low..=high)
}

/// Some bits of a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Masked {
    pub(super) value: u32,
    pub(super) mask: u32,
}

/// A mark, or `value/mask`. A value with bits outside the mask would match nothing.
pub(super) fn mark(argument: &Argument) -> Option<Masked> {
    let (value, mask) = match argument {
        Argument::Text(text) => match text.split_once('/') {
            Some((value, mask)) => (parse_number(value)?, parse_number(mask)?),
            None => (parse_number(text)?, u32::MAX),
        },
        _ => (integer(argument)?, u32::MAX),
    };
    (value & !mask == 0).then_some(Masked { value, mask })
}

impl Masked {
    /// A part of a mark that stands where `mask` says.
    fn part(mask: u32, value: impl Into<u32>) -> Self {
        Self { value: value.into() << mask.trailing_zeros(), mask }
    }

    /// The names of a part of few bits that has one for each of its values.
    fn names(mask: u32, name: fn(Mark) -> &'static str) -> impl Iterator<Item = (Self, &'static str)> {
        let parts = (0..=mask >> mask.trailing_zeros()).map(move |value| Self::part(mask, value));
        parts.map(move |part| (part, name(Mark(part.value))))
    }

    /// The value of a part that has such a name.
    fn named(mask: u32, argument: &Argument, name: fn(Mark) -> &'static str) -> Option<Self> {
        let text = text(argument)?;
        Self::names(mask, name).find(|(_, name)| name.eq_ignore_ascii_case(text)).map(|(part, _)| part)
    }
}

/// A number as people write marks, or an integer, up to a maximum.
fn number(argument: &Argument, maximum: u8) -> Option<u8> {
    let number = match argument {
        Argument::Text(text) => parse_number(text),
        _ => integer(argument),
    };
    number.filter(|number| *number <= maximum)
}

/// A traffic source by name, alias or number; an alias may mean several.
pub(super) fn sources(names: &SourceNames) -> impl Fn(&Argument) -> Option<Vec<Masked>> {
    |argument| {
        let mut sources = text(argument).map(|text| names.parse_all(text)).unwrap_or_default();
        if sources.is_empty() {
            sources.push(number(argument, 63)?);
        }
        Some(sources.into_iter().map(|source| Masked::part(Mark::SOURCE, source)).collect())
    }
}

pub(super) fn vpn(argument: &Argument) -> Option<Masked> {
    Masked::named(Mark::VPN, argument, Mark::vpn)
}

const fn qos_name(mark: Mark) -> &'static str {
    mark.qos().name()
}

pub(super) fn qos(argument: &Argument) -> Option<Masked> {
    Masked::named(Mark::QOS, argument, qos_name)
        .or_else(|| Some(Masked::part(Mark::QOS, number(argument, 7)?)))
}

pub(super) fn routing_table(argument: &Argument) -> Option<Masked> {
    within(1000..=u16::MAX)(argument).map(|table| Masked::part(Mark::ROUTING_TABLE, table))
}

/// What is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nat {
    Source,
    Destination,
    Any,
    None,
}

const NATS: [(&str, Nat); 4] =
    [("source", Nat::Source), ("destination", Nat::Destination), ("any", Nat::Any), ("none", Nat::None)];

pub(super) fn nat(argument: &Argument) -> Option<Nat> {
    named(argument, &NATS)
}

/// The protocols that have states: TCP, DCCP, SCTP.
const STATEFUL: [u8; 3] = [6, 33, 132];

/// What is known of replies, as `flowctl` shows it in place of a state that the protocol does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replies {
    Unreplied,
    Replied,
    Assured,
}

const REPLIES: [(&str, Replies); 3] =
    [("UNREPLIED", Replies::Unreplied), ("REPLIED", Replies::Replied), ("ASSURED", Replies::Assured)];

/// A state of a protocol, or what stands in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Named(&'static str),
    Stateless(Replies),
}

impl State {
    pub(super) fn is_of(self, flow: &Flow<'_>) -> bool {
        match (self, flow.state, flow.status) {
            (Self::Named(name), Some(state), _) => name == state,
            (Self::Stateless(replies), None, Some(status)) => {
                let (assured, replied) =
                    (status.contains(Status::ASSURED), status.contains(Status::SEEN_REPLY));
                match replies {
                    Replies::Assured => assured,
                    Replies::Replied => replied && !assured,
                    Replies::Unreplied => !replied && !assured,
                }
            }
            _ => false,
        }
    }
}

/// A state's name as flows have it, or what `flowctl` shows in its place.
pub(super) fn state(argument: &Argument) -> Option<State> {
    let text = text(argument)?;
    let names = STATEFUL.into_iter().flat_map(state_names).copied();
    let name = names.into_iter().find(|name| name.eq_ignore_ascii_case(text));
    name.map(State::Named).or_else(|| named(argument, &REPLIES).map(State::Stateless))
}

/// The bit of a status name. Conntrack writes `_` for `-`.
pub(super) fn status(argument: &Argument) -> Option<u32> {
    status_bit(&text(argument)?.replace('_', "-"))
}

/// The mask of one label, or a mask of several.
pub(super) fn labels(argument: &Argument) -> Option<u128> {
    let digits = match argument {
        Argument::Text(text) => text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")),
        _ => None,
    };
    match digits {
        // from_str_radix takes a sign.
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
            u128::from_str_radix(digits, 16).ok().filter(|mask| *mask != 0)
        }
        Some(_) => None,
        None => within(0..=127_u8)(argument).map(|label| 1 << label),
    }
}

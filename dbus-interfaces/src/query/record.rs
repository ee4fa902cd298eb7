//! What a line says of a flow, read back into the types of a live one.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ctnetlink::{Counters, Layer4, Status, Tuple, state_names};
use serde::Deserialize;

use super::recorded::RecordError;
use crate::{FieldSet, Flow, FlowRef, Key, OwnedValue, Owner, Time, TimeSource, protocol_number, status_bit};

/// What a line says, as far as filters ask for it.
pub(super) struct Record<'a> {
    /// The flow without what it borrows.
    pub(super) flow: Flow<'static>,
    pub(super) interface: Option<Cow<'a, str>>,
    pub(super) helper: Option<Cow<'a, str>>,
    pub(super) labels: Option<Vec<u8>>,
    pub(super) owners: [Option<RecordedOwner>; 2],
    pub(super) known: FieldSet,
}

impl<'a> Record<'a> {
    /// Reads a line of a log with these fields; owners are read where they are asked for.
    pub(super) fn read(
        line: &FlowRef<'a>,
        has_owners: bool,
        recorded: FieldSet,
    ) -> Result<Self, RecordError> {
        let fields = Reader { line };
        let id = fields.number(Key::Id)?.ok_or(RecordError::Invalid(Key::Id))?;
        let protocol = fields.protocol()?;
        let (original, reply) = fields.tuples(protocol.unwrap_or(0))?;
        let source = fields.number::<u8>(Key::SourceId)?;
        let flow = Flow {
            conntrack_id: fields.number(Key::ConntrackId)?,
            state: fields.state(original.protocol),
            status: fields.status(),
            mark: fields.number(Key::Mark)?.or(source.map(|source| u32::from(source) << 8)).unwrap_or(0),
            original_counters: fields.counters(Key::OrigBytes)?,
            reply_counters: fields.counters(Key::ReplyBytes)?,
            start: fields.time(Key::StartUsec)?,
            end: fields.time(Key::EndUsec)?,
            ..Flow::new(id, original, reply)
        };
        let owner = |key| if has_owners { fields.owner(key) } else { Ok(None) };
        Ok(Self {
            flow,
            interface: line.text(Key::Interface),
            helper: line.text(Key::Helper),
            labels: fields.labels()?,
            owners: [owner(Key::Initiator)?, owner(Key::Responder)?],
            known: known(line, protocol, recorded),
        })
    }
}

/// The keys whose values a record has, or whose absence says that the flow has none.
fn known(line: &FlowRef<'_>, protocol: Option<u8>, recorded: FieldSet) -> FieldSet {
    const ICMP: [u8; 2] = [1, 58];
    const STATEFUL: [u8; 3] = [6, 33, 132];
    const PORTED: [u8; 6] = [6, 17, 33, 47, 132, 136];
    let is_there = |key: Key| line.json(key).is_some();
    let is_of = |protocols: &[u8]| protocol.is_none_or(|protocol| protocols.contains(&protocol));
    // The original direction stands for the reply only where translation would have been recorded.
    let has = |key: Key| match key.substitutes() {
        &[translated, original] => {
            is_there(key) || is_there(translated) || is_there(original) && recorded.contains(translated)
        }
        _ => is_there(key),
    };
    let mut known = line.keys().fold(recorded, FieldSet::with);
    let mut decide = |keys: &[Key], is_known: &dyn Fn(Key) -> bool| {
        for &key in keys {
            known = if is_known(key) { known.with(key) } else { known.without(key) };
        }
    };
    decide(&[Key::Src, Key::Dst, Key::ReplySrc, Key::ReplyDst], &has);
    decide(&[Key::ConntrackId, Key::Mark, Key::SourceId, Key::Status], &has);
    decide(&[Key::Sport, Key::Dport, Key::ReplySport, Key::ReplyDport], &|key| has(key) || !is_of(&PORTED));
    decide(&[Key::IcmpType, Key::IcmpCode, Key::IcmpId], &|key| has(key) || !is_of(&ICMP));
    decide(&[Key::State], &|key| has(key) || !is_of(&STATEFUL));
    decide(&[Key::Family], &|key| has(key) || has(Key::Src) || has(Key::Dst));
    decide(&[Key::ProtocolNumber], &|_| protocol.is_some());
    // Translation is said by itself, or by both directions; it may be that of the port alone.
    for [nat, nat_port, original, port, reply, reply_port] in [
        [Key::NatSrc, Key::NatSport, Key::Src, Key::Sport, Key::ReplyDst, Key::ReplyDport],
        [Key::NatDst, Key::NatDport, Key::Dst, Key::Dport, Key::ReplySrc, Key::ReplySport],
    ] {
        let has_reply_port = is_there(nat_port) || is_there(reply_port);
        let has_ids = is_there(Key::IcmpId) && is_there(Key::ReplyIcmpId);
        let has_ports = is_there(port) && has_reply_port || has_ids || !is_of(&PORTED) && !is_of(&ICMP);
        let is_told = match is_there(nat) {
            true => line.json(nat) != line.json(original) || has_ports,
            false => recorded.contains(nat) || is_there(original) && is_there(reply) && has_ports,
        };
        decide(&[nat], &|_| is_told);
        decide(&[nat_port], &|_| is_told && (has_reply_port || recorded.contains(nat_port)));
    }
    // A zone that both directions have is said once.
    let is_told = |key| is_there(key) || recorded.contains(Key::Zone) && recorded.contains(key);
    decide(&[Key::OrigZone, Key::ReplyZone], &|key| is_there(Key::Zone) || is_told(key));
    known
}

/// Reads values by type.
struct Reader<'l, 'a> {
    line: &'l FlowRef<'a>,
}

impl Reader<'_, '_> {
    fn number<T: TryFrom<u64>>(&self, key: Key) -> Result<Option<T>, RecordError> {
        let Some(text) = self.line.json(key) else { return Ok(None) };
        let number = text.parse::<u64>().ok().and_then(|number| T::try_from(number).ok());
        number.map(Some).ok_or(RecordError::Invalid(key))
    }

    fn address(&self, key: Key) -> Result<Option<IpAddr>, RecordError> {
        if self.line.json(key).is_none() {
            return Ok(None);
        }
        let address = self.line.text(key).and_then(|text| text.parse().ok());
        address.map(Some).ok_or(RecordError::Invalid(key))
    }

    /// The value of the first of these keys that the record has.
    fn first<T>(
        &self,
        key: Key,
        read: impl Fn(Key) -> Result<Option<T>, RecordError>,
    ) -> Result<Option<T>, RecordError> {
        for key in [key].iter().chain(key.substitutes()) {
            if let Some(value) = read(*key)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn protocol(&self) -> Result<Option<u8>, RecordError> {
        let name = || self.line.text(Key::Protocol);
        let by_name = || name().and_then(|name| protocol_number(&name).or_else(|| name.parse().ok()));
        Ok(self.number(Key::ProtocolNumber)?.or_else(by_name))
    }

    /// Both directions. What is not recorded of the original one is not translated, unless the record says so.
    fn tuples(&self, protocol: u8) -> Result<(Tuple, Tuple), RecordError> {
        let address = |key| self.address(key);
        let port = |key| self.number::<u16>(key);
        let (src, dst) = (address(Key::Src)?, address(Key::Dst)?);
        let (reply_src, reply_dst) =
            (self.first(Key::ReplySrc, address)?, self.first(Key::ReplyDst, address)?);
        let is_ipv6 = match [src, dst, reply_src, reply_dst].into_iter().flatten().next() {
            Some(address) => address.is_ipv6(),
            None => self.line.text(Key::Family).as_deref() == Some("ipv6"),
        };
        let none = if is_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let (nat_source, nat_destination) =
            (self.line.json(Key::NatSrc).is_some(), self.line.json(Key::NatDst).is_some());
        let unless = |translated: bool, reply: Option<IpAddr>| reply.filter(|_| !translated).unwrap_or(none);
        let (sport, dport) = (port(Key::Sport)?, port(Key::Dport)?);
        let (reply_sport, reply_dport) =
            (self.first(Key::ReplySport, port)?, self.first(Key::ReplyDport, port)?);
        let zone = port(Key::Zone)?;
        let icmp = |keys: [Key; 3]| -> Result<Option<Layer4>, RecordError> {
            let [kind, code, id] = keys;
            let (kind, code, id) = (self.number(kind)?, self.number(code)?, port(id)?);
            let is_there = kind.is_some() || code.is_some() || id.is_some();
            Ok(is_there.then(|| Layer4::Icmp {
                kind: kind.unwrap_or(0),
                code: code.unwrap_or(0),
                id: id.unwrap_or(0),
            }))
        };
        let ports = |src: Option<u16>, dst: Option<u16>| match (src, dst) {
            (None, None) => Layer4::None,
            _ => Layer4::Ports { src: src.unwrap_or(0), dst: dst.unwrap_or(0) },
        };
        let icmp_original = icmp([Key::IcmpType, Key::IcmpCode, Key::IcmpId])?;
        // The identifier is all that translation changes of ICMP.
        let icmp_reply = match self.line.json(Key::ReplyIcmpId) {
            Some(_) => icmp([Key::ReplyIcmpType, Key::ReplyIcmpCode, Key::ReplyIcmpId])?,
            None => icmp_original,
        };
        let original = Tuple {
            src: src.unwrap_or_else(|| unless(nat_source, reply_dst)),
            dst: dst.unwrap_or_else(|| unless(nat_destination, reply_src)),
            protocol,
            layer4: icmp_original.unwrap_or_else(|| ports(sport.or(reply_dport), dport.or(reply_sport))),
            zone: zone.or(port(Key::OrigZone)?).unwrap_or(0),
        };
        let reply = Tuple {
            src: reply_src.unwrap_or(none),
            dst: reply_dst.unwrap_or(none),
            protocol,
            layer4: icmp_reply.unwrap_or_else(|| ports(reply_sport, reply_dport)),
            zone: zone.or(port(Key::ReplyZone)?).unwrap_or(0),
        };
        Ok((original, reply))
    }

    fn state(&self, protocol: u8) -> Option<&'static str> {
        let state = self.line.text(Key::State)?;
        state_names(protocol).iter().copied().find(|name| *name == state)
    }

    fn status(&self) -> Option<Status> {
        self.line.json(Key::Status)?;
        let bits = self.line.names(Key::Status).filter_map(status_bit).fold(0, |bits, bit| bits | bit);
        Some(Status::from_bits_retain(bits))
    }

    fn counters(&self, bytes: Key) -> Result<Option<Counters>, RecordError> {
        Ok(self.number(bytes)?.map(|bytes| Counters { packets: 0, bytes }))
    }

    fn time(&self, key: Key) -> Result<Option<Time>, RecordError> {
        Ok(self.number(key)?.map(|usec| Time { usec, source: TimeSource::Estimated }))
    }

    fn labels(&self) -> Result<Option<Vec<u8>>, RecordError> {
        match (self.line.json(Key::Labels), self.line.value(Key::Labels)) {
            (None, _) => Ok(None),
            (_, Some(OwnedValue::Bytes(bytes))) => Ok(Some(bytes)),
            _ => Err(RecordError::Invalid(Key::Labels)),
        }
    }

    fn owner(&self, key: Key) -> Result<Option<RecordedOwner>, RecordError> {
        let Some(text) = self.line.json(key) else { return Ok(None) };
        serde_json::from_str(text).map(Some).map_err(|_| RecordError::Invalid(key))
    }
}

/// The process at one end, as far as filters ask for it.
#[derive(Deserialize)]
pub(super) struct RecordedOwner {
    pid: Option<u32>,
    comm: Option<String>,
    leader_comm: Option<String>,
    uid: Option<u32>,
    unit: Option<String>,
    container: Option<String>,
    pod: Option<String>,
    exe: Option<String>,
}

impl RecordedOwner {
    pub(super) fn owner(&self) -> Owner<'_> {
        Owner {
            pid: self.pid,
            comm: self.comm.as_deref(),
            leader_comm: self.leader_comm.as_deref(),
            uid: self.uid,
            unit: self.unit.as_deref(),
            container: self.container.as_deref(),
            pod: self.pod.as_deref(),
            exe: self.exe.as_deref(),
            ..Owner::default()
        }
    }
}

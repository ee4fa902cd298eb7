//! Which flows a program means: conditions on a flow, all of which have to hold. Matched here, never by the kernel, whose
//! comparison of IPv6 addresses is inverted (`CTA_FILTER`).

use std::net::IpAddr;

use crate::{Flow, Layer4, Status, Tuple};

/// The protocols that have ports: TCP, UDP, DCCP, SCTP, UDPLite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// What is wrong with a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A condition was given twice.
    #[error("{0} is given twice; several values are several filters")]
    Repeated(&'static str),
    /// Ports mean something in few protocols.
    #[error(
        "a port needs one of the protocols TCP (6), UDP (17), DCCP (33), SCTP (132) and UDPLite (136), given before it"
    )]
    NoPorts,
    /// A prefix is longer than the address.
    #[error("a prefix of {prefix} bits; {address} has at most {most}")]
    Prefix {
        /// The address.
        address: IpAddr,
        /// What was given.
        prefix: u8,
        /// 32 or 128.
        most: u8,
    },
}

/// Addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// The addresses whose first `prefix` bits are those of `address`.
    ///
    /// # Errors
    /// [`FilterError::Prefix`] where the address has fewer.
    pub const fn new(address: IpAddr, prefix: u8) -> Result<Self, FilterError> {
        let most = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        if prefix > most {
            return Err(FilterError::Prefix { address, prefix, most });
        }
        Ok(Self { address, prefix })
    }

    /// Whether the network has the address; it has none of the other family.
    pub fn contains(&self, address: IpAddr) -> bool {
        let differs = |a: u128, b: u128, bits: u32| {
            // A shift by all bits is no shift.
            (a ^ b).checked_shr(bits - u32::from(self.prefix)).unwrap_or(0) != 0
        };
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => !differs(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => !differs(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self { address, prefix }
    }
}

/// An end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Source of the original direction.
    OriginalSource,
    /// Destination of the original direction.
    OriginalDestination,
    /// Source of the reply direction.
    ReplySource,
    /// Destination of the reply direction.
    ReplyDestination,
    /// Source or destination of the reply direction.
    ReplyAny,
}

impl End {
    const fn name(self) -> &'static str {
        match self {
            Self::OriginalSource => "the original source",
            Self::OriginalDestination => "the original destination",
            Self::ReplySource => "the reply source",
            Self::ReplyDestination => "the reply destination",
            Self::ReplyAny => "any reply end",
        }
    }

    fn any<T>(
        self,
        flow: &Flow<'_>,
        of: impl Fn(&Tuple) -> Option<(T, T)>,
        test: impl Fn(T) -> bool,
    ) -> bool {
        let tuple = match self {
            Self::OriginalSource | Self::OriginalDestination => &flow.original,
            _ => &flow.reply,
        };
        let Some((src, dst)) = of(tuple) else { return false };
        match self {
            Self::OriginalSource | Self::ReplySource => test(src),
            Self::OriginalDestination | Self::ReplyDestination => test(dst),
            Self::ReplyAny => test(src) || test(dst),
        }
    }
}

/// Conditions on a flow, all of which have to hold. A filter without conditions matches no flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    protocol: Option<u8>,
    addresses: Vec<(End, Network)>,
    ports: Vec<(End, u16)>,
    mark: Option<(u32, u32)>,
    status: Option<(Status, Status)>,
    zone: Option<u16>,
    labels: Option<u128>,
}

impl FlowFilter {
    /// The IP protocol, by number.
    ///
    /// # Errors
    /// [`FilterError::Repeated`], as for all conditions that are given twice.
    pub fn protocol(&mut self, protocol: u8) -> Result<(), FilterError> {
        once(&mut self.protocol, protocol, "the protocol")
    }

    /// An address or network at this end.
    ///
    /// # Errors
    /// [`FilterError::Repeated`].
    pub fn address(&mut self, end: End, network: impl Into<Network>) -> Result<(), FilterError> {
        if self.addresses.iter().any(|(other, _)| *other == end) {
            return Err(FilterError::Repeated(end.name()));
        }
        self.addresses.push((end, network.into()));
        Ok(())
    }

    /// A port at this end; the protocol, one that has ports, has to be given first.
    ///
    /// # Errors
    /// [`FilterError::NoPorts`] or [`FilterError::Repeated`].
    pub fn port(&mut self, end: End, port: u16) -> Result<(), FilterError> {
        if !self.protocol.is_some_and(|protocol| WITH_PORTS.contains(&protocol)) {
            return Err(FilterError::NoPorts);
        }
        if self.ports.iter().any(|(other, _)| *other == end) {
            return Err(FilterError::Repeated(end.name()));
        }
        self.ports.push((end, port));
        Ok(())
    }

    /// The mark, compared in the bits of `mask`.
    ///
    /// # Errors
    /// [`FilterError::Repeated`].
    pub fn mark(&mut self, value: u32, mask: u32) -> Result<(), FilterError> {
        once(&mut self.mark, (value, mask), "the mark")
    }

    /// Status bits that have to be set, and bits that must not be.
    ///
    /// # Errors
    /// [`FilterError::Repeated`].
    pub fn status(&mut self, set: Status, unset: Status) -> Result<(), FilterError> {
        once(&mut self.status, (set, unset), "the status")
    }

    /// The zone of the original direction.
    ///
    /// # Errors
    /// [`FilterError::Repeated`].
    pub fn zone(&mut self, zone: u16) -> Result<(), FilterError> {
        once(&mut self.zone, zone, "the zone")
    }

    /// Labels that have to be set, label 0 being the lowest bit.
    ///
    /// # Errors
    /// [`FilterError::Repeated`].
    pub fn labels(&mut self, labels: u128) -> Result<(), FilterError> {
        once(&mut self.labels, labels, "the labels")
    }

    /// Whether all conditions hold, and there is one.
    pub fn matches(&self, flow: &Flow<'_>) -> bool {
        if *self == Self::default() {
            return false;
        }
        let addresses = |tuple: &Tuple| Some((tuple.src, tuple.dst));
        let ports = |tuple: &Tuple| match tuple.layer4 {
            Layer4::Ports { src, dst } => Some((src, dst)),
            _ => None,
        };
        let status = flow.status.unwrap_or_default();
        self.protocol.is_none_or(|protocol| flow.original.protocol == protocol)
            && self.zone.is_none_or(|zone| flow.original.zone == zone)
            && self.mark.is_none_or(|(value, mask)| (flow.mark.unwrap_or(0) ^ value) & mask == 0)
            && self.status.is_none_or(|(set, unset)| status.contains(set) && !status.intersects(unset))
            && self.labels.is_none_or(|labels| label_bits(flow.labels.unwrap_or_default()) & labels == labels)
            && self.addresses.iter().all(|(end, network)| end.any(flow, addresses, |a| network.contains(a)))
            && self.ports.iter().all(|(end, port)| end.any(flow, ports, |p| p == *port))
    }
}

fn once<T>(place: &mut Option<T>, value: T, name: &'static str) -> Result<(), FilterError> {
    match place.replace(value) {
        None => Ok(()),
        Some(before) => {
            *place = Some(before);
            Err(FilterError::Repeated(name))
        }
    }
}

/// Labels as the kernel numbers them, lowest bit first: its words are `unsigned long`, of 64 bits where it runs. What is
/// beyond 128 bits is left out.
pub fn label_bits(labels: &[u8]) -> u128 {
    let mut words = [[0; 8]; 2];
    for (word, bytes) in words.iter_mut().zip(labels.chunks(8)) {
        word[..bytes.len()].copy_from_slice(bytes);
    }
    let [low, high] = words.map(u64::from_ne_bytes);
    u128::from(high) << 64 | u128::from(low)
}

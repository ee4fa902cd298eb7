//! The ends of a socket, as directions and keys.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ctnetlink::{Layer4, Tuple};

use crate::flow::{Key, TCP, UDP};

/// What a socket that speaks to nobody in particular has as its other end, in the family of an address.
pub(crate) fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The ends of a direction, seen from the socket that sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) protocol: u8,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

impl Place {
    /// The ends of a direction; `None` for a protocol whose sockets are not known.
    pub(crate) fn of(direction: &Tuple) -> Option<Self> {
        let Layer4::Ports { src, dst } = direction.layer4 else { return None };
        matches!(direction.protocol, TCP | UDP).then(|| Self {
            protocol: direction.protocol,
            local: SocketAddr::new(direction.src, src),
            remote: SocketAddr::new(direction.dst, dst),
        })
    }

    pub(super) fn exact(&self) -> Key {
        key(self.protocol, self.local, self.remote)
    }

    pub(super) fn sent_without_address(&self) -> Option<Key> {
        let any = SocketAddr::new(unspecified(self.remote.ip()), self.local.port());
        (self.protocol == UDP).then(|| key(UDP, any, self.remote))
    }

    /// The keys of sockets that wait for UDP at this port of any address: of one family, and of both.
    pub(super) fn waiting_without_address(&self) -> impl Iterator<Item = Key> + use<> {
        let port = self.local.port();
        let family = unspecified(self.remote.ip());
        let both = family.is_ipv4().then_some(Ipv6Addr::UNSPECIFIED.into());
        [Some(family), both]
            .into_iter()
            .flatten()
            .map(move |ip| key(UDP, SocketAddr::new(ip, port), SocketAddr::new(ip, 0)))
    }
}

/// The direction from one end to another.
pub(crate) fn direction(protocol: u8, from: SocketAddr, to: SocketAddr) -> Tuple {
    let src = match (from.ip(), to.ip()) {
        // A socket of both families that speaks IPv4.
        (IpAddr::V6(from), to @ IpAddr::V4(_)) if from.is_unspecified() => unspecified(to),
        (from, _) => from,
    };
    let layer4 = Layer4::Ports { src: from.port(), dst: to.port() };
    Tuple { src, dst: to.ip(), protocol, layer4, zone: 0 }
}

pub(super) fn key(protocol: u8, local: SocketAddr, remote: SocketAddr) -> Key {
    Key::new(&direction(protocol, local, remote))
}

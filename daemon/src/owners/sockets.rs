//! The sockets that are known, by the ends that they have: whose they are.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ctnetlink::{Layer4, Tuple};
use flowbus_attribution::{Event, Kind};
use foldhash::fast::RandomState;

use super::{TCP, UDP, unspecified};
use crate::flow::{Key, OwnerNumber};
use crate::state::Counters;

/// So many are kept.
const MAXIMUM: usize = 1 << 17;
/// A socket that has ended may belong to a flow that netlink has not told of yet, for so long.
const ENDED_USEC: u64 = 2_000_000;
/// A datagram that was sent may belong to a flow that comes, for so long. Another one is told of every ten seconds.
const SENT_USEC: u64 = 20_000_000;

/// The sockets of the network namespace whose flows are tracked.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    sockets: HashMap<Key, Socket, RandomState>,
    /// Where each UDP server is bound, by its cookie: what is told of its end may be another address.
    bound: HashMap<u64, Key, RandomState>,
    /// What is forgotten at a time, soonest first: sockets that ended, and datagrams sent.
    ending: [VecDeque<(u64, Key)>; 2],
    /// The addresses of this namespace; `None` while they are not known.
    addresses: Option<HashSet<IpAddr>>,
    /// Connections and datagrams whose flow is not known yet.
    pending: u64,
}

#[derive(Clone, Copy, Debug)]
struct Socket {
    cookie: u64,
    owner: OwnerNumber,
    /// CLOCK_BOOTTIME microseconds when it is forgotten; `u64::MAX` of one that is open.
    until: u64,
    /// Whether a flow of it is waited for.
    pending: bool,
}

impl Sockets {
    /// Notes what an event tells of its socket, whose owner is `owner`, at `now` (CLOCK_BOOTTIME microseconds).
    pub(crate) fn apply(&mut self, event: &Event, owner: OwnerNumber, now: u64, counters: &mut Counters) {
        let key = key(event.protocol, event.local, event.remote);
        match event.kind {
            // A listener has no flow of its own.
            Kind::Listen => {}
            Kind::Syn | Kind::Connect | Kind::Incoming | Kind::Accept | Kind::Bind | Kind::Snapshot
                if event.protocol == TCP && event.remote.port() == 0 => {}
            Kind::Snapshot if self.sockets.contains_key(&key) => {}
            Kind::Bind | Kind::Snapshot => {
                self.put(key, event.cookie, owner, u64::MAX, false, counters);
                if event.remote.port() == 0 && self.bound.len() < MAXIMUM {
                    self.bound.insert(event.cookie, key);
                }
            }
            Kind::Syn | Kind::Connect | Kind::Incoming | Kind::Accept => {
                self.put(key, event.cookie, owner, u64::MAX, true, counters);
            }
            Kind::Send => {
                let until = now + SENT_USEC;
                self.put(key, event.cookie, owner, until, true, counters);
                self.ending[1].push_back((until, key));
            }
            Kind::ConnectFailed { .. } | Kind::Close { .. } | Kind::Release => {
                let key = self.bound.remove(&event.cookie).unwrap_or(key);
                if !self.sockets.contains_key(&key) && event.protocol == TCP {
                    self.put(key, event.cookie, owner, u64::MAX, true, counters);
                }
                self.end(key, event.cookie, now + ENDED_USEC);
            }
        }
    }

    fn put(
        &mut self,
        key: Key,
        cookie: u64,
        owner: OwnerNumber,
        until: u64,
        pending: bool,
        counters: &mut Counters,
    ) {
        let room = self.sockets.len() < MAXIMUM;
        match self.sockets.get_mut(&key) {
            Some(socket) if socket.cookie == cookie => {
                // What is told of a socket later is told of the one who has it by then, or of a surer one.
                let surer = match (socket.owner.get(), owner.get()) {
                    (Some((_, known)), Some((_, offered))) => offered <= known,
                    (known, _) => known.is_none(),
                };
                if surer {
                    socket.owner = owner;
                }
                socket.until = until;
            }
            // The tuple's newest socket is the one that its next flow belongs to.
            Some(socket) => {
                let was_pending = std::mem::replace(socket, Socket { cookie, owner, until, pending }).pending;
                counters.owners_unmatched_sockets += u64::from(was_pending);
                self.pending = self.pending + u64::from(pending) - u64::from(was_pending);
            }
            None if room => {
                self.sockets.insert(key, Socket { cookie, owner, until, pending });
                self.pending += u64::from(pending);
            }
            None => counters.owners_refused += 1,
        }
    }

    fn end(&mut self, key: Key, cookie: u64, until: u64) {
        if let Some(socket) = self.sockets.get_mut(&key)
            && socket.cookie == cookie
        {
            socket.until = until;
            self.ending[0].push_back((until, key));
        }
    }

    /// Forgets what has ended.
    pub(crate) fn expire(&mut self, now: u64, counters: &mut Counters) {
        for ending in &mut self.ending {
            while let Some((until, key)) = ending.front().copied()
                && until <= now
            {
                ending.pop_front();
                // A later word of the socket, or another one, keeps the place.
                if self.sockets.get(&key).is_some_and(|socket| socket.until <= now)
                    && let Some(socket) = self.sockets.remove(&key)
                {
                    counters.owners_expired += 1;
                    counters.owners_unmatched_sockets += u64::from(socket.pending);
                    self.pending -= u64::from(socket.pending);
                }
            }
            if ending.is_empty() {
                *ending = VecDeque::new(); // A burst's memory.
            }
        }
        if self.sockets.capacity() > 4 * self.sockets.len().max(1024) {
            self.sockets.shrink_to(2 * self.sockets.len());
        }
    }

    /// The owner of the socket that sends the packets of this direction, if one is known; its flow is not waited for
    /// any more. The zone plays no part: a packet is tracked in the zone that rules give it, and keeps its socket.
    pub(crate) fn sender(&mut self, direction: &Tuple) -> OwnerNumber {
        let Layer4::Ports { src, dst } = direction.layer4 else { return OwnerNumber::default() };
        if direction.protocol != TCP && direction.protocol != UDP {
            return OwnerNumber::default();
        }
        let local = SocketAddr::new(direction.src, src);
        let remote = SocketAddr::new(direction.dst, dst);
        let exact = key(direction.protocol, local, remote);
        if direction.protocol == TCP {
            return self.take(&exact).unwrap_or_default();
        }
        let nobody = SocketAddr::new(unspecified(remote.ip()), 0);
        let found = self.take(&exact).or_else(|| self.take(&key(UDP, local, nobody)));
        found.or_else(|| self.wildcard(local, remote)).unwrap_or_default()
    }

    /// The owner of a socket without an address of its own. What only passes through has its ports, so the address has
    /// to be one of ours.
    fn wildcard(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<OwnerNumber> {
        let port = local.port();
        let any = |ip: IpAddr| SocketAddr::new(ip, port);
        let is_ours = self.is_ours(local.ip());
        if is_ours || self.addresses.is_none() {
            let sent = self.take(&key(UDP, any(unspecified(remote.ip())), remote));
            if sent.is_some() || !is_ours {
                return sent;
            }
        }
        if !is_ours {
            return None;
        }
        let [own, both] = [unspecified(remote.ip()), Ipv6Addr::UNSPECIFIED.into()];
        let mut bound = |ip| self.take(&key(UDP, any(ip), SocketAddr::new(ip, 0)));
        bound(own).or_else(|| bound(both))
    }

    /// Whether an address is known to be one of this namespace.
    pub(crate) fn is_ours(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.as_ref().is_some_and(|addresses| addresses.contains(&address))
    }

    fn take(&mut self, key: &Key) -> Option<OwnerNumber> {
        let socket = self.sockets.get_mut(key)?;
        self.pending -= u64::from(std::mem::take(&mut socket.pending));
        Some(socket.owner)
    }

    /// The addresses of this namespace.
    pub(crate) fn set_addresses(&mut self, addresses: HashSet<IpAddr>) {
        self.addresses = Some(addresses);
    }

    /// Connections and datagrams whose flow has not been seen yet.
    pub(crate) fn pending(&self) -> u64 {
        self.pending
    }

    /// Who owns a socket.
    pub(crate) fn owners(&self) -> impl Iterator<Item = OwnerNumber> + '_ {
        self.sockets.values().map(|socket| socket.owner)
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

fn key(protocol: u8, local: SocketAddr, remote: SocketAddr) -> Key {
    Key::new(&direction(protocol, local, remote))
}

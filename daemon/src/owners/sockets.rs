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
    /// What is forgotten at a time, soonest first: what goes soon, and what goes later. A socket stands there once.
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
    /// Whether it stands among those that are forgotten at a time.
    ending: bool,
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
                self.put(key, event.cookie, owner, false, counters);
                if event.remote.port() == 0 && self.bound.len() < MAXIMUM {
                    self.bound.insert(event.cookie, key);
                }
            }
            Kind::Syn | Kind::Connect | Kind::Incoming | Kind::Accept => {
                self.put(key, event.cookie, owner, true, counters);
            }
            Kind::Send => {
                self.put(key, event.cookie, owner, true, counters);
                self.end(key, event.cookie, now, SENT_USEC);
            }
            Kind::ConnectFailed { .. } | Kind::Close { .. } | Kind::Release => {
                let key = self.bound.remove(&event.cookie).unwrap_or(key);
                if !self.sockets.contains_key(&key) && event.protocol == TCP {
                    self.put(key, event.cookie, owner, true, counters);
                }
                self.end(key, event.cookie, now, ENDED_USEC);
            }
        }
    }

    fn put(&mut self, key: Key, cookie: u64, owner: OwnerNumber, pending: bool, counters: &mut Counters) {
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
                socket.until = u64::MAX;
            }
            // The tuple's newest socket is the one that its next flow belongs to.
            Some(socket) => {
                let was_pending = socket.pending;
                *socket = Socket { cookie, owner, until: u64::MAX, pending, ending: socket.ending };
                counters.owners_unmatched_sockets += u64::from(was_pending);
                self.pending = self.pending + u64::from(pending) - u64::from(was_pending);
            }
            None if room => {
                let socket = Socket { cookie, owner, until: u64::MAX, pending, ending: false };
                self.sockets.insert(key, socket);
                self.pending += u64::from(pending);
            }
            None => counters.owners_refused += 1,
        }
    }

    /// A socket is forgotten after so many microseconds, unless there is another word of it.
    fn end(&mut self, key: Key, cookie: u64, now: u64, after: u64) {
        if let Some(socket) = self.sockets.get_mut(&key)
            && socket.cookie == cookie
        {
            socket.until = now + after;
            if !std::mem::replace(&mut socket.ending, true) {
                self.ending[usize::from(after > ENDED_USEC)].push_back((socket.until, key));
            }
        }
    }

    /// Forgets what has ended.
    pub(crate) fn expire(&mut self, now: u64, counters: &mut Counters) {
        for which in 0..self.ending.len() {
            while let Some(&(until, key)) = self.ending[which].front()
                && until <= now
            {
                self.ending[which].pop_front();
                let Some(socket) = self.sockets.get_mut(&key) else { continue };
                // A later word of the socket, or another one, keeps the place.
                if socket.until == u64::MAX {
                    socket.ending = false;
                } else if socket.until > now {
                    self.ending[usize::from(socket.until > now + ENDED_USEC)].push_back((socket.until, key));
                } else if let Some(socket) = self.sockets.remove(&key) {
                    counters.owners_expired += 1;
                    counters.owners_unmatched_sockets += u64::from(socket.pending);
                    self.pending -= u64::from(socket.pending);
                }
            }
            if self.ending[which].is_empty() {
                self.ending[which] = VecDeque::new(); // A burst's memory.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn send(sockets: &mut Sockets, port: u16, cookie: u64, now: u64, counters: &mut Counters) {
        let server = SocketAddr::from(([198, 18, 0, 2], port));
        let key = key(UDP, SocketAddr::from(([198, 18, 0, 1], 5000)), server);
        sockets.put(key, cookie, OwnerNumber::default(), true, counters);
        sockets.end(key, cookie, now, SENT_USEC);
    }

    fn waiting(sockets: &Sockets) -> usize {
        sockets.ending.iter().map(VecDeque::len).sum()
    }

    #[test]
    fn a_socket_waits_for_its_end_once_whatever_is_told_of_it() {
        let (mut sockets, mut counters) = (Sockets::default(), Counters::default());
        // For a second, each millisecond, a datagram; every other one of another socket with the same ends.
        for now in (0..1_000_000).step_by(1_000) {
            send(&mut sockets, 53, now / 2_000, now, &mut counters);
            sockets.expire(now, &mut counters);
            assert_eq!((sockets.sockets.len(), waiting(&sockets)), (1, 1));
        }
        // It is asked for its end where the first datagram would have been forgotten, and goes on.
        sockets.expire(SENT_USEC, &mut counters);
        assert_eq!((sockets.sockets.len(), waiting(&sockets)), (1, 1));
        sockets.expire(2 * SENT_USEC, &mut counters);
        assert_eq!((sockets.sockets.len(), waiting(&sockets), sockets.pending()), (0, 0, 0));
    }

    #[test]
    fn what_there_is_no_room_for_is_not_waited_for() {
        let (mut sockets, mut counters) = (Sockets::default(), Counters::default());
        for number in 0..2 * MAXIMUM as u64 {
            let remote = SocketAddr::from((u32::try_from(number).unwrap().to_be_bytes(), 53));
            let key = key(UDP, SocketAddr::from(([198, 18, 0, 1], 5000)), remote);
            sockets.put(key, number, OwnerNumber::default(), true, &mut counters);
            sockets.end(key, number, 0, SENT_USEC);
        }
        assert_eq!((sockets.sockets.len(), waiting(&sockets)), (MAXIMUM, MAXIMUM));
        assert_eq!(counters.owners_refused, MAXIMUM as u64);
    }
}

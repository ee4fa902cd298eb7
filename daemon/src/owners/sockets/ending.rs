//! How sockets end, and when what is known of them is forgotten.

use std::collections::{HashMap, VecDeque};

use ctnetlink::Layer4;
use foldhash::fast::RandomState;

use super::{ENDED_USEC, SENT_USEC, SERVED_USEC, Sockets, Touched, UdpSocket};
use crate::counters::Counters;
use crate::flow::Key;
use crate::owners::claims::Claim;

impl Sockets {
    /// Notes that a UDP socket has ended.
    pub(super) fn release(&mut self, cookie: u64, at: u64, now: u64) -> Option<Touched> {
        let socket = self.udp.get_mut(&cookie)?;
        socket.released = at;
        let key = socket.bound?;
        let claims = self.claims.get_mut(&key)?;
        let (mut used, mut living) = (false, false);
        for claim in claims.iter_mut() {
            if claim.cookie == cookie {
                claim.until = at;
                claim.forget = now + if claim.used { SERVED_USEC } else { ENDED_USEC };
                used |= claim.used;
            } else {
                living |= claim.until == u64::MAX;
            }
        }
        self.note_ending(key, now + if used { SERVED_USEC } else { ENDED_USEC }, now);
        let Layer4::Ports { src: port, .. } = key.original().layer4 else { return None };
        (used && living).then_some(Touched::Port(port))
    }

    /// Has [`Sockets::expire`] look at a direction when a claim of it is to be forgotten, unless it stands in a queue already.
    pub(super) fn note_ending(&mut self, key: Key, forget: u64, now: u64) {
        if forget != u64::MAX
            && let Some(claims) = self.claims.get_mut(&key)
            && !std::mem::replace(&mut claims.ending, true)
        {
            self.ending[kept_for(forget - now)].push_back((forget, key));
        }
    }

    /// Removes the claims that are to be forgotten by `now` (CLOCK_BOOTTIME microseconds), but for those that lasted until
    /// `useful_from` (CLOCK_MONOTONIC nanoseconds): events of that time may not have been applied yet.
    pub(crate) fn expire(&mut self, now: u64, useful_from: u64, counters: &mut Counters) {
        for which in 0..self.ending.len() {
            while let Some(&(forget, key)) = self.ending[which].front()
                && forget <= now
            {
                self.ending[which].pop_front();
                let Self { claims, udp, pending, .. } = self;
                let Some(entry) = claims.get_mut(&key) else { continue };
                let wanted = |claim: &Claim| claim.forget > now || claim.until >= useful_from;
                let is_empty = entry.retain(wanted, |claim| {
                    counters.owners_expired += 1;
                    counters.owners_unmatched_sockets += u64::from(claim.pending);
                    *pending -= u64::from(claim.pending);
                    forget_udp(udp, claim.cookie);
                });
                let next = entry.iter().map(|claim| claim.forget.max(now + 1)).min();
                match next {
                    _ if is_empty => self.remove(&key),
                    None | Some(u64::MAX) => entry.ending = false,
                    Some(next) => self.ending[kept_for(next - now)].push_back((next, key)),
                }
            }
            if self.ending[which].is_empty() {
                self.ending[which] = VecDeque::new(); // A burst's memory.
            }
        }
        self.claims.shrink();
        if self.udp.capacity() > 4 * self.udp.len().max(1024) {
            self.udp.shrink_to(2 * self.udp.len());
        }
    }

    /// Notes that records of sockets were lost until `at` (CLOCK_MONOTONIC nanoseconds): what was open may have ended, unseen.
    /// Servers are kept, of whom nothing is exact.
    pub(crate) fn note_loss(&mut self, at: u64, now: u64) {
        self.doubt = at;
        let Self { claims, udp, ending, .. } = self;
        for (key, entry) in claims.iter_mut() {
            entry.forget_given();
            let is_server =
                |claim: &Claim| udp.get(&claim.cookie).is_some_and(|socket| socket.bound == Some(*key));
            let mut is_cut = false;
            for claim in entry.iter_mut().filter(|claim| claim.until > at && !is_server(claim)) {
                (claim.until, claim.forget) = (at, now + ENDED_USEC);
                is_cut = true;
            }
            if is_cut && !std::mem::replace(&mut entry.ending, true) {
                ending[0].push_back((now + ENDED_USEC, *key));
            }
        }
    }
}

/// Which of [`Sockets::ending`] has the claims that are kept for about this long.
fn kept_for(usec: u64) -> usize {
    usize::from(usec > ENDED_USEC) + usize::from(usec > SENT_USEC)
}

pub(super) fn forget_udp(udp: &mut HashMap<u64, UdpSocket, RandomState>, cookie: u64) {
    if let Some(socket) = udp.get_mut(&cookie) {
        socket.claims -= 1;
        if socket.claims == 0 {
            udp.remove(&cookie);
        }
    }
}

//! The room for directions: each takes a place, of which no namespace gets those of all others.

use super::Sockets;
use super::ending::forget_udp;
use crate::counters::Counters;
use crate::flow::Key;
use crate::owners::claims::{Claim, Claims};

/// At most this many directions are kept.
pub(super) const MAXIMUM: usize = 1 << 17;

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Added,
    /// Its socket had one already, which was changed.
    Known,
    /// There is no room for it: nothing is known that was not known before.
    Refused,
}

impl Sockets {
    /// Adds a claim, to be forgotten in time. Where its socket has a claim already that `is_it`, `known` changes that one instead.
    pub(super) fn put_or(
        &mut self,
        key: Key,
        claim: Claim,
        now: u64,
        counters: &mut Counters,
        is_it: impl Fn(&Claim) -> bool,
        known: impl FnOnce(&mut Claim),
    ) -> Put {
        let put = self.add_or(key, claim, counters, is_it, known);
        if put != Put::Refused {
            self.note_ending(key, claim.forget, now);
        }
        put
    }

    fn add_or(
        &mut self,
        key: Key,
        claim: Claim,
        counters: &mut Counters,
        is_it: impl Fn(&Claim) -> bool,
        known: impl FnOnce(&mut Claim),
    ) -> Put {
        let room = self.has_room(claim.namespace);
        let dropped = match self.claims.get_mut(&key) {
            Some(claims) => {
                claims.forget_given();
                if let Some(claim) = claims.of(claim.cookie, is_it) {
                    known(claim);
                    return Put::Known;
                }
                if claim.since > 0 {
                    claims.push(claim)
                } else if claims.push_oldest(claim) {
                    None
                } else {
                    counters.owners_unmatched_sockets += u64::from(claim.pending);
                    return Put::Refused;
                }
            }
            None if room => {
                self.claims.insert(key, Claims::new(claim));
                if self.elsewhere {
                    *self.shares.entry(claim.namespace).or_default() += 1;
                }
                None
            }
            None => {
                counters.owners_refused += 1;
                return Put::Refused;
            }
        };
        self.pending += u64::from(claim.pending);
        if let Some(dropped) = dropped {
            counters.owners_unmatched_sockets += u64::from(dropped.pending);
            self.pending -= u64::from(dropped.pending);
            forget_udp(&mut self.udp, dropped.cookie);
        }
        Put::Added
    }

    /// Whether there is room for another direction: of the sockets of other namespaces each has at most as much as is free, so
    /// that no namespace takes the room of all others.
    fn has_room(&self, namespace: u32) -> bool {
        let free = MAXIMUM.saturating_sub(self.claims.len());
        free > self.shares.get(&namespace).copied().unwrap_or_default()
    }

    /// Forgets a direction, which has no claims any more.
    pub(super) fn remove(&mut self, key: &Key) {
        let Some(claims) = self.claims.remove(key) else { return };
        if let Some(share) = self.shares.get_mut(&claims.brought_by) {
            *share -= 1;
            if *share == 0 {
                self.shares.remove(&claims.brought_by);
            }
        }
    }
}

//! How many bytes of replies a user gets.

use flowbus_interfaces::fit;
use std::collections::HashMap;

use tokio::time::Instant;

/// What a user may get at once: some four listings of 200,000 flows.
pub(crate) const BURST: u64 = 512 << 20;
/// What a user may get in the long run, by second.
pub(crate) const PER_SECOND: u64 = 64 << 20;
/// The number of users beyond which those that have got nothing lately are forgotten.
const USERS: usize = 64;

/// The bytes that each user has got and that have not been forgiven since.
#[derive(Debug, Default)]
pub(crate) struct Budget(HashMap<u32, Spent>);

#[derive(Clone, Copy, Debug)]
struct Spent {
    bytes: u64,
    at: Instant,
}

impl Spent {
    fn at(self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.at).as_micros();
        let forgiven = fit::<u128, u64>(passed).saturating_mul(PER_SECOND) / 1_000_000;
        self.bytes.saturating_sub(forgiven)
    }
}

impl Budget {
    /// Whether the user has got more than allowed. A reply's size is known only once it is written, so the last replies before
    /// that exceed the budget: as many as may be in flight.
    pub(crate) fn is_spent(&self, user: u32, now: Instant) -> bool {
        self.0.get(&user).is_some_and(|spent| spent.at(now) > BURST)
    }

    /// Counts a reply.
    pub(crate) fn spend(&mut self, user: u32, bytes: usize, now: Instant) {
        if self.0.len() > USERS {
            self.0.retain(|_, spent| spent.at(now) > 0);
        }
        let spent = self.0.entry(user).or_insert(Spent { bytes: 0, at: now });
        *spent = Spent { bytes: spent.at(now) + bytes as u64, at: now };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_user_who_got_too_much_waits_and_others_do_not() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let burst = usize::try_from(BURST).expect("a machine of 64 bits");
        budget.spend(1, burst, start);
        assert!(!budget.is_spent(1, start));
        budget.spend(1, 1, start);
        assert!(budget.is_spent(1, start));
        assert!(!budget.is_spent(2, start));
        assert!(!budget.is_spent(1, start + Duration::from_secs(1)));
        budget.spend(1, 2 * burst, start);
        assert!(budget.is_spent(1, start + Duration::from_secs(1)));
    }

    #[test]
    fn what_was_forgiven_stays_forgiven() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let second = usize::try_from(PER_SECOND).expect("a machine of 64 bits");
        for passed in 0..100 {
            let now = start + Duration::from_secs(passed);
            budget.spend(1, second, now);
            assert!(!budget.is_spent(1, now), "after {passed} seconds");
        }
    }

    #[test]
    fn users_who_got_nothing_lately_take_no_memory() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        for user in 0..100_000 {
            budget.spend(user, 1_000, start + Duration::from_secs(user.into()));
        }
        assert!(budget.0.len() <= USERS + 1, "{}", budget.0.len());
    }
}

//! What the connections of a process have in common.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::budget::Budget;
use crate::calls::{Calls, Excess, Limits};

/// What all connections of a process have in common: the calls in flight, and what users have been sent.
#[derive(Debug)]
pub struct Guard {
    descriptor: bool,
    accounts: Mutex<Accounts>,
    links: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Accounts {
    pub(crate) calls: Calls,
    pub(crate) budget: Budget,
}

impl Guard {
    /// What connections have in common when nothing is in flight.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            descriptor: limits.descriptor,
            accounts: Mutex::new(Accounts { calls: Calls::new(limits), budget: Budget::default() }),
            links: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// How many calls were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Counts one more call that was refused.
    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether no call is in flight.
    pub fn is_idle(&self) -> bool {
        self.accounts().calls.is_empty()
    }

    /// A number for a new connection.
    pub(crate) fn next_link(&self) -> u64 {
        self.links.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether a call may carry a descriptor.
    pub(crate) fn takes_descriptor(&self) -> bool {
        self.descriptor
    }

    pub(crate) fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accounts {
    pub(crate) fn check_budget(&self, user: u32) -> Result<(), Excess> {
        if self.budget.is_spent(user, Instant::now()) { Err(Excess::Budget) } else { Ok(()) }
    }
}

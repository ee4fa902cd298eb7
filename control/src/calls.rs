//! How many calls are under way: bounded for the daemon and for everybody else apart, so that nobody who waits for a password
//! keeps the daemon from its dumps.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flowbus_interfaces::Error;

/// The daemon has one dump and one question under way; what is more than this is a fault or an attack.
const DAEMON: usize = 16;
/// All others together; so many may wait for the worker too.
pub(crate) const OTHERS: usize = 64;
/// One of them.
const USER: usize = 16;

/// Who is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// The methods that are for the daemon, whoever calls them.
    Daemon,
    /// A user.
    User(u32),
}

/// The calls under way.
#[derive(Debug, Default)]
pub(crate) struct Calls(Mutex<HashMap<Who, usize>>);

/// A call under way, until this is dropped.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    calls: &'a Calls,
    who: Who,
}

impl Calls {
    /// Counts one more.
    pub(crate) fn admit(&self, who: Who) -> Result<Call<'_>, Error> {
        let mut counts = self.counts();
        let others =
            || counts.iter().filter(|(who, _)| **who != Who::Daemon).map(|(_, count)| count).sum::<usize>();
        let before = counts.get(&who).copied().unwrap_or(0);
        let (most, before, of) = match who {
            Who::Daemon => (DAEMON, before, "of flowbusd"),
            Who::User(_) if before >= USER => (USER, before, "of one user"),
            Who::User(_) => (OTHERS, others(), "of all callers"),
        };
        if before >= most {
            return Err(Error::LimitExceeded(format!("at most {most} calls {of} at once")));
        }
        *counts.entry(who).or_default() += 1;
        Ok(Call { calls: self, who })
    }

    /// Whether one is under way.
    pub(crate) fn any(&self) -> bool {
        !self.counts().is_empty()
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Who, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut counts = self.calls.counts();
        if let Some(count) = counts.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_leaves_room_for_others_and_all_of_them_for_the_daemon() {
        let calls = Calls::default();
        let mut held: Vec<_> = (0..USER).map(|_| calls.admit(Who::User(1)).unwrap()).collect();
        assert!(calls.admit(Who::User(1)).is_err());
        held.extend((100..).take(OTHERS - USER).map(|user| calls.admit(Who::User(user)).unwrap()));
        assert!(calls.admit(Who::User(2)).is_err());
        held.extend((0..DAEMON).map(|_| calls.admit(Who::Daemon).unwrap()));
        assert!(calls.admit(Who::Daemon).is_err() && calls.any());
        held.clear();
        assert!(!calls.any());
        calls.admit(Who::User(1)).unwrap();
    }
}

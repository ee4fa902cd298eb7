//! Which calls are in flight: from when their header has been read until their reply is written to the bus.

use std::collections::HashMap;

use crate::MAXIMUM_MESSAGE;
use crate::budget::{BURST, PER_SECOND};
use crate::head::Head;

/// Calls in flight of senders whose user is not known yet: they wait for one answer of the bus.
const UNKNOWN: usize = 256;
/// The most bytes of all calls in flight that count together.
const MAXIMUM_BYTES: usize = 8 * MAXIMUM_MESSAGE;

/// What a service lets its callers have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls in flight of one connection.
    pub sender: usize,
    /// Calls in flight of one user, whatever the number of connections.
    pub user: usize,
    /// Calls in flight of all users but the reserved one.
    pub all: usize,
    /// The user whose calls count apart: whatever others do, there is room for them.
    pub reserved: u32,
    /// Whether a call may carry a descriptor.
    pub descriptor: bool,
}

/// Why a call is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Excess {
    #[error("{0} calls are in flight, which is the limit; try again")]
    All(usize),
    #[error("{0} calls of this connection are in flight, which is the limit; wait for a reply")]
    Sender(usize),
    #[error("{0} calls of this user are in flight, which is the limit; wait for a reply")]
    User(usize),
    #[error("the calls in flight have {} MiB, which is the limit; try again", MAXIMUM_BYTES >> 20)]
    Bytes,
    #[error(
        "this user has received more than {} MiB at once, and more than {} MiB a second since; try again later",
        BURST >> 20,
        PER_SECOND >> 20
    )]
    Budget,
}

/// Calls that count together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Unknown,
    Reserved,
    Others,
}

/// The calls in flight on all connections of a process. They are few: each question counts them anew.
#[derive(Debug)]
pub(crate) struct Calls {
    limits: Limits,
    /// By sender and serial number.
    held: HashMap<(String, u32), Call>,
}

#[derive(Debug)]
struct Call {
    /// As far as it is known.
    user: Option<u32>,
    /// The connection of ours that it came on.
    link: u64,
    /// Whether the caller wants no reply.
    silent: bool,
    bytes: usize,
}

impl Calls {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, held: HashMap::new() }
    }

    /// Counts a call that came on this connection of ours.
    pub(crate) fn begin(&mut self, head: &Head, link: u64, user: Option<u32>) -> Result<(), Excess> {
        let Limits { sender, .. } = self.limits;
        if self.held.keys().filter(|(other, _)| *other == head.sender).count() >= sender {
            return Err(Excess::Sender(sender));
        }
        self.check_room(user, head.bytes)?;
        let call = Call { user, link, silent: head.silent, bytes: head.bytes };
        self.held.insert((head.sender.clone(), head.serial), call);
        Ok(())
    }

    /// Says whose call it is; one beyond a limit is no longer counted.
    pub(crate) fn attribute(&mut self, sender: &str, serial: u32, user: u32) -> Result<(), Excess> {
        let key = (sender.to_owned(), serial);
        let Some(call) = self.held.remove(&key) else { return Ok(()) };
        self.check_room(Some(user), call.bytes)?;
        self.held.insert(key, Call { user: Some(user), ..call });
        Ok(())
    }

    fn check_room(&self, user: Option<u32>, bytes: usize) -> Result<(), Excess> {
        let Limits { user: of_one, all, .. } = self.limits;
        let class = self.class(user);
        let (mut count, mut same_user, mut total) = (0, 0, bytes);
        for call in self.held.values().filter(|call| self.class(call.user) == class) {
            count += 1;
            total += call.bytes;
            same_user += usize::from(call.user == user);
        }
        let most = if class == Class::Unknown { UNKNOWN } else { all };
        if class != Class::Unknown && same_user >= of_one {
            Err(Excess::User(of_one))
        } else if count >= most {
            Err(Excess::All(most))
        } else if total > MAXIMUM_BYTES {
            Err(Excess::Bytes)
        } else {
            Ok(())
        }
    }

    fn class(&self, user: Option<u32>) -> Class {
        match user {
            None => Class::Unknown,
            Some(user) if user == self.limits.reserved => Class::Reserved,
            Some(_) => Class::Others,
        }
    }

    pub(crate) fn has(&self, sender: &str, serial: u32) -> bool {
        self.held.contains_key(&(sender.to_owned(), serial))
    }

    /// Whether the caller wants no reply to this call.
    pub(crate) fn is_silent(&self, sender: &str, serial: u32) -> bool {
        self.held.get(&(sender.to_owned(), serial)).is_some_and(|call| call.silent)
    }

    /// Counts a call no longer; `None` if it was not counted, else its user as far as known.
    pub(crate) fn end(&mut self, sender: &str, serial: u32) -> Option<Option<u32>> {
        self.held.remove(&(sender.to_owned(), serial)).map(|call| call.user)
    }

    /// Counts no call any longer that came on this connection of ours: it has ended.
    pub(crate) fn end_all(&mut self, link: u64) {
        self.held.retain(|_, call| call.link != link);
    }

    pub(crate) fn any_on(&self, link: u64) -> bool {
        self.held.values().any(|call| call.link == link)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use zbus::message::Type;

    use super::*;

    const LIMITS: Limits = Limits { sender: 16, user: 32, all: 64, reserved: 0, descriptor: false };

    fn head(sender: &str, serial: u32) -> Head {
        let kind = Type::MethodCall;
        Head { kind, silent: false, serial, sender: sender.to_owned(), descriptors: 0, bytes: 100 }
    }

    fn calls() -> Calls {
        Calls::new(LIMITS)
    }

    /// A user's calls, each on a connection of the user's own: how many are admitted.
    fn admitted(calls: &mut Calls, user: Option<u32>, attempts: usize) -> usize {
        let mut begin = |number| calls.begin(&head(&format!(":{user:?}.{number}"), 1), 1, user).is_ok();
        (0..attempts).filter(|&number| begin(number)).count()
    }

    #[test]
    fn neither_a_connection_nor_a_user_takes_all_places() {
        let mut calls = calls();
        let mut begin = |sender, serial| calls.begin(&head(sender, serial), 1, Some(1000));
        assert!((0..16).all(|serial| begin(":1.1", serial).is_ok()));
        assert_eq!(begin(":1.1", 16), Err(Excess::Sender(16)));
        assert!((0..16).all(|serial| begin(":1.2", serial).is_ok()));
        assert_eq!(begin(":1.3", 0), Err(Excess::User(32)));
        assert_eq!(calls.end(":1.1", 3), Some(Some(1000)));
        assert_eq!(calls.end(":1.1", 3), None);
        assert_eq!(calls.begin(&head(":1.3", 0), 1, Some(1000)), Ok(()));
        assert_eq!(admitted(&mut calls, Some(1001), 100), 32);
        assert_eq!(admitted(&mut calls, Some(1002), 100), 0);
    }

    #[test]
    fn callers_who_are_not_known_yet_take_no_place_of_others_and_others_none_of_the_reserved_user() {
        let mut calls = calls();
        assert_eq!(admitted(&mut calls, None, 1_000), UNKNOWN);
        assert_eq!(admitted(&mut calls, Some(1), 100) + admitted(&mut calls, Some(2), 100), 64);
        assert_eq!(admitted(&mut calls, Some(3), 1), 0);
        assert_eq!(admitted(&mut calls, Some(0), 100), 32);
        // Each is counted with its user's once that is known.
        assert_eq!(calls.attribute(":None.0", 1, 3), Err(Excess::All(64)));
        assert_eq!(calls.attribute(":None.1", 1, 1), Err(Excess::User(32)));
        assert!(!calls.has(":None.0", 1) && !calls.has(":None.1", 1) && calls.has(":None.2", 1));
        assert_eq!(admitted(&mut calls, None, 3), 2);
    }

    #[test]
    fn calls_that_count_together_have_few_bytes() {
        let mut calls = calls();
        let large = |serial| Head { bytes: MAXIMUM_MESSAGE, ..head(":1.1", serial) };
        assert_eq!((0..16).filter(|&serial| calls.begin(&large(serial), 1, Some(1)).is_ok()).count(), 8);
        assert_eq!(calls.begin(&head(":1.2", 1), 1, Some(2)), Err(Excess::Bytes));
        assert_eq!(calls.begin(&head(":1.3", 1), 1, Some(0)), Ok(()));
    }

    #[test]
    fn a_connection_that_ends_takes_its_calls_with_it() {
        let mut calls = calls();
        calls.begin(&head(":1.1", 1), 1, None).unwrap();
        calls.begin(&head(":1.1", 2), 2, None).unwrap();
        calls.end_all(1);
        assert!(!calls.any_on(1) && calls.any_on(2) && !calls.is_empty());
        calls.end_all(2);
        assert!(calls.is_empty());
    }
}

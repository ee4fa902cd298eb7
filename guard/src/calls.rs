//! Which calls are in flight: from when their header has been read until their reply is written to the bus.

use std::collections::HashMap;

use crate::MAXIMUM_MESSAGE;
use crate::budget::{BURST, PER_SECOND};
use crate::head::Head;

/// Senders whose user is not known yet wait for one answer of the bus. The calls of as many as the system bus has connections count
/// apart, so that whoever opens all that one user may have takes no place of others.
const UNKNOWN: Tally = Tally { calls: 32_768, bytes: 64 * MAXIMUM_MESSAGE };
/// The most bytes of the calls in flight of a sender whose user is not known yet.
const UNKNOWN_SENDER_BYTES: usize = MAXIMUM_MESSAGE / 32;
/// The most bytes of all calls in flight that count together, and of those of one user.
const MAXIMUM_BYTES: usize = 8 * MAXIMUM_MESSAGE;
const USER_BYTES: usize = 2 * MAXIMUM_MESSAGE;

/// What a service lets its callers have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls in flight of one connection.
    pub sender: usize,
    /// Calls in flight of one user, whatever the number of connections.
    pub user: usize,
    /// Calls in flight of all users but the reserved ones.
    pub all: usize,
    /// The users whose calls count apart, each by itself: whatever others do, there is room for them.
    pub reserved: [u32; 2],
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
    #[error("the calls in flight have {} MiB, which is the limit; try again", .0 >> 20)]
    Bytes(usize),
    #[error("the first calls of a connection have at most {} KiB; wait for a reply", UNKNOWN_SENDER_BYTES >> 10)]
    First,
    #[error(
        "this user has received more than {} MiB at once, and more than {} MiB a second since; try again later",
        BURST >> 20,
        PER_SECOND >> 20
    )]
    Budget,
}

/// Some calls in flight.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    calls: usize,
    bytes: usize,
}

impl Tally {
    fn add(&mut self, bytes: usize) {
        self.calls += 1;
        self.bytes += bytes;
    }

    /// Takes a call away; true when none is left.
    fn take(&mut self, bytes: usize) -> bool {
        self.calls -= 1;
        self.bytes -= bytes;
        self.calls == 0
    }
}

/// The calls in flight on all connections of a process.
#[derive(Debug)]
pub(crate) struct Calls {
    limits: Limits,
    /// The calls by sender and serial number.
    held: HashMap<(String, u32), Call>,
    senders: HashMap<String, Tally>,
    /// Calls of each user; `None` has those of senders whose user is not known yet.
    users: HashMap<Option<u32>, Tally>,
}

#[derive(Debug)]
struct Call {
    /// The sender's user, as far as it is known.
    user: Option<u32>,
    /// The connection of this process that the call came on.
    link: u64,
    /// Whether the caller wants no reply.
    silent: bool,
    bytes: usize,
}

impl Calls {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, held: HashMap::new(), senders: HashMap::new(), users: HashMap::new() }
    }

    /// Counts a call that came on a connection of this process.
    pub(crate) fn begin(&mut self, head: &Head, link: u64, user: Option<u32>) -> Result<(), Excess> {
        let Limits { sender, .. } = self.limits;
        let of_sender = self.senders.get(&head.sender).copied().unwrap_or_default();
        if of_sender.calls >= sender {
            return Err(Excess::Sender(sender));
        }
        if user.is_none() && of_sender.bytes + head.bytes > UNKNOWN_SENDER_BYTES {
            return Err(Excess::First);
        }
        self.check_room(user, head.bytes)?;
        let call = Call { user, link, silent: head.silent, bytes: head.bytes };
        self.hold((head.sender.clone(), head.serial), call);
        Ok(())
    }

    /// Says whose call it is; one beyond a limit is no longer counted.
    pub(crate) fn attribute(&mut self, sender: &str, serial: u32, user: u32) -> Result<(), Excess> {
        let key = (sender.to_owned(), serial);
        let Some(call) = self.release(&key) else { return Ok(()) };
        self.check_room(Some(user), call.bytes)?;
        self.hold(key, Call { user: Some(user), ..call });
        Ok(())
    }

    fn hold(&mut self, key: (String, u32), call: Call) {
        self.senders.entry(key.0.clone()).or_default().add(call.bytes);
        self.users.entry(call.user).or_default().add(call.bytes);
        self.held.insert(key, call);
    }

    fn release(&mut self, key: &(String, u32)) -> Option<Call> {
        let call = self.held.remove(key)?;
        if self.senders.get_mut(&key.0).is_some_and(|tally| tally.take(call.bytes)) {
            self.senders.remove(&key.0);
        }
        if self.users.get_mut(&call.user).is_some_and(|tally| tally.take(call.bytes)) {
            self.users.remove(&call.user);
        }
        Some(call)
    }

    fn check_room(&self, user: Option<u32>, bytes: usize) -> Result<(), Excess> {
        let Limits { user: of_one, all, reserved, .. } = self.limits;
        let mine = self.users.get(&user).copied().unwrap_or_default();
        let Some(user) = user else { return check(mine, bytes, UNKNOWN) };
        if mine.calls >= of_one {
            return Err(Excess::User(of_one));
        }
        if reserved.contains(&user) {
            return check(mine, bytes, Tally { calls: of_one, bytes: MAXIMUM_BYTES });
        }
        if mine.bytes + bytes > USER_BYTES {
            return Err(Excess::Bytes(USER_BYTES));
        }
        let mut others = Tally::default();
        for (_, tally) in
            self.users.iter().filter(|(user, _)| user.is_some_and(|user| !reserved.contains(&user)))
        {
            others.calls += tally.calls;
            others.bytes += tally.bytes;
        }
        check(others, bytes, Tally { calls: all, bytes: MAXIMUM_BYTES })
    }

    pub(crate) fn has(&self, sender: &str, serial: u32) -> bool {
        self.held.contains_key(&(sender.to_owned(), serial))
    }

    /// Whether the caller wants no reply to this call.
    pub(crate) fn is_silent(&self, sender: &str, serial: u32) -> bool {
        self.held.get(&(sender.to_owned(), serial)).is_some_and(|call| call.silent)
    }

    /// Stops counting a call; `None` if it was not counted, else its user as far as known.
    pub(crate) fn end(&mut self, sender: &str, serial: u32) -> Option<Option<u32>> {
        self.release(&(sender.to_owned(), serial)).map(|call| call.user)
    }

    /// Stops counting the calls that came on a connection of this process, which has ended.
    pub(crate) fn end_all(&mut self, link: u64) {
        let on_it = self.held.iter().filter(|(_, call)| call.link == link).map(|(key, _)| key.clone());
        for key in on_it.collect::<Vec<_>>() {
            self.release(&key);
        }
    }

    pub(crate) fn any_on(&self, link: u64) -> bool {
        self.held.values().any(|call| call.link == link)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// Whether one more call of this many bytes fits in beside those that count together.
fn check(together: Tally, bytes: usize, most: Tally) -> Result<(), Excess> {
    if together.calls >= most.calls {
        Err(Excess::All(most.calls))
    } else if together.bytes + bytes > most.bytes {
        Err(Excess::Bytes(most.bytes))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use zbus::message::Type;

    use super::*;

    const LIMITS: Limits = Limits { sender: 16, user: 32, all: 64, reserved: [0, 9], descriptor: false };

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
        assert_eq!(admitted(&mut calls, None, UNKNOWN.calls + 1), UNKNOWN.calls);
        assert_eq!(admitted(&mut calls, Some(1), 100) + admitted(&mut calls, Some(2), 100), 64);
        assert_eq!(admitted(&mut calls, Some(3), 1), 0);
        assert_eq!(admitted(&mut calls, Some(0), 100), 32);
        assert_eq!(admitted(&mut calls, Some(9), 100), 32);
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
        for user in 1..=4 {
            let of_user = |serial| Head { sender: format!(":1.{user}"), ..large(serial) };
            assert_eq!(
                (0..16).filter(|&serial| calls.begin(&of_user(serial), 1, Some(user)).is_ok()).count(),
                2
            );
        }
        assert_eq!(calls.begin(&head(":1.1", 99), 1, Some(1)), Err(Excess::Bytes(USER_BYTES)));
        assert_eq!(calls.begin(&head(":1.5", 1), 1, Some(5)), Err(Excess::Bytes(MAXIMUM_BYTES)));
        assert_eq!(calls.begin(&head(":1.6", 1), 1, Some(0)), Ok(()));
        // Whose user is not known yet is known after the first reply.
        assert_eq!(calls.begin(&Head { sender: ":1.7".into(), ..large(1) }, 1, None), Err(Excess::First));
        assert_eq!(calls.begin(&head(":1.7", 1), 1, None), Ok(()));
    }

    #[test]
    fn a_connection_that_ends_takes_its_calls_with_it() {
        let mut calls = calls();
        calls.begin(&head(":1.1", 1), 1, None).unwrap();
        calls.begin(&head(":1.1", 2), 2, None).unwrap();
        calls.end_all(1);
        assert!(!calls.any_on(1) && calls.any_on(2) && !calls.is_empty());
        calls.end_all(2);
        assert!(calls.is_empty() && calls.senders.is_empty() && calls.users.is_empty());
    }
}

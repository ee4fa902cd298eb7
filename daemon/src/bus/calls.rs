//! Which calls are in flight: from when the bus has delivered them until their reply is written to it.

use std::collections::HashMap;

use super::budget::{BURST, PER_SECOND};

/// Calls in flight of one connection.
const SENDER_CALLS: usize = 16;
/// Calls in flight of one user.
const USER_CALLS: usize = 32;
/// Calls in flight of all users.
const CALLS: usize = 64;

/// Why a call is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Excess {
    #[error("{CALLS} calls are in flight, which is the limit; try again")]
    All,
    #[error("{SENDER_CALLS} calls of this connection are in flight, which is the limit; wait for a reply")]
    Sender,
    #[error("{USER_CALLS} calls of this user are in flight, which is the limit; wait for a reply")]
    User,
    #[error("a call with this serial number is in flight")]
    Serial,
    #[error(
        "this user has received more than {} MiB at once, and more than {} MiB a second since; try again later",
        BURST >> 20,
        PER_SECOND >> 20
    )]
    Bytes,
}

/// The calls in flight on a connection of ours. They are few: what is asked of them is counted each time.
#[derive(Debug, Default)]
pub(super) struct Calls(HashMap<(String, u32), Option<u32>>);

impl Calls {
    /// Counts a call by its sender and serial number.
    pub(super) fn begin(&mut self, sender: &str, serial: u32) -> Result<(), Excess> {
        let key = (sender.to_owned(), serial);
        if self.0.contains_key(&key) {
            return Err(Excess::Serial);
        }
        if self.0.len() >= CALLS {
            return Err(Excess::All);
        }
        if self.0.keys().filter(|(other, _)| other == sender).count() >= SENDER_CALLS {
            return Err(Excess::Sender);
        }
        self.0.insert(key, None);
        Ok(())
    }

    /// Says whose call it is; one beyond the user's limit is no longer counted.
    pub(super) fn attribute(&mut self, sender: &str, serial: u32, user: u32) -> Result<(), Excess> {
        let key = (sender.to_owned(), serial);
        if self.0.values().filter(|other| **other == Some(user)).count() >= USER_CALLS {
            self.0.remove(&key);
            return Err(Excess::User);
        }
        self.0.insert(key, Some(user));
        Ok(())
    }

    /// Counts a call no longer; `None` if it was not counted, else its user as far as known.
    pub(super) fn end(&mut self, sender: &str, serial: u32) -> Option<Option<u32>> {
        self.0.remove(&(sender.to_owned(), serial))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(calls: &mut Calls, sender: &str, serial: u32, user: u32) -> Result<(), Excess> {
        calls.begin(sender, serial)?;
        calls.attribute(sender, serial, user)
    }

    #[test]
    fn neither_a_connection_nor_a_user_takes_all_places() {
        let mut calls = Calls::default();
        for serial in 0..16 {
            assert_eq!(call(&mut calls, ":1.1", serial, 1000), Ok(()));
        }
        assert_eq!(call(&mut calls, ":1.1", 16, 1000), Err(Excess::Sender));
        for serial in 0..16 {
            assert_eq!(call(&mut calls, ":1.2", serial, 1000), Ok(()));
        }
        assert_eq!(call(&mut calls, ":1.3", 0, 1000), Err(Excess::User));
        assert_eq!(call(&mut calls, ":1.4", 0, 0), Ok(()));
        assert_eq!(calls.end(":1.1", 3), Some(Some(1000)));
        assert_eq!(calls.end(":1.1", 3), None);
        assert_eq!(call(&mut calls, ":1.3", 0, 1000), Ok(()));
    }

    #[test]
    fn senders_without_a_known_user_share_the_limit_of_all() {
        let mut calls = Calls::default();
        for sender in 0..64 {
            assert_eq!(calls.begin(&format!(":1.{sender}"), 1), Ok(()));
        }
        assert_eq!(calls.begin(":1.64", 1), Err(Excess::All));
    }

    #[test]
    fn a_serial_number_counts_once() {
        let mut calls = Calls::default();
        assert_eq!(calls.begin(":1.1", 1), Ok(()));
        assert_eq!(calls.begin(":1.1", 1), Err(Excess::Serial));
    }
}

//! How many calls are answered at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flowbus_interfaces::Error;
use serde::{Serialize, Serializer};
use zbus::message::Header;
use zbus::{Signature, Type};

/// Calls in flight of one sender.
const SENDER_CALLS: usize = 16;
/// Calls in flight of all senders.
const CALLS: usize = 64;

/// The calls in flight, by sender.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls(Arc<Mutex<HashMap<String, usize>>>);

/// A call in flight, until it is dropped.
#[derive(Debug)]
pub(super) struct Call {
    calls: Calls,
    sender: String,
}

/// What a call is answered with. The call is in flight until this has been written to the bus, which drops it: a reply
/// that waits for that takes its memory.
#[derive(Debug)]
pub(super) struct Answer<T> {
    value: T,
    _call: Call,
}

impl Call {
    pub(super) fn answer<T>(self, value: T) -> Answer<T> {
        Answer { value, _call: self }
    }
}

impl<T: Type> Type for Answer<T> {
    const SIGNATURE: &'static Signature = T::SIGNATURE;
}

impl<T: Serialize> Serialize for Answer<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl Calls {
    /// Counts a call, or refuses it.
    pub(super) fn begin(&self, header: &Header<'_>) -> Result<Call, Error> {
        let sender = header.sender().map(ToString::to_string).unwrap_or_default();
        let mut calls = self.lock();
        if calls.values().sum::<usize>() >= CALLS {
            return Err(Error::LimitExceeded(format!(
                "{CALLS} calls are in flight, which is the limit; try again"
            )));
        }
        let count = calls.entry(sender.clone()).or_default();
        if *count >= SENDER_CALLS {
            return Err(Error::LimitExceeded(format!(
                "{SENDER_CALLS} calls of this connection are in flight, which is the limit; wait for a reply"
            )));
        }
        *count += 1;
        drop(calls);
        Ok(Call { calls: self.clone(), sender })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut calls = self.calls.lock();
        if let Some(count) = calls.get_mut(&self.sender) {
            *count -= 1;
            if *count == 0 {
                calls.remove(&self.sender);
            }
        }
    }
}

//! The calls in flight, and whether one more is admitted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flowbus_interfaces::Error;
use zbus::message::Type;

use crate::MAXIMUM_MESSAGE;
use crate::head::{Head, check_message};

/// The most bytes of all calls in flight together.
const MAXIMUM_BYTES: usize = 8 * MAXIMUM_MESSAGE;

/// What a service lets its callers have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls in flight of one connection.
    pub sender: usize,
    /// Calls in flight of all connections.
    pub all: usize,
    /// Methods with a number of their own in flight, which other calls do not use up: those of a caller that must get through.
    pub reserved: &'static [&'static str],
    /// How many descriptors a call may carry.
    pub descriptors: usize,
}

/// The calls in flight of a service.
#[derive(Debug)]
pub struct Calls {
    limits: Limits,
    held: Mutex<Vec<Call>>,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Call {
    sender: String,
    serial: u32,
    reserved: bool,
    silent: bool,
    bytes: usize,
}

impl Calls {
    /// None is in flight.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, held: Mutex::default(), refused: AtomicU64::new(0) }
    }

    /// How many calls were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// A new connection: what was in flight on the old one is not answered any more.
    pub(crate) fn clear(&self) {
        self.held().clear();
    }

    pub(crate) const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes a message in, or says why not. `descriptors` is how many came with it.
    pub(crate) fn admit(&self, head: &Head, descriptors: usize) -> Result<(), Error> {
        match head.kind {
            Type::MethodCall => self.admit_call(head, descriptors).inspect_err(|_| {
                self.refused.fetch_add(1, Ordering::Relaxed);
            }),
            _ => check_message(head, descriptors, self.limits.descriptors),
        }
    }

    fn admit_call(&self, head: &Head, descriptors: usize) -> Result<(), Error> {
        let Limits { sender, all, reserved, descriptors: most } = self.limits;
        check_message(head, descriptors, most)?;
        let reserved = reserved.contains(&head.member.as_str());
        let mut held = self.held();
        let (mut of_sender, mut of_all, mut bytes) = (0, 0, head.bytes);
        for call in held.iter().filter(|call| call.reserved == reserved) {
            of_all += 1;
            bytes += call.bytes;
            of_sender += usize::from(call.sender == head.sender);
        }
        if of_sender >= sender {
            return Err(Error::LimitExceeded(format!(
                "{sender} calls of this connection are in flight, which is the limit; wait for a reply"
            )));
        }
        if of_all >= all || bytes > MAXIMUM_BYTES {
            return Err(Error::LimitExceeded(format!(
                "{of_all} calls are in flight, which is the limit; try again"
            )));
        }
        if held.iter().any(|call| call.serial == head.serial && call.sender == head.sender) {
            return Err(Error::InvalidArgument(format!("a call of serial {} is in flight", head.serial)));
        }
        let (sender, serial, silent) = (head.sender.clone(), head.serial, head.silent);
        held.push(Call { sender, serial, reserved, silent, bytes: head.bytes });
        Ok(())
    }

    /// Whether the caller wants a reply to this call.
    pub(crate) fn wants_reply(&self, sender: &str, serial: u32) -> bool {
        !self.held().iter().any(|call| call.silent && call.serial == serial && call.sender == sender)
    }

    /// The reply to this call has been written.
    pub(crate) fn end(&self, sender: &str, serial: u32) {
        self.held().retain(|call| call.serial != serial || call.sender != sender);
    }

    fn held(&self) -> MutexGuard<'_, Vec<Call>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: Limits = Limits { sender: 2, all: 3, reserved: &["Urgent"], descriptors: 1 };

    fn head(sender: &str, serial: u32, member: &str) -> Head {
        let (sender, member) = (sender.to_owned(), member.to_owned());
        let kind = Type::MethodCall;
        Head { kind, silent: false, serial, sender, member, descriptors: 0, bytes: 100 }
    }

    #[test]
    fn a_call_is_in_flight_until_its_reply_and_reserved_ones_are_counted_apart() {
        let calls = Calls::new(CALLS);
        let admit = |sender, serial, member| calls.admit(&head(sender, serial, member), 0).is_ok();
        assert!(admit(":1.1", 1, "List") && admit(":1.1", 2, "Introspect"));
        assert!(!admit(":1.1", 3, "List") && admit(":1.2", 1, "List") && !admit(":1.3", 1, "List"));
        assert!(admit(":1.1", 4, "Urgent") && admit(":1.3", 1, "Urgent"));
        assert!(!admit(":1.3", 1, "Urgent"), "a serial in use");
        calls.end(":1.1", 2);
        assert!(admit(":1.3", 2, "List") && !admit(":1.1", 5, "List"));
        assert_eq!(calls.refused(), 4);
    }

    #[test]
    fn what_is_large_and_has_many_descriptors_is_refused_of_calls_and_signals() {
        let calls = Calls::new(CALLS);
        for kind in [Type::MethodCall, Type::Signal] {
            let large = Head { kind, bytes: MAXIMUM_MESSAGE + 1, ..head(":1.1", 1, "List") };
            assert!(
                matches!(calls.admit(&large, 0), Err(Error::LimitExceeded(text)) if text.contains("1048576"))
            );
            let many = Head { kind, descriptors: 2, ..head(":1.1", 1, "List") };
            assert!(calls.admit(&many, 1).is_err());
            let missing = Head { kind, descriptors: 1, ..head(":1.1", 1, "List") };
            assert!(calls.admit(&missing, 0).is_err());
        }
        let reply = Head { kind: Type::MethodReturn, bytes: MAXIMUM_MESSAGE + 1, ..head(":1.1", 1, "") };
        assert!(calls.admit(&reply, 0).is_ok());
    }

    #[test]
    fn all_calls_together_have_few_bytes() {
        let calls = Calls::new(Limits { sender: 100, all: 100, ..CALLS });
        let large = |serial| Head { bytes: MAXIMUM_MESSAGE, ..head(":1.1", serial, "List") };
        let admitted = (0..100).filter(|&serial| calls.admit(&large(serial), 0).is_ok()).count();
        assert_eq!(admitted, 8);
    }
}

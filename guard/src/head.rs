//! The header of a message, as far as admitting it needs it.

use std::num::NonZeroU32;

use flowbus_interfaces::Error;
use zbus::message::Type;
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{Endian, Variant};
use zbus::{DBusError, Message};

use crate::MAXIMUM_MESSAGE;

/// The part of every header that has a fixed length: byte order, type, flags, version, lengths, serial.
pub(crate) const FIXED: usize = 16;

const NO_REPLY_EXPECTED: u8 = 1;

/// How long a message is, known from its first 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lengths {
    endian: Endian,
    fields: usize,
    /// Bytes of header and padding.
    pub(crate) head: usize,
    /// Bytes of the body.
    pub(crate) body: usize,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Type,
    /// Whether the sender wants no answer.
    pub(crate) silent: bool,
    pub(crate) serial: u32,
    pub(crate) sender: String,
    /// How many descriptors the message says to have.
    pub(crate) descriptors: usize,
    /// Bytes of the whole message.
    pub(crate) bytes: usize,
}

impl Lengths {
    /// Reads the lengths; `None` for what is not a message.
    pub(crate) fn of(fixed: &[u8; FIXED]) -> Option<Self> {
        let endian = match fixed[0] {
            b'l' => Endian::Little,
            b'B' => Endian::Big,
            _ => return None,
        };
        let fields = usize::try_from(number(fixed, 12, endian)?).ok()?;
        let body = usize::try_from(number(fixed, 4, endian)?).ok()?;
        Some(Self { endian, fields, head: (FIXED + fields).next_multiple_of(8), body })
    }
}

impl Head {
    /// Reads the header fields: an array of a number and a variant. `None` for what is not a header.
    pub(crate) fn parse(head: &[u8], lengths: Lengths) -> Option<Self> {
        const SENDER: u8 = 7;
        const UNIX_FDS: u8 = 9;
        // The array's length stands at 12, which its alignment depends on.
        let fields = Data::new(head.get(12..FIXED + lengths.fields)?, Context::new(lengths.endian, 12));
        let (fields, _) = fields.deserialize::<Vec<(u8, Variant<'_>)>>().ok()?;
        let text = |wanted| {
            fields.iter().find_map(|(code, value)| match value {
                Variant::Str(text) if *code == wanted => Some(text.to_string()),
                _ => None,
            })
        };
        let descriptors = fields.iter().find_map(|(code, value)| match value {
            Variant::U32(count) if *code == UNIX_FDS => Some(*count),
            _ => None,
        });
        Some(Self {
            kind: match head.get(1)? {
                1 => Type::MethodCall,
                2 => Type::MethodReturn,
                3 => Type::Error,
                4 => Type::Signal,
                _ => return None,
            },
            silent: head.get(2)? & NO_REPLY_EXPECTED != 0,
            serial: number(head, 8, lengths.endian)?,
            sender: text(SENDER).unwrap_or_default(),
            descriptors: usize::try_from(descriptors.unwrap_or(0)).ok()?,
            bytes: lengths.head + lengths.body,
        })
    }

    /// Whether somebody waits for an answer.
    pub(crate) fn wants_reply(&self) -> bool {
        self.kind == Type::MethodCall && !self.silent
    }

    /// Has the service answer this call, so that its end is seen. The answer is not sent.
    pub(crate) fn expect_reply(head: &mut [u8]) {
        if let Some(flags) = head.get_mut(2) {
            *flags &= !NO_REPLY_EXPECTED;
        }
    }
}

/// Says why a message is refused whatever else is in flight. `descriptors` is how many came with it, of at most `most`.
pub(crate) fn check_message(head: &Head, descriptors: usize, most: usize) -> Result<(), Error> {
    // The bus passes on only the replies to calls that we made, none of which has a descriptor.
    if matches!(head.kind, Type::MethodReturn | Type::Error) {
        return Ok(());
    }
    if head.bytes > MAXIMUM_MESSAGE {
        return Err(Error::LimitExceeded(format!(
            "a message has at most {MAXIMUM_MESSAGE} bytes, not {}",
            head.bytes
        )));
    }
    if head.descriptors > most {
        let count = head.descriptors;
        return Err(Error::LimitExceeded(format!("a call has at most {most} descriptors, not {count}")));
    }
    if descriptors < head.descriptors {
        return Err(Error::LimitExceeded("there is no room for more descriptors, try again".into()));
    }
    Ok(())
}

/// The error reply to a call of which only the header was read.
pub(crate) fn error_reply(head: &Head, error: &Error) -> zbus::Result<Message> {
    let serial = NonZeroU32::new(head.serial).ok_or(zbus::Error::InvalidSerial)?;
    // A header cannot be made alone: that of a call with the same sender and serial is answered.
    let call = Message::method_call("/", "Refused").sender(head.sender.clone()).serial(serial).build(&())?;
    error.create_reply(&call.header())
}

fn number(bytes: &[u8], at: usize, endian: Endian) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(match endian {
        Endian::Little => u32::from_le_bytes(bytes),
        Endian::Big => u32::from_be_bytes(bytes),
    })
}

#[cfg(test)]
mod tests {
    use zbus::message::Flags;

    use super::*;

    #[test]
    #[allow(clippy::unwrap_used, reason = "a test")]
    fn a_header_is_read_in_both_byte_orders() {
        for endian in [Endian::Little, Endian::Big] {
            let call = zbus::Message::method_call("/some/path", "Member").interface("some.interface");
            let call = call.destination(":1.5").sender(":1.77").serial(NonZeroU32::new(70_000).unwrap());
            let call = call.endian(endian).with_flags(Flags::NO_REPLY_EXPECTED).build(&"body").unwrap();
            let bytes = call.data().bytes().to_vec();
            let lengths = Lengths::of(bytes[..FIXED].try_into().unwrap()).unwrap();
            assert_eq!(lengths.head + lengths.body, bytes.len());
            let mut head = bytes[..lengths.head].to_vec();
            let parsed = Head::parse(&head, lengths).unwrap();
            let expected = Head {
                kind: Type::MethodCall,
                silent: true,
                serial: 70_000,
                sender: ":1.77".to_owned(),
                descriptors: 0,
                bytes: bytes.len(),
            };
            assert_eq!(parsed, expected);
            Head::expect_reply(&mut head);
            assert!(!Head::parse(&head, lengths).unwrap().silent);
            // Cut anywhere it is no header, and no panic.
            (0..lengths.head - 8).for_each(|end| assert_eq!(Head::parse(&head[..end], lengths), None));
        }
        assert_eq!(Lengths::of(b"OK 0123456789abc"), None);
    }
}

//! The fields of a header, read as strictly as the D-Bus library reads them: what it refuses there ends the connection, so nothing of
//! that may reach it. A bus is no filter for this. dbus-broker passes on fields that nobody knows.

use zbus::message::Type;
use zbus::names::{BusName, ErrorName, InterfaceName, MemberName, UniqueName};
use zbus::wire::Endian;
use zbus::{ObjectPath, Signature};

use crate::head::{FIXED, number};

const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SENDER: u8 = 7;
const SIGNATURE: u8 = 8;
const UNIX_FDS: u8 = 9;

/// What is wanted of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fields<'a> {
    pub(crate) sender: &'a str,
    pub(crate) member: &'a str,
    pub(crate) descriptors: u32,
    /// A bit for the code of each field that came.
    codes: u16,
}

impl<'a> Fields<'a> {
    /// `message` ends where its fields end. `None` if one of them is unknown, comes twice, or has a value that is none of its.
    pub(crate) fn parse(message: &'a [u8], endian: Endian) -> Option<Self> {
        let mut reader = Reader { message, at: FIXED, endian };
        let mut fields = Self::default();
        while reader.at < message.len() {
            reader.align()?;
            fields.read(&mut reader)?;
        }
        Some(fields)
    }

    /// Whether those are there that a message of this type has to have.
    pub(crate) fn suffice(&self, kind: Type) -> bool {
        let needed: &[u8] = match kind {
            Type::MethodCall => &[PATH, MEMBER],
            Type::MethodReturn => &[REPLY_SERIAL],
            Type::Error => &[ERROR_NAME, REPLY_SERIAL],
            Type::Signal => &[PATH, INTERFACE, MEMBER],
        };
        needed.iter().all(|code| self.codes & (1 << code) != 0)
    }

    fn read(&mut self, reader: &mut Reader<'a>) -> Option<()> {
        // The value is a variant of one basic type: its signature has one letter.
        let [code, 1, letter, 0] = *reader.take(4)? else { return None };
        match (code, letter) {
            (PATH, b'o') => drop(ObjectPath::try_from(reader.text()?).ok()?),
            (INTERFACE, b's') => drop(InterfaceName::try_from(reader.text()?).ok()?),
            (MEMBER, b's') => {
                self.member = reader.text()?;
                MemberName::try_from(self.member).ok()?;
            }
            (ERROR_NAME, b's') => drop(ErrorName::try_from(reader.text()?).ok()?),
            (REPLY_SERIAL, b'u') => drop((reader.number()? != 0).then_some(())?),
            (DESTINATION, b's') => drop(BusName::try_from(reader.text()?).ok()?),
            (SENDER, b's') => {
                self.sender = reader.text()?;
                UniqueName::try_from(self.sender).ok()?;
            }
            (SIGNATURE, b'g') => {
                let [length] = *reader.take(1)? else { return None };
                Signature::try_from(reader.ended(length.into())?).ok()?;
            }
            (UNIX_FDS, b'u') => self.descriptors = reader.number()?,
            _ => return None,
        }
        let bit = 1 << code;
        let is_first = self.codes & bit == 0;
        self.codes |= bit;
        is_first.then_some(())
    }
}

/// Where in the message we are.
#[derive(Debug)]
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
    endian: Endian,
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let taken = self.message.get(self.at..self.at.checked_add(bytes)?)?;
        self.at += bytes;
        Some(taken)
    }

    /// Each field begins at a multiple of 8, after zeros.
    fn align(&mut self) -> Option<()> {
        let padding = self.take(self.at.next_multiple_of(8) - self.at)?;
        padding.iter().all(|byte| *byte == 0).then_some(())
    }

    fn number(&mut self) -> Option<u32> {
        let number = number(self.message, self.at, self.endian)?;
        self.at += 4;
        Some(number)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.number()?;
        std::str::from_utf8(self.ended(usize::try_from(length).ok()?)?).ok()
    }

    /// Some bytes, and the zero that ends them.
    fn ended(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let text = self.take(bytes)?;
        (self.take(1)? == [0]).then_some(text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use std::collections::VecDeque;
    use std::io;
    use std::num::NonZeroU32;
    use std::os::fd::OwnedFd;

    use zbus::Message;
    use zbus::connection::socket::ReadHalf;

    use super::*;
    use crate::head::{Head, Lengths};

    /// A socket that has received these bytes.
    #[derive(Debug)]
    struct Bytes(VecDeque<u8>);

    #[async_trait::async_trait]
    impl ReadHalf for Bytes {
        async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
            let received = buffer.len().min(self.0.len());
            buffer.iter_mut().zip(self.0.drain(..received)).for_each(|(to, from)| *to = from);
            Ok((received, Vec::new()))
        }
    }

    async fn library_takes(message: &[u8]) -> bool {
        let mut socket = Bytes(message.iter().copied().collect());
        socket.receive_message(0, &mut Vec::new(), &mut Vec::new()).await.is_ok()
    }

    /// What we say of a message that is there to its end.
    fn we_take(message: &[u8]) -> Option<bool> {
        let lengths = Lengths::of(message[..FIXED].try_into().unwrap())?;
        let is_whole = lengths.head + lengths.body <= message.len();
        is_whole
            .then(|| Head::parse(&message[..lengths.head], lengths).is_some_and(|head| head.descriptors == 0))
    }

    fn messages() -> Vec<Vec<u8>> {
        let serial = NonZeroU32::new(70_000).unwrap();
        [Endian::Little, Endian::Big]
            .into_iter()
            .flat_map(|endian| {
                let call = Message::method_call("/some/path", "Member");
                let call =
                    call.interface("some.interface").destination("org.some").sender(":1.77").serial(serial);
                let call = call.endian(endian).build(&("body", 7)).unwrap();
                let error = Message::error(&call.header(), "some.Error").endian(endian).build(&()).unwrap();
                let signal =
                    Message::signal("/", "some.interface", "Member").endian(endian).build(&1).unwrap();
                [call, error, signal].map(|message| message.data().bytes().to_vec())
            })
            .collect()
    }

    /// The message with one more field.
    fn with_field(message: &[u8], field: &[u8]) -> Vec<u8> {
        let lengths = Lengths::of(message[..FIXED].try_into().unwrap()).unwrap();
        let mut longer = message[..lengths.head].to_vec();
        longer.extend(field);
        let fields = u32::try_from(longer.len() - FIXED).unwrap();
        let fields = if message[0] == b'l' { fields.to_le_bytes() } else { fields.to_be_bytes() };
        longer[12..FIXED].copy_from_slice(&fields);
        longer.resize(longer.len().next_multiple_of(8), 0);
        longer.extend(&message[lengths.head..]);
        longer
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_header_is_taken_if_and_only_if_the_library_takes_it() {
        for message in messages() {
            assert_eq!(we_take(&message), Some(true));
            let end = Lengths::of(message[..FIXED].try_into().unwrap()).unwrap().head;
            for at in 1..end {
                for value in [
                    0, 1, 2, 3, 4, 5, 8, 9, 10, b' ', b'.', b'/', b':', b'0', b'a', b'g', b'o', b's', b'u',
                    b'v', 0x80, 0xFF,
                ] {
                    let mut changed = message.clone();
                    changed[at] = value;
                    let Some(taken) = we_take(&changed) else { continue };
                    assert_eq!(taken, library_takes(&changed).await, "{value:#x} at {at}: {changed:?}");
                }
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_field_that_is_unknown_or_comes_twice_is_refused() {
        let fields: [&[u8]; 6] = [
            &[10, 1, b'u', 0, 1, 0, 0, 0],
            &[0, 1, b'y', 0, 1],
            &[255, 2, b'a', b'y', 0, 0, 0, 0, 0, 0, 0, 0],
            &[3, 1, b's', 0, 1, 0, 0, 0, b'M', 0],
            &[7, 1, b'o', 0, 1, 0, 0, 0, b'/', 0],
            &[9, 1, b's', 0, 1, 0, 0, 0, b'M', 0],
        ];
        let message = messages().swap_remove(0);
        for field in fields {
            let changed = with_field(&message, field);
            assert_eq!((we_take(&changed), library_takes(&changed).await), (Some(false), false), "{field:?}");
        }
        let allowed = with_field(&message, &[9, 1, b'u', 0, 0, 0, 0, 0]);
        assert_eq!((we_take(&allowed), library_takes(&allowed).await), (Some(true), true));
    }
}

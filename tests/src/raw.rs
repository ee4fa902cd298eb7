//! A connection to the bus without a library behind it: it sends as much as it likes, and reads only when asked to.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use flowbus_interfaces::{FLOW_MONITOR_INTERFACE, FLOW_MONITOR_NAME, FLOW_MONITOR_PATH, QueryMap};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Gid, Uid};
use zbus::Message;
use zbus::message::Flags;

use crate::Bus;
use crate::process::DEADLINE;

/// A connection of its own, known to the bus.
#[derive(Debug)]
pub struct RawConnection {
    socket: UnixStream,
    serial: u32,
}

/// What the bus has sent: its bytes, and what of them a test asks for.
#[derive(Debug)]
pub struct Received(Vec<u8>);

/// The fixed part of a message, before the header fields.
const FIXED: usize = 16;

impl RawConnection {
    /// Connects and says hello.
    ///
    /// # Panics
    /// If the bus does not take us.
    #[must_use]
    pub fn connect(bus: &Bus) -> Self {
        let address = bus.address();
        let path = address.strip_prefix("unix:path=").expect("a bus of a test is at a path");
        let socket = UnixStream::connect(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self::over(socket, rustix::process::getuid().as_raw())
    }

    /// Connects as another user and says hello.
    ///
    /// # Panics
    /// If the bus does not take that user.
    #[must_use]
    pub fn connect_as(bus: &Bus, user: u32) -> Self {
        let address = bus.address();
        let path = address.strip_prefix("unix:path=").expect("a bus of a test is at a path").to_owned();
        Self::over(socket_of(path, user, Vec::new()), user)
    }

    /// Says hello over a socket that this user has connected.
    ///
    /// # Panics
    /// If the bus does not take us.
    #[must_use]
    pub fn over(mut socket: UnixStream, user: u32) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).expect("sockets take a timeout");
        socket.set_write_timeout(Some(DEADLINE)).expect("sockets take a timeout");
        let user: String = user.to_string().bytes().map(|digit| format!("{digit:x}")).collect();
        write!(socket, "\0AUTH EXTERNAL {user}\r\n").expect("the bus reads");
        let line = |socket: &mut UnixStream| {
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).expect("the bus answers");
                answer.extend(byte);
            }
            String::from_utf8_lossy(&answer).into_owned()
        };
        assert!(line(&mut socket).starts_with("OK "));
        socket.write_all(b"NEGOTIATE_UNIX_FD\r\n").expect("the bus reads");
        assert_eq!(line(&mut socket), "AGREE_UNIX_FD\r\n");
        socket.write_all(b"BEGIN\r\n").expect("the bus reads");
        let mut connection = Self { socket, serial: 0 };
        let serial = connection.call_bus("Hello", None);
        assert_eq!(connection.receive().reply_serial(), Some(serial));
        connection
    }

    /// Another handle of the same connection, to read in one thread what is sent from another.
    ///
    /// # Panics
    /// If there are no descriptors left.
    #[must_use]
    pub fn reader(&self) -> Self {
        Self { socket: self.socket.try_clone().expect("a descriptor can be had"), serial: 0 }
    }

    /// Sends a call of ListActive and returns its serial; the reply is there to be received.
    ///
    /// # Panics
    /// If the bus does not take it.
    pub fn list_active(&mut self, query: &QueryMap<'_>) -> u32 {
        self.send(|serial| {
            let call = Message::method_call(FLOW_MONITOR_PATH, "ListActive");
            call.destination(FLOW_MONITOR_NAME).interface(FLOW_MONITOR_INTERFACE).serial(serial).build(query)
        })
    }

    /// Sends a call of a method, with the descriptors that are among its arguments, and returns its serial.
    ///
    /// # Panics
    /// If the bus does not take it.
    pub fn call<B>(&mut self, [destination, path, interface, member]: [&str; 4], body: &B) -> u32
    where
        B: serde::Serialize + zbus::Type,
    {
        self.send(|serial| {
            let call = Message::method_call(path, member);
            call.destination(destination).interface(interface).serial(serial).build(body)
        })
    }

    /// Calls a method and waits for the reply.
    ///
    /// # Panics
    /// If the bus does not take the call, or no reply comes within the deadline.
    pub fn call_and_wait<B>(&mut self, target: [&str; 4], body: &B) -> Received
    where
        B: serde::Serialize + zbus::Type,
    {
        let serial = self.call(target, body);
        self.reply_to(serial)
    }

    /// Waits for the reply to a call: its error's name is in it.
    ///
    /// # Panics
    /// If none comes within the deadline.
    pub fn reply_to(&mut self, serial: u32) -> Received {
        loop {
            let received = self.receive();
            if received.reply_serial() == Some(serial) {
                return received;
            }
        }
    }

    /// Sends a call of a method without arguments that is to have no reply.
    ///
    /// # Panics
    /// If the bus does not take it.
    pub fn call_without_reply(&mut self, [destination, path, interface, member]: [&str; 4]) {
        self.send(|serial| {
            let call = Message::method_call(path, member).with_flags(Flags::NO_REPLY_EXPECTED);
            call.destination(destination).interface(interface).serial(serial).build(&())
        });
    }

    /// Sends the first `bytes` bytes of a call, and nothing more.
    ///
    /// # Panics
    /// If the bus does not take them, or if the call is not longer than that.
    pub fn call_in_part(&mut self, [destination, path, interface, member]: [&str; 4], bytes: usize) {
        let call = Message::method_call(path, member).destination(destination).interface(interface);
        let message = call.build(&"x".repeat(4096)).expect("what a test sends is a message");
        assert!(bytes < message.data().len());
        self.socket.write_all(&message.data()[..bytes]).expect("the bus takes messages");
    }

    /// Asks the bus for signals by a match rule, and waits for its answer.
    ///
    /// # Panics
    /// If the bus refuses.
    pub fn add_match(&mut self, rule: &str) {
        let serial = self.call_bus("AddMatch", Some(rule));
        loop {
            let received = self.receive();
            if received.reply_serial() == Some(serial) {
                assert!(!received.is_error(), "{rule} is refused: {}", received.text());
                return;
            }
        }
    }

    fn call_bus(&mut self, member: &str, argument: Option<&str>) -> u32 {
        const BUS: &str = "org.freedesktop.DBus";
        self.send(|serial| {
            let call = Message::method_call("/org/freedesktop/DBus", member);
            let call = call.destination(BUS).interface(BUS).serial(serial);
            match argument {
                Some(argument) => call.build(&argument),
                None => call.build(&()),
            }
        })
    }

    fn send(&mut self, message: impl FnOnce(NonZeroU32) -> zbus::Result<Message>) -> u32 {
        self.serial += 1;
        let serial = NonZeroU32::new(self.serial).expect("serials begin with 1");
        let message = message(serial).expect("what a test sends is a message");
        let descriptors: Vec<BorrowedFd<'_>> = message.data().fds().iter().map(AsFd::as_fd).collect();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(descriptors.len()))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        // Descriptors go with the first byte.
        let (first, rest) = message.data().split_at(1);
        let slices = [IoSlice::new(first)];
        rustix::net::sendmsg(&self.socket, &slices, &mut control, SendFlags::NOSIGNAL)
            .expect("the bus takes messages");
        self.socket.write_all(rest).expect("the bus takes messages");
        self.serial
    }

    /// The next message, whatever it is.
    ///
    /// # Panics
    /// If none comes within the deadline.
    pub fn receive(&mut self) -> Received {
        let mut bytes = vec![0; FIXED];
        self.socket.read_exact(&mut bytes).expect("a message comes");
        assert_eq!(bytes[0], b'l', "a message of this machine");
        let number = |at: usize| {
            let bytes = bytes[at..at + 4].try_into().expect("these are four");
            usize::try_from(u32::from_le_bytes(bytes)).expect("messages fit")
        };
        let length = FIXED + number(12).next_multiple_of(8) + number(4);
        bytes.resize(length, 0);
        self.socket.read_exact(&mut bytes[FIXED..]).expect("the rest of a message comes");
        Received(bytes)
    }
}

/// A socket that a user with these groups has connected.
///
/// # Panics
/// If the user may not.
#[must_use]
pub fn socket_of(path: String, user: u32, groups: Vec<Gid>) -> UnixStream {
    // The kernel notes who connects, of the thread that does.
    let connect = move || {
        rustix::thread::set_thread_groups(&groups).expect("root may");
        let user = Uid::from_raw(user);
        rustix::thread::set_thread_res_uid(user, user, user).expect("root may");
        UnixStream::connect(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    thread::spawn(connect).join().expect("the thread ends")
}

impl Received {
    /// The serial of the call that the message answers, if it is a reply.
    #[must_use]
    pub fn reply_serial(&self) -> Option<u32> {
        // A header field stands at a multiple of 8: its number, its signature "u", its value.
        let fields = self.0[FIXED..].chunks_exact(8);
        let field = fields.map(|chunk| chunk.split_at(4)).find(|(head, _)| *head == [5, 1, b'u', 0]);
        field.map(|(_, value)| u32::from_le_bytes(value.try_into().expect("these are four")))
    }

    /// Whether the message is an error reply.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.0[1] == 3
    }

    /// Whether this text is in the message: the name of an error.
    #[must_use]
    pub fn has(&self, text: &str) -> bool {
        self.0.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// How many events a FlowEvents signal has, and how many it says were lost before.
    ///
    /// # Panics
    /// Never: a message is longer than that.
    #[must_use]
    pub fn flow_events(&self) -> Option<(u64, u64)> {
        // The body ends with `lost`; each event has a key `event`, whose variant is a string.
        let (_, lost) = self.0.split_last_chunk().expect("a message is longer");
        let text = self.text();
        let is_signal = self.0[1] == 4 && text.contains("FlowEvents\0");
        let events = text.matches("event\0\u{1}s\0").count();
        is_signal.then(|| (events as u64, u64::from_le_bytes(*lost)))
    }

    /// The message's length.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

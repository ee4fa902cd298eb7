//! What goes in and out of a connection: each call is counted from its delivery until its reply is written, whichever interface
//! it is for. zbus answers Introspect, GetAll and Ping by itself, so nothing behind it could.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flowbus_interfaces::Error;
use rustix::fd::{BorrowedFd, OwnedFd};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use zbus::conn::socket::{ReadHalf, WriteHalf};
use zbus::export::async_trait::async_trait;
use zbus::message::{Flags, Header, Type};
use zbus::{DBusError, Message};

use super::BusCounters;
use super::budget::Budget;
use super::calls::{Calls, Excess};
use super::transport::{STUCK, Writer, hang_up};

/// The bus itself, as a sender and as a destination.
const BUS: &str = "org.freedesktop.DBus";
/// How many senders' users are remembered.
const USERS: usize = 1_024;
/// Messages of the gate's own that wait to be written; then it receives no more. They are small, and whoever comes behind a flood of
/// calls waits until those have been received.
const OUTGOING: usize = 8_192;

/// What all connections have in common.
#[derive(Debug)]
pub(super) struct Limits {
    counters: Arc<BusCounters>,
    budget: Mutex<Budget>,
}

impl Limits {
    pub(super) fn new(counters: Arc<BusCounters>) -> Self {
        Self { counters, budget: Mutex::default() }
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of a connection, shared by its two halves and by those who watch it.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The well-known name of the connection.
    name: &'static str,
    stream: Arc<UnixStream>,
    limits: Arc<Limits>,
    intake: Mutex<Intake>,
    /// Bytes of whole messages that were written.
    written: AtomicU64,
    name_lost: AtomicBool,
    hung_up: AtomicBool,
    changed: Notify,
}

/// What has been received and is not done with.
#[derive(Debug, Default)]
struct Intake {
    calls: Calls,
    /// Refused calls whose error has not been written.
    refused: usize,
    /// The users of senders. A bus gives a unique name once.
    users: HashMap<String, u32>,
    /// Questions for a sender's user, by serial number.
    lookups: HashMap<NonZeroU32, String>,
    /// Calls of senders whose user is being looked up.
    parked: HashMap<String, Vec<Message>>,
    /// Calls that may be answered.
    ready: VecDeque<Message>,
    /// Errors and questions to be written.
    outgoing: VecDeque<Message>,
}

impl Gate {
    /// A gate around a socket: its halves, and the messages that somebody has to send on the connection.
    pub(super) fn around(
        stream: Arc<UnixStream>,
        name: &'static str,
        limits: Arc<Limits>,
    ) -> (Self, GatedReader, GatedWriter, mpsc::Receiver<Message>) {
        let gate = Self(Arc::new(Shared {
            name,
            stream: Arc::clone(&stream),
            limits,
            intake: Mutex::default(),
            written: AtomicU64::new(0),
            name_lost: AtomicBool::new(false),
            hung_up: AtomicBool::new(false),
            changed: Notify::new(),
        }));
        let (sender, outgoing) = mpsc::channel(OUTGOING);
        let refusing = gate.clone();
        let count = move || refusing.count_refused(&mut refusing.intake());
        let reader = flowbus_guard::bounded(Arc::clone(&stream), count, sender.clone());
        let reader = GatedReader { reader, gate: gate.clone(), outgoing: sender };
        let writer = GatedWriter { writer: Writer(stream), gate: gate.clone() };
        (gate, reader, writer, outgoing)
    }

    /// How many bytes of messages were written.
    pub(super) fn written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    /// Whether somebody else has the name now.
    pub(super) fn has_lost_name(&self) -> bool {
        self.0.name_lost.load(Ordering::Relaxed)
    }

    /// Whether no call waits for its reply.
    pub(super) fn is_idle(&self) -> bool {
        let intake = self.intake();
        intake.calls.is_empty() && intake.refused == 0
    }

    /// Waits until a condition holds.
    pub(super) async fn wait(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if condition(self) {
                return;
            }
            changed.await;
        }
    }

    /// Ends the connection that the bus does not read.
    pub(super) fn hang_up(&self) {
        if !self.0.hung_up.swap(true, Ordering::Relaxed) {
            let name = self.0.name;
            tracing::warn!(name, "the bus read nothing for {STUCK:?}: opening a new connection");
        }
        hang_up(&self.0.stream);
    }

    fn intake(&self) -> MutexGuard<'_, Intake> {
        self.0.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sorts a received message: what it returns is for zbus, the rest is kept, answered or dropped here.
    fn receive(&self, message: Message) -> Option<Message> {
        let header = message.header();
        match header.message_type() {
            Type::MethodCall => {
                self.receive_call(&message, &header);
                return self.intake().ready.pop_front();
            }
            Type::Signal if is_of_bus(&header) => {
                let lost = header.member().is_some_and(|member| member == "NameLost")
                    && message.body().deserialize::<&str>().is_ok_and(|name| name == self.0.name);
                if lost {
                    self.0.name_lost.store(true, Ordering::Relaxed);
                    self.0.changed.notify_waiters();
                }
            }
            Type::MethodReturn | Type::Error if is_of_bus(&header) => {
                let mut intake = self.intake();
                let sender = header.reply_serial().and_then(|serial| intake.lookups.remove(&serial));
                if let Some(sender) = sender {
                    // A sender who has left gets no reply anyway.
                    let user = message.body().deserialize::<u32>().ok();
                    self.attribute(&mut intake, &sender, user);
                    return None;
                }
            }
            _ => {}
        }
        drop(header);
        Some(message)
    }

    fn receive_call(&self, message: &Message, header: &Header<'_>) {
        // All that our methods do is answer.
        if header.primary().flags().contains(Flags::NO_REPLY_EXPECTED) {
            BusCounters::add(&self.0.limits.counters.calls_refused, 1);
            return;
        }
        let sender = header.sender().map(|sender| sender.as_str()).unwrap_or_default();
        let mut intake = self.intake();
        if let Err(excess) = intake.calls.begin(sender, header.primary().serial_num().get()) {
            self.refuse(&mut intake, header, &excess);
        } else if let Some(user) = intake.users.get(sender).copied() {
            self.admit(&mut intake, message.clone(), user);
        } else if let Some(parked) = intake.parked.get_mut(sender) {
            parked.push(message.clone());
        } else {
            let question = Message::method_call("/org/freedesktop/DBus", "GetConnectionUnixUser");
            match question.destination(BUS).interface(BUS).build(&sender) {
                Ok(question) => {
                    intake.lookups.insert(question.primary_header().serial_num(), sender.to_owned());
                    intake.parked.insert(sender.to_owned(), vec![message.clone()]);
                    intake.outgoing.push_back(question);
                }
                Err(error) => tracing::debug!(%error, "a sender's user cannot be asked for"),
            }
        }
    }

    /// Lets parked calls through, or drops them where the sender has left.
    fn attribute(&self, intake: &mut Intake, sender: &str, user: Option<u32>) {
        let calls = intake.parked.remove(sender).unwrap_or_default();
        let Some(user) = user else {
            for call in calls {
                intake.calls.end(sender, call.primary_header().serial_num().get());
            }
            return self.0.changed.notify_waiters();
        };
        if intake.users.len() >= USERS {
            intake.users.clear();
        }
        intake.users.insert(sender.to_owned(), user);
        for call in calls {
            self.admit(intake, call, user);
        }
    }

    /// Lets a counted call through, unless its user has had enough.
    fn admit(&self, intake: &mut Intake, call: Message, user: u32) {
        let header = call.header();
        let sender = header.sender().map(|sender| sender.as_str()).unwrap_or_default();
        let serial = header.primary().serial_num().get();
        let result = if self.0.limits.budget().is_spent(user, Instant::now()) {
            intake.calls.end(sender, serial);
            Err(Excess::Bytes)
        } else {
            intake.calls.attribute(sender, serial, user)
        };
        match result {
            Err(excess) => self.refuse(intake, &header, &excess),
            Ok(()) => {
                drop(header);
                intake.ready.push_back(call);
            }
        }
    }

    fn refuse(&self, intake: &mut Intake, header: &Header<'_>, excess: &Excess) {
        match Error::LimitExceeded(excess.to_string()).create_reply(header) {
            Ok(error) => {
                self.count_refused(intake);
                intake.outgoing.push_back(error);
            }
            Err(error) => tracing::debug!(%error, "a call cannot be refused"),
        }
    }

    /// Counts a call whose error is about to be sent.
    fn count_refused(&self, intake: &mut Intake) {
        BusCounters::add(&self.0.limits.counters.calls_refused, 1);
        intake.refused += 1;
    }

    /// Counts a message that was written; a reply ends its call.
    fn count_written(&self, message: &Message) {
        let bytes = message.data().len();
        self.0.written.fetch_add(bytes as u64, Ordering::Relaxed);
        let header = message.header();
        if let (Some(destination), Some(serial)) = (header.destination(), header.reply_serial()) {
            let mut intake = self.intake();
            match intake.calls.end(destination.as_str(), serial.get()) {
                Some(Some(user)) => self.0.limits.budget().spend(user, bytes, Instant::now()),
                Some(None) => {}
                None => intake.refused = intake.refused.saturating_sub(1),
            }
        }
        self.0.changed.notify_waiters();
    }
}

fn is_of_bus(header: &Header<'_>) -> bool {
    header.sender().is_some_and(|sender| sender.as_str() == BUS)
}

/// The half that receives, for zbus.
#[derive(Debug)]
pub(super) struct GatedReader {
    reader: Box<dyn ReadHalf>,
    gate: Gate,
    /// Ends with this half.
    outgoing: mpsc::Sender<Message>,
}

/// The half that sends, for zbus.
#[derive(Debug)]
pub(super) struct GatedWriter {
    writer: Writer,
    gate: Gate,
}

#[async_trait]
impl ReadHalf for GatedReader {
    async fn receive_message(
        &mut self,
        position: u64,
        received: &mut Vec<u8>,
        descriptors: &mut Vec<OwnedFd>,
    ) -> zbus::Result<Message> {
        loop {
            let ready = self.gate.intake().ready.pop_front();
            if let Some(call) = ready {
                return Ok(call);
            }
            let message = self.reader.receive_message(position, received, descriptors).await?;
            let passed = self.gate.receive(message);
            let outgoing: Vec<_> = self.gate.intake().outgoing.drain(..).collect();
            for message in outgoing {
                // Nobody takes them once the connection is on its way out.
                let _ = self.outgoing.send(message).await;
            }
            if let Some(message) = passed {
                return Ok(message);
            }
        }
    }

    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        self.reader.recvmsg(buffer).await
    }

    fn can_pass_unix_fd(&self) -> bool {
        self.reader.can_pass_unix_fd()
    }
}

#[async_trait]
impl WriteHalf for GatedWriter {
    async fn send_message(&mut self, message: &Message) -> zbus::Result<()> {
        match self.writer.send_message(message).await {
            Err(zbus::Error::InputOutput(error)) if error.kind() == io::ErrorKind::TimedOut => {
                self.gate.hang_up();
                Err(zbus::Error::InputOutput(error))
            }
            result => {
                result?;
                self.gate.count_written(message);
                Ok(())
            }
        }
    }

    async fn sendmsg(&mut self, buffer: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.writer.sendmsg(buffer, descriptors).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.writer.close().await
    }

    fn can_pass_unix_fd(&self) -> bool {
        self.writer.can_pass_unix_fd()
    }
}

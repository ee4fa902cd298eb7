//! What goes in and out of a connection: each call is counted from the header on until its reply is written, whichever interface
//! it is for. zbus answers Introspect, GetAll and Ping by itself, so nothing behind it could.

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flowbus_interfaces::Error;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use zbus::message::{Flags, Header, Type};
use zbus::{DBusError, Message};

use crate::calls::Excess;
use crate::guard::{Accounts, Guard};
use crate::head::{Head, check_message, error_reply};
use crate::transport::{STUCK, hang_up};

/// The bus itself, as a sender and as a destination.
const BUS: &str = "org.freedesktop.DBus";
/// How many senders' users are remembered.
const USERS: usize = 1_024;

/// The state of a connection, shared by its two halves and by those who watch it.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The well-known name of the connection.
    name: &'static str,
    stream: Arc<UnixStream>,
    guard: Arc<Guard>,
    /// The connection's number among those of the process.
    link: u64,
    intake: Mutex<Intake>,
    /// Bytes of whole messages that were written.
    written: AtomicU64,
    name_lost: AtomicBool,
    hung_up: AtomicBool,
    changed: Notify,
}

/// What has been received and is not done with. It is locked before [`Accounts`].
#[derive(Debug, Default)]
struct Intake {
    /// Refused calls whose error has not been written.
    refused: usize,
    /// This process's own calls that wait for a reply, by serial number.
    own: HashSet<NonZeroU32>,
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
    /// The gate of a new connection over this socket.
    pub(crate) fn new(stream: Arc<UnixStream>, name: &'static str, guard: Arc<Guard>) -> Self {
        let link = guard.next_link();
        Self(Arc::new(Shared {
            name,
            stream,
            guard,
            link,
            intake: Mutex::default(),
            written: AtomicU64::new(0),
            name_lost: AtomicBool::new(false),
            hung_up: AtomicBool::new(false),
            changed: Notify::new(),
        }))
    }

    /// The well-known name of the connection.
    pub(crate) fn name(&self) -> &'static str {
        self.0.name
    }

    /// How many bytes of messages were written.
    pub(crate) fn written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    /// Whether somebody else has the name now.
    pub(crate) fn has_lost_name(&self) -> bool {
        self.0.name_lost.load(Ordering::Relaxed)
    }

    /// Whether no call that came on the connection or was made on it waits for its reply.
    pub(crate) fn is_idle(&self) -> bool {
        let intake = self.intake();
        intake.refused == 0 && intake.own.is_empty() && !self.accounts().calls.any_on(self.0.link)
    }

    /// Waits until a condition holds.
    pub(crate) async fn wait(&self, condition: impl Fn(&Self) -> bool) {
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
    pub(crate) fn hang_up(&self) {
        if !self.0.hung_up.swap(true, Ordering::Relaxed) {
            let name = self.0.name;
            tracing::warn!(name, "the bus read nothing for {STUCK:?}: opening a new connection");
        }
        hang_up(&self.0.stream);
    }

    /// Whether a call may carry a descriptor.
    pub(crate) fn takes_descriptor(&self) -> bool {
        self.0.guard.takes_descriptor()
    }

    fn intake(&self) -> MutexGuard<'_, Intake> {
        self.0.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.0.guard.accounts()
    }

    /// Lets a message in of which only the header was read, and `descriptors`; else the error has to be sent, if there is one.
    pub(crate) fn admit(&self, head: &Head, descriptors: usize) -> Result<(), Option<Message>> {
        let mut intake = self.intake();
        let is_call = head.kind == Type::MethodCall;
        // This process waits for signals of the bus alone.
        if head.kind == Type::Signal && head.sender != BUS {
            return Err(None);
        }
        // The call that a reply answers is found by sender and serial number: there can be only one.
        if is_call && self.accounts().calls.has(&head.sender, head.serial) {
            self.0.guard.count_refused();
            return Err(None);
        }
        let admitted = check_message(head, descriptors, usize::from(self.takes_descriptor()))
            .and_then(|()| if is_call { self.begin(&intake, head) } else { Ok(()) });
        admitted.map_err(|error| {
            tracing::debug!(sender = head.sender, %error, "a message is refused");
            if is_call {
                self.0.guard.count_refused();
            }
            let reply = head.wants_reply().then(|| error_reply(head, &error).ok()).flatten();
            intake.refused += usize::from(reply.is_some());
            reply
        })
    }

    fn begin(&self, intake: &Intake, head: &Head) -> Result<(), Error> {
        let user = intake.users.get(&head.sender).copied();
        let mut accounts = self.accounts();
        let budget = user.map_or(Ok(()), |user| accounts.check_budget(user));
        let begun = budget.and_then(|()| accounts.calls.begin(head, self.0.link, user));
        begun.map_err(|excess| Error::LimitExceeded(excess.to_string()))
    }

    /// The next call that may be answered.
    pub(crate) fn next_ready(&self) -> Option<Message> {
        self.intake().ready.pop_front()
    }

    /// Takes the errors and questions that are to be written.
    pub(crate) fn take_outgoing(&self) -> VecDeque<Message> {
        std::mem::take(&mut self.intake().outgoing)
    }

    /// Sorts a received message: what it returns is for zbus, the rest is kept, answered or dropped here.
    pub(crate) fn receive(&self, message: Message) -> Option<Message> {
        let header = message.header();
        match header.message_type() {
            Type::MethodCall => {
                self.receive_call(&message, &header);
                return self.next_ready();
            }
            Type::Signal if is_of_bus(&header) => {
                let lost = header.member().is_some_and(|member| member == "NameLost")
                    && message.body().deserialize::<&str>().is_ok_and(|name| name == self.0.name);
                if lost {
                    self.0.name_lost.store(true, Ordering::Relaxed);
                    self.0.changed.notify_waiters();
                }
            }
            Type::MethodReturn | Type::Error => {
                let mut intake = self.intake();
                let serial = header.reply_serial();
                if serial.is_some_and(|serial| intake.own.remove(&serial)) {
                    self.0.changed.notify_waiters();
                }
                let asked_for = serial.filter(|_| is_of_bus(&header));
                if let Some(sender) = asked_for.and_then(|serial| intake.lookups.remove(&serial)) {
                    // A sender who has left gets no reply anyway.
                    let user = message.body().deserialize::<u32>().ok();
                    self.attribute(&mut intake, &sender, user);
                    return None;
                }
            }
            Type::Signal => {}
        }
        drop(header);
        Some(message)
    }

    fn receive_call(&self, message: &Message, header: &Header<'_>) {
        let sender = header.sender().map(|sender| sender.as_str()).unwrap_or_default();
        let mut intake = self.intake();
        if intake.users.contains_key(sender) {
            intake.ready.push_back(message.clone());
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
                self.accounts().calls.end(sender, call.primary_header().serial_num().get());
            }
            return self.0.changed.notify_waiters();
        };
        if intake.users.len() >= USERS {
            intake.users.clear();
        }
        intake.users.insert(sender.to_owned(), user);
        for call in calls {
            let serial = call.primary_header().serial_num().get();
            let mut accounts = self.accounts();
            let silent = accounts.calls.is_silent(sender, serial);
            let admitted = accounts
                .check_budget(user)
                .inspect_err(|_| _ = accounts.calls.end(sender, serial))
                .and_then(|()| accounts.calls.attribute(sender, serial, user));
            drop(accounts);
            match admitted {
                Ok(()) => intake.ready.push_back(call),
                Err(excess) => self.refuse(intake, &call, silent, &excess),
            }
        }
    }

    fn refuse(&self, intake: &mut Intake, call: &Message, silent: bool, excess: &Excess) {
        self.0.guard.count_refused();
        if silent {
            return self.0.changed.notify_waiters();
        }
        match Error::LimitExceeded(excess.to_string()).create_reply(&call.header()) {
            Ok(error) => {
                intake.refused += 1;
                intake.outgoing.push_back(error);
            }
            Err(error) => tracing::debug!(%error, "a call cannot be refused"),
        }
    }

    /// Whether a message is to be written, as all are but replies that nobody wants.
    pub(crate) fn begin_write(&self, message: &Message) -> bool {
        let header = message.header();
        if let Some((caller, serial)) = replied_to(&header) {
            let mut accounts = self.accounts();
            if accounts.calls.is_silent(caller, serial) {
                accounts.calls.end(caller, serial);
                self.0.changed.notify_waiters();
                return false;
            }
        }
        let primary = header.primary();
        if primary.msg_type() == Type::MethodCall && !primary.flags().contains(Flags::NO_REPLY_EXPECTED) {
            self.intake().own.insert(primary.serial_num());
        }
        true
    }

    /// Counts a message that was written; a reply ends its call.
    pub(crate) fn count_written(&self, message: &Message) {
        let bytes = message.data().len();
        self.0.written.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some((caller, serial)) = replied_to(&message.header()) {
            let mut intake = self.intake();
            let mut accounts = self.accounts();
            match accounts.calls.end(caller, serial) {
                Some(Some(user)) => accounts.budget.spend(user, bytes, Instant::now()),
                Some(None) => {}
                None => intake.refused = intake.refused.saturating_sub(1),
            }
        }
        self.0.changed.notify_waiters();
    }

    /// Notes that the connection has ended: nothing that came on it is answered any more, and nothing that was asked on it.
    pub(crate) fn end(&self) {
        *self.intake() = Intake::default();
        self.accounts().calls.end_all(self.0.link);
        self.0.changed.notify_waiters();
    }
}

fn is_of_bus(header: &Header<'_>) -> bool {
    header.sender().is_some_and(|sender| sender.as_str() == BUS)
}

/// The sender and the serial number of the call that a reply answers.
fn replied_to<'m>(header: &'m Header<'_>) -> Option<(&'m str, u32)> {
    Some((header.destination()?.as_str(), header.reply_serial()?.get()))
}

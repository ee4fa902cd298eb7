//! How the descriptors come from the loader to the daemon: over a socket in the file system that PID 1 listens on for the
//! daemon and that only root may connect to.
//!
//! The daemon says in one byte what it needs, the loader answers with one message: names, separated by colons, and as
//! many descriptors. Descriptors are never in flight to nobody: the loader loads when it has been asked, so when the
//! daemon dies what was sent to it is closed with its socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::descriptors::{DescriptorError, Programs};
use crate::events::{DEFAULT_EVENT_RING_BYTES, EventFilter, FilterError};
use crate::load::{self, LoadError};
use crate::snapshot::Snapshot;

/// Where the service's socket is (`flowbusd-attribution.socket`).
pub const SOCKET: &str = "/run/flowbus/attribution";
/// Its name in LISTEN_FDNAMES.
pub const LISTENER: &str = "bpf-handover";

const SNAPSHOT: &str = "bpf-snapshot";
const CGROUPS: &str = "bpf-cgroups";
/// In the place of names where nothing is handed over.
const NOTHING: &str = "nothing";
/// The most descriptors of a hand-over: each program has 2, and there are 8 more.
const MAXIMUM_DESCRIPTORS: usize = 64;
const MAXIMUM_NAMES_BYTES: usize = 2048;
const ROOT: u32 = 0;

/// What the daemon asks the loader for. With programs comes a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The programs that report sockets.
    pub programs: bool,
    /// What is open: alone where the daemon has programs, which PID 1 has kept for it.
    pub snapshot: bool,
    /// The filter that puts events into a ring.
    pub filter: bool,
}

/// What the loader hands over, of what it was asked for.
#[derive(Debug, Default)]
pub struct Handed {
    /// The programs that report sockets.
    pub programs: Option<Programs>,
    /// What was open.
    pub snapshot: Option<Snapshot>,
    /// The filter that puts events into a ring.
    pub filter: Option<EventFilter>,
    /// Why `filter` is absent: the kernel refuses it (set by the loader), or it is of another version (set by the daemon).
    pub refused: Option<FilterError>,
}

/// Why nothing is handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// The descriptor is no socket that a loader can connect to, or was made useless.
    #[error("the descriptor named {LISTENER} is of no use: {0}")]
    Listener(&'static str),
    /// The other side is somebody else.
    #[error("the other side is user {0}, and only root is believed")]
    Stranger(u32),
    /// The other side went away.
    #[error("the other side has closed the connection")]
    Closed,
    /// A message is not one of ours.
    #[error("unexpected message: {0}")]
    Message(&'static str),
    /// The descriptors are not those of programs.
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    /// The programs could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
}

fn io(what: &'static str) -> impl FnOnce(Errno) -> HandoverError {
    move |source| HandoverError::Io { what, source }
}

/// Looks at a descriptor that was handed over as the one where loaders connect: otherwise it might be readable for ever,
/// with nobody there.
///
/// # Errors
///
/// [`HandoverError::Listener`]
pub fn check_listener(listener: BorrowedFd<'_>) -> Result<(), HandoverError> {
    let kind = (sockopt::socket_domain(listener), sockopt::socket_type(listener));
    if kind != (Ok(AddressFamily::UNIX), Ok(SocketType::SEQPACKET)) {
        return Err(HandoverError::Listener("it is no local socket of packets"));
    }
    if sockopt::socket_acceptconn(listener) != Ok(true) {
        return Err(HandoverError::Listener("it does not listen"));
    }
    // An earlier life may have shut it down.
    let mut ended = [PollFd::new(&listener, PollFlags::RDHUP)];
    match poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(0) => Ok(()),
        _ => Err(HandoverError::Listener("nobody can connect to it")),
    }
}

/// A loader that has connected to the daemon.
#[derive(Debug)]
pub struct Loader(OwnedFd);

impl Loader {
    /// Takes the next connection to `listener` and asks for `request`; `None` where nobody waits. When
    /// [`Loader::receive`] has something the descriptor is readable.
    ///
    /// # Errors
    ///
    /// Whoever connected is not root, or has gone.
    pub fn accept(listener: BorrowedFd<'_>, request: Request) -> Result<Option<Self>, HandoverError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let connection = match rustix::net::accept_with(listener, flags) {
            Ok(connection) => connection,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(None),
            Err(source) => return Err(io("the loader's connection cannot be accepted")(source)),
        };
        believe(&connection)?;
        let asked = rustix::net::send(&connection, &[request.byte()], SendFlags::NOSIGNAL);
        asked.map_err(io("the loader cannot be asked"))?;
        Ok(Some(Self(connection)))
    }

    /// What the loader hands over; `None` where it is not ready yet.
    ///
    /// # Errors
    ///
    /// The loader has failed and gone, or sends something else.
    pub fn receive(&self) -> Result<Option<Handed>, HandoverError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAXIMUM_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut names = [0; MAXIMUM_NAMES_BYTES];
        let mut slices = [IoSliceMut::new(&mut names)];
        let received = match rustix::net::recvmsg(&self.0, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
        {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(source) => return Err(io("nothing can be received from the loader")(source)),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
        if received.bytes == 0 {
            return Err(HandoverError::Closed);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(HandoverError::Message("it is too long"));
        }
        let names = names.get(..received.bytes).and_then(|names| std::str::from_utf8(names).ok());
        Handed::from_named(names.ok_or(HandoverError::Message("its names are not text"))?, descriptors)
            .map(Some)
    }
}

impl AsFd for Loader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Handed {
    fn from_named(names: &str, descriptors: Vec<OwnedFd>) -> Result<Self, HandoverError> {
        if names == NOTHING && descriptors.is_empty() {
            return Ok(Self::default());
        }
        if names.split(':').count() != descriptors.len() {
            return Err(HandoverError::Message("it has more or fewer names than descriptors"));
        }
        let (mut sockets, mut cgroups, mut programs, mut filter) = (None, None, Vec::new(), Vec::new());
        for (name, descriptor) in names.split(':').zip(descriptors) {
            match name {
                SNAPSHOT => sockets = Some(descriptor),
                CGROUPS => cgroups = Some(descriptor),
                name if EventFilter::owns(name) => filter.push((name.to_owned(), descriptor)),
                name => programs.push((name.to_owned(), descriptor)),
            }
        }
        let filter = if filter.is_empty() { None } else { Some(EventFilter::from_named(filter)) };
        let (filter, refused) = match filter.transpose() {
            Ok(filter) => (filter, None),
            Err(error) => (None, Some(error)),
        };
        let handed = Self {
            programs: if programs.is_empty() { None } else { Some(Programs::from_named(programs)?) },
            filter,
            refused,
            snapshot: cgroups.map(|cgroups| Snapshot { sockets, cgroups }),
        };
        match handed {
            Self { programs: Some(_), snapshot: None, .. } => Err(DescriptorError::Missing(CGROUPS).into()),
            handed => Ok(handed),
        }
    }

    fn named(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        let snapshot = self.snapshot.iter().flat_map(|snapshot| {
            let sockets = snapshot.sockets.iter().map(|sockets| (SNAPSHOT, sockets.as_fd()));
            sockets.chain([(CGROUPS, snapshot.cgroups.as_fd())])
        });
        let programs = self.programs.iter().flat_map(Programs::named);
        snapshot.chain(programs).chain(self.filter.iter().flat_map(EventFilter::named))
    }
}

impl Request {
    // The bits of the byte, all of them letters.
    const NONE: u8 = b'@';
    const PROGRAMS: u8 = 1;
    const SNAPSHOT: u8 = 2;
    const FILTER: u8 = 4;

    fn byte(self) -> u8 {
        let bit = |is_set, bit| if is_set { bit } else { 0 };
        Self::NONE
            | bit(self.programs, Self::PROGRAMS)
            | bit(self.snapshot, Self::SNAPSHOT)
            | bit(self.filter, Self::FILTER)
    }

    fn from_byte(byte: u8) -> Option<Self> {
        let bits = byte ^ Self::NONE;
        let has = |bit| bits & bit != 0;
        let is_known = bits & !(Self::PROGRAMS | Self::SNAPSHOT | Self::FILTER) == 0;
        is_known.then_some(Self {
            programs: has(Self::PROGRAMS),
            snapshot: has(Self::SNAPSHOT),
            filter: has(Self::FILTER),
        })
    }
}

/// The loader's whole work: connects to the daemon at `socket`, loads what it asks for, and hands it over. What is not
/// handed over ends with the caller.
///
/// # Errors
///
/// There is no daemon, or nothing can be loaded.
pub fn serve(socket: &Path) -> Result<Handed, HandoverError> {
    let connection = connect(socket)?;
    let request = receive_request(&connection)?;
    let mut handed = Handed::default();
    if request.programs {
        let (programs, snapshot) = load::load(load::DEFAULT_RING_BYTES)?;
        (handed.programs, handed.snapshot) = (Some(programs), Some(snapshot));
    } else if request.snapshot {
        handed.snapshot = Some(load::snapshot()?);
    }
    if request.filter {
        match EventFilter::load_either(DEFAULT_EVENT_RING_BYTES) {
            Ok(filter) => handed.filter = Some(filter),
            Err(error) => handed.refused = Some(error),
        }
    }
    send(&connection, &handed)?;
    Ok(handed)
}

fn connect(socket: &Path) -> Result<OwnedFd, HandoverError> {
    let address = SocketAddrUnix::new(socket).map_err(io("the path of the daemon's socket is not one"))?;
    let connection =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(io("there is no socket"))?;
    rustix::net::connect(&connection, &address).map_err(io("the daemon's socket cannot be reached"))?;
    believe(&connection)?;
    // A daemon that does not answer in this time is being stopped.
    sockopt::set_socket_timeout(&connection, Timeout::Recv, Some(Duration::from_secs(20)))
        .map_err(io("the socket takes no timeout"))?;
    Ok(connection)
}

fn receive_request(connection: &OwnedFd) -> Result<Request, HandoverError> {
    let mut byte = [0];
    let (_, length) = rustix::net::recv(connection, &mut byte, RecvFlags::empty())
        .map_err(io("the daemon does not say what it needs"))?;
    match (length, Request::from_byte(byte[0])) {
        (0, _) => Err(HandoverError::Closed),
        (_, Some(request)) => Ok(request),
        (_, None) => Err(HandoverError::Message("the daemon asks for something that is not known")),
    }
}

fn send(connection: &OwnedFd, handed: &Handed) -> Result<(), HandoverError> {
    let (names, descriptors): (Vec<_>, Vec<_>) = handed.named().unzip();
    let names = if names.is_empty() { NOTHING.to_owned() } else { names.join(":") };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAXIMUM_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(HandoverError::Message("it has too many descriptors"));
    }
    rustix::net::sendmsg(connection, &[IoSlice::new(names.as_bytes())], &mut control, SendFlags::NOSIGNAL)
        .map_err(io("the descriptors cannot be sent"))?;
    Ok(())
}

/// Whoever is at the other end has to be root: the loader is, and so is PID 1, which listens.
fn believe(connection: &OwnedFd) -> Result<(), HandoverError> {
    let other = sockopt::socket_peercred(connection).map_err(io("the other side is not known"))?;
    match other.uid.as_raw() {
        ROOT => Ok(()),
        user => Err(HandoverError::Stranger(user)),
    }
}

//! The descriptors that the daemon was started with, by name: sockets that PID 1 opened, and the state of its last
//! life. What is missing the daemon opens itself.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use ctnetlink::{Groups, Socket, SocketError};
use flowbus_attribution::Programs;
use flowbus_attribution::events::{DEFAULT_EVENT_RING_BYTES, EventFilter};
use flowbus_attribution::handover::LISTENER;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use rustix::thread::CapabilitySet;

use crate::config::{EventOptions, SourceChoice};
use crate::systemd::{self, STATE};

/// What LISTEN_FDS handed over. The names are those of LISTEN_FDNAMES; their order means nothing.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    /// The event socket, joined to its groups.
    pub(crate) events: Option<OwnedFd>,
    /// The socket for dumps.
    pub(crate) dump: Option<OwnedFd>,
    /// The route socket, joined to the group of links.
    pub(crate) links: Option<OwnedFd>,
    /// The memfd of the restart state.
    pub(crate) state: Option<OwnedFd>,
    /// Whether PID 1 keeps that memfd by its name, and no other.
    pub(crate) state_is_kept: bool,
    /// The socket that BPF programs are handed over by.
    pub(crate) listener: Option<OwnedFd>,
    /// The BPF programs of the last life.
    pub(crate) programs: Vec<(String, OwnedFd)>,
    /// The filter of the event socket, of the last life.
    pub(crate) filter: Vec<(String, OwnedFd)>,
}

impl Descriptors {
    /// Takes the descriptors over. Call it once, before anything opens one.
    ///
    /// An earlier life may have had PID 1 keep anything, by any name. It comes behind what PID 1 has opened itself: the first of
    /// a name is taken, and PID 1 drops what it keeps by the names of the rest.
    pub(crate) fn take() -> std::io::Result<Self> {
        let mut taken = Self::default();
        let mut rest: Vec<String> = Vec::new();
        for (number, name) in sd_notify::listen_fds_with_names()? {
            // SAFETY: LISTEN_FDS says that the descriptor is open and ours, and nobody else in this process took it.
            let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
            let place = match name.as_str() {
                EVENTS => &mut taken.events,
                DUMP => &mut taken.dump,
                LINKS => &mut taken.links,
                STATE => &mut taken.state,
                LISTENER => &mut taken.listener,
                bpf if Programs::owns(bpf) => {
                    taken.programs.push((name, descriptor));
                    continue;
                }
                bpf if EventFilter::owns(bpf) => {
                    taken.filter.push((name, descriptor));
                    continue;
                }
                _ => {
                    tracing::warn!(name, "a descriptor of this name is not known, closing it");
                    rest.push(name);
                    continue;
                }
            };
            if place.is_some() {
                tracing::warn!(name, "two descriptors have this name, closing the second");
                rest.push(name);
            } else {
                *place = Some(descriptor);
            }
        }
        taken.state_is_kept = taken.state.is_some() && !rest.iter().any(|name| name == STATE);
        systemd::forget(rest.iter().map(String::as_str));
        Ok(taken)
    }
}

/// Whether this process may send requests to conntrack.
pub(crate) fn may_ask_the_kernel() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// Why there is no socket to read from.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescriptorError {
    #[error(
        "the descriptor named {name} is of no use: {fault}; `systemctl restart flowbusd.socket` has PID 1 open it anew"
    )]
    Handed { name: &'static str, fault: Fault },
    #[error("no descriptor named {name} was handed over, and a socket cannot be opened here: {source}")]
    Missing { name: &'static str, source: SocketError },
    #[error(
        "no descriptor named events was handed over, and the service has a network namespace of its own, where a socket \
         would see nothing: it needs flowbusd.socket, or PrivateNetwork=no"
    )]
    Isolated,
}

/// What is wrong with a descriptor.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("it has not joined the groups {}", names(*.missing))]
    Groups { missing: Groups },
    #[error("it is of another network namespace than {than}")]
    Namespace { than: &'static str },
    #[error("it is no route socket that has joined the groups of links and addresses")]
    Route,
}

fn names(groups: Groups) -> String {
    groups.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join(", ")
}

/// Names of sockets, as the socket units have them.
const EVENTS: &str = "events";
const DUMP: &str = "dump";
const LINKS: &str = "links";

/// The event socket that was handed over, or one opened in this network namespace, which needs CAP_NET_ADMIN.
pub(crate) fn event_socket(
    handed: Option<OwnedFd>,
    options: &EventOptions,
) -> Result<Socket, DescriptorError> {
    if let Some(descriptor) = handed {
        return adopt_events(descriptor).map_err(|fault| DescriptorError::Handed { name: EVENTS, fault });
    }
    if is_isolated() {
        return Err(DescriptorError::Isolated);
    }
    let open = || {
        let socket = Socket::open()?;
        socket.set_receive_buffer(options.receive_buffer_bytes as usize)?;
        socket.join(Groups::all())?;
        Ok(socket)
    };
    open().map_err(|source| DescriptorError::Missing { name: EVENTS, source })
}

/// The filter that puts events into a ring: the one of the last life, which PID 1 has kept with the socket, or one that is loaded here for a
/// socket of our own, which takes root's powers. `None` if neither exists, or the configuration turns the ring off.
pub(crate) fn event_filter(
    kept: Vec<(String, OwnedFd)>,
    is_our_socket: bool,
    options: &EventOptions,
) -> Option<EventFilter> {
    let filter = match options.source {
        SourceChoice::Socket => return None,
        SourceChoice::Auto if is_our_socket => EventFilter::load(DEFAULT_EVENT_RING_BYTES),
        SourceChoice::Auto if kept.is_empty() => return None,
        SourceChoice::Auto => EventFilter::from_named(kept),
    };
    filter
        .inspect_err(|error| {
            tracing::info!(%error, "events are received from the socket, not by a ring");
        })
        .ok()
}

fn adopt_events(descriptor: OwnedFd) -> Result<Socket, Fault> {
    let socket = Socket::from_fd(descriptor)?;
    let missing = Groups::all() - socket.groups()?;
    if !missing.is_empty() {
        return Err(Fault::Groups { missing });
    }
    // Started by hand, the daemon tracks the namespace that it is started in. The service's own has no traffic.
    if may_ask_the_kernel() {
        same_namespace(&Socket::open()?, &socket, "this process")?;
    }
    // An overrun shall not fail the socket unit that watches the descriptor while we are down. The drop counter
    // reports it all the same.
    socket.set_no_enobufs(true)?;
    Ok(socket)
}

/// The socket for dumps of the table that `events` follows: the one handed over, or one of our own.
pub(crate) fn dump_socket(handed: Option<OwnedFd>, events: &Socket) -> Result<Socket, DescriptorError> {
    let Some(descriptor) = handed else {
        return Socket::open().map_err(|source| DescriptorError::Missing { name: DUMP, source });
    };
    let adopt = || {
        let socket = Socket::from_fd(descriptor)?;
        same_namespace(events, &socket, EVENTS)?;
        Ok(socket)
    };
    adopt().map_err(|fault| DescriptorError::Handed { name: DUMP, fault })
}

/// Fails where two sockets are not of the same network namespace.
fn same_namespace(one: &impl AsFd, other: &impl AsFd, than: &'static str) -> Result<(), Fault> {
    let same = Socket::namespace_of(one)? == Socket::namespace_of(other)?;
    if same { Ok(()) } else { Err(Fault::Namespace { than }) }
}

/// Whether this is a service in another network namespace than its manager's, where there is nothing to see. Started by hand
/// the daemon may be in any namespace.
fn is_isolated() -> bool {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    std::env::var_os("NOTIFY_SOCKET").is_some() && namespace("1") != namespace("self")
}

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`.
const LINK_GROUPS: u32 = 1 | 0x10 | 0x100;

/// The route socket that was handed over, if it is one, of the network namespace of `events`. Without it interfaces
/// have no names, and all else goes on.
pub(crate) fn handed_links(handed: Option<OwnedFd>, events: &Socket) -> Option<OwnedFd> {
    let descriptor = handed?;
    match check_links(&descriptor, events) {
        Ok(()) => Some(descriptor),
        Err(fault) => {
            tracing::warn!("the descriptor named {LINKS} is of no use, ignoring: {fault}");
            systemd::forget([LINKS].into_iter());
            None
        }
    }
}

fn check_links(descriptor: &OwnedFd, events: &Socket) -> Result<(), Fault> {
    // NETLINK_ROUTE is 0, which is no protocol for rustix.
    let kind = (sockopt::socket_domain(descriptor), sockopt::socket_protocol(descriptor));
    let groups =
        getsockname(descriptor).and_then(SocketAddrNetlink::try_from).map(|address| address.groups());
    if kind != (Ok(AddressFamily::NETLINK), Ok(None))
        || groups.map(|groups| groups & LINK_GROUPS) != Ok(LINK_GROUPS)
    {
        return Err(Fault::Route);
    }
    same_namespace(events, descriptor, EVENTS)
}

/// The route socket, joined to the groups of links and addresses: the one handed over, or one of our own.
pub(crate) fn link_socket(handed: Option<OwnedFd>) -> Result<OwnedFd, Errno> {
    if let Some(descriptor) = handed {
        let flags = fcntl_getfl(&descriptor)?;
        fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        return Ok(descriptor);
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, LINK_GROUPS))?;
    Ok(socket)
}

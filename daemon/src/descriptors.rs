//! The descriptors that the daemon was started with, by name: sockets that PID 1 opened, and the state of its last
//! life. What is missing the daemon opens itself.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd};

use ctnetlink::{Groups, Socket, SocketError};
use flowbus_attribution::Programs;
use flowbus_attribution::handover::LISTENER;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use rustix::thread::CapabilitySet;

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
    /// The socket that BPF programs are handed over by.
    pub(crate) listener: Option<OwnedFd>,
    /// The BPF programs of the last life.
    pub(crate) programs: Vec<(String, OwnedFd)>,
}

impl Descriptors {
    /// Takes them over. Call it once, before anything opens a descriptor.
    pub(crate) fn take() -> std::io::Result<Self> {
        let mut taken = Self::default();
        for (number, name) in sd_notify::listen_fds_with_names()? {
            // SAFETY: LISTEN_FDS says that the descriptor is open and ours, and nobody else in this process took it.
            let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
            let place = match name.as_str() {
                "events" => &mut taken.events,
                "dump" => &mut taken.dump,
                "links" => &mut taken.links,
                "state" => &mut taken.state,
                LISTENER => &mut taken.listener,
                bpf if Programs::owns(bpf) => {
                    taken.programs.push((name, descriptor));
                    continue;
                }
                _ => {
                    tracing::warn!(name, "a descriptor of this name is not known, closing it");
                    continue;
                }
            };
            if place.replace(descriptor).is_some() {
                tracing::warn!(name, "two descriptors have this name, closing the first");
            }
        }
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
    #[error("the descriptor named {name} is of no use: {source}")]
    Handed { name: &'static str, source: SocketError },
    #[error("no descriptor named {name} was handed over, and a socket cannot be opened here: {source}")]
    Missing { name: &'static str, source: SocketError },
    #[error(
        "no descriptor named events was handed over, and the service has a network namespace of its own, where a socket \
         would see nothing: it needs flowbusd.socket, or PrivateNetwork=no"
    )]
    Isolated,
}

/// The event socket: the one handed over, or one opened in this network namespace with a buffer of so many bytes,
/// which needs CAP_NET_ADMIN.
pub(crate) fn event_socket(handed: Option<OwnedFd>, receive_buffer: u32) -> Result<Socket, DescriptorError> {
    const NAME: &str = "events";
    if let Some(descriptor) = handed {
        let adopt = || {
            let socket = Socket::from_fd(descriptor)?;
            // An overrun shall not fail the socket unit that watches the descriptor while we are down. The drop counter
            // tells of it all the same.
            socket.set_no_enobufs(true)?;
            Ok(socket)
        };
        return adopt().map_err(|source| DescriptorError::Handed { name: NAME, source });
    }
    if is_isolated() {
        return Err(DescriptorError::Isolated);
    }
    let open = || {
        let socket = Socket::open()?;
        socket.set_receive_buffer(receive_buffer as usize)?;
        socket.join(Groups::all())?;
        Ok(socket)
    };
    open().map_err(|source| DescriptorError::Missing { name: NAME, source })
}

/// The socket for dumps: the one handed over, or one of our own.
pub(crate) fn dump_socket(handed: Option<OwnedFd>) -> Result<Socket, DescriptorError> {
    const NAME: &str = "dump";
    match handed {
        Some(descriptor) => {
            Socket::from_fd(descriptor).map_err(|source| DescriptorError::Handed { name: NAME, source })
        }
        None => Socket::open().map_err(|source| DescriptorError::Missing { name: NAME, source }),
    }
}

/// Whether this is a service in another network namespace than its manager's, where there is nothing to see. By hand
/// any namespace is as good as another: it is the one that was asked for.
fn is_isolated() -> bool {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    std::env::var_os("NOTIFY_SOCKET").is_some() && namespace("1") != namespace("self")
}

/// The route socket, joined to the groups of links and addresses: the one handed over, or one of our own.
pub(crate) fn link_socket(handed: Option<OwnedFd>) -> Result<OwnedFd, Errno> {
    /// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`.
    const GROUPS: u32 = 1 | 0x10 | 0x100;
    if let Some(descriptor) = handed {
        let flags = fcntl_getfl(&descriptor)?;
        fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        return Ok(descriptor);
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    Ok(socket)
}

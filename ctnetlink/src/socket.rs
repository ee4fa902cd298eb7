//! The netlink socket. The one file of this crate with unsafe code: socket options that rustix does not have.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use crate::attribute::length_u32;

bitflags::bitflags! {
    /// The multicast groups of conntrack, as the bits that `bind` and systemd's `ListenNetlink=netfilter` take.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Groups: u32 {
        /// `NFNLGRP_CONNTRACK_NEW`.
        const NEW = 1 << 0;
        /// `NFNLGRP_CONNTRACK_UPDATE`.
        const UPDATE = 1 << 1;
        /// `NFNLGRP_CONNTRACK_DESTROY`.
        const DESTROY = 1 << 2;
        /// `NFNLGRP_CONNTRACK_EXP_NEW`.
        const EXPECTATION_NEW = 1 << 3;
        /// `NFNLGRP_CONNTRACK_EXP_DESTROY`. (The group between them, of updates, is never used by the kernel.)
        const EXPECTATION_DESTROY = 1 << 5;
    }
}

/// What [`Socket::receive`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A datagram from the kernel; its length in bytes.
    Datagram(usize),
    /// A datagram from another process, not to be believed; its length in bytes.
    Foreign(usize),
    /// A datagram from the kernel that was longer than the buffer, whose rest is gone; its whole length in bytes.
    /// The kernel makes none longer than 32 KiB.
    Truncated(usize),
    /// Nothing is waiting.
    Empty,
    /// Messages were dropped because the receive buffer was full (ENOBUFS, reported once for each overrun);
    /// [`Socket::drops`] says how many.
    Overrun,
}

/// Why a socket could not be opened or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The caller, or the process that opened the socket, lacks the privilege.
    #[error("{call}: {errno}: conntrack's netlink interface needs CAP_NET_ADMIN in this network namespace")]
    PermissionDenied {
        /// The system call or request.
        call: &'static str,
        /// EPERM or EACCES.
        errno: Errno,
    },
    /// The kernel has no conntrack netlink interface, or it is a module that is not loaded.
    #[error(
        "{call}: {errno}: the kernel's conntrack netlink interface is missing; try `modprobe nf_conntrack_netlink`"
    )]
    NotSupported {
        /// The system call or request.
        call: &'static str,
        /// The error number that it failed with.
        errno: Errno,
    },
    /// A passed descriptor is another kind of socket.
    #[error(
        "the socket has domain {domain} and protocol {protocol}, a netfilter netlink socket has domain 16 and protocol 12"
    )]
    NotNetfilter {
        /// `SO_DOMAIN`.
        domain: u16,
        /// `SO_PROTOCOL`.
        protocol: u32,
    },
    /// The call or request failed for another reason.
    #[error("{call}: {errno}")]
    System {
        /// The system call or request.
        call: &'static str,
        /// The error number that it failed with.
        errno: Errno,
    },
}

impl SocketError {
    /// What a refused dump or statistics request means: `code` is the negative errno of
    /// [`Message::Error`](crate::Message::Error) or [`Message::Done`](crate::Message::Done).
    pub fn refused(request: &'static str, code: i32) -> Self {
        match Errno::from_raw_os_error(code.saturating_neg()) {
            // nfnetlink answers a subsystem that nobody has registered with EINVAL.
            errno @ (Errno::INVAL | Errno::OPNOTSUPP | Errno::NOENT) => {
                Self::NotSupported { call: request, errno }
            }
            errno => Self::of(request)(errno),
        }
    }

    fn of(call: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| match errno {
            Errno::PERM | Errno::ACCESS => Self::PermissionDenied { call, errno },
            Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT => Self::NotSupported { call, errno },
            _ => Self::System { call, errno },
        }
    }
}

/// A non-blocking netfilter netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens a socket in the network namespace of this thread and binds it to a port of the kernel's choice.
    pub fn open() -> Result<Self, SocketError> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(netlink::NETFILTER),
        )
        .map_err(SocketError::of("socket(AF_NETLINK, NETLINK_NETFILTER)"))?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0)).map_err(SocketError::of("bind"))?;
        Ok(Self { fd })
    }

    /// Takes a socket that someone else opened (a socket unit, an earlier run) and makes it non-blocking.
    /// Its groups and receive buffer are left alone. Refuses anything but a netfilter netlink socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SocketError> {
        let domain = sockopt::socket_domain(&fd).map_err(SocketError::of("getsockopt(SO_DOMAIN)"))?;
        let protocol = sockopt::socket_protocol(&fd).map_err(SocketError::of("getsockopt(SO_PROTOCOL)"))?;
        if domain != AddressFamily::NETLINK || protocol != Some(netlink::NETFILTER) {
            return Err(SocketError::NotNetfilter {
                domain: domain.as_raw(),
                protocol: protocol.map_or(0, |protocol| protocol.as_raw().get()),
            });
        }
        let flags = fcntl_getfl(&fd).map_err(SocketError::of("fcntl(F_GETFL)"))?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(SocketError::of("fcntl(F_SETFL)"))?;
        Ok(Self { fd })
    }

    /// A second descriptor of the same socket.
    ///
    /// # Errors
    /// [`SocketError::System`] when there are too many.
    pub fn try_clone(&self) -> Result<OwnedFd, SocketError> {
        rustix::io::fcntl_dupfd_cloexec(&self.fd, 0).map_err(SocketError::of("fcntl(F_DUPFD_CLOEXEC)"))
    }

    /// Joins groups, in addition to those already joined. Join before dumping: a flow born in between would be
    /// lost.
    pub fn join(&self, groups: Groups) -> Result<(), SocketError> {
        for (group, number) in [
            (Groups::NEW, libc::NFNLGRP_CONNTRACK_NEW),
            (Groups::UPDATE, libc::NFNLGRP_CONNTRACK_UPDATE),
            (Groups::DESTROY, libc::NFNLGRP_CONNTRACK_DESTROY),
            (Groups::EXPECTATION_NEW, libc::NFNLGRP_CONNTRACK_EXP_NEW),
            (Groups::EXPECTATION_DESTROY, libc::NFNLGRP_CONNTRACK_EXP_DESTROY),
        ] {
            if groups.contains(group) {
                self.set_netlink_option(
                    libc::NETLINK_ADD_MEMBERSHIP,
                    number,
                    "setsockopt(NETLINK_ADD_MEMBERSHIP)",
                )?;
            }
        }
        Ok(())
    }

    /// Joins the group that receives a message for each change of nftables' rules, for [`EventMasks`](crate::EventMasks).
    /// Only that a message came matters, not what it says.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub fn join_rules(&self) -> Result<(), SocketError> {
        let group = libc::NFNLGRP_NFTABLES;
        self.set_netlink_option(libc::NETLINK_ADD_MEMBERSHIP, group, "setsockopt(NETLINK_ADD_MEMBERSHIP)")
    }

    /// Asks for a receive buffer of `bytes` and returns what getsockopt(SO_RCVBUF) says then: twice what was
    /// granted, which is how the kernel accounts for its own overhead. Beyond net.core.rmem_max it needs
    /// CAP_NET_ADMIN in the first user namespace; without it the buffer becomes as large as that limit allows.
    /// Never makes a buffer smaller that someone with the privilege has set (`ReceiveBuffer=` of a socket unit).
    pub fn set_receive_buffer(&self, bytes: usize) -> Result<usize, SocketError> {
        let bytes = bytes.min(MAX_RECEIVE_BUFFER);
        let before = self.receive_buffer()?;
        if before >= bytes.saturating_mul(2) {
            return Ok(before);
        }
        match sockopt::set_socket_recv_buffer_size_force(&self.fd, bytes) {
            Ok(()) => {}
            Err(Errno::PERM) if granted_without_privilege(bytes) > before => {
                sockopt::set_socket_recv_buffer_size(&self.fd, bytes)
                    .map_err(SocketError::of("setsockopt(SO_RCVBUF)"))?;
            }
            Err(Errno::PERM) => {}
            Err(errno) => return Err(SocketError::of("setsockopt(SO_RCVBUFFORCE)")(errno)),
        }
        self.receive_buffer()
    }

    /// Takes one datagram from the queue, without waiting. It is meant for [`messages`](crate::messages).
    #[inline]
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        let size = buffer.len();
        // With MSG_TRUNC the real length is returned, so that a datagram cut short is noticed.
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let (length, sender) = match retry_on_intr(|| rustix::net::recvfrom(&self.fd, &mut *buffer, flags)) {
            Ok((_, length, sender)) => (length, sender),
            Err(Errno::AGAIN) => return Ok(Received::Empty),
            Err(Errno::NOBUFS) => return Ok(Received::Overrun),
            Err(errno) => return Err(SocketError::of("recvfrom")(errno)),
        };
        let port =
            sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok()).map(|sender| sender.pid());
        Ok(match port {
            Some(0) if length <= size => Received::Datagram(length),
            Some(0) => Received::Truncated(length),
            _ => Received::Foreign(length.min(size)),
        })
    }

    /// Sends one request to the kernel.
    pub fn send(&self, request: &[u8]) -> Result<(), SocketError> {
        let kernel = SocketAddrNetlink::new(0, 0);
        retry_on_intr(|| rustix::net::sendto(&self.fd, request, SendFlags::empty(), &kernel))
            .map_err(SocketError::of("sendto"))?;
        Ok(())
    }

    /// How many messages the kernel has dropped since the socket was opened, because its receive buffer was full.
    /// Exact; wraps at 2^32.
    pub fn drops(&self) -> Result<u32, SocketError> {
        Ok(self.memory()?[SK_MEMINFO_DROPS])
    }

    /// Bytes of the receive buffer in use by queued messages, as the kernel counts them: 0 if the queue is empty.
    ///
    /// # Errors
    /// [`SocketError::System`] when the kernel refuses.
    pub fn queued_bytes(&self) -> Result<u32, SocketError> {
        Ok(self.memory()?[SK_MEMINFO_RMEM_ALLOC])
    }

    /// `SO_MEMINFO`.
    fn memory(&self) -> Result<[u32; SK_MEMINFO_VARS], SocketError> {
        let mut values = [0u32; SK_MEMINFO_VARS];
        let mut length = length_u32(size_of_val(&values));
        // SAFETY: the kernel writes at most `length` bytes into `values`, which are both alive and writable
        // during the call; every bit pattern is a u32.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        check(result, "getsockopt(SO_MEMINFO)")?;
        Ok(values)
    }

    /// `SO_COOKIE`: a number that no other socket has had since boot.
    pub fn cookie(&self) -> Result<u64, SocketError> {
        sockopt::socket_cookie(&self.fd).map_err(SocketError::of("getsockopt(SO_COOKIE)"))
    }

    /// The groups of conntrack that the socket has joined.
    ///
    /// # Errors
    /// [`SocketError::System`] when the kernel refuses.
    pub fn groups(&self) -> Result<Groups, SocketError> {
        let address = rustix::net::getsockname(&self.fd).map_err(SocketError::of("getsockname"))?;
        let address = SocketAddrNetlink::try_from(address).map_err(SocketError::of("getsockname"))?;
        Ok(Groups::from_bits_truncate(address.groups()))
    }

    /// `SO_NETNS_COOKIE`: the network namespace of a socket of any kind, a number that no other namespace has had since boot;
    /// `None` before Linux 5.14.
    ///
    /// # Errors
    /// [`SocketError::System`] when the descriptor is no socket.
    pub fn namespace_of(fd: impl AsFd) -> Result<Option<u64>, SocketError> {
        let mut cookie = 0_u64;
        let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).unwrap_or_default();
        // SAFETY: the kernel writes at most `length` bytes into `cookie`, which are both alive and writable during the call;
        // every bit pattern is a u64.
        let result = unsafe {
            libc::getsockopt(
                fd.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        match check(result, "getsockopt(SO_NETNS_COOKIE)") {
            Ok(()) => Ok(Some(cookie)),
            Err(SocketError::System { errno: Errno::NOPROTOOPT, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The port that the socket is bound to (`nl_pid`), 0 for a passed socket that is not.
    pub fn port(&self) -> Result<u32, SocketError> {
        let address = rustix::net::getsockname(&self.fd).map_err(SocketError::of("getsockname"))?;
        let address = SocketAddrNetlink::try_from(address).map_err(SocketError::of("getsockname"))?;
        Ok(address.pid())
    }

    /// `NETLINK_NO_ENOBUFS`: overruns are not reported ([`Received::Overrun`]); [`Socket::drops`] counts on.
    pub fn set_no_enobufs(&self, on: bool) -> Result<(), SocketError> {
        self.set_netlink_option(libc::NETLINK_NO_ENOBUFS, on.into(), "setsockopt(NETLINK_NO_ENOBUFS)")
    }

    /// The size of the receive buffer in bytes, as the kernel counts it: twice what was asked for.
    ///
    /// # Errors
    /// [`SocketError::System`] when the kernel refuses.
    pub fn receive_buffer(&self) -> Result<usize, SocketError> {
        sockopt::socket_recv_buffer_size(&self.fd).map_err(SocketError::of("getsockopt(SO_RCVBUF)"))
    }

    /// Asks the kernel to send again what this socket could not take (`NETLINK_BROADCAST_ERROR`, conntrackd's reliable
    /// mode). A reader that stops then fills the table with dying flows until traffic is refused: a service leaves
    /// this off.
    ///
    /// # Errors
    /// [`SocketError::System`] when the kernel refuses the option.
    pub fn set_broadcast_error(&self, on: bool) -> Result<(), SocketError> {
        self.set_netlink_option(
            libc::NETLINK_BROADCAST_ERROR,
            on.into(),
            "setsockopt(NETLINK_BROADCAST_ERROR)",
        )
    }

    fn set_netlink_option(
        &self,
        option: libc::c_int,
        value: libc::c_int,
        call: &'static str,
    ) -> Result<(), SocketError> {
        let length = length_u32(size_of_val(&value));
        // SAFETY: the kernel reads `length` bytes of `value`, which is alive during the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const value).cast(),
                length,
            )
        };
        check(result, call)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

/// asm-generic/socket.h; flowbus runs on no machine that has another number.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// `SK_MEMINFO_VARS` (linux/sock_diag.h), and the places of what waits and of the drop counter.
const SK_MEMINFO_VARS: usize = 9;
const SK_MEMINFO_RMEM_ALLOC: usize = 0;
const SK_MEMINFO_DROPS: usize = 8;

/// The kernel doubles the number in a C int.
const MAX_RECEIVE_BUFFER: usize = (i32::MAX / 2) as usize;

/// What SO_RCVBUF would make of `bytes`, tried on a socket of no other use: on the real one it could take away what
/// cannot be had back without the privilege. 0 if no socket can be opened.
fn granted_without_privilege(bytes: usize) -> usize {
    Socket::open()
        .ok()
        .and_then(|socket| {
            sockopt::set_socket_recv_buffer_size(&socket.fd, bytes).ok()?;
            socket.receive_buffer().ok()
        })
        .unwrap_or(0)
}

fn check(result: libc::c_int, call: &'static str) -> Result<(), SocketError> {
    if result == 0 {
        return Ok(());
    }
    let errno = std::io::Error::last_os_error();
    Err(SocketError::of(call)(Errno::from_io_error(&errno).unwrap_or(Errno::IO)))
}

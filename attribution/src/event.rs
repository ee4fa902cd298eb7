//! What the programs report, decoded.

use std::net::SocketAddr;

/// What the programs report in one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'ring> {
    /// What happened to a socket.
    Event(Event),
    /// A control group was made.
    Cgroup {
        /// The group's number, as in [`Process::cgroup`].
        id: u64,
        /// The group's path below the root of cgroup2, such as `/system.slice/cron.service`.
        path: &'ring str,
    },
    /// A control group was removed. Events that are on their way can still name it.
    CgroupRemoved {
        /// The group's number, which is not used again.
        id: u64,
    },
    /// Which program a process runs; comes before what the process's sockets do.
    Program {
        /// The process's number, as in [`Process::pid`].
        pid: u32,
        /// When the process began, as in [`Process::start_boottime_ns`].
        start_boottime_ns: u64,
        /// Which of the process's programs it is, as in [`Process::execs`].
        execs: u16,
        /// The path in the mount namespace of the process. A long one begins with `...` and the names at its end; bytes that are
        /// not UTF-8 are replaced. That the file was deleted does not show.
        path: &'ring str,
    },
}

/// One event of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// When it happened: nanoseconds on CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
    /// The socket's cookie (SO_COOKIE): the same in every event of a socket, never used twice while the machine is up.
    pub cookie: u64,
    /// The inode of the socket's network namespace, as in /proc/PID/ns/net; 0 where it is not known.
    pub network_namespace: u32,
    /// IPPROTO_TCP or IPPROTO_UDP.
    pub protocol: u8,
    /// The socket's own end, host order; a v4-mapped address is given as IPv4. The address of a UDP server can be the
    /// wildcard.
    pub local: SocketAddr,
    /// The other end, host order; the wildcard and port 0 where there is none.
    pub remote: SocketAddr,
    /// The process; `None` where none is known, such as for a reset of a socket that nobody was seen to open.
    pub process: Option<Process>,
    /// Whether this end opened the connection; `None` where that is not known, and for UDP.
    pub opened: Option<bool>,
    /// Microseconds from the SYN to the establishment of a connection that this end opened, when it is established and when it
    /// ends, where known.
    pub connect_usec: Option<u32>,
}

/// What happened to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP: the SYN is about to leave; the ends are final. Comes before the kernel tracks the flow.
    Syn,
    /// TCP: the connection is established, by the side that asked for it.
    Connect,
    /// The connection that was asked for failed. UDP: connect or a datagram, once in ten seconds for each remote end and
    /// process. The local end has what was chosen by then.
    ConnectFailed {
        /// The number of the error (errno), such as 111, ECONNREFUSED; 0 where the process gave up by itself.
        errno: i32,
    },
    /// TCP: a connection came in; the process is the listener's until one accepts it.
    Incoming,
    /// TCP: a process accepted the connection.
    Accept,
    /// The connection or the socket ended: closed by the process, by its exit, or reset by the peer.
    Close {
        /// True where the peer or the network ended it: the process is the owner then, not the one that ran.
        reset: bool,
        /// Bytes of payload that the other end acknowledged and, where the process closed, those still on their way.
        sent: u64,
        /// Bytes of payload received.
        received: u64,
        /// The smoothed round-trip time in microseconds, where it was measured.
        rtt_usec: Option<u32>,
        /// Segments that were sent again.
        retransmissions: u32,
    },
    /// TCP: the socket listens.
    Listen,
    /// UDP: the socket has a local end of its own.
    Bind,
    /// UDP: a datagram was sent to this remote end for the first time within ten seconds.
    Send,
    /// The socket was open before the programs were: read once from the snapshot.
    Snapshot,
    /// UDP or a listener: the socket is gone.
    Release,
}

/// A process, as it was at the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// The process's number (tgid), in the initial pid namespace.
    pub pid: u32,
    /// The thread's number.
    pub tid: u32,
    /// When the process began: nanoseconds on CLOCK_BOOTTIME. With `pid` it names a process for good.
    pub start_boottime_ns: u64,
    /// The effective user.
    pub uid: u32,
    /// The name of the thread (comm), filled up with zeros.
    pub comm: [u8; 16],
    /// The name of the process's first thread, filled up with zeros.
    pub leader_comm: [u8; 16],
    /// The number of the control group (the inode of its directory in cgroup2).
    pub cgroup: u64,
    /// How often the process and those that it was forked from have executed a program, modulo 65,536: tells the programs of one
    /// process apart. 0 where it is not known.
    pub execs: u16,
    /// How surely this process is the one.
    pub confidence: Confidence,
}

/// How surely a process is the one that a socket is attributed to, surest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// The process made the call.
    Exact,
    /// The process was the first to read from the connection.
    Reader,
    /// The process held the socket when the programs were attached.
    Snapshot,
    /// The process owns the listener; with socket activation or prefork another may serve the connection.
    Inherited,
    /// The process was found by looking through /proc after the fact.
    Procfs,
    /// The process has the socket in another network namespace, and no other namespace has one with these ends.
    Forwarded,
    /// Several processes have the socket, or sockets with the same ends; this is the last that is known to have sent.
    Shared,
}

impl Confidence {
    /// The name on D-Bus.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Reader => "reader",
            Self::Snapshot => "snapshot",
            Self::Inherited => "inherited",
            Self::Procfs => "procfs",
            Self::Forwarded => "forwarded",
            Self::Shared => "shared",
        }
    }
}

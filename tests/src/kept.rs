//! Descriptors that outlive the daemon, as PID 1 keeps them: sockets and the restart state.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use ctnetlink::{Groups, Socket};
use flowbus_attribution::events::EventFilter;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::daemon::{UNATTRIBUTED, binary};
use crate::{Bus, Daemon, Namespace};

/// The event socket, the dump socket and the memfd of one daemon after another.
#[derive(Debug)]
pub struct Kept {
    /// The event socket, joined to all groups.
    pub events: Socket,
    /// The socket for dumps.
    pub dump: Socket,
    /// The restart state.
    pub state: OwnedFd,
    /// The filter that puts events into a ring.
    pub filter: Option<EventFilter>,
}

impl Kept {
    /// Opens the sockets in the namespace; the memfd is empty.
    ///
    /// # Panics
    /// Without CAP_NET_ADMIN.
    #[must_use]
    pub fn open(namespace: &Namespace, receive_buffer: usize) -> Self {
        let (events, dump) = namespace.enter(|| {
            let events = Socket::open().expect("a netlink socket can be opened");
            events.set_receive_buffer(receive_buffer).expect("its buffer can be set");
            events.join(Groups::all()).expect("its groups can be joined");
            (events, Socket::open().expect("a netlink socket can be opened"))
        });
        Self { events, dump, state: empty_state(), filter: None }
    }

    /// The same with a filter whose ring has `bytes` bytes.
    ///
    /// # Panics
    /// If the kernel refuses the filter.
    #[must_use]
    pub fn with_ring(self, bytes: u32) -> Self {
        Self { filter: Some(EventFilter::load(bytes).expect("root may load a filter")), ..self }
    }

    /// Starts a flowbusd on these descriptors; it is not waited for.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn spawn(&self, namespace: &Namespace, bus: &Bus) -> Daemon {
        self.spawn_with(namespace, bus, UNATTRIBUTED)
    }

    /// Starts a flowbusd with this configuration on these descriptors; it is not waited for.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn spawn_with(&self, namespace: &Namespace, bus: &Bus, configuration: &str) -> Daemon {
        let mut kept =
            vec![("events", self.events.as_fd()), ("dump", self.dump.as_fd()), ("state", self.state.as_fd())];
        kept.extend(self.filter.iter().flat_map(EventFilter::named));
        let names: Vec<_> = kept.iter().map(|(name, _)| *name).collect();
        let inherited = kept.iter().map(|(_, fd)| {
            let fd = fd.try_clone_to_owned().expect("a descriptor can be duplicated");
            fcntl_setfd(&fd, FdFlags::empty()).expect("a descriptor can be inherited");
            fd
        });
        let inherited: Vec<_> = inherited.collect();
        // bash moves them above those that it moves them to; LISTEN_PID has to be the daemon's own.
        let (mut up, mut down) = (String::new(), String::new());
        for (place, fd) in inherited.iter().enumerate() {
            let (from, above, to) = (fd.as_raw_fd(), 200 + place, 3 + place);
            up += &format!("{above}<&{from} ");
            down += &format!("{to}<&{above} {above}<&- ");
        }
        let script = format!(
            "exec {up}; exec {down}; LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={} exec {} --bus {} --config {}",
            names.len(),
            names.join(":"),
            binary("flowbusd").display(),
            bus.address(),
            configuration,
        );
        let mut command = namespace.command("bash");
        command.args(["-c", &script]);
        Daemon::spawn(&mut command)
    }
}

/// A memfd with nothing in it.
///
/// # Panics
/// If the kernel has none.
#[must_use]
pub fn empty_state() -> OwnedFd {
    memfd_create("state", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memfd can be made")
}

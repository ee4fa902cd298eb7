//! Descriptors that outlive the daemon, as PID 1 keeps them: sockets and the restart state.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use ctnetlink::{Groups, Socket};
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
        Self { events, dump, state: empty_state() }
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
        let kept = [self.events.as_fd(), self.dump.as_fd(), self.state.as_fd()];
        let inherited = kept.map(|fd| fd.try_clone_to_owned().expect("a descriptor can be duplicated"));
        for fd in &inherited {
            fcntl_setfd(fd, FdFlags::empty()).expect("a descriptor can be inherited");
        }
        let [events, dump, state] = inherited.each_ref().map(AsRawFd::as_raw_fd);
        // bash moves them above those that it moves them to; LISTEN_PID has to be the daemon's own.
        let script = format!(
            "exec 203<&{events} 204<&{dump} 205<&{state}; exec 3<&203 4<&204 5<&205 203<&- 204<&- 205<&-; \
             LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=events:dump:state exec {} --bus {} --config {}",
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

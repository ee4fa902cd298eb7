//! flowbus-control as cargo built it, by hand.

use std::process::Command;

use ctnetlink::{Conntrack, Socket};
use flowbus_interfaces::FlowControlProxy;

use crate::daemon::binary;
use crate::process::wait_for;
use crate::{Bus, Daemon, Namespace};

/// Name, path and interface.
pub const CONTROL: [&str; 3] =
    ["org.flowbus.FlowControl1", "/org/flowbus/FlowControl1", "org.flowbus.FlowControl1"];

/// The helper in a namespace that tracks, on a bus that lets everyone do everything: what it refuses, it refuses itself.
#[derive(Debug)]
pub struct Helper {
    /// The namespace that the helper runs in.
    pub namespace: Namespace,
    /// The helper's bus.
    pub bus: Bus,
    /// The helper's process.
    pub process: Daemon,
}

impl Helper {
    /// Starts the helper and waits for its name.
    ///
    /// # Panics
    /// If it does not come.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_on(Bus::start(), arguments)
    }

    /// Starts the helper on this bus.
    ///
    /// # Panics
    /// If it does not come.
    #[must_use]
    pub fn start_on(bus: Bus, arguments: &[&str]) -> Self {
        let namespace = Namespace::tracked("host");
        let process = Daemon::spawn(Self::command(&namespace, &bus).args(arguments));
        let helper = Self { namespace, bus, process };
        wait_for("the helper to be on the bus", || helper.has_name().then_some(()));
        helper
    }

    /// The command that starts the helper.
    #[must_use]
    pub fn command(namespace: &Namespace, bus: &Bus) -> Command {
        let mut command =
            namespace.command(binary("flowbus-control").to_str().expect("paths here are UTF-8"));
        command.args(["--bus", &bus.address()]);
        command
    }

    /// Whether the helper has its name.
    ///
    /// # Panics
    /// Without a bus.
    #[must_use]
    pub fn has_name(&self) -> bool {
        let bus = ["org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner"];
        self.bus.call(bus, &["s", CONTROL[0]]).expect("the bus answers")[0] == true
    }

    /// The helper's methods.
    ///
    /// # Panics
    /// Without a bus.
    pub async fn proxy(&self) -> FlowControlProxy<'static> {
        let address: zbus::Address = self.bus.address().parse().expect("an address of ours");
        let connection = zbus::connection::Builder::address(address).build().await.expect("the bus is there");
        FlowControlProxy::new(&connection).await.expect("a proxy needs nobody")
    }

    /// A netfilter socket of the helper's namespace.
    ///
    /// # Panics
    /// Without root's privileges.
    #[must_use]
    pub fn dump_socket(&self) -> Socket {
        self.namespace.enter(|| Socket::open().expect("root may have one"))
    }

    /// The table of the helper's namespace.
    ///
    /// # Panics
    /// Without root's privileges.
    #[must_use]
    pub fn table(&self) -> Conntrack {
        self.namespace.enter(|| Conntrack::open().expect("root may have one"))
    }
}

//! The system bus of a machine, as its users reach it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use rustix::process::Gid;
use serde_json::Value;

use super::Machine;
use crate::RawConnection;
use crate::bus::{self, CallError};
use crate::raw::socket_of;

impl Machine {
    /// Calls a method on the system bus as a user; see [`bus::call`].
    ///
    /// # Errors
    /// The error reply, by name.
    ///
    /// # Panics
    /// See [`bus::call`].
    pub fn call(&self, user: &str, target: [&str; 4], arguments: &[&str]) -> Result<Value, CallError> {
        let mut busctl = self.command_as(user, "busctl");
        busctl.args(["--system", "--json=short"]).stdin(Stdio::null());
        bus::call(busctl, target, arguments)
    }

    /// The system bus's address, as programs beside the machine reach it.
    #[must_use]
    pub fn bus_address(&self) -> String {
        format!("unix:path=/proc/{}/root/run/dbus/system_bus_socket", self.leader)
    }

    /// A connection of a user to the system bus without a library behind it.
    ///
    /// # Panics
    /// If the bus does not take it.
    #[must_use]
    pub fn raw_connection(&self, user: &str) -> RawConnection {
        RawConnection::over(self.bus_socket(user), self.id_of(user))
    }

    /// A socket that a user has connected to the system bus, which does not know the user yet.
    ///
    /// # Panics
    /// If there is no bus.
    #[must_use]
    pub fn bus_socket(&self, user: &str) -> UnixStream {
        let groups = self.run(&format!("id -G {user}"));
        let groups: Vec<Gid> = groups
            .split_whitespace()
            .map(|group| Gid::from_raw(group.parse().expect("a group is a number")))
            .collect();
        let directory = File::open(format!("/proc/{}/root/run/dbus", self.leader)).expect("the bus is there");
        let path = format!("/proc/self/fd/{}/system_bus_socket", directory.as_raw_fd());
        socket_of(path, self.id_of(user), groups)
    }

    fn id_of(&self, user: &str) -> u32 {
        self.run(&format!("id -u {user}")).trim().parse().expect("a user has a number")
    }

    /// Calls a method of FlowMonitor1 as root.
    ///
    /// # Errors
    /// The error reply, by name.
    pub fn monitor_call(&self, member: &str, arguments: &[&str]) -> Result<Value, CallError> {
        self.call("root", monitor(member), arguments)
    }

    /// A property of FlowMonitor1, read by root.
    ///
    /// # Errors
    /// The error reply, by name.
    pub fn property(&self, name: &str) -> Result<Value, CallError> {
        let [service, path, interface, _] = monitor("");
        let get = [service, path, "org.freedesktop.DBus.Properties", "Get"];
        Ok(self.call("root", get, &["ss", interface, name])?[0].clone())
    }

    /// All flows that ListActive or ListClosed has for root; see [`bus::list`].
    ///
    /// # Errors
    /// The error reply, by name.
    pub fn list(&self, member: &str, query: &[[&str; 3]]) -> Result<Vec<Value>, CallError> {
        bus::list(|arguments| self.monitor_call(member, arguments), query)
    }
}

/// The address of a member of FlowMonitor1, for [`Machine::call`].
#[must_use]
pub fn monitor(member: &str) -> [&str; 4] {
    ["org.flowbus.FlowMonitor1", "/org/flowbus/FlowMonitor1", "org.flowbus.FlowMonitor1", member]
}

/// The address of a member of FlowControl1, for [`Machine::call`].
#[must_use]
pub fn control(member: &str) -> [&str; 4] {
    ["org.flowbus.FlowControl1", "/org/flowbus/FlowControl1", "org.flowbus.FlowControl1", member]
}

//! The process at one end of a connection.

use crate::Value;

/// The process at one end of a connection. It borrows, as [`Flow`](crate::Flow) does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Owner<'a> {
    /// Process number, in the initial pid namespace.
    pub pid: Option<u32>,
    /// Name of the thread.
    pub comm: Option<&'a str>,
    /// Name of the process's first thread.
    pub leader_comm: Option<&'a str>,
    /// User number.
    pub uid: Option<u32>,
    /// The systemd unit.
    pub unit: Option<&'a str>,
    /// The control group's path.
    pub cgroup: Option<&'a str>,
    /// The container's id, in full.
    pub container: Option<&'a str>,
    /// The Kubernetes pod's uid.
    pub pod: Option<&'a str>,
    /// The program's path; behind `...` the end of a longer one.
    pub exe: Option<&'a str>,
    /// Inode of the socket's network namespace; `None` where it is the tracked one.
    pub network_namespace: Option<u32>,
    /// Whether this end opened the connection.
    pub opened: Option<bool>,
    /// How sure this is.
    pub confidence: Option<&'static str>,
}

impl Owner<'_> {
    /// Hands every field that has a value to `sink`, by name.
    pub fn visit(&self, mut sink: impl FnMut(&'static str, Value<'_>)) {
        let values = [
            ("pid", self.pid.map(Value::U32)),
            ("comm", self.comm.map(Value::Text)),
            ("leader_comm", self.leader_comm.map(Value::Text)),
            ("uid", self.uid.map(Value::U32)),
            ("unit", self.unit.map(Value::Text)),
            ("cgroup", self.cgroup.map(Value::Text)),
            ("container", self.container.map(Value::Text)),
            ("pod", self.pod.map(Value::Text)),
            ("exe", self.exe.map(Value::Text)),
            ("network_namespace", self.network_namespace.map(Value::U32)),
            ("opened", self.opened.map(Value::Bool)),
            ("confidence", self.confidence.map(Value::Text)),
        ];
        for (name, value) in values {
            if let Some(value) = value {
                sink(name, value);
            }
        }
    }
}

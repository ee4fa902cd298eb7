//! The process at one end of a connection.

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
    /// How surely the process is the one.
    pub confidence: Option<&'static str>,
}

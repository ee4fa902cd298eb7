//! The process at one end of a connection.

use crate::Value;

/// The process at one end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Process number.
    pub pid: Option<u32>,
    /// Name of the thread.
    pub comm: Option<Box<str>>,
    /// Name of the process's first thread.
    pub leader_comm: Option<Box<str>>,
    /// User number.
    pub uid: Option<u32>,
    /// The systemd unit.
    pub unit: Option<Box<str>>,
    /// The control group's path.
    pub cgroup: Option<Box<str>>,
    /// How sure this is.
    pub confidence: Option<&'static str>,
}

impl Owner {
    /// Hands every field that has a value to `sink`, by name.
    pub fn visit(&self, mut sink: impl FnMut(&'static str, Value<'_>)) {
        let values = [
            ("pid", self.pid.map(Value::U32)),
            ("comm", self.comm.as_deref().map(Value::Text)),
            ("leader_comm", self.leader_comm.as_deref().map(Value::Text)),
            ("uid", self.uid.map(Value::U32)),
            ("unit", self.unit.as_deref().map(Value::Text)),
            ("cgroup", self.cgroup.as_deref().map(Value::Text)),
            ("confidence", self.confidence.map(Value::Text)),
        ];
        for (name, value) in values {
            if let Some(value) = value {
                sink(name, value);
            }
        }
    }
}

//! What a socket did, as the bus reports it.

use std::collections::HashMap;
use std::net::SocketAddr;

use serde::de::{Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};
use serde::{Deserialize, Serialize as SerializeStruct};
use zbus::{Signature, Type, Variant};

use crate::dictionary::{DICTIONARY, write};
use crate::owned::from_variant;
use crate::text::Text;
use crate::value::JsonEncoding;
use crate::{Owner, Value, protocol_name};

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, SerializeStruct, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionKind {
    /// The connection was opened here, and is established.
    Connect,
    /// A process here accepted the connection.
    Accept,
    /// The connection ended, by the process or by the other side.
    Close,
    /// The connection was not established.
    ConnectFailed,
}

impl ConnectionKind {
    /// The name, as `event` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Accept => "accept",
            Self::Close => "close",
            Self::ConnectFailed => "connect-failed",
        }
    }
}

/// One event of a connection, seen from the socket at one of its ends: a connection between two processes of a
/// machine has two of each. It borrows, as [`Flow`](crate::Flow) does.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// What happened.
    pub kind: ConnectionKind,
    /// The event's number. Connection events are numbered apart from the changes of flows.
    pub sequence: u64,
    /// The id of the flow, where it is in the table.
    pub flow: Option<u64>,
    /// The IP protocol number.
    pub protocol: u8,
    /// The socket's own end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// The inode of the network namespace, as in /proc/PID/ns/net; `None` where it is not known.
    pub network_namespace: Option<u32>,
    /// CLOCK_MONOTONIC nanoseconds.
    pub monotonic_nsec: u64,
    /// CLOCK_REALTIME microseconds.
    pub time_usec: u64,
    /// The process; where the other side closed the connection, the one that had it.
    pub owner: Option<Owner<'a>>,
    /// Number of the owner's thread.
    pub tid: Option<u32>,
    /// Why the connection failed, by the name of the error.
    pub error: Option<&'a str>,
    /// Whether the other side, or the network, ended the connection.
    pub reset: Option<bool>,
    /// Bytes of payload that the other end acknowledged and, where the process closed, those still on their way.
    pub sent_bytes: Option<u64>,
    /// Bytes of payload received.
    pub received_bytes: Option<u64>,
    /// Smoothed round-trip time, microseconds.
    pub rtt_usec: Option<u32>,
    /// Segments that were sent again.
    pub retransmissions: Option<u32>,
    /// Microseconds from the SYN to the connection's establishment, by the end that opened it.
    pub connect_usec: Option<u32>,
}

impl<'a> Connection<'a> {
    /// Hands every field that has a value to `sink`, by name; `event` is what happened.
    pub fn visit(&self, mut sink: impl FnMut(&'static str, Value<'_>)) {
        sink("event", Value::Text(self.kind.name()));
        self.visit_rest(sink);
    }

    /// Hands out all members but `event`, which a stream's line says with its `type`.
    fn visit_rest(&self, mut sink: impl FnMut(&'static str, Value<'_>)) {
        let Self { local, remote, .. } = self;
        sink("sequence", Value::U64(self.sequence));
        let mut some = |name, value: Option<Value<'_>>| {
            if let Some(value) = value {
                sink(name, value);
            }
        };
        some("flow", self.flow.map(Value::U64));
        some("family", Some(Value::Text(if local.is_ipv4() { "ipv4" } else { "ipv6" })));
        let number = Text::number(self.protocol);
        some("protocol", Some(Value::Text(protocol_name(self.protocol).unwrap_or(number.as_str()))));
        some("src", Some(Value::Text(Text::address(local.ip()).as_str())));
        some("sport", Some(Value::U16(local.port())));
        some("dst", Some(Value::Text(Text::address(remote.ip()).as_str())));
        some("dport", Some(Value::U16(remote.port())));
        some("network_namespace", self.network_namespace.map(Value::U32));
        some("monotonic_nsec", Some(Value::U64(self.monotonic_nsec)));
        some("time_usec", Some(Value::U64(self.time_usec)));
        some("tid", self.tid.map(Value::U32));
        if let Some(owner) = &self.owner {
            owner.visit(|name, value| some(name, Some(value)));
        }
        some("error", self.error.map(Value::Text));
        some("reset", self.reset.map(Value::Bool));
        some("sent_bytes", self.sent_bytes.map(Value::U64));
        some("received_bytes", self.received_bytes.map(Value::U64));
        some("rtt_usec", self.rtt_usec.map(Value::U32));
        some("retransmissions", self.retransmissions.map(Value::U32));
        some("connect_usec", self.connect_usec.map(Value::U32));
    }

    /// This event as a JSON object, without `event`.
    pub const fn json(self) -> ConnectionJson<'a> {
        ConnectionJson(self)
    }
}

/// A connection event as a JSON object, without `event`.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionJson<'a>(Connection<'a>);

impl Serialize for ConnectionJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write::<JsonEncoding, _>(serializer, |sink| self.0.visit_rest(sink))
    }
}

/// A connection event as a client reads it, from a line of a stream or from ConnectionEvents. What the daemon does not
/// know is absent.
#[derive(Clone, Debug, PartialEq, Eq, SerializeStruct, Deserialize)]
// What is derived reads and writes JSON, and is called by the traits below: a dictionary is read by a detour.
#[serde(remote = "Self")]
pub struct OwnedConnection {
    /// What happened.
    #[serde(rename = "type", alias = "event")]
    pub kind: ConnectionKind,
    /// The event's number.
    pub sequence: u64,
    /// The id of the flow, where it is in the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<u64>,
    /// ipv4 or ipv6.
    pub family: String,
    /// tcp; udp where a datagram or a connect failed.
    pub protocol: String,
    /// Address of the socket's own end.
    pub src: std::net::IpAddr,
    /// Port of the socket's own end.
    pub sport: u16,
    /// Address of the other end.
    pub dst: std::net::IpAddr,
    /// Port of the other end.
    pub dport: u16,
    /// The inode of the network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_namespace: Option<u32>,
    /// CLOCK_MONOTONIC nanoseconds.
    pub monotonic_nsec: u64,
    /// CLOCK_REALTIME microseconds.
    pub time_usec: u64,
    /// Number of the thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tid: Option<u32>,
    /// Number of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Name of the thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Name of the process's first thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader_comm: Option<String>,
    /// Number of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The systemd unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The control group's path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The container's id, in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The Kubernetes pod's uid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The program's path; behind `...` the end of a longer one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Whether this end opened the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opened: Option<bool>,
    /// How surely the process is the one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<String>,
    /// Why the connection failed, by the name of the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether the other side, or the network, ended the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset: Option<bool>,
    /// Bytes of payload that the other end acknowledged and, where the process closed, those still on their way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<u64>,
    /// Bytes of payload received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_bytes: Option<u64>,
    /// Smoothed round-trip time, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_usec: Option<u32>,
    /// Segments that were sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retransmissions: Option<u32>,
    /// Microseconds from the SYN to the connection's establishment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_usec: Option<u32>,
}

impl Type for OwnedConnection {
    const SIGNATURE: &'static Signature = DICTIONARY;
}

impl Serialize for OwnedConnection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for OwnedConnection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Self::deserialize(deserializer);
        }
        let fields = HashMap::<String, Variant<'_>>::deserialize(deserializer)?.into_iter();
        let known = fields.filter_map(|(name, value)| Some((name, from_variant(value)?)));
        let json = known.map(|(name, value)| Ok((name, serde_json::to_value(value)?)));
        let object = json.collect::<Result<serde_json::Map<_, _>, serde_json::Error>>();
        object
            .and_then(|object| Self::deserialize(serde_json::Value::Object(object)))
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DictionaryArray;

    fn event() -> Connection<'static> {
        let owner = Owner { pid: Some(42), comm: Some("curl"), uid: Some(0), ..Owner::default() };
        Connection {
            kind: ConnectionKind::ConnectFailed,
            sequence: 9,
            flow: None,
            protocol: 6,
            local: "198.18.0.2:40000".parse().unwrap(),
            remote: "198.18.1.2:443".parse().unwrap(),
            network_namespace: Some(4_026_531_840),
            monotonic_nsec: 1,
            time_usec: 2,
            owner: Some(owner),
            tid: Some(43),
            error: Some("ECONNREFUSED"),
            reset: None,
            sent_bytes: None,
            received_bytes: None,
            rtt_usec: Some(250),
            retransmissions: Some(0),
            connect_usec: None,
        }
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let json = serde_json::to_string(&event().json()).unwrap();
        let line = json.replacen('{', "{\"type\":\"connect-failed\",", 1);
        let read: OwnedConnection = serde_json::from_str(&line).unwrap();
        assert_eq!((read.kind, read.pid, read.flow), (ConnectionKind::ConnectFailed, Some(42), None));
        assert_eq!((read.src, read.dport), ("198.18.0.2".parse().unwrap(), 443));
        assert_eq!(read.error.as_deref(), Some("ECONNREFUSED"));
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), object);
    }

    #[test]
    fn a_dictionary_is_read_as_its_line_is() {
        let context = zbus::wire::serialized::Context::new(zbus::wire::LE, 0);
        let mut array = DictionaryArray::new(zbus::wire::LE);
        array.push_connection(&event());
        let bytes = zbus::wire::to_bytes(context, &array).unwrap();
        let (read, _): (Vec<OwnedConnection>, _) = bytes.deserialize().unwrap();
        let line = serde_json::to_string(&event().json()).unwrap();
        let line = line.replacen('{', "{\"type\":\"connect-failed\",", 1);
        assert_eq!(read, [serde_json::from_str(&line).unwrap()]);
    }
}

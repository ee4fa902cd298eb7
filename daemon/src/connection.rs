//! What connections did.

use std::sync::Arc;

use flowbus_attribution::{Event, Kind};
use flowbus_interfaces::{Connection, ConnectionKind, Owner};

use crate::flow::ProcessText;
use crate::log::Numbered;

/// One thing that a connection did, seen from one end.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionEvent {
    /// The event's number, larger by one than that of the connection event before.
    pub(crate) sequence: u64,
    pub(crate) event: Event,
    /// CLOCK_REALTIME microseconds.
    pub(crate) time_usec: u64,
    /// The id of the flow, where it is in the table.
    pub(crate) flow: Option<u64>,
    pub(crate) process: Option<Arc<ProcessText>>,
}

impl ConnectionEvent {
    /// Hands the event to `show` as the bus shows it.
    pub(crate) fn show<R>(&self, show: impl FnOnce(&Connection<'_>) -> R) -> R {
        let Event { kind, monotonic_ns, network_namespace, protocol, local, remote, process, .. } =
            self.event;
        let Event { opened, connect_usec, .. } = self.event;
        let number = match kind {
            Kind::ConnectFailed { errno } if errno != 0 => Some(error_text(errno)),
            _ => None,
        };
        let (reset, sent_bytes, received_bytes, rtt_usec, retransmissions) = match kind {
            Kind::Close { reset, sent, received, rtt_usec, retransmissions } => {
                (Some(reset), Some(sent), Some(received), rtt_usec, Some(retransmissions))
            }
            _ => (None, None, None, None, None),
        };
        let owner = self.process.as_ref().zip(process);
        show(&Connection {
            kind: match kind {
                Kind::Accept => ConnectionKind::Accept,
                Kind::ConnectFailed { .. } => ConnectionKind::ConnectFailed,
                Kind::Close { .. } => ConnectionKind::Close,
                _ => ConnectionKind::Connect,
            },
            sequence: self.sequence,
            flow: self.flow,
            protocol,
            local,
            remote,
            network_namespace: (network_namespace != 0).then_some(network_namespace),
            monotonic_nsec: monotonic_ns,
            time_usec: self.time_usec,
            // The namespace is the connection's own key.
            owner: owner.map(|(text, process)| Owner {
                network_namespace: None,
                ..text.owner(process.confidence, opened)
            }),
            tid: process.map(|process| process.tid),
            error: number.as_deref(),
            reset,
            sent_bytes,
            received_bytes,
            rtt_usec,
            retransmissions,
            connect_usec,
        })
    }
}

/// The names of what connections fail with, `include/uapi/asm-generic/errno.h`.
const ERRORS: [(i32, &str); 20] = [
    (1, "EPERM"),
    (4, "EINTR"),
    (13, "EACCES"),
    (22, "EINVAL"),
    (32, "EPIPE"),
    (71, "EPROTO"),
    (92, "ENOPROTOOPT"),
    (93, "EPROTONOSUPPORT"),
    (95, "EOPNOTSUPP"),
    (97, "EAFNOSUPPORT"),
    (99, "EADDRNOTAVAIL"),
    (100, "ENETDOWN"),
    (101, "ENETUNREACH"),
    (103, "ECONNABORTED"),
    (104, "ECONNRESET"),
    (105, "ENOBUFS"),
    (110, "ETIMEDOUT"),
    (111, "ECONNREFUSED"),
    (112, "EHOSTDOWN"),
    (113, "EHOSTUNREACH"),
];

/// The name of an error; its number where it is a strange one.
fn error_text(errno: i32) -> String {
    let known = ERRORS.iter().find(|(number, _)| *number == errno);
    known.map_or_else(|| errno.to_string(), |(_, name)| (*name).to_owned())
}

/// The log keeps about 2 MiB, a tenth of a second of the fastest burst that was measured.
impl Numbered for ConnectionEvent {
    const KEPT: usize = 8 * 1024;

    fn sequence(&self) -> u64 {
        self.sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_kernels_names_and_strange_ones_their_number() {
        assert_eq!(error_text(111), "ECONNREFUSED");
        assert_eq!(error_text(512), "512");
    }
}

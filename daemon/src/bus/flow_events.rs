//! The interface org.flowbus.FlowEvents1: signals alone. The emitter sends them.

use std::collections::HashMap;

use flowbus_interfaces::DictionaryArray;
use zbus::interface;
use zbus::object_server::SignalEmitter;
use zbus::wire::Variant;

/// The object; it has no state.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowEvents;

#[interface(name = "org.flowbus.FlowEvents1")]
impl FlowEvents {
    /// A batch of changes, in order. Each event is a whole flow with `event` (new, update or destroy), its
    /// own `sequence` and `event_usec`, when it was; `sequence` is that of the first.
    ///
    /// Updates of one flow within a batch are merged into the last; new and destroy never are. `lost` counts
    /// the changes before this batch that were dropped because they came faster than signals may be sent; it
    /// is always reported, if necessary in an empty batch whose `sequence` is the next one.
    #[zbus(signal)]
    pub(super) async fn flow_events(
        emitter: &SignalEmitter<'_>,
        sequence: u64,
        events: &DictionaryArray,
        lost: u64,
    ) -> zbus::Result<()>;

    /// A batch of events of TCP connections, in order: `event` is connect (opened here, and established), accept, close or
    /// connect-failed. They are numbered separately from FlowEvents, each with its own `sequence`; `sequence` and `lost` mean
    /// the same as there. There are none while Attribution is not bpf.
    ///
    /// Each event is about the socket at one end: a connection between two processes of this machine has two of each.
    /// `src` and `sport` are the socket's own end, `dst` and `dport` the other; an IPv4 address on an IPv6 socket is shown
    /// as IPv4. Each has `family`, `protocol`, `monotonic_nsec` (t: CLOCK_MONOTONIC), `time_usec` (t: CLOCK_REALTIME) and,
    /// as far as they are known, `flow` (t: the id of the flow, where it is in the table), `network_namespace` (u: the inode
    /// of /proc/PID/ns/net; events of all namespaces are sent), `pid` (u), `tid` (u), `comm` (s: of the thread),
    /// `leader_comm` (s: of the process), `uid` (u), `unit` (s), `cgroup` (s), `container` (s), `pod` (s), `confidence` (s: exact, reader, snapshot,
    /// inherited), `opened` (b: this end opened the connection). connect-failed has `error` (s: such as ENETUNREACH, what connect() returned or what came
    /// later; absent where the process gave up by itself, or where the kernel skipped the BPF program at the end of the call, which
    /// `bpf_recursion_misses` of GetStatistics counts) and the destination that was asked for; it is reported of UDP too, for a
    /// connect or a datagram that failed, once in 10 s for each destination and process. close has `reset` (b: by the other side or the
    /// network; the process is then the one that had the connection), `sent_bytes` (t: payload that the other end acknowledged and,
    /// where the process closed, what was still on its way), `received_bytes` (t: payload), `rtt_usec` (u: smoothed round-trip time)
    /// and `retransmissions` (u). connect and close have `connect_usec` (u: from the SYN to the connection's establishment) at the end
    /// that opened the connection.
    #[zbus(signal)]
    pub(super) async fn connection_events(
        emitter: &SignalEmitter<'_>,
        sequence: u64,
        events: &DictionaryArray,
        lost: u64,
    ) -> zbus::Result<()>;

    /// The table agrees with the kernel's again, after a start or a loss.
    ///
    /// `details` has `reason` (s: start, overrun, state-refused or new-socket), `lost` (t: events that the
    /// kernel dropped), `closed` (u: flows that had ended without an event) and `added` (u: flows that were not known).
    #[zbus(signal)]
    pub(super) async fn resynced(
        emitter: &SignalEmitter<'_>,
        details: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<()>;
}

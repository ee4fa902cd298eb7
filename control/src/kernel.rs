//! What the kernel says of connection tracking as a whole, in the network namespace of this process.

use ctnetlink::{Message, Received, Socket, SocketError, cpu_stats_request, messages};
use flowbus_interfaces::KernelState;

/// Reads it all; what cannot be read is absent.
pub(crate) fn state() -> KernelState {
    let counters =
        counters().inspect_err(|error| tracing::debug!(%error, "the kernel's counters are left out"));
    let counters = counters.ok().flatten();
    KernelState {
        count: setting("nf_conntrack_count"),
        maximum: setting("nf_conntrack_max"),
        accounting: setting("nf_conntrack_acct").map(|value: u8| value != 0),
        timestamping: setting("nf_conntrack_timestamp").map(|value: u8| value != 0),
        events: setting("nf_conntrack_events"),
        early_drop: counters.map(|counters| counters.early_drop),
        insert_failed: counters.map(|counters| counters.insert_failed),
    }
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    // /proc/sys/net shows the network namespace of the process that reads it.
    std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?.trim().parse().ok()
}

/// Sums over all CPUs.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    early_drop: u64,
    insert_failed: u64,
}

/// The counters, or nothing if the kernel's answer has no end.
fn counters() -> Result<Option<Counters>, SocketError> {
    let socket = Socket::open()?;
    socket.send(&cpu_stats_request(1))?;
    let mut sum = Counters::default();
    let mut buffer = vec![0; 32 * 1024];
    // The kernel writes the answer of a dump while it is asked and read: it never has to be waited for.
    while let Received::Datagram(length) = socket.receive(&mut buffer)? {
        for message in messages(&buffer[..length]) {
            match message {
                Ok(Message::CpuStats(_, cpu)) => {
                    sum.early_drop += u64::from(cpu.early_drop);
                    sum.insert_failed += u64::from(cpu.insert_failed);
                }
                Ok(Message::Done(_, 0)) => return Ok(Some(sum)),
                Ok(Message::Done(_, code) | Message::Error(_, code)) => {
                    return Err(SocketError::refused("IPCTNL_MSG_CT_GET_STATS_CPU", code));
                }
                _ => {}
            }
        }
    }
    Ok(None)
}

//! What the kernel says of connection tracking as a whole.

use crate::{EventMasks, Message, Received, Socket, SocketError, cpu_stats_request, messages};

/// Settings, fill and counters of connection tracking in the network namespace of this process. What could not be
/// read is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    /// Flows in the table (`nf_conntrack_count`).
    pub count: Option<u32>,
    /// The most flows that the kernel keeps (`nf_conntrack_max`).
    pub maximum: Option<u32>,
    /// New flows count packets and bytes (`nf_conntrack_acct`).
    pub accounting: Option<bool>,
    /// New flows note when they start and end (`nf_conntrack_timestamp`).
    pub timestamping: Option<bool>,
    /// Which flows send events (`nf_conntrack_events`): 0 none, 1 all, 2 those made while somebody listens.
    pub events: Option<u8>,
    /// Flows evicted since boot to make room for new ones, of all CPUs; needs CAP_NET_ADMIN. Each CPU's counter wraps
    /// at 2^32.
    pub early_drop: Option<u64>,
    /// Flows not inserted since boot because the tuple was taken meanwhile, as `early_drop`.
    pub insert_failed: Option<u64>,
    /// Where rules set event masks (see [`EventMasks`]); needs CAP_NET_ADMIN.
    pub event_masks: Option<String>,
}

impl KernelState {
    /// Reads it all. `masks` has what the last call learned of the rules.
    pub fn read(masks: &mut EventMasks) -> Self {
        let counters = counters().ok().flatten();
        // Rules that cannot be read just now are taken to be as they were.
        let _ = masks.look();
        Self {
            count: setting("nf_conntrack_count"),
            maximum: setting("nf_conntrack_max"),
            accounting: setting("nf_conntrack_acct").map(|value: u8| value != 0),
            timestamping: setting("nf_conntrack_timestamp").map(|value: u8| value != 0),
            events: setting("nf_conntrack_events"),
            early_drop: counters.map(|counters| counters.early_drop),
            insert_failed: counters.map(|counters| counters.insert_failed),
            event_masks: masks.place().map(str::to_owned),
        }
    }
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    // /proc/sys/net shows the network namespace of the process that reads it.
    std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?.trim().parse().ok()
}

/// Sums over all CPUs.
#[derive(Clone, Copy, Debug, Default)]
struct CpuSums {
    early_drop: u64,
    insert_failed: u64,
}

/// The counters, or nothing if the kernel's answer has no end.
fn counters() -> Result<Option<CpuSums>, SocketError> {
    let socket = Socket::open()?;
    socket.send(&cpu_stats_request(1))?;
    let mut sum = CpuSums::default();
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

//! What the kernel says of connection tracking as a whole.

use crate::{CpuStats, EventMasks, Message, Received, Socket, SocketError, cpu_stats_request, messages};

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
    /// Packets dropped since boot because no flow could be made, as `early_drop`.
    pub drop: Option<u64>,
    /// Flows not inserted since boot because the tuple was taken meanwhile, as `early_drop`.
    pub insert_failed: Option<u64>,
    /// Insertions of one tuple at once that were resolved since boot, as `early_drop`. 0 where the kernel does not count them.
    pub clash_resolve: Option<u64>,
    /// Flows not inserted since boot because a hash chain was too long, as `early_drop`. 0 where the kernel does not count them.
    pub chain_toolong: Option<u64>,
    /// Where rules set event masks (see [`EventMasks`]); needs CAP_NET_ADMIN.
    pub event_masks: Option<String>,
}

impl KernelState {
    /// Asks the kernel for all of it. `masks` keeps what one call learns of the rules for the next.
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
            drop: counters.map(|counters| counters.drop),
            insert_failed: counters.map(|counters| counters.insert_failed),
            clash_resolve: counters.map(|counters| counters.clash_resolve),
            chain_toolong: counters.map(|counters| counters.chain_toolong),
            event_masks: masks.place().map(str::to_owned),
        }
    }
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    // /proc/sys/net shows the network namespace of the process that reads it.
    std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?.trim().parse().ok()
}

/// Sums over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CpuSums {
    early_drop: u64,
    drop: u64,
    insert_failed: u64,
    clash_resolve: u64,
    chain_toolong: u64,
}

impl CpuSums {
    fn add(&mut self, cpu: &CpuStats) {
        self.early_drop += u64::from(cpu.early_drop);
        self.drop += u64::from(cpu.drop);
        self.insert_failed += u64::from(cpu.insert_failed);
        self.clash_resolve += u64::from(cpu.clash_resolve);
        self.chain_toolong += u64::from(cpu.chain_toolong);
    }
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
                Ok(Message::CpuStats(_, cpu)) => sum.add(&cpu),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpus_are_added_up() {
        let cpu = CpuStats {
            early_drop: 1,
            drop: 2,
            insert_failed: 3,
            clash_resolve: 4,
            chain_toolong: u32::MAX,
            ..CpuStats::default()
        };
        let mut sum = CpuSums::default();
        sum.add(&cpu);
        sum.add(&cpu);
        let chain_toolong = 2 * u64::from(u32::MAX);
        let expected = CpuSums { early_drop: 2, drop: 4, insert_failed: 6, clash_resolve: 8, chain_toolong };
        assert_eq!(sum, expected);
    }
}

//! What the kernel says of connection tracking as a whole, read where the daemon runs by hand: /proc/sys/net
//! shows the network namespace of the process that reads it.

/// The kernel's settings and fill. What could not be read is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KernelState {
    /// Entries in the table (nf_conntrack_count).
    pub(crate) count: Option<u32>,
    /// The most entries that the kernel keeps (nf_conntrack_max).
    pub(crate) maximum: Option<u32>,
    /// New flows count packets and bytes (nf_conntrack_acct).
    pub(crate) accounting: Option<bool>,
    /// New flows keep the time (nf_conntrack_timestamp).
    pub(crate) timestamping: Option<bool>,
}

impl KernelState {
    /// Reads it all.
    pub(crate) fn read() -> Self {
        Self {
            count: number("nf_conntrack_count"),
            maximum: number("nf_conntrack_max"),
            accounting: number("nf_conntrack_acct").map(|value| value != 0),
            timestamping: number("nf_conntrack_timestamp").map(|value| value != 0),
        }
    }
}

fn number(name: &str) -> Option<u32> {
    std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?.trim().parse().ok()
}

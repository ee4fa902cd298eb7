//! What the kernel counts about its table.

/// How full the table of the network namespace is (`IPCTNL_MSG_CT_GET_STATS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// `CTA_STATS_GLOBAL_ENTRIES`: flows in the table, nf_conntrack_count.
    pub entries: u32,
    /// `CTA_STATS_GLOBAL_MAX_ENTRIES`: nf_conntrack_max (Linux 5.9 and later).
    pub maximum: Option<u32>,
}

/// What one CPU has counted since boot (`IPCTNL_MSG_CT_GET_STATS_CPU`). A counter that the kernel does not send is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuStats {
    /// The CPU's number.
    pub cpu: u16,
    /// Look-ups that found a flow (since Linux 5.10 only those that NAT and others ask for).
    pub found: u32,
    /// Packets that cannot be tracked.
    pub invalid: u32,
    /// Flows inserted by other means than traffic (since Linux 5.10).
    pub insert: u32,
    /// Flows not inserted: the tuple was taken meanwhile, by two packets at once or by NAT.
    pub insert_failed: u32,
    /// Packets dropped because no flow could be made: the table is full.
    pub drop: u32,
    /// Flows evicted to make room for new ones when the table is full.
    pub early_drop: u32,
    /// Packets that a protocol's tracker found wrong.
    pub error: u32,
    /// Look-ups restarted because the table was resized under them.
    pub search_restart: u32,
    /// Insertions of one tuple at once that were resolved.
    pub clash_resolve: u32,
    /// Flows not inserted because a hash chain was too long.
    pub chain_toolong: u32,
}

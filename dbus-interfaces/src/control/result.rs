//! What the methods of FlowControl1 answer.

use zbus::{DeserializeDict, SerializeDict, Type};

use crate::OwnedFlow;

/// What became of the flows or expectations that a query matched, as a client reads it: `matched` is the sum of the
/// others, but in a dry run, where nothing is done to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct Changes {
    /// Entries that matched, up to the limit.
    pub matched: u32,
    /// Those that this call deleted; absent where it changes.
    pub deleted: Option<u32>,
    /// Those that this call changed; absent where it deletes.
    pub changed: Option<u32>,
    /// Those that had ended by then, or whose tuple belonged to another flow.
    pub gone: u32,
    /// Those that the kernel refused to delete or change.
    pub failed: u32,
    /// True where more matched than the limit let through; else absent.
    pub more: Option<bool>,
    /// Of a dry run of flows: those that matched, without `id`, at most [`LIMIT_MAXIMUM`](crate::LIMIT_MAXIMUM).
    pub flows: Option<Vec<OwnedFlow>>,
}

/// What one CPU has counted since boot: `a{sv}` with these names. What the kernel does not count is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct CpuStatistics {
    /// The CPU's number.
    pub cpu: u32,
    /// Look-ups that found a flow (since Linux 5.10 only those that NAT and others ask for).
    pub found: u32,
    /// Packets that cannot be tracked.
    pub invalid: u32,
    /// Flows inserted by other means than traffic (since Linux 5.10).
    pub insert: u32,
    /// Flows not inserted: the tuple was taken meanwhile.
    pub insert_failed: u32,
    /// Packets dropped because no flow could be made: the table is full.
    pub drop: u32,
    /// Flows evicted to make room for new ones.
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

impl CpuStatistics {
    /// Every field by name.
    pub const fn fields(&self) -> [(&'static str, u32); 11] {
        [
            ("cpu", self.cpu),
            ("found", self.found),
            ("invalid", self.invalid),
            ("insert", self.insert),
            ("insert_failed", self.insert_failed),
            ("drop", self.drop),
            ("early_drop", self.early_drop),
            ("error", self.error),
            ("search_restart", self.search_restart),
            ("clash_resolve", self.clash_resolve),
            ("chain_toolong", self.chain_toolong),
        ]
    }
}

impl From<ctnetlink::CpuStats> for CpuStatistics {
    fn from(cpu: ctnetlink::CpuStats) -> Self {
        Self {
            cpu: cpu.cpu.into(),
            found: cpu.found,
            invalid: cpu.invalid,
            insert: cpu.insert,
            insert_failed: cpu.insert_failed,
            drop: cpu.drop,
            early_drop: cpu.early_drop,
            error: cpu.error,
            search_restart: cpu.search_restart,
            clash_resolve: cpu.clash_resolve,
            chain_toolong: cpu.chain_toolong,
        }
    }
}

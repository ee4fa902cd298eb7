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
    /// Entries that this call deleted; absent where it changes entries.
    pub deleted: Option<u32>,
    /// Entries that this call changed; absent where it deletes entries.
    pub changed: Option<u32>,
    /// Entries that had ended by then, or whose tuple belonged to another flow.
    pub gone: u32,
    /// Entries that the kernel refused to delete or change.
    pub failed: u32,
    /// True where more matched than the limit let through; else absent.
    pub more: Option<bool>,
    /// The flows that matched, in a dry run: without `id`, at most [`LIMIT_MAXIMUM`](crate::LIMIT_MAXIMUM).
    pub flows: Option<Vec<OwnedFlow>>,
}

/// What one CPU has counted since boot: `a{sv}` with these names. What the kernel does not count is 0. The
/// kernel's side says what each means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct CpuStatistics {
    /// [`ctnetlink::CpuStats::cpu`].
    pub cpu: u32,
    /// [`ctnetlink::CpuStats::found`].
    pub found: u32,
    /// [`ctnetlink::CpuStats::invalid`].
    pub invalid: u32,
    /// [`ctnetlink::CpuStats::insert`].
    pub insert: u32,
    /// [`ctnetlink::CpuStats::insert_failed`].
    pub insert_failed: u32,
    /// [`ctnetlink::CpuStats::drop`].
    pub drop: u32,
    /// [`ctnetlink::CpuStats::early_drop`].
    pub early_drop: u32,
    /// [`ctnetlink::CpuStats::error`].
    pub error: u32,
    /// [`ctnetlink::CpuStats::search_restart`].
    pub search_restart: u32,
    /// [`ctnetlink::CpuStats::clash_resolve`].
    pub clash_resolve: u32,
    /// [`ctnetlink::CpuStats::chain_toolong`].
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
        let ctnetlink::CpuStats {
            cpu,
            found,
            invalid,
            insert,
            insert_failed,
            drop,
            early_drop,
            error,
            search_restart,
            clash_resolve,
            chain_toolong,
        } = cpu;
        Self {
            cpu: cpu.into(),
            found,
            invalid,
            insert,
            insert_failed,
            drop,
            early_drop,
            error,
            search_restart,
            clash_resolve,
            chain_toolong,
        }
    }
}

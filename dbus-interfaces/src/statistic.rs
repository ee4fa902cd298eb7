//! The vocabulary of `GetStatistics`: one table of its keys for the bus, `flowctl stats` and the manual.

use zbus::Variant;

/// How a statistic moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatisticKind {
    /// The value only grows, from 0 at the begin of an epoch, of a run of the daemon or, where the kernel counts, at boot.
    Counter,
    /// The value goes up and down.
    Gauge,
}

/// One key of `GetStatistics`. Its value is an unsigned integer, `t` or `u`; the texts among them (`bpf_accept`, `event_masks`,
/// `not_synchronized`) are not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistic {
    /// The name on the wire, snake_case.
    pub name: &'static str,
    /// Whether it only grows.
    pub kind: StatisticKind,
    /// What is counted, in one sentence.
    pub description: &'static str,
}

impl Statistic {
    /// The key of this name, which is matched exactly.
    pub fn parse(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|statistic| statistic.name == name)
    }
}

/// Makes [`Statistic::ALL`] and [`Statistics`] of the table below. A statistic is added by a row there; the daemon then does
/// not compile until it says where the value comes from (`daemon/src/bus/statistics.rs`).
macro_rules! statistics {
    ($($(#[doc = $description:literal])+ $kind:ident $name:ident: $type:ty,)+) => {
        impl Statistic {
            /// Every key of this version, in the order in which they are shown.
            pub const ALL: &'static [Self] = &[$(
                Self {
                    name: stringify!($name),
                    kind: StatisticKind::$kind,
                    description: concat!($($description),+).trim_ascii_start(),
                },
            )+];
        }

        /// The values of all keys; `None` of one that is absent.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Statistics {
            $($(#[doc = $description])+ pub $name: Option<$type>,)+
        }

        impl Statistics {
            /// The keys that are not absent, as the bus has them.
            pub fn entries(self) -> impl Iterator<Item = (&'static str, Variant<'static>)> {
                [$((stringify!($name), self.$name.map(Variant::from)),)+]
                    .into_iter()
                    .filter_map(|(name, value)| Some((name, value?)))
            }
        }
    };
}

statistics! {
    /// Flows in the kernel's table, absent where that cannot be read.
    Gauge kernel_count: u32,
    /// The most flows that the kernel keeps, absent where that cannot be read.
    Gauge kernel_max: u32,
    /// The number of the latest change.
    Counter sequence: u64,
    /// Active flows.
    Gauge active: u32,
    /// Ended flows that are remembered.
    Gauge closed: u32,
    /// Ended flows forgotten: the oldest where there are too many, and those that are too old.
    Counter closed_evicted: u64,
    /// Events of new flows.
    Counter events_new: u64,
    /// Events of changed flows.
    Counter events_update: u64,
    /// Events of ended flows.
    Counter events_destroy: u64,
    /// Events that the kernel dropped because the receive buffer was full.
    Counter events_lost: u64,
    /// Events that reported nothing new.
    Counter events_repeated: u64,
    /// Messages that could not be decoded.
    Counter events_invalid: u64,
    /// Messages that were not sent by the kernel.
    Counter events_foreign: u64,
    /// Attributes of messages that this version does not know.
    Counter unknown_attributes: u64,
    /// Active flows that may not send all their events, and are compared with the kernel's every 2 to 16 s.
    Gauge silent: u32,
    /// nf_conntrack_events, absent where it cannot be read.
    Gauge kernel_events: u32,
    /// nf_conntrack_acct, 1 where new flows count packets and bytes; absent where it cannot be read.
    Gauge kernel_acct: u32,
    /// nf_conntrack_timestamp, 1 where new flows note when they start and end; absent where it cannot be read.
    Gauge kernel_timestamp: u32,
    /// Flows that the kernel evicted to make room for new ones. This counter and the next four are of all CPUs since boot, and
    /// absent where they cannot be read.
    Counter kernel_early_drop: u64,
    /// Packets that the kernel dropped because it could make no flow: its table is full.
    Counter kernel_drop: u64,
    /// Flows that the kernel did not insert because their tuple was taken meanwhile.
    Counter kernel_insert_failed: u64,
    /// Concurrent insertions of the same tuple that the kernel resolved.
    Counter kernel_clash_resolve: u64,
    /// Flows that the kernel did not insert because a hash chain was too long.
    Counter kernel_chain_toolong: u64,
    /// Size of the receive buffer as the kernel counts it, in bytes.
    Gauge buffer_bytes: u64,
    /// Approximate number of events that the receive buffer holds.
    Gauge buffer_events: u64,
    /// How often the kernel's table was read.
    Counter dumps: u64,
    /// Dumps after a start or a loss.
    Counter resyncs: u64,
    /// Dumps that looked for changes that no event reported.
    Counter sweeps: u64,
    /// Flows that the table had no room for.
    Counter flows_refused: u64,
    /// Names of helpers and security contexts that the table had no room for.
    Counter names_refused: u64,
    /// Signals sent.
    Counter signals_sent: u64,
    /// Changes left out of signals because their rate is limited, whether or not anyone subscribes. Streams have every change.
    Counter signals_lost: u64,
    /// Method calls refused: beyond a limit, with a wrong argument, or by a caller that is not authorized.
    Counter calls_refused: u64,
    /// Streams that are open.
    Gauge streams: u64,
    /// Gaps reported to readers of streams.
    Counter stream_gaps: u64,
    /// Connects, accepts, closes and failed connects that were reported.
    Counter connection_events: u64,
    /// Connection events left out of signals because their rate is limited, whether or not anyone subscribes.
    Counter connection_events_lost: u64,
    /// Sockets and datagrams that no flow has matched yet, in all network namespaces. A datagram from a socket without an address counts
    /// once for each address that it may have been sent from, and at most one of them matches a flow.
    Gauge owners_pending: u64,
    /// Sockets that ended, and datagrams that were forgotten, before a flow matched them; counted as in `owners_pending`.
    Counter owners_unmatched_sockets: u64,
    /// Flows that ended without an owner, forwarded ones among them.
    Counter owners_unmatched_flows: u64,
    /// Sockets forgotten after their end.
    Counter owners_expired: u64,
    /// Sockets and processes that flowbusd had no room for.
    Counter owners_refused: u64,
    /// Lookups of a direction whose ends belong to sockets of several other network namespaces.
    Counter owners_ambiguous: u64,
    /// Records of the BPF programs, absent where none run.
    Counter bpf_written: u64,
    /// Records that the BPF programs lost because their ring was full.
    Counter bpf_dropped: u64,
    /// Sockets whose owner the BPF programs found no memory for.
    Counter bpf_no_storage: u64,
    /// Events of sockets whose owner the BPF programs do not know.
    Counter bpf_no_owner: u64,
    /// Runs of BPF programs that the kernel skipped.
    Counter bpf_recursion_misses: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statistic_is_found_by_its_name_and_described_by_a_sentence() {
        for statistic in Statistic::ALL {
            assert_eq!(Statistic::parse(statistic.name), Some(statistic));
            let Statistic { description, .. } = statistic;
            assert!(description.ends_with('.') && !description.contains("  "), "{description}");
            assert_eq!(description.trim(), *description);
        }
    }

    #[test]
    fn an_absent_statistic_is_no_entry_and_others_have_the_type_of_the_table() {
        let statistics = Statistics { active: Some(3), dumps: Some(0), ..Statistics::default() };
        let entries: Vec<_> = statistics.entries().collect();
        assert_eq!(entries, [("active", Variant::U32(3)), ("dumps", Variant::U64(0))]);
    }
}

//! The vocabulary of `GetStatistics`: one list of its keys for the bus, `flowctl stats` and the manual.

/// How a statistic moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatisticKind {
    /// It only grows, from 0 at the begin of an epoch or of a run of the daemon.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One key of `GetStatistics`. Its value is an unsigned integer, `t` or `u`; the texts among them (`bpf_accept`, `event_masks`,
/// `not_synchronized`) are not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistic {
    /// The name on the wire, snake_case.
    pub name: &'static str,
    /// How it moves.
    pub kind: StatisticKind,
    /// What it counts, in one sentence.
    pub description: &'static str,
}

impl Statistic {
    /// Every key of this version, in the order in which they are shown.
    pub const ALL: &'static [Self] = &[
        gauge("kernel_count", "Flows in the kernel's table, absent where that cannot be read."),
        gauge("kernel_max", "The most flows that the kernel keeps, absent where that cannot be read."),
        gauge("active", "Flows that are alive."),
        gauge("closed", "Ended flows that are remembered."),
        counter(
            "closed_evicted",
            "Ended flows forgotten: the oldest where there are too many, and those that are too old.",
        ),
        counter("events_new", "Events of new flows."),
        counter("events_update", "Events of changed flows."),
        counter("events_destroy", "Events of ended flows."),
        counter("events_lost", "Events that the kernel says it dropped."),
        counter("events_repeated", "Events that told nothing new."),
        counter("events_invalid", "Messages that could not be decoded."),
        counter("events_foreign", "Messages that were not sent by the kernel."),
        counter("unknown_attributes", "Attributes of messages that this version does not know."),
        gauge(
            "silent",
            "Active flows that may not send all their events, and are compared with the kernel's every 2 to 16 s.",
        ),
        gauge("kernel_events", "nf_conntrack_events, absent where it cannot be read."),
        gauge("buffer_bytes", "Size of the receive buffer as the kernel counts it, in bytes."),
        gauge("buffer_events", "About so many events fit into the receive buffer."),
        counter("dumps", "Times that the kernel's table was read."),
        counter("resyncs", "Dumps after a start or a loss."),
        counter("sweeps", "Dumps that looked for what no event tells."),
        counter("flows_refused", "Flows beyond what the table has room for."),
        counter(
            "names_refused",
            "Names of helpers and security contexts beyond what the table has room for.",
        ),
        counter("signals_sent", "Signals sent."),
        counter(
            "signals_lost",
            "Changes left out of signals, which are limited, whether anybody listens or not; streams have all of them.",
        ),
        counter(
            "calls_refused",
            "Method calls refused by a limit, for an argument, or to a caller who may not.",
        ),
        gauge("streams", "Streams that are open."),
        counter("stream_gaps", "Gaps told to readers of streams."),
        counter("connection_events", "Connects, accepts, closes and failed connects that were told."),
        counter(
            "connection_events_lost",
            "Those left out of signals, which are limited, whether anybody listens or not.",
        ),
        gauge("owners_pending", "Sockets whose flow has not been seen yet."),
        counter("owners_unmatched_sockets", "Sockets that ended before their flow was seen."),
        counter("owners_unmatched_flows", "Flows that ended without an owner, forwarded ones among them."),
        counter("owners_expired", "Sockets forgotten after their end."),
        counter("owners_refused", "Sockets and processes beyond what there is room for."),
        counter("bpf_written", "Records of the BPF programs, absent where none run."),
        counter("bpf_dropped", "Records that found the programs' ring full."),
        counter("bpf_no_storage", "Sockets that the programs found no memory for."),
        counter("bpf_no_owner", "Events of sockets that nobody was seen to open."),
        counter("bpf_recursion_misses", "Runs of a program that the kernel left out."),
    ];

    /// The key of this name, which is matched exactly.
    pub fn parse(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|statistic| statistic.name == name)
    }
}

const fn counter(name: &'static str, description: &'static str) -> Statistic {
    Statistic { name, kind: StatisticKind::Counter, description }
}

const fn gauge(name: &'static str, description: &'static str) -> Statistic {
    Statistic { name, kind: StatisticKind::Gauge, description }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statistic_is_found_by_its_name_and_documented_on_the_bus() {
        for statistic in Statistic::ALL {
            assert_eq!(Statistic::parse(statistic.name), Some(statistic));
            assert!(statistic.description.ends_with('.'), "{}", statistic.name);
            assert!(crate::FLOW_MONITOR_XML.contains(&format!("`{}`", statistic.name)), "{}", statistic.name);
        }
    }
}

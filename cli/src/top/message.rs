//! What the screen and its feed send each other.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use flowbus_interfaces::OwnedFlow;

use super::tally::Counted;
use super::view::{Grouping, View};

/// What the screen wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) view: View,
    pub(super) paused: bool,
    /// The flow that is shown in full.
    pub(super) detail: Option<u64>,
}

/// What the screen receives.
#[derive(Debug)]
pub(super) enum Report {
    Snapshot(Box<Snapshot>),
    Detail {
        id: u64,
        flow: Result<OwnedFlow, String>,
    },
    /// The daemon could not be asked, or refused; what is on the screen is old.
    Failed(String),
}

/// The connections at a moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) view: View,
    pub(super) counted: Counted,
    /// What is shown of the rows that are flows, by id. One that has ended since is absent.
    pub(super) shown: HashMap<u64, OwnedFlow>,
    /// Microseconds since 1970.
    pub(super) now: u64,
    /// Whether new flows count bytes.
    pub(super) accounting: bool,
    /// Whether the daemon's table agrees with the kernel's.
    pub(super) synchronized: bool,
    /// How many flows the kernel has, and how many it can have.
    pub(super) kernel: Option<(u64, u64)>,
}

impl Snapshot {
    /// How long a flow is shown that has ended.
    pub(super) const GREYED: Duration = Duration::from_secs(3);

    /// Keeps what the snapshot before showed of flows that have ended since.
    pub(super) fn keep_ended(&mut self, mut before: Self, now: Instant) {
        if self.view.grouping != Grouping::Flow {
            return;
        }
        for mut row in std::mem::take(&mut before.counted.rows) {
            let Some(flow) = before.shown.remove(&row.id) else { continue };
            if self.counted.rows.iter().any(|known| known.id == row.id) {
                // The flow ended between its line of the stream and the question for its columns.
                self.shown.entry(row.id).or_insert(flow);
                continue;
            }
            let ended = row.ended.or_else(|| self.counted.ended.contains(&row.id).then_some(now));
            if ended.is_some_and(|ended| now < ended + Self::GREYED) {
                row.ended = ended;
                self.shown.insert(row.id, flow);
                self.counted.rows.push(row);
            }
        }
    }

    /// How many rows are left out.
    pub(super) fn hidden(&self) -> u64 {
        self.counted.all_rows.saturating_sub(self.counted.rows.len() as u64)
    }

    /// What there is to say besides the numbers.
    pub(super) fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if !self.accounting {
            let text = "Accounting is off, so no bytes: sysctl -w net.netfilter.nf_conntrack_acct=1 counts new flows";
            notices.push(text.to_owned());
        }
        if !self.synchronized {
            notices.push("flowbusd is not in line with the kernel yet".to_owned());
        }
        if self.counted.unremembered > 0 {
            notices
                .push(format!("{} flows have no rate: there are too many flows", self.counted.unremembered));
        }
        notices
    }
}

//! Flows that come, change and go while a test does something else.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Namespace, burst, companion};

/// How many flows with one destination port [`burst::create`] makes; the first port is 5000.
const PER_PORT: u32 = 1 << 16;
/// How many flows of one port are made, and ended, at a time.
const ROUND: u32 = 400;

/// The first flow with destination port 5007.
const UNMARKED: u32 = 7 * PER_PORT;
/// The first flow with destination port 5008, which the second packet marks.
const MARKED: u32 = 8 * PER_PORT;
const RULES: &str = "
table inet churn {
    chain marks {
        type filter hook output priority mangle
        udp dport 5008 ct original packets 2 ct mark set 0x100
    }
}
";

/// Gives the namespace the network of [`burst`], and rules that mark flows.
///
/// # Panics
/// If the namespace has a network already, or does not count packets.
pub fn prepare(namespace: &Namespace) {
    burst::prepare(namespace);
    namespace.nft(RULES);
}

/// One round: flows are made, some are marked, and all of them end again. The next round makes the same ones anew.
///
/// # Panics
/// If the kernel refuses.
pub fn round(namespace: &Namespace) {
    burst::create(namespace, UNMARKED, ROUND);
    burst::create(namespace, MARKED, ROUND / 2);
    burst::create(namespace, MARKED, ROUND / 2);
    namespace.run("conntrack -D -p udp --orig-port-dst 5007");
    namespace.run("conntrack -D -p udp --orig-port-dst 5008");
}

/// How many changes a round is: each flow is made and ended, and some are marked in between.
pub const ROUND_CHANGES: u64 = (2 * ROUND + 3 * (ROUND / 2)) as u64;

/// Does `work` while `count` rounds follow each other on another thread; all are complete when this returns.
///
/// # Panics
/// If `work` panics or a round cannot be made.
pub fn during_rounds<T>(namespace: &Namespace, count: u64, work: impl FnOnce() -> T) -> T {
    companion::during(|_| (0..count).for_each(|_| round(namespace)), work).0
}

/// Does `work` while round follows round on another thread; the last one is complete when this returns.
///
/// # Panics
/// If `work` panics or a round cannot be made.
pub fn during<T>(namespace: &Namespace, work: impl FnOnce() -> T) -> T {
    let rounds = |stop: &AtomicBool| {
        while !stop.load(Ordering::Relaxed) {
            round(namespace);
        }
    };
    companion::during(rounds, work).0
}

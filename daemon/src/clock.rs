//! The two clocks that flows are measured by.

use rustix::time::{ClockId, clock_gettime};

use flowbus_interfaces::fit;

/// One instant on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// CLOCK_REALTIME microseconds: what people and the kernel's timestamps call the time. It can step.
    pub(crate) realtime_usec: u64,
    /// CLOCK_BOOTTIME microseconds: what ages are measured by.
    pub(crate) boottime_usec: u64,
}

impl Now {
    pub(crate) fn read() -> Self {
        Self {
            realtime_usec: microseconds(ClockId::Realtime),
            boottime_usec: microseconds(ClockId::Boottime),
        }
    }
}

impl Now {
    /// When it was `monotonic_nsec` on CLOCK_MONOTONIC, as the wall clock says now.
    pub(crate) fn realtime_usec_at(&self, monotonic_nsec: u64) -> u64 {
        let ago = microseconds(ClockId::Monotonic).saturating_sub(monotonic_nsec / 1_000);
        self.realtime_usec.saturating_sub(ago)
    }

    /// When it was `realtime_usec`, on the other clock, as seen from this instant.
    pub(crate) fn boottime_usec_at(&self, realtime_usec: u64) -> u64 {
        let ago = self.realtime_usec.saturating_sub(realtime_usec);
        let ahead = realtime_usec.saturating_sub(self.realtime_usec);
        self.boottime_usec.saturating_add(ahead).saturating_sub(ago)
    }
}

/// CLOCK_MONOTONIC nanoseconds: what BPF programs stamp their records with.
pub(crate) fn monotonic_nsec() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let [seconds, nanoseconds] = [time.tv_sec, time.tv_nsec].map(fit::<_, u64>);
    seconds * 1_000_000_000 + nanoseconds
}

fn microseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds: u64 = fit(time.tv_sec);
    let nanoseconds: u64 = fit(time.tv_nsec);
    seconds * 1_000_000 + nanoseconds / 1_000
}

//! Bytes of both directions.

use std::time::Duration;

use flowbus_interfaces::{FlowRef, Key};

use super::group::is_accepted;

/// Bytes, or bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    /// Sent by the end that the flow is seen from.
    pub(super) up: u64,
    /// Received by the end that the flow is seen from.
    pub(super) down: u64,
}

impl Traffic {
    /// Traffic as the kernel counts it: up is the original direction. `None` for a flow that does not count.
    pub(super) fn of(flow: &FlowRef<'_>) -> Option<Self> {
        let [up, down] = [Key::OrigBytes, Key::ReplyBytes].map(|key| flow.number(key));
        (up.or(down).is_some()).then(|| Self { up: up.unwrap_or(0), down: down.unwrap_or(0) })
    }

    /// Traffic as the process sees it that the flow is shown with: what a server of this machine sends are replies.
    pub(super) fn seen_by_owner(self, flow: &FlowRef<'_>) -> Self {
        if is_accepted(flow) { Self { up: self.down, down: self.up } } else { self }
    }

    pub(super) const fn total(self) -> u64 {
        self.up.saturating_add(self.down)
    }

    pub(super) const fn plus(self, other: Self) -> Self {
        Self { up: self.up.saturating_add(other.up), down: self.down.saturating_add(other.down) }
    }

    /// How much the traffic grew a second since it was `before`.
    pub(super) fn rate_since(self, before: Self, interval: Duration) -> Self {
        let rate = |now: u64, before: u64| a_second(now.saturating_sub(before), interval);
        Self { up: rate(self.up, before.up), down: rate(self.down, before.down) }
    }
}

fn a_second(bytes: u64, interval: Duration) -> u64 {
    let milliseconds = interval.as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1000 / milliseconds).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_of_this_machine_sends_goes_up() {
        let seen = |owners: &str| {
            let line = format!(r#"{{"orig_bytes":1,"reply_bytes":9{owners}}}"#);
            let flow = FlowRef::parse(&line).unwrap();
            Traffic::of(&flow).unwrap().seen_by_owner(&flow)
        };
        assert_eq!(seen(""), Traffic { up: 1, down: 9 });
        assert_eq!(seen(r#","responder":{"pid":7}"#), Traffic { up: 9, down: 1 });
        let both = r#","initiator":{"pid":6},"responder":{"pid":7}"#;
        assert_eq!(seen(both), Traffic { up: 1, down: 9 }, "the initiator is shown first");
        assert_eq!(Traffic::of(&FlowRef::parse("{}").unwrap()), None);
    }

    #[test]
    fn counters_that_fall_have_no_rate_below_0() {
        let (before, now) = (Traffic { up: 10, down: 10 }, Traffic { up: 5, down: 40 });
        assert_eq!(now.rate_since(before, Duration::from_secs(2)), Traffic { up: 0, down: 15 });
    }
}

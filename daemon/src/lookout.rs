//! Looks at what keeps flows from sending events: nf_conntrack_events, rules that mask events, a count that is not ours.
//!
//! The tracker decides what follows from a look. While there is no flow and nothing that could hide one, nobody looks: an event
//! or a notice ends that, and neither costs anything until it comes.

use std::pin::pin;
use std::time::Duration;

use flowbus_interfaces::KernelState;

use crate::handle::{Command, Handle, Look};
use crate::kernel_state::Kernel;

/// The time between two looks: two show a difference, so that its sweep begins within the pace of sweeps.
const PACE: Duration = Duration::from_secs(5);
/// The pace while there is no flow and nobody gives notice.
const IDLE_PACE: Duration = Duration::from_secs(15);
/// The time from a notice, or from the first event, to the look. One change of rules sends many messages, and a table may be empty
/// again and again.
const SETTLING: Duration = Duration::from_secs(1);

/// Looks, reports to the tracker, and says in the journal what keeps flows from sending events, as long as the daemon lives.
pub(crate) async fn watch(kernel: Kernel, handle: Handle) {
    let mut news = handle.news();
    let counters = || handle.published().summary.counters;
    let mut said = KernelState::default();
    // One wait serves all idle times: where an event ends the one, it goes on in the next.
    let mut notice = pin!(kernel.notice());
    loop {
        news.borrow_and_update();
        // Before the count is read: what moves from here on makes no difference.
        let summary = handle.published().summary;
        let state = kernel.look().await;
        if state == KernelState::default() {
            // A look that failed shows nothing: what the last one showed stays.
            tokio::time::sleep(PACE).await;
            continue;
        }
        say(&state, &said);
        let look = Look {
            count: state.count,
            off: state.events == Some(0),
            masked: state.event_masks.is_some(),
            births_and_ends: summary.counters.births_and_ends(),
        };
        let is_idle = summary.active == 0 && state.count == Some(0) && !state.may_hide_flows();
        said = state;
        // A tracker with too much to do hears of the next look.
        let _ = handle.send(Command::Looked(look));
        if !is_idle {
            tokio::time::sleep(PACE).await;
            continue;
        }
        let wait = tokio::select! {
            changed = news.changed() => match changed {
                Err(_) => return,
                Ok(()) if counters().births_and_ends() != look.births_and_ends => SETTLING,
                // Sockets have reported something, whose flows may be hidden.
                Ok(()) => PACE,
            },
            noticed = &mut notice => {
                notice.set(kernel.notice());
                if noticed { SETTLING } else { IDLE_PACE }
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Says once what begins to keep flows from sending events, and what ceases to.
fn say(now: &KernelState, before: &KernelState) {
    match (now.events, before.events) {
        (Some(0), Some(0)) => {}
        (Some(0), _) => tracing::warn!(
            "nf_conntrack_events is 0: new flows send no events, and are found by comparing with the kernel's table \
             every 2 to 16 s; set it with `sysctl -w net.netfilter.nf_conntrack_events=2`"
        ),
        (Some(_), Some(0)) => tracing::info!("nf_conntrack_events is no longer 0: new flows send events"),
        _ => {}
    }
    match (&now.event_masks, &before.event_masks) {
        (Some(place), before) if before.as_ref() != Some(place) => tracing::warn!(
            "a rule in {place} masks events (`ct event set`, or `-j CT --ctevents`): flows are compared with the kernel's \
             table every 2 to 16 s; without the mask they send events"
        ),
        (None, Some(_)) => tracing::info!("no rule masks events any more"),
        _ => {}
    }
}

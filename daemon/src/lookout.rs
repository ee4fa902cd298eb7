//! Looks at what keeps flows from telling: nf_conntrack_events, rules that mask events, a count that is not ours.
//!
//! The tracker decides what follows from a look. While there is no flow and nothing that could hide one, nobody looks:
//! by hand the kernel tells of a new flow, of a new setting, of new rules. In the service, where flowbus-control looks,
//! only a clock can tell.

use std::fs::File;
use std::time::Duration;

use ctnetlink::Socket;
use flowbus_interfaces::KernelState;
use rustix::fd::OwnedFd;
use rustix::fs::inotify;
use tokio::net::unix::pipe::Receiver;

use crate::handle::{Command, Handle, Look};
use crate::kernel_state::Kernel;

/// Looks are so far apart: two show a difference, so that its sweep begins within the pace of sweeps.
const PACE: Duration = Duration::from_secs(5);
/// The same in the service while there is no flow.
const IDLE_PACE: Duration = Duration::from_secs(15);
/// One change of rules sends many messages.
const SETTLING: Duration = Duration::from_millis(100);
const EVENTS_SETTING: &str = "/proc/sys/net/netfilter/nf_conntrack_events";

/// What the kernel tells by itself, in the network namespace of this process.
#[derive(Debug)]
pub(crate) struct Notices {
    /// An inotify of the setting's file.
    setting: OwnedFd,
    /// The file, open, so that whoever writes it finds the inode that is watched.
    _file: File,
    /// A netlink socket that has a message for each change of rules.
    rules: OwnedFd,
}

impl Notices {
    /// Call it before anything is confined. Without it the clock has to do.
    pub(crate) fn open() -> Option<Self> {
        match Self::try_open() {
            Ok(notices) => Some(notices),
            Err(error) => {
                tracing::debug!(%error, "settings and rules are not watched");
                None
            }
        }
    }

    fn try_open() -> std::io::Result<Self> {
        let file = File::open(EVENTS_SETTING)?;
        let setting = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&setting, EVENTS_SETTING, inotify::WatchFlags::MODIFY)?;
        let rules = Socket::open().map_err(std::io::Error::other)?;
        rules.join_rules().map_err(std::io::Error::other)?;
        Ok(Self { setting, _file: file, rules: rules.into() })
    }
}

/// [`Notices`] within the runtime.
struct Listener {
    setting: Receiver,
    rules: Receiver,
    _file: File,
}

impl Listener {
    fn new(notices: Notices) -> std::io::Result<Self> {
        let Notices { setting, _file, rules } = notices;
        // For tokio what is read is a pipe; its type for descriptors of any kind takes unsafe code.
        let receiver = Receiver::from_owned_fd_unchecked;
        Ok(Self { setting: receiver(setting)?, rules: receiver(rules)?, _file })
    }

    /// Returns when the setting was written or rules have changed.
    async fn heard(&self) {
        let heard = tokio::select! {
            ready = self.setting.readable() => ready.map(|()| &self.setting),
            ready = self.rules.readable() => {
                tokio::time::sleep(SETTLING).await;
                ready.map(|()| &self.rules)
            }
        };
        // What it says does not matter.
        if let Ok(receiver) = heard {
            while receiver.try_read(&mut [0; 4096]).is_ok() {}
        }
    }
}

/// Looks, tells the tracker, and says in the journal what keeps flows from telling, as long as the daemon lives.
pub(crate) async fn watch(kernel: Kernel, notices: Option<Notices>, handle: Handle) {
    let listener = notices.and_then(|notices| Listener::new(notices).ok());
    let mut news = handle.news();
    let mut said = KernelState::default();
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
        let is_idle = summary.active == 0 && state.count == Some(0) && !look.is_muted();
        said = state;
        // A tracker with too much to do hears of the next look.
        let _ = handle.send(Command::Looked(look));
        match &listener {
            Some(listener) if is_idle => tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                () = listener.heard() => {}
            },
            Some(listener) => tokio::select! {
                () = tokio::time::sleep(PACE) => {}
                () = listener.heard() => {}
            },
            None => tokio::time::sleep(if is_idle { IDLE_PACE } else { PACE }).await,
        }
    }
}

/// Says once what begins to keep flows from telling, and what no longer does.
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
             table every 2 to 16 s; without the mask they tell by themselves"
        ),
        (None, Some(_)) => tracing::info!("no rule masks events any more"),
        _ => {}
    }
}

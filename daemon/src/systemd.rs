//! What flowbusd reports to the service manager, and what the manager keeps for it.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::handle::Handle;
use crate::published::Published;

/// The name of the restart state among the descriptors that the manager keeps.
pub(crate) const STATE: &str = "state";

/// Gives the manager the restart state to keep, in place of an older one. Without FDPOLL=0 it would watch the
/// descriptor, and drop it at an odd moment.
pub(crate) fn store_state(memfd: BorrowedFd<'_>) {
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(STATE)]);
    let store = [NotifyState::FdStore, NotifyState::FdName(STATE), NotifyState::Custom("FDPOLL=0")];
    if let Err(error) = sd_notify::notify_with_fds(&store, &[memfd]) {
        tracing::warn!(%error, "the service manager does not keep the state, ignoring");
    }
}

/// Gives the manager descriptors of BPF programs to keep, in place of older ones of their names.
pub(crate) fn store_programs<'a>(named: impl Iterator<Item = (&'static str, BorrowedFd<'a>)> + Clone) {
    forget(named.clone().map(|(name, _)| name));
    for (name, descriptor) in named {
        let store = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        if let Err(error) = sd_notify::notify_with_fds(&store, &[descriptor]) {
            tracing::warn!(%error, "the service manager does not keep the BPF programs, ignoring");
            return;
        }
    }
}

/// Has the manager close what it keeps by these names.
pub(crate) fn forget<'a>(names: impl Iterator<Item = &'a str>) {
    for name in names {
        notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }
}

/// Notifies the manager that the daemon serves: its names on the bus are taken, and the process is confined.
pub(crate) fn ready(handle: &Handle) {
    notify(&[NotifyState::Ready, NotifyState::Status(&status(&handle.published()))]);
}

/// Notifies the manager that the daemon is on its way out.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Feeds the manager's watchdog, where it has one, as long as both loops go on: this task runs in the one of the
/// bus, and each time it waits for an answer from the tracker's.
pub(crate) async fn feed_watchdog(handle: Handle) {
    let Some(period) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        tokio::time::sleep((period / 2).max(Duration::from_millis(100))).await;
        if handle.ping().await.is_ok() {
            notify(&[NotifyState::Watchdog, NotifyState::Status(&status(&handle.published()))]);
        }
    }
}

fn status(published: &Published) -> String {
    let summary = &published.summary;
    let lost = summary.counters.events_lost;
    format!("{} active flows, {} closed, {lost} events lost", summary.active, summary.closed)
}

/// Sends the manager a notification; does nothing without a manager.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "notifying the service manager failed");
    }
}

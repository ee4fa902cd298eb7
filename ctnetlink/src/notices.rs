//! Learns from the kernel, without asking again and again, that something begins or ends to hide flows.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::inotify;

use crate::Socket;

const EVENTS_SETTING: &str = "/proc/sys/net/netfilter/nf_conntrack_events";

/// Descriptors that become readable when nf_conntrack_events is written or rules change, in the network namespace of the
/// process that opened them.
#[derive(Debug)]
pub struct Notices {
    /// An inotify instance that watches the setting's file.
    setting: OwnedFd,
    /// A netlink socket that receives a message for each change of rules.
    rules: OwnedFd,
    /// The setting's file. While it is open, whoever writes it finds the inode that is watched.
    _file: File,
}

impl Notices {
    /// Opens the descriptors; needs CAP_NET_ADMIN, inotify and the setting's file.
    ///
    /// # Errors
    /// When the kernel refuses, or connection tracking is not loaded.
    pub fn open() -> std::io::Result<Self> {
        let file = File::open(EVENTS_SETTING)?;
        let setting = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&setting, EVENTS_SETTING, inotify::WatchFlags::MODIFY)?;
        let rules = Socket::open().map_err(std::io::Error::other)?;
        rules.join_rules().map_err(std::io::Error::other)?;
        Ok(Self { setting, rules: rules.into(), _file: file })
    }

    /// The descriptors to wait on, non-blocking.
    ///
    /// # Errors
    /// Where this process has too many descriptors.
    pub fn descriptors(&self) -> std::io::Result<[OwnedFd; 2]> {
        Ok([self.setting.try_clone()?, self.rules.try_clone()?])
    }

    /// Reads what has arrived and discards it: the settings and rules themselves say more.
    pub fn discard(&self) {
        for descriptor in [&self.setting, &self.rules] {
            while rustix::io::read(descriptor, &mut [0; 4096]).is_ok_and(|length| length > 0) {}
        }
    }
}

//! What PID 1 keeps for a service, as the service's main process could change it.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, open};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, UCred,
    sendmsg_addr, socket,
};
use rustix::process::{Gid, Pid, Uid};

use super::Machine;

impl Machine {
    /// Has PID 1 keep a descriptor for a unit by this name, as if the main process had asked for it.
    ///
    /// # Panics
    /// If the unit has no main process.
    pub fn store(&self, unit: &str, name: &str, descriptor: BorrowedFd<'_>) {
        self.notify(unit, &format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), &[descriptor]);
    }

    /// Has PID 1 close what it keeps for a unit by this name, in the same way.
    ///
    /// # Panics
    /// If the unit has no main process.
    pub fn unstore(&self, unit: &str, name: &str) {
        self.notify(unit, &format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
    }

    /// A descriptor of a unit's main process, opened anew for reading and writing: the one whose link contains this text.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn descriptor(&self, unit: &str, text: &str) -> OwnedFd {
        let all = std::fs::read_dir(format!("/proc/{}/fd", self.main_process(unit))).expect("it runs");
        let link =
            |path: &PathBuf| std::fs::read_link(path).is_ok_and(|link| link.to_string_lossy().contains(text));
        let found = all.flatten().map(|entry| entry.path()).find(link);
        let path = found.unwrap_or_else(|| panic!("{unit} has no descriptor of {text}"));
        open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).expect("root may open it")
    }

    fn notify(&self, unit: &str, text: &str, descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1), ScmCredentials(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let process =
            i32::try_from(self.main_process(unit)).ok().and_then(Pid::from_raw).expect("a process id");
        let sender = UCred { pid: process, uid: Uid::ROOT, gid: Gid::ROOT };
        assert!(control.push(SendAncillaryMessage::ScmCredentials(sender)));
        assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
        let address =
            SocketAddrUnix::new(format!("/proc/{}/root/run/systemd/notify", self.leader)).expect("a path");
        let socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None).expect("a socket");
        let text = [IoSlice::new(text.as_bytes())];
        sendmsg_addr(&socket, &address, &text, &mut control, SendFlags::empty()).expect("PID 1 listens");
    }

    /// The main process of a unit, as this machine numbers it.
    fn main_process(&self, unit: &str) -> u32 {
        let inside = self.unit(unit, "MainPID");
        let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let is_it = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            numbers.is_some_and(|numbers| numbers.split_whitespace().next_back() == Some(&inside))
                && namespace(*pid) == namespace(self.leader)
        };
        let processes = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
        let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers.find(is_it).unwrap_or_else(|| panic!("{unit} has no main process"))
    }
}

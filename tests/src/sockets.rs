//! What the BPF programs report, as a test sees it: the events of one network namespace.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Instant;

use flowbus_attribution::{
    Counters, DEFAULT_RING_BYTES, Event, Kind, Message, Process, Programs, Report, Ring, Snapshot,
    Statistics, load,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Namespace;
use crate::process::DEADLINE;

/// Programs of the test's own, and what they have reported so far.
pub struct Sockets {
    programs: Programs,
    ring: Ring,
    counters: Counters,
    snapshot: Snapshot,
    events: Vec<Event>,
    cgroups: Vec<(u64, String)>,
    programs_of: Vec<((u32, u64, u16), String)>,
}

impl Sockets {
    /// Loads the programs.
    ///
    /// # Panics
    /// Without the privilege.
    #[must_use]
    pub fn watch() -> Self {
        Self::watch_with(DEFAULT_RING_BYTES)
    }

    /// Loads the programs, with a ring of this size.
    ///
    /// # Panics
    /// Without the privilege.
    #[must_use]
    pub fn watch_with(ring_bytes: u32) -> Self {
        let (programs, snapshot) = load(ring_bytes).expect("root may load programs");
        Self::of(programs, snapshot)
    }

    /// Reads programs that somebody else has loaded.
    ///
    /// # Panics
    /// If their descriptors are of something else.
    #[must_use]
    pub fn of(programs: Programs, snapshot: Snapshot) -> Self {
        let ring = Ring::map(&programs).expect("the ring can be mapped");
        let counters = Counters::open(&programs).expect("the counters can be mapped");
        Self {
            programs,
            ring,
            counters,
            snapshot,
            events: Vec::new(),
            cgroups: Vec::new(),
            programs_of: Vec::new(),
        }
    }

    /// The programs.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// What became of each program.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn report(&self) -> Report {
        self.programs.report().expect("the report can be read")
    }

    /// The counters.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.counters.read()
    }

    /// The sockets of a namespace that were open when the programs were loaded. Once.
    ///
    /// # Panics
    /// If the kernel fails to list them.
    pub fn open_before(&mut self, namespace: &Namespace) -> Vec<Event> {
        let inode = inode(namespace);
        let mut events = Vec::new();
        let programs = &mut self.programs_of;
        let read = self.snapshot.sockets(|message| match message {
            Message::Event(event) => events.push(event),
            Message::Program { pid, start_boottime_ns, execs, path } => {
                programs.push(((pid, start_boottime_ns, execs), path.to_owned()));
            }
            Message::Cgroup { .. } | Message::CgroupRemoved { .. } => {}
        });
        read.expect("sockets can be listed");
        events.retain(|event| event.network_namespace == inode);
        events
    }

    /// The path of a control group, from the snapshot or from what was reported since.
    ///
    /// # Panics
    /// If the snapshot cannot be read.
    #[must_use]
    pub fn cgroup(&self, id: u64) -> Option<String> {
        let mut cgroups = self.cgroups.clone();
        self.snapshot.cgroups(|id, path| cgroups.push((id, path.to_owned()))).expect("it can be read");
        cgroups.into_iter().find(|(known, _)| *known == id).map(|(_, path)| path)
    }

    /// The path of the program that a process ran, of what was reported so far.
    #[must_use]
    pub fn program(&self, process: &Process) -> Option<&str> {
        let key = (process.pid, process.start_boottime_ns, process.execs);
        self.programs_of.iter().find(|(known, _)| *known == key).map(|(_, path)| path.as_str())
    }

    /// How often a program of a process was reported so far.
    #[must_use]
    pub fn programs_reported(&self, pid: u32) -> usize {
        self.programs_of.iter().filter(|((of, ..), _)| *of == pid).count()
    }

    /// All events of a namespace so far, once `enough` is true of them. Waits for the ring to wake it.
    ///
    /// # Panics
    /// If that does not come.
    pub fn events_until(&mut self, namespace: &Namespace, enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
        let (inode, mut end, mut known) = (inode(namespace), Instant::now() + DEADLINE, 0);
        loop {
            self.drain();
            let events: Vec<_> =
                self.events.iter().filter(|event| event.network_namespace == inode).copied().collect();
            // While something comes from there it is worth waiting.
            if std::mem::replace(&mut known, events.len()) < events.len() {
                end = Instant::now() + DEADLINE;
            }
            if enough(&events) {
                return events;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "what was waited for is not among {events:#?}; {:?}", self.statistics());
            let timeout = Timespec::try_from(left).expect("30 s are not too long");
            poll(&mut [PollFd::new(&self.ring.as_fd(), PollFlags::IN)], Some(&timeout))
                .expect("a ring can be waited for");
        }
    }

    /// All events of a namespace so far, once there are `count` of the kind.
    ///
    /// # Panics
    /// If they do not come.
    pub fn events_with(
        &mut self,
        namespace: &Namespace,
        count: usize,
        kind: impl Fn(Kind) -> bool,
    ) -> Vec<Event> {
        self.events_until(namespace, |events| events.iter().filter(|event| kind(event.kind)).count() >= count)
    }

    /// Reads what is there.
    pub fn drain(&mut self) {
        let Self { events, cgroups, programs_of, .. } = self;
        while !self.ring.drain(|message| match message {
            Message::Event(event) => events.push(event),
            Message::Cgroup { id, path } => cgroups.push((id, path.to_owned())),
            Message::CgroupRemoved { .. } => {}
            Message::Program { pid, start_boottime_ns, execs, path } => {
                programs_of.push(((pid, start_boottime_ns, execs), path.to_owned()));
            }
        }) {}
        assert_eq!(self.ring.unreadable(), 0);
    }

    /// Ends what is attached to this tracepoint, sometime soon.
    ///
    /// # Panics
    /// If nothing is.
    pub fn detach(&mut self, tracepoint: &str) {
        let is_of = |descriptor: BorrowedFd<'_>| {
            let path = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
            let text = fs::read_to_string(path).expect("the kernel describes descriptors");
            text.lines()
                .any(|line| line.strip_prefix("tp_name:").is_some_and(|name| name.trim() == tracepoint))
        };
        let links = || self.programs.named().filter(|(name, _)| *name == "bpf-link");
        let (_, other) = links().find(|(_, link)| !is_of(*link)).expect("another link");
        assert!(links().any(|(_, link)| is_of(link)), "nothing is attached to {tracepoint}");
        // There have to be as many as there were, or they are not taken for programs.
        let kept = self.programs.named().map(|(name, descriptor)| {
            let kept = if is_of(descriptor) { other } else { descriptor };
            (name.to_owned(), kept.try_clone_to_owned().expect("there is room for descriptors"))
        });
        let kept: Vec<_> = kept.collect();
        self.programs = Programs::from_named(kept).expect("they are those of programs");
    }

    /// Gives the descriptors back; nothing is read any more.
    #[must_use]
    pub fn into_programs(self) -> Programs {
        self.programs
    }
}

/// The number of a namespace in events.
#[must_use]
fn inode(namespace: &Namespace) -> u32 {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(namespace.path()).expect("a namespace is a file");
    u32::try_from(metadata.ino()).expect("the inodes of namespaces are short")
}

/// A process's name, of 16 bytes filled up with zeros, as text.
#[must_use]
pub fn name(comm: &[u8; 16]) -> String {
    String::from_utf8_lossy(comm).trim_end_matches('\0').to_owned()
}

/// The process that made an event.
///
/// # Panics
/// If nobody is known to have done it.
#[must_use]
pub fn by(event: &Event) -> Process {
    event.process.unwrap_or_else(|| panic!("nobody did {event:?}"))
}

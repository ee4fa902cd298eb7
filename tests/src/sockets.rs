//! What the BPF programs report, as a test sees it: the events of one network namespace.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use flowbus_attribution::{
    Counters, DEFAULT_RING_BYTES, Event, Kind, Message, Process, Programs, Report, Ring, Snapshot,
    Statistics, load,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::Namespace;
use crate::process::DEADLINE;

/// Programs of the test's own, and what they have reported so far.
pub struct Sockets {
    programs: Programs,
    shared: Arc<Shared>,
    /// The ring, to be waited for.
    ring: OwnedFd,
    /// Reads while the test does something else; `None` where only the test reads.
    reader: Option<Reader>,
    counters: Counters,
    snapshot: Snapshot,
    told: Told,
}

/// The ring and what was read from it, for the test and for the [`Reader`].
struct Shared {
    reading: Mutex<(Ring, Told)>,
    /// The reader has read something.
    read: Condvar,
}

/// What the programs have reported.
#[derive(Default)]
struct Told {
    events: Vec<Event>,
    cgroups: Vec<(u64, String)>,
    programs: Vec<((u32, u64, u16), String)>,
}

/// A thread that empties the ring: it is the whole machine's, and other tests would fill it.
struct Reader {
    thread: Option<JoinHandle<()>>,
    stop: Arc<OwnedFd>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Ring, Told)> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    /// Reads what is in the ring.
    fn read(&mut self, ring: &mut Ring) {
        while !ring.drain(|message| match message {
            Message::Event(event) => self.events.push(event),
            Message::Cgroup { id, path } => self.cgroups.push((id, path.to_owned())),
            Message::CgroupRemoved { .. } => {}
            Message::Program { pid, start_boottime_ns, execs, path } => {
                self.programs.push(((pid, start_boottime_ns, execs), path.to_owned()));
            }
        }) {}
        assert_eq!(ring.unreadable(), 0);
    }
}

impl Reader {
    fn start(shared: &Arc<Shared>, ring: OwnedFd) -> Self {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("there is room for descriptors"));
        let (shared, stopped) = (Arc::clone(shared), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            loop {
                let mut waiting = [&*stopped, &ring].map(|descriptor| PollFd::new(descriptor, PollFlags::IN));
                poll(&mut waiting, None).expect("a ring can be waited for");
                if !waiting[0].revents().is_empty() {
                    return;
                }
                // Others gather meanwhile.
                thread::sleep(Duration::from_millis(5));
                let (ring, told) = &mut *shared.lock();
                told.read(ring);
                shared.read.notify_all();
            }
        });
        Self { thread: Some(thread), stop }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Sockets {
    /// Loads the programs, and reads from their ring all the time.
    ///
    /// # Panics
    /// Without the privilege.
    #[must_use]
    pub fn watch() -> Self {
        let mut sockets = Self::watch_with(DEFAULT_RING_BYTES);
        let ring = sockets.ring.try_clone().expect("there is room for descriptors");
        sockets.reader = Some(Reader::start(&sockets.shared, ring));
        sockets
    }

    /// Loads the programs, with a ring of this size, which is read when the test asks.
    ///
    /// # Panics
    /// Without the privilege.
    #[must_use]
    pub fn watch_with(ring_bytes: u32) -> Self {
        let (programs, snapshot) = load(ring_bytes).expect("root may load programs");
        Self::of(programs, snapshot)
    }

    /// Reads programs that somebody else has loaded, when the test asks.
    ///
    /// # Panics
    /// If their descriptors are of something else.
    #[must_use]
    pub fn of(programs: Programs, snapshot: Snapshot) -> Self {
        let ring = Ring::map(&programs).expect("the ring can be mapped");
        let counters = Counters::open(&programs).expect("the counters can be mapped");
        let descriptor = ring.as_fd().try_clone_to_owned().expect("there is room for descriptors");
        let shared = Shared { reading: Mutex::new((ring, Told::default())), read: Condvar::new() };
        Self {
            programs,
            shared: Arc::new(shared),
            ring: descriptor,
            reader: None,
            counters,
            snapshot,
            told: Told::default(),
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
        let programs = &mut self.told.programs;
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
        let mut cgroups = self.told.cgroups.clone();
        self.snapshot.cgroups(|id, path| cgroups.push((id, path.to_owned()))).expect("it can be read");
        cgroups.into_iter().find(|(known, _)| *known == id).map(|(_, path)| path)
    }

    /// The path of the program that a process ran, of what was reported so far.
    #[must_use]
    pub fn program(&self, process: &Process) -> Option<&str> {
        let key = (process.pid, process.start_boottime_ns, process.execs);
        self.told.programs.iter().find(|(known, _)| *known == key).map(|(_, path)| path.as_str())
    }

    /// How often a program of a process was reported so far.
    #[must_use]
    pub fn programs_reported(&self, pid: u32) -> usize {
        self.told.programs.iter().filter(|((of, ..), _)| *of == pid).count()
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
                self.told.events.iter().filter(|event| event.network_namespace == inode).copied().collect();
            // While something comes from there it is worth waiting.
            if std::mem::replace(&mut known, events.len()) < events.len() {
                end = Instant::now() + DEADLINE;
            }
            if enough(&events) {
                return events;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "what was waited for is not among {events:#?}; {:?}", self.statistics());
            self.wait(left);
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

    /// Waits until there is something to read, or has been read.
    fn wait(&self, time: Duration) {
        if self.reader.is_some() {
            let is_empty = |(_, told): &mut (Ring, Told)| told.events.is_empty();
            let waited = self.shared.read.wait_timeout_while(self.shared.lock(), time, is_empty);
            drop(waited);
            return;
        }
        let timeout = Timespec::try_from(time).expect("30 s are not too long");
        poll(&mut [PollFd::new(&self.ring, PollFlags::IN)], Some(&timeout))
            .expect("a ring can be waited for");
    }

    /// Reads what is there.
    pub fn drain(&mut self) {
        let (ring, new) = &mut *self.shared.lock();
        new.read(ring);
        self.told.events.append(&mut new.events);
        self.told.cgroups.append(&mut new.cgroups);
        self.told.programs.append(&mut new.programs);
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

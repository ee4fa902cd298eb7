//! Which process is behind a flow: sockets known by the events of the BPF programs, and the processes that own them.
//!
//! The rules that give flows their owners are in `table/owners/`: the socket of a local client has the ends of the original
//! direction, that of a local server those of the reply direction, through every translation.

mod begins;
mod candidates;
mod claims;
mod probe;
mod processes;
mod recent;
mod sockets;
mod window;

use ctnetlink::Tuple;
use flowbus_attribution::Process;

use crate::clock::monotonic_nsec;
use crate::flow::{Identity, OwnerNumber};
use crate::state::State;
pub(crate) use begins::{Begins, Reused};
pub(crate) use probe::{Found, Probe, ProbeError};
pub(crate) use processes::Processes;
use recent::Recent;
pub(crate) use sockets::{Current, Place, Role, Sockets, Touched, direction, unspecified};
pub(crate) use window::{Begin, Window};

/// At most this many reports of sockets wait until all events before them have been applied.
const MAXIMUM_UNSETTLED: usize = 16_384;

/// A program that a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProgramKey {
    pub(crate) pid: u32,
    pub(crate) start_boottime_ns: u64,
    /// Tells the programs of one process apart.
    pub(crate) execs: u16,
}

impl ProgramKey {
    /// The program of this process.
    pub(crate) fn of(process: &Process) -> Self {
        let Process { pid, start_boottime_ns, execs, .. } = *process;
        Self { pid, start_boottime_ns, execs }
    }
}

/// What the table knows of sockets, while BPF programs report them.
#[derive(Debug)]
pub(crate) struct Attribution {
    /// The inode of the network namespace whose flows are tracked.
    pub(crate) network_namespace: u32,
    pub(crate) sockets: Sockets,
    /// The sockets of the other namespaces, whose flows are forwarded.
    pub(crate) elsewhere: Sockets,
    /// When the kernel sent the events that are being applied; until `from` all events have been applied.
    pub(crate) window: Window,
    /// What sockets did, with its time, and events of flows may still show: see `Table::settle`.
    pub(crate) unsettled: Vec<(u64, Touched)>,
    pub(crate) begins: Begins,
    /// All flows are to be looked at once all events until this time have been applied.
    pub(crate) look_at_all: Option<u64>,
    /// Flows with this id or a larger one are to be looked at: a dump has added some, of which no event will give an owner.
    pub(crate) look_from: Option<u64>,
    /// The paths of control groups by their number.
    paths: Recent<u64>,
    /// The paths of programs.
    programs: Recent<ProgramKey>,
}

impl Attribution {
    pub(crate) fn new(network_namespace: u32) -> Self {
        let now = monotonic_nsec();
        Self {
            network_namespace,
            sockets: Sockets::new(now),
            elsewhere: Sockets::elsewhere(now),
            window: Window { from: 0, to: now },
            unsettled: Vec::new(),
            begins: Begins::default(),
            look_at_all: Some(now),
            look_from: None,
            paths: Recent::default(),
            programs: Recent::default(),
        }
    }

    /// Where to look for the socket that sends in this direction: among those of the other namespaces where ours can have none.
    pub(crate) fn sockets_of(&self, direction: &Tuple) -> &Sockets {
        if self.is_elsewhere(direction) { &self.elsewhere } else { &self.sockets }
    }

    /// Where to look for the socket that sends in this direction, and to change it.
    pub(crate) fn sockets_of_mut(&mut self, direction: &Tuple) -> &mut Sockets {
        if self.is_elsewhere(direction) { &mut self.elsewhere } else { &mut self.sockets }
    }

    /// Whether only a socket of another namespace can send in this direction.
    pub(crate) fn is_elsewhere(&self, direction: &Tuple) -> bool {
        !self.elsewhere.is_empty() && !self.sockets.can_have(direction)
    }

    /// The sockets of the tracked namespace, and those of the others.
    pub(crate) fn all_sockets(&mut self) -> [&mut Sockets; 2] {
        [&mut self.sockets, &mut self.elsewhere]
    }

    /// The number of connections and datagrams that no flow has matched yet.
    pub(crate) fn pending(&self) -> u64 {
        self.sockets.pending() + self.elsewhere.pending()
    }

    /// Notes that flows may be touched by what a socket did at a time.
    pub(crate) fn touch(&mut self, at: u64, touched: Touched) {
        if self.unsettled.len() < MAXIMUM_UNSETTLED {
            self.unsettled.push((at, touched));
        } else {
            self.look_at_all = self.look_at_all.max(Some(at));
        }
    }

    /// Whether flows that are there are still to be looked at.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.look_at_all.is_some() || self.look_from.is_some() || !self.unsettled.is_empty()
    }

    /// Notes the path of a control group, from the root of cgroup2, "/" first.
    pub(crate) fn set_path(&mut self, cgroup: u64, path: &str) {
        self.paths.set(cgroup, path);
    }

    /// Notes the path of the program that a process runs.
    pub(crate) fn set_program(&mut self, program: ProgramKey, path: &str) {
        self.programs.set(program, path);
    }

    /// The number of a process that owns a socket in a namespace; the default, which is no process, if none is given or
    /// the table is full.
    pub(crate) fn owner(
        &mut self,
        processes: &mut Processes,
        state: &mut State,
        process: Option<&Process>,
        network_namespace: u32,
    ) -> OwnerNumber {
        let Some(process) = process else { return OwnerNumber::default() };
        let path = self.paths.get(&process.cgroup);
        let exe = self.programs.get(&ProgramKey::of(process));
        let elsewhere = if network_namespace == self.network_namespace { 0 } else { network_namespace };
        match processes.intern(state, Identity::new(process, elsewhere), path, exe) {
            Some(number) => OwnerNumber::new(number, process.confidence),
            None => {
                state.header.counters.owners_refused += 1;
                OwnerNumber::default()
            }
        }
    }
}

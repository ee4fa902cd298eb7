//! Loads the programs, one by one, and attaches them.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use aya::programs::{Program as Loaded, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::attach::{self, AttachType};
use crate::descriptors::Programs;
use crate::record::LAYOUT;
use crate::report::{OPEN_SOCKETS, Outcome, Program, Report};
use crate::snapshot::Snapshot;
use crate::{cgroup, memfd};

/// The size of the ring: a burst of 15,000 connections in a second, read every 5 ms, needs a tenth of it.
pub const DEFAULT_RING_BYTES: u32 = 4 << 20;

/// Why nothing could be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel has no description of its types.
    #[error("/sys/kernel/btf/vmlinux cannot be read, a kernel with CONFIG_DEBUG_INFO_BTF is needed: {0}")]
    Btf(#[from] aya::BtfError),
    /// The maps could not be made.
    #[error(
        "the kernel refuses the maps of the programs, which need CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN: {0}"
    )]
    Object(#[from] Box<aya::EbpfError>),
    /// A map is not in the object.
    #[error("the object has no map named {0}")]
    NoMap(&'static str),
    /// The program that all others rest on could not be loaded.
    #[error("the program tcp_state, without which no owner is known, is refused: {0}")]
    NoPrograms(String),
    /// The control groups could not be listed, or a descriptor not be made.
    #[error("{what}: {source}")]
    Io {
        /// What failed.
        what: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// Where a program goes.
enum Place {
    Tracepoint(&'static str),
    FunctionEntry(&'static str),
    FunctionExit(&'static str),
    Syscall(&'static str),
    Cgroup(AttachType),
}

/// The programs, in the order in which they are tried.
const PROGRAMS: [(&str, Place); 29] = [
    ("tcp_state", Place::Tracepoint("inet_sock_set_state")),
    ("tcp_connect", Place::Cgroup(AttachType::CgroupSockOps)),
    ("accept_exact", Place::FunctionExit("inet_accept")),
    ("accept_mptcp", Place::FunctionExit("mptcp_stream_accept")),
    ("accept_syscall", Place::Syscall("sys_exit_accept")),
    ("accept4_syscall", Place::Syscall("sys_exit_accept4")),
    ("accept_reader", Place::Tracepoint("tcp_rcv_space_adjust")),
    ("udp_send4", Place::Cgroup(AttachType::CgroupUdp4Sendmsg)),
    ("udp_send6", Place::Cgroup(AttachType::CgroupUdp6Sendmsg)),
    ("udp_send4_plain", Place::Cgroup(AttachType::CgroupUdp4Sendmsg)),
    ("udp_send6_plain", Place::Cgroup(AttachType::CgroupUdp6Sendmsg)),
    ("udp_sent", Place::Tracepoint("sock_send_length")),
    ("udp_sent4", Place::FunctionExit("udp_sendmsg")),
    ("udp_sent6", Place::FunctionExit("udpv6_sendmsg")),
    ("connect_stream", Place::FunctionExit("inet_stream_connect")),
    ("connect_datagram", Place::FunctionExit("inet_dgram_connect")),
    ("connect_mptcp", Place::FunctionExit("mptcp_connect")),
    ("connect_fastopen", Place::FunctionExit("tcp_sendmsg_fastopen")),
    ("connect_syscall", Place::Syscall("sys_exit_connect")),
    ("connect_io_uring", Place::Tracepoint("io_uring_complete")),
    // After the programs that see the end of a call: what it asks for is noted only where its end will be seen.
    ("connect_asked4", Place::Cgroup(AttachType::CgroupInet4Connect)),
    ("connect_asked6", Place::Cgroup(AttachType::CgroupInet6Connect)),
    ("program_opens", Place::Cgroup(AttachType::CgroupInetSockCreate)),
    ("program_accepts", Place::FunctionEntry("inet_accept")),
    ("udp_bind4", Place::Cgroup(AttachType::CgroupInet4PostBind)),
    ("udp_bind6", Place::Cgroup(AttachType::CgroupInet6PostBind)),
    ("socket_release", Place::Cgroup(AttachType::CgroupInetSockRelease)),
    ("cgroup_made", Place::Tracepoint("cgroup_mkdir")),
    ("cgroup_removed", Place::Tracepoint("cgroup_rmdir")),
];

/// Which programs do the work of another one: it is not needed where every program of one of its lists runs.
const INSTEAD: [(&str, &[&[&str]]); 10] = [
    ("connect_fastopen", &[&["udp_sent"]]),
    ("connect_syscall", &[&["connect_stream", "connect_datagram"]]),
    ("connect_io_uring", &[&["connect_stream", "connect_datagram"]]),
    ("accept_syscall", &[&["accept_exact"]]),
    ("accept4_syscall", &[&["accept_exact"]]),
    ("accept_reader", &[&["accept_exact"], &["accept_syscall", "accept4_syscall"]]),
    ("udp_send4_plain", &[&["udp_send4"]]),
    ("udp_send6_plain", &[&["udp_send6"]]),
    ("udp_sent4", &[&["udp_sent"]]),
    ("udp_sent6", &[&["udp_sent"]]),
];

/// Which programs another one works for: it is not needed where none of them runs.
const ONLY_WITH: [(&str, &[&str]); 3] = [
    ("connect_asked4", &CONNECT_ENDS),
    ("connect_asked6", &CONNECT_ENDS),
    // The others report it themselves.
    ("program_accepts", &["accept_exact"]),
];
const CONNECT_ENDS: [&str; 2] = ["connect_stream", "connect_syscall"];

/// Loads and attaches the programs, then takes the snapshot of what was open before. Needs CAP_BPF, CAP_PERFMON and
/// CAP_NET_ADMIN; what it returns needs nothing. A ring of `ring_bytes`, a power of two and a multiple of the page.
///
/// A program that the kernel refuses costs only what it reports, and is in the [`Report`]; without `tcp_state`
/// nothing is reported.
///
/// # Errors
///
/// The kernel has no BTF, makes no maps, or refuses `tcp_state`.
pub fn load(ring_bytes: u32) -> Result<(Programs, Snapshot), LoadError> {
    let network_namespace = network_namespace()?;
    let mut object = Object::open(ring_bytes, network_namespace)?;
    let (mut links, mut programs, mut tried) = (Vec::new(), Vec::new(), Vec::new());
    for (name, place) in &PROGRAMS {
        let outcome = if !is_needed(name, &tried) {
            Outcome::NotNeeded
        } else {
            match object.attach(name, place) {
                Ok((link, program)) => {
                    links.push(link);
                    programs.push(program);
                    Outcome::Attached
                }
                Err(reason) if *name == "tcp_state" => return Err(LoadError::NoPrograms(reason)),
                Err(reason) => Outcome::Failed(reason),
            }
        };
        tried.push(Program { name: (*name).to_owned(), outcome });
    }
    // What the iterator notes must not stand in the way of what the programs note: so it comes last.
    let (snapshot, outcomes) = object.snapshot()?;
    tried.extend(outcomes);
    let report =
        Report { layout: LAYOUT, ring_bytes: ring_bytes as usize, network_namespace, programs: tried }
            .to_string();
    let report = memfd::write("flowbus-bpf-report", &report).map_err(io("the report cannot be kept"))?;
    let (ring, statistics) = (object.map("records")?, object.map("statistics")?);
    Ok((Programs { ring, statistics, report, links, programs }, snapshot))
}

/// A snapshot alone, for a reader whose programs run already.
///
/// # Errors
///
/// The kernel has no BTF, makes no maps, or refuses the program that takes the snapshot.
pub fn snapshot() -> Result<Snapshot, LoadError> {
    // The maps of this object serve the snapshot alone, and go with it.
    let (snapshot, outcomes) = Object::open(UNUSED_RING_BYTES, network_namespace()?)?.snapshot()?;
    match outcomes.map(|program| program.outcome) {
        [_, Outcome::Failed(reason)] => Err(LoadError::NoPrograms(reason)),
        _ => Ok(snapshot),
    }
}

/// The size of a ring that nothing is written into: the largest page of any machine.
const UNUSED_RING_BYTES: u32 = 64 << 10;

fn is_needed(name: &str, tried: &[Program]) -> bool {
    let runs = |other: &&str| tried.iter().any(|one| one.name == **other && one.outcome == Outcome::Attached);
    let ways = INSTEAD.iter().filter(|(program, _)| *program == name).flat_map(|(_, ways)| *ways);
    let wanted =
        ONLY_WITH.iter().filter(|(program, _)| *program == name).all(|(_, any)| any.iter().any(runs));
    wanted && !ways.into_iter().any(|way| way.iter().all(runs))
}

fn network_namespace() -> Result<u32, LoadError> {
    use std::os::unix::fs::MetadataExt;
    let namespace =
        std::fs::metadata("/proc/thread-self/ns/net").map_err(io("the network namespace cannot be read"))?;
    u32::try_from(namespace.ino())
        .map_err(|error| io("the number of the network namespace is odd")(std::io::Error::other(error)))
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> LoadError {
    move |source| LoadError::Io { what, source }
}

/// The object, its maps made.
struct Object {
    object: Ebpf,
    btf: Btf,
    root: PathBuf,
    cgroup: File,
}

impl Object {
    fn open(ring_bytes: u32, network_namespace: u32) -> Result<Self, LoadError> {
        let btf = Btf::from_sys_fs()?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf)).map_max_entries("records", ring_bytes);
        loader.override_global("tracked_namespace", &network_namespace, true);
        let object = loader.load(aya::include_bytes_aligned!(env!("BPF_OBJECT"))).map_err(Box::new)?;
        let root = cgroup::root().map_err(io("there are no control groups"))?;
        let cgroup = File::open(&root).map_err(io("the root of the control groups cannot be opened"))?;
        Ok(Self { object, btf, root, cgroup })
    }

    fn map(&self, name: &'static str) -> Result<OwnedFd, LoadError> {
        use aya::maps::Map::{Array, RingBuf};
        let (Array(map) | RingBuf(map)) = self.object.map(name).ok_or(LoadError::NoMap(name))? else {
            return Err(LoadError::NoMap(name));
        };
        MapData::fd(map).as_fd().try_clone_to_owned().map_err(io("a descriptor cannot be made"))
    }

    /// Loads and attaches a program: its link and itself, or the reason why not.
    fn attach(&mut self, name: &str, place: &Place) -> Result<(OwnedFd, OwnedFd), String> {
        let loaded = self.object.program_mut(name).ok_or("it is not in the object")?;
        verify(loaded, place, &self.btf).map_err(reason)?;
        let program = loaded.fd().map_err(reason)?.as_fd();
        let link = match place {
            Place::Tracepoint(_) => attach::link(program, None, AttachType::TraceRawTp),
            Place::FunctionEntry(_) => attach::link(program, None, AttachType::TraceFentry),
            Place::FunctionExit(_) => attach::link(program, None, AttachType::TraceFexit),
            Place::Syscall(event) => attach_to_syscall(program, event),
            Place::Cgroup(attach_type) => attach::link(program, Some(self.cgroup.as_fd()), *attach_type),
        };
        Ok((link.map_err(reason)?, program.try_clone_to_owned().map_err(reason)?))
    }

    /// What is open, by the first of two programs that the kernel takes, and what became of each.
    fn snapshot(&mut self) -> Result<(Snapshot, [Program; 2]), LoadError> {
        let mut sockets = None;
        let outcomes = OPEN_SOCKETS.map(|name| {
            let outcome = match sockets.is_none().then(|| self.iterator(name)) {
                None => Outcome::NotNeeded,
                Some(Ok(found)) => {
                    sockets = Some(found);
                    Outcome::Attached
                }
                Some(Err(reason)) => Outcome::Failed(reason),
            };
            Program { name: name.to_owned(), outcome }
        });
        let cgroups = cgroup::list(&self.root).and_then(|text| memfd::write("flowbus-bpf-cgroups", &text));
        Ok((
            Snapshot { sockets, cgroups: cgroups.map_err(io("the control groups cannot be listed"))? },
            outcomes,
        ))
    }

    fn iterator(&mut self, name: &str) -> Result<OwnedFd, String> {
        let Some(Loaded::Iter(program)) = self.object.program_mut(name) else {
            return Err("it is not in the object".to_owned());
        };
        program.load("task_file", &self.btf).map_err(reason)?;
        let link = attach::link(program.fd().map_err(reason)?.as_fd(), None, AttachType::TraceIter);
        attach::iterator(&link.map_err(reason)?).map_err(reason)
    }
}

/// Has the kernel verify a program.
fn verify(program: &mut Loaded, place: &Place, btf: &Btf) -> Result<(), ProgramError> {
    match (program, place) {
        (Loaded::BtfTracePoint(program), Place::Tracepoint(name)) => program.load(name, btf),
        (Loaded::FEntry(program), Place::FunctionEntry(name)) => program.load(name, btf),
        (Loaded::FExit(program), Place::FunctionExit(name)) => program.load(name, btf),
        (Loaded::TracePoint(program), Place::Syscall(_)) => program.load(),
        (Loaded::SockOps(program), Place::Cgroup(_)) => program.load(),
        (Loaded::CgroupSockAddr(program), Place::Cgroup(_)) => program.load(),
        (Loaded::CgroupSock(program), Place::Cgroup(_)) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn attach_to_syscall(program: BorrowedFd<'_>, event: &str) -> std::io::Result<OwnedFd> {
    let file = format!("events/syscalls/{event}/id");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut text = String::new();
    File::from(rustix::fs::openat(tracefs()?, file, flags, Mode::empty())?).read_to_string(&mut text)?;
    let id = text.trim().parse().map_err(std::io::Error::other)?;
    attach::link(program, Some(attach::tracepoint(id)?.as_fd()), AttachType::PerfEvent)
}

/// The directory of tracefs: where systemd has mounted it, else mounted nowhere, which takes all of root's powers.
fn tracefs() -> std::io::Result<OwnedFd> {
    let mounted = Path::new("/sys/kernel/tracing");
    if mounted.join("events").exists() {
        return File::open(mounted).map(OwnedFd::from);
    }
    let context = mount::fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount::fsconfig_create(context.as_fd())?;
    Ok(mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}

/// Why a program does not run, in a line.
pub(crate) fn reason(error: impl Into<ProgramError>) -> String {
    match error.into() {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let mut complaints = log.lines().filter(|line| {
                !line.trim().is_empty()
                    && !["processed ", "stack depth ", "verification time "]
                        .iter()
                        .any(|start| line.starts_with(start))
            });
            match complaints.next_back() {
                Some(complaint) => format!("{io_error}, the verifier: {complaint}"),
                None => io_error.to_string(),
            }
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Program, is_needed};

    fn tried(outcomes: [Outcome; 3]) -> Vec<Program> {
        let names = ["accept_exact", "accept_syscall", "accept4_syscall"].map(str::to_owned);
        names.into_iter().zip(outcomes).map(|(name, outcome)| Program { name, outcome }).collect()
    }

    #[test]
    fn what_a_call_asks_for_is_noted_only_where_its_end_is_seen() {
        let end = |outcome| [Program { name: "connect_syscall".to_owned(), outcome }];
        assert!(is_needed("connect_asked4", &end(Outcome::Attached)));
        assert!(!is_needed("connect_asked4", &end(Outcome::Failed("No such file or directory".to_owned()))));
    }

    #[test]
    fn who_reads_is_asked_where_nothing_else_sees_every_accept() {
        use Outcome::{Attached, NotNeeded};
        let failed = || Outcome::Failed("Cannot allocate memory".to_owned());
        for (outcomes, needed) in [
            ([Attached, NotNeeded, NotNeeded], false),
            ([failed(), Attached, Attached], false),
            ([failed(), Attached, failed()], true),
            ([failed(), failed(), Attached], true),
            ([failed(), failed(), failed()], true),
        ] {
            assert_eq!(is_needed("accept_reader", &tried(outcomes.clone())), needed, "{outcomes:?}");
        }
        assert!(!is_needed("accept4_syscall", &tried([Attached, NotNeeded, NotNeeded])));
        assert!(is_needed("tcp_state", &[]));
    }
}

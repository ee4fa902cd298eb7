//! Finds the process that has a socket by looking through /proc after the fact: where BPF is refused, and by hand alone.
//! Connections that are over by then have no owner.
//!
//! A thread of its own is asked for the flows that begin or end here, and looks at most ten times a second.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::sleep;
use std::time::Duration;

use ctnetlink::Tuple;
use flowbus_attribution::{Confidence, Event, Kind, Process};

use crate::clock::monotonic_nsec;
use crate::flow::{TCP, UDP};
use crate::handle::{Command, Handle};
use crate::owners::{Found, Place, unspecified};
use flowbus_interfaces::fit;

/// The most directions of flows that wait to be looked up; what comes faster is not looked up.
const WAITING: usize = 256;
/// The time between two looks: one takes some milliseconds.
const PAUSE: Duration = Duration::from_millis(100);
/// How often one direction is looked up at most.
const LOOKS: usize = 5;

/// Looks for the owners of what the tracker asks for, until it ends.
pub(super) fn run(handle: &Handle) {
    let Ok(namespace) = fs::metadata("/proc/self/ns/net") else { return };
    let network_namespace = fit(namespace.ino());
    let (questions, asked) = sync_channel(WAITING);
    if handle.send_blocking(Command::LookUp { network_namespace, questions }).is_err() {
        return;
    }
    // What a look did not find is looked for again: a connection has no process before it is accepted.
    let mut waiting: VecDeque<Vec<Tuple>> = VecDeque::new();
    while let Some(new) = next(&asked, waiting.is_empty()) {
        waiting.push_front(new);
        let wanted: Vec<Tuple> = waiting.iter().flatten().copied().collect();
        let found = look(&wanted, network_namespace);
        let is_found = |tuple: &Tuple| found.iter().any(|found| Place::of(tuple) == Some(found.place()));
        for asked in &mut waiting {
            asked.retain(|tuple| !is_found(tuple));
        }
        waiting.truncate(LOOKS - 1);
        if waiting.iter().all(Vec::is_empty) {
            waiting.clear();
        }
        if !found.is_empty() && handle.send_blocking(Command::Found(found)).is_err() {
            tracing::debug!("the tracker does not take what was found");
        }
        sleep(PAUSE);
    }
}

/// All directions that are asked for by now; with `wait` there is at least one. `None` when nobody asks any more.
fn next(asked: &Receiver<Tuple>, wait: bool) -> Option<Vec<Tuple>> {
    let first = if wait { Some(asked.recv().ok()?) } else { None };
    // A look that is repeated sees the end as well.
    Some(first.into_iter().chain(asked.try_iter()).collect())
}

/// The processes that send in these directions, as far as they have a socket for it now.
fn look(wanted: &[Tuple], network_namespace: u32) -> Vec<Found> {
    let monotonic_ns = monotonic_nsec();
    let sockets = ProcSockets::read();
    let mut directions: HashMap<u64, Vec<&Tuple>> = HashMap::new();
    for tuple in wanted {
        if let Some(inode) = sockets.sender(tuple) {
            directions.entry(inode).or_default().push(tuple);
        }
    }
    if directions.is_empty() {
        return Vec::new();
    }
    // The first process that has each socket, and whether it is the only one.
    let mut holders: HashMap<u64, (u32, Confidence)> = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        let links = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        for inode in
            links.filter_map(|link| socket_inode(&link)).filter(|inode| directions.contains_key(inode))
        {
            let (holder, confidence) = holders.entry(inode).or_insert((process, Confidence::Procfs));
            if *holder != process {
                *confidence = Confidence::Shared;
            }
        }
    }
    let mut found = Vec::new();
    for (inode, (process, confidence)) in holders {
        let Some(tuples) = directions.remove(&inode) else { continue };
        let Some((process, path)) = describe(process) else { continue };
        let exe = program(process.pid);
        let places = tuples.into_iter().filter_map(Place::of);
        found.extend(places.map(|Place { protocol, local, remote }| Found {
            event: Event {
                kind: Kind::Send,
                monotonic_ns,
                cookie: inode,
                network_namespace,
                protocol,
                local,
                remote,
                process: Some(Process { confidence, ..process }),
                opened: None,
                connect_usec: None,
            },
            path: path.clone(),
            exe: exe.clone(),
        }));
    }
    found
}

/// The inode in "socket:[12345]".
fn socket_inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// What /proc says of a process.
fn describe(pid: u32) -> Option<(Process, Option<String>)> {
    /// USER_HZ, which the kernel shows times in, whatever it counts in.
    const TICK_NSEC: u64 = 10_000_000;
    let (name, start) = parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)?;
    let groups = fs::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = groups.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::"));
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let cgroup = path.and_then(|path| {
        let inode = |root: &str| {
            let path = [root.as_bytes(), path].concat();
            Some(fs::metadata(OsStr::from_bytes(&path)).ok()?.ino())
        };
        roots.into_iter().find_map(inode)
    });
    let path = path.map(|path| String::from_utf8_lossy(path).into_owned());
    let process = Process {
        pid,
        tid: pid,
        start_boottime_ns: start * TICK_NSEC,
        uid: fs::metadata(format!("/proc/{pid}")).ok()?.uid(),
        comm: name,
        leader_comm: name,
        cgroup: cgroup.unwrap_or(0),
        execs: 0,
        confidence: Confidence::Procfs,
    };
    Some((process, path))
}

/// The path of the program that a process runs, as it was when it was started.
fn program(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?.to_string_lossy().into_owned();
    Some(path.strip_suffix(" (deleted)").map_or(path.clone(), str::to_owned))
}

/// The name in /proc/PID/stat and the start in ticks: "pid (comm) state ...", where the name can have any bytes in it, and
/// the start is the 22nd field.
fn parse_stat(stat: &[u8]) -> Option<([u8; 16], u64)> {
    let begin = stat.iter().position(|byte| *byte == b'(')? + 1;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let comm = stat.get(begin..end)?;
    let mut name = [0; 16];
    let length = comm.len().min(15);
    name[..length].copy_from_slice(&comm[..length]);
    let fields = std::str::from_utf8(&stat[end + 1..]).ok()?;
    Some((name, fields.split_whitespace().nth(19)?.parse().ok()?))
}

/// The open sockets of this network namespace: place to inode.
struct ProcSockets(HashMap<Place, u64>);

impl ProcSockets {
    fn read() -> Self {
        let mut sockets = HashMap::new();
        for (name, protocol) in [("tcp", TCP), ("tcp6", TCP), ("udp", UDP), ("udp6", UDP)] {
            let text = fs::read_to_string(format!("/proc/self/net/{name}")).unwrap_or_default();
            let lines = text.lines().skip(1).filter_map(socket);
            sockets.extend(lines.map(|(local, remote, inode)| (Place { protocol, local, remote }, inode)));
        }
        Self(sockets)
    }

    /// The socket that sends in a direction, which begins at an address of this machine.
    fn sender(&self, tuple: &Tuple) -> Option<u64> {
        let Place { protocol, local, remote } = Place::of(tuple)?;
        let nobody = |like: SocketAddr| SocketAddr::new(unspecified(like.ip()), 0);
        let any = |like: SocketAddr| SocketAddr::new(unspecified(like.ip()), local.port());
        let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), local.port());
        let mut ends = vec![(local, remote)];
        if protocol == UDP {
            ends.extend([
                (local, nobody(remote)),
                (any(local), nobody(remote)),
                (both, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0)),
            ]);
        }
        ends.into_iter().find_map(|(local, remote)| self.0.get(&Place { protocol, local, remote }).copied())
    }
}

/// Both ends and the inode in a line of /proc/net/tcp and its like: "0: 0100007F:1F90 00000000:0000 0A ... inode". A socket
/// that nobody has any more has the inode 0.
fn socket(line: &str) -> Option<(SocketAddr, SocketAddr, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (local, remote) = (end(words.get(1)?)?, end(words.get(2)?)?);
    let inode = words.get(9)?.parse().ok().filter(|inode| *inode != 0)?;
    Some((local, remote, inode))
}

/// Address and port in hexadecimal, the address in words of the machine's order. A mapped address is the IPv4 inside.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        Some(u32::from_str_radix(address.get(8 * index..8 * index + 8)?, 16).ok()?.to_ne_bytes())
    };
    let address = if address.len() == 8 {
        IpAddr::from(word(0)?)
    } else {
        let words = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
        IpAddr::from(<[u8; 16]>::try_from(words).ok()?).to_canonical()
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_is_read_in_both_families() {
        let v4 = "  0: 0100007F:1F90 0200007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 4711 1";
        let (local, remote, inode) = socket(v4).unwrap();
        assert_eq!(
            (local, remote, inode),
            ("127.0.0.1:8080".parse().unwrap(), "127.0.0.2:50000".parse().unwrap(), 4711)
        );
        let mapped = end("0000000000000000FFFF00000100007F:0050").unwrap();
        assert_eq!(mapped, "127.0.0.1:80".parse().unwrap());
        assert_eq!(end("02000120000000000000000001000000:0050"), "[2001:2::1]:80".parse().ok());
        assert_eq!(socket(&v4.replace("4711", "0")), None, "nobody has it");
        assert_eq!(socket("  sl  local_address rem_address"), None);
    }

    #[test]
    fn a_process_may_have_any_name() {
        let stat = b"7 (caf\xe9) ) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 8192 9";
        let (name, start) = parse_stat(stat).unwrap();
        assert_eq!((&name[..7], start), (&b"caf\xe9) \0"[..], 4711));
    }

    #[test]
    fn this_process_is_described() {
        let (process, _) = describe(std::process::id()).unwrap();
        let name = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(process.comm.split(|byte| *byte == 0).next(), Some(name.trim().as_bytes()));
        assert!(process.start_boottime_ns > 0);
        assert_eq!(socket_inode(Path::new("socket:[12]")), Some(12));
        assert_eq!(socket_inode(Path::new("pipe:[12]")), None);
    }
}

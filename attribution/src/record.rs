//! The records of the programs (`../bpf/record.h`), decoded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use zerocopy::byteorder::{I32, NativeEndian, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::event::{Confidence, Event, Kind, Message, Process};

/// Grows with every change of `record.h`: programs that were left by another version are not read.
pub(crate) const LAYOUT: u32 = 1;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ProcessRecord {
    start_boottime: U64<NativeEndian>,
    cgroup: U64<NativeEndian>,
    pid: U32<NativeEndian>,
    tid: U32<NativeEndian>,
    uid: U32<NativeEndian>,
    confidence: U32<NativeEndian>,
    comm: [u8; 16],
    leader_comm: [u8; 16],
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SocketRecord {
    kind: U32<NativeEndian>,
    error: I32<NativeEndian>,
    monotonic: U64<NativeEndian>,
    cookie: U64<NativeEndian>,
    process: ProcessRecord,
    sent: U64<NativeEndian>,
    received: U64<NativeEndian>,
    network_namespace: U32<NativeEndian>,
    local_port: U16<NativeEndian>,
    remote_port: U16<NativeEndian>,
    local: [u8; 16],
    remote: [u8; 16],
    family: u8,
    protocol: u8,
    padding: [u8; 6],
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CgroupRecord {
    kind: U32<NativeEndian>,
    padding: U32<NativeEndian>,
    id: U64<NativeEndian>,
}

/// The size of a record of a socket.
pub(crate) const SOCKET_RECORD_BYTES: usize = size_of::<SocketRecord>();
/// The size of the largest record: one of a control group with the longest path.
pub(crate) const LARGEST_RECORD_BYTES: usize = size_of::<CgroupRecord>() + 4096;

const CGROUP_MADE: u32 = 12;
const CGROUP_REMOVED: u32 = 13;

/// What a record says; `None` where it is none of ours. `text` holds the path of a control group.
pub(crate) fn decode<'text>(bytes: &[u8], text: &'text mut String) -> Option<Message<'text>> {
    let (kind, _) = U32::<NativeEndian>::read_from_prefix(bytes).ok()?;
    match kind.get() {
        CGROUP_MADE => {
            let (record, path) = CgroupRecord::ref_from_prefix(bytes).ok()?;
            // The ring rounds records up, so that the text ends with its zero and not with the record.
            let path = path.split(|byte| *byte == 0).next()?;
            text.clear();
            text.push_str(&String::from_utf8_lossy(path));
            Some(Message::Cgroup { id: record.id.get(), path: text })
        }
        CGROUP_REMOVED => {
            let (record, _) = CgroupRecord::ref_from_prefix(bytes).ok()?;
            Some(Message::CgroupRemoved { id: record.id.get() })
        }
        _ => decode_socket(bytes).map(Message::Event),
    }
}

/// What a record of a socket says.
pub(crate) fn decode_socket(bytes: &[u8]) -> Option<Event> {
    let (record, _) = SocketRecord::ref_from_prefix(bytes).ok()?;
    let (local, remote) = (address(record.family, &record.local)?, address(record.family, &record.remote)?);
    // The wildcard of a socket for both families, where the other end is IPv4.
    let local = if remote.is_ipv4() && local.is_unspecified() { Ipv4Addr::UNSPECIFIED.into() } else { local };
    Some(Event {
        kind: kind(record)?,
        monotonic_ns: record.monotonic.get(),
        cookie: record.cookie.get(),
        network_namespace: record.network_namespace.get(),
        protocol: record.protocol,
        local: SocketAddr::new(local, record.local_port.get()),
        remote: SocketAddr::new(remote, record.remote_port.get()),
        process: process(&record.process),
    })
}

fn kind(record: &SocketRecord) -> Option<Kind> {
    let errno = record.error.get();
    Some(match record.kind.get() {
        1 => Kind::Syn,
        2 => Kind::Connect,
        3 => Kind::ConnectFailed { errno },
        4 => Kind::Incoming,
        5 => Kind::Accept,
        6 => Kind::Close { reset: errno != 0, sent: record.sent.get(), received: record.received.get() },
        7 => Kind::Listen,
        8 => Kind::Bind,
        9 => Kind::Send,
        10 => Kind::Snapshot,
        11 => Kind::Release,
        _ => return None,
    })
}

fn address(family: u8, bytes: &[u8; 16]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()),
        AF_INET6 => Some(Ipv6Addr::from(*bytes).to_canonical()),
        _ => None,
    }
}

fn process(record: &ProcessRecord) -> Option<Process> {
    let confidence = match record.confidence.get() {
        1 => Confidence::Exact,
        2 => Confidence::Reader,
        3 => Confidence::Snapshot,
        4 => Confidence::Inherited,
        _ => return None,
    };
    Some(Process {
        pid: record.pid.get(),
        tid: record.tid.get(),
        start_boottime_ns: record.start_boottime.get(),
        uid: record.uid.get(),
        comm: record.comm,
        leader_comm: record.leader_comm,
        cgroup: record.cgroup.get(),
        confidence,
    })
}

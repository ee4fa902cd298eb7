//! The records of the programs (`../bpf/record.h`), decoded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use zerocopy::byteorder::{I32, NativeEndian, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::event::{Confidence, Event, Kind, Message, Process};

/// Grows with every change of `record.h`: programs that were left by another version are not read.
pub(crate) const LAYOUT: u32 = 4;

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
    confidence: U16<NativeEndian>,
    execs: U16<NativeEndian>,
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
    opened: u8,
    padding: u8,
    rtt_usec: U32<NativeEndian>,
    retransmissions: U32<NativeEndian>,
    connect_usec: U32<NativeEndian>,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CgroupRecord {
    kind: U32<NativeEndian>,
    padding: U32<NativeEndian>,
    id: U64<NativeEndian>,
}

/// How many bytes of names a record of a program has room for.
const PROGRAM_NAMES_BYTES: usize = 384;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ProgramRecord {
    kind: U32<NativeEndian>,
    pid: U32<NativeEndian>,
    start_boottime: U64<NativeEndian>,
    execs: U16<NativeEndian>,
    is_cut: u8,
    padding: u8,
    length: U32<NativeEndian>,
    names: [u8; PROGRAM_NAMES_BYTES],
}

/// The size of a record of a program.
const PROGRAM_RECORD_BYTES: usize = size_of::<ProgramRecord>();
const _: () = assert!(PROGRAM_RECORD_BYTES == 408, "what record.h asserts too");
/// The size of a record of a socket.
pub(crate) const SOCKET_RECORD_BYTES: usize = size_of::<SocketRecord>();
const _: () = assert!(SOCKET_RECORD_BYTES == 160, "what record.h asserts too");
/// The size of the largest record: one of a control group with the longest path.
pub(crate) const LARGEST_RECORD_BYTES: usize = size_of::<CgroupRecord>() + 4096;

const CGROUP_MADE: u32 = 12;
const CGROUP_REMOVED: u32 = 13;
const PROGRAM: u32 = 14;

/// What a record says; `None` where no program of ours writes it. `text` holds the path of a control group or a program.
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
        PROGRAM => {
            let (record, _) = ProgramRecord::ref_from_prefix(bytes).ok()?;
            write_path(record, text)?;
            Some(Message::Program {
                pid: record.pid.get(),
                start_boottime_ns: record.start_boottime.get(),
                execs: record.execs.get(),
                path: text,
            })
        }
        _ => decode_socket(bytes).map(Message::Event),
    }
}

/// The bytes of the first of several records in a row, as a snapshot has them; `None` where they are not all there.
pub(crate) fn first(bytes: &[u8]) -> Option<&[u8]> {
    let (kind, _) = U32::<NativeEndian>::read_from_prefix(bytes).ok()?;
    bytes.get(..if kind.get() == PROGRAM { PROGRAM_RECORD_BYTES } else { SOCKET_RECORD_BYTES })
}

/// Writes the path of a program, whose names are in the record from its own to that below the root.
fn write_path(record: &ProgramRecord, text: &mut String) -> Option<()> {
    let names = record.names.get(..usize::try_from(record.length.get()).ok()?)?;
    let names = names.strip_suffix(b"\0")?;
    text.clear();
    if record.is_cut != 0 {
        text.push_str("...");
    }
    for name in names.split(|byte| *byte == 0).rev() {
        text.push('/');
        text.push_str(&String::from_utf8_lossy(name));
    }
    Some(())
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
        opened: opened(record),
        connect_usec: known(record.connect_usec),
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
        6 => Kind::Close {
            reset: errno != 0,
            sent: record.sent.get(),
            received: record.received.get(),
            rtt_usec: known(record.rtt_usec),
            retransmissions: record.retransmissions.get(),
        },
        7 => Kind::Listen,
        8 => Kind::Bind,
        9 => Kind::Send,
        10 => Kind::Snapshot,
        11 => Kind::Release,
        _ => return None,
    })
}

/// A number that is 0 where it is not known.
fn known(number: U32<NativeEndian>) -> Option<u32> {
    Some(number.get()).filter(|number| *number != 0)
}

/// Whether this end opened the connection: what happens to it says so, or the programs have noted it.
fn opened(record: &SocketRecord) -> Option<bool> {
    match (record.kind.get(), record.opened) {
        (1 | 2, _) | (_, 1) => Some(true),
        (4 | 5, _) | (_, 2) => Some(false),
        _ => None,
    }
}

fn address(family: u8, bytes: &[u8; 16]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()),
        AF_INET6 => Some(Ipv6Addr::from(*bytes).to_canonical()),
        _ => None,
    }
}

/// A name with zeros behind its first: Linux 6.1 leaves there what was in the record before.
fn filled_up(mut name: [u8; 16]) -> [u8; 16] {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name[end..].fill(0);
    name
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
        comm: filled_up(record.comm),
        leader_comm: filled_up(record.leader_comm),
        cgroup: record.cgroup.get(),
        confidence,
        execs: record.execs.get(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of the kind `kind`, from 10.0.0.1:1000 to 10.0.0.2:53, by process 7.
    fn record(kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; SOCKET_RECORD_BYTES];
        let mut put =
            |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(0, &kind.to_ne_bytes());
        put(4, &111_i32.to_ne_bytes());
        put(8, &5_u64.to_ne_bytes());
        put(16, &6_u64.to_ne_bytes());
        put(40, &7_u32.to_ne_bytes());
        put(52, &1_u16.to_ne_bytes());
        put(54, &2_u16.to_ne_bytes());
        put(56, b"thread\0of old");
        put(72, b"leader");
        put(88, &8_u64.to_ne_bytes());
        put(96, &9_u64.to_ne_bytes());
        put(104, &4_026_531_840_u32.to_ne_bytes());
        put(108, &1000_u16.to_ne_bytes());
        put(110, &53_u16.to_ne_bytes());
        put(112, &[10, 0, 0, 1]);
        put(128, &[10, 0, 0, 2]);
        put(144, &[AF_INET, 6, 1]);
        put(148, &250_u32.to_ne_bytes());
        put(152, &3_u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_record_is_an_event() {
        let event = decode_socket(&record(6)).unwrap_or_else(|| panic!("it decodes"));
        let Event { kind, local, remote, process, opened, connect_usec, .. } = event;
        let close =
            Kind::Close { reset: true, sent: 8, received: 9, rtt_usec: Some(250), retransmissions: 3 };
        assert_eq!((kind, opened, connect_usec), (close, Some(true), None));
        assert_eq!(
            (local.to_string(), remote.to_string()),
            ("10.0.0.1:1000".to_owned(), "10.0.0.2:53".to_owned())
        );
        let process = process.unwrap_or_else(|| panic!("somebody did it"));
        assert_eq!((process.pid, process.execs, process.confidence), (7, 2, Confidence::Exact));
        assert_eq!(&process.comm, b"thread\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(&process.leader_comm, b"leader\0\0\0\0\0\0\0\0\0\0");
    }

    /// A record of a program by process 7.
    fn program(is_cut: bool, names: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xff; PROGRAM_RECORD_BYTES];
        let mut put =
            |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(0, &PROGRAM.to_ne_bytes());
        put(4, &7_u32.to_ne_bytes());
        put(8, &5_u64.to_ne_bytes());
        put(16, &2_u16.to_ne_bytes());
        put(18, &[u8::from(is_cut)]);
        put(20, &u32::try_from(names.len()).unwrap_or_default().to_ne_bytes());
        put(24, names);
        bytes
    }

    #[test]
    fn the_path_of_a_program_begins_at_its_last_name() {
        for (is_cut, names, expected) in [
            (false, &b"curl\0bin\0usr\0"[..], "/usr/bin/curl"),
            (false, b"memfd:x\0", "/memfd:x"),
            (true, b"curl\0bin\0", ".../bin/curl"),
            (false, b"caf\xe9\0bin\0", "/bin/caf\u{fffd}"),
        ] {
            let mut text = String::from("of before");
            let message = decode(&program(is_cut, names), &mut text);
            let expected = Message::Program { pid: 7, start_boottime_ns: 5, execs: 2, path: expected };
            assert_eq!(message, Some(expected));
        }
        assert_eq!(decode(&program(false, b""), &mut String::new()), None, "no name");
        assert_eq!(decode(&program(false, b"curl"), &mut String::new()), None, "a name without its end");
        let mut long = program(false, b"curl\0");
        long[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(decode(&long, &mut String::new()), None, "more names than there is room for");
    }

    #[test]
    fn records_in_a_row_are_taken_one_by_one() {
        let row = [program(false, b"curl\0"), record(10)].concat();
        assert_eq!(first(&row).map(<[u8]>::len), Some(PROGRAM_RECORD_BYTES));
        assert_eq!(first(&row[PROGRAM_RECORD_BYTES..]).map(<[u8]>::len), Some(SOCKET_RECORD_BYTES));
        for length in [0, 3, PROGRAM_RECORD_BYTES - 1] {
            assert_eq!(first(&row[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn a_record_cut_anywhere_is_none() {
        let (whole, mut text) = (record(1), String::new());
        for length in 0..whole.len() {
            assert_eq!(decode(&whole[..length], &mut text), None, "{length} bytes");
        }
        assert!(decode(&whole, &mut text).is_some());
    }

    #[test]
    fn kinds_and_families_that_are_not_known_are_none() {
        for kind in [0, 15, u32::MAX] {
            assert_eq!(decode(&record(kind), &mut String::new()), None);
        }
        let mut other = record(1);
        other[144] = 1;
        assert_eq!(decode(&other, &mut String::new()), None);
    }

    #[test]
    fn a_mapped_address_is_ipv4() {
        let mut mapped = record(2);
        mapped[112..144]
            .copy_from_slice(&[[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 198, 18, 0, 1]; 2].concat());
        mapped[144] = AF_INET6;
        let event = decode_socket(&mapped).unwrap_or_else(|| panic!("it decodes"));
        assert_eq!(
            (event.local.to_string(), event.remote.to_string()),
            ("198.18.0.1:1000".to_owned(), "198.18.0.1:53".to_owned())
        );
        mapped[112..128].fill(0);
        let event = decode_socket(&mapped).unwrap_or_else(|| panic!("it decodes"));
        assert_eq!(event.local.to_string(), "0.0.0.0:1000");
    }
}

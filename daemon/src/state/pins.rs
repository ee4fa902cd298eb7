//! What stands in the state of another version is read as what it was, or refused: layouts and numbers are pinned, and a
//! state that was written once is read for good.
//!
//! Where a test here fails the layout has changed: `VERSION` has to grow, then layout and golden state are written anew by
//! `cargo test -p flowbusd -- --ignored the_golden_state_is_written`.

use std::net::Ipv4Addr;
use std::time::Duration;

use ctnetlink::{EventKind, Flow, Layer4, Status, Tuple};
use flowbus_attribution::{Confidence, Process};
use flowbus_interfaces::{EndReason, TimeSource};

use zerocopy::{FromBytes, IntoBytes};

use super::layout::*;
use super::*;
use crate::change::Changes;
use crate::clock::Now;
use crate::counters::{Counters, ResyncReason};
use crate::flow::{ClosedLimits, Key, OwnerNumber, ProcessNumber, Silence, inverted};
use crate::table::Table;

/// The layout of the state and of each type in it.
fn layouts() -> String {
    let mut lines = vec![
        format!("version {VERSION}"),
        format!(
            "places: header {HEADER:#x} undo {UNDO:#x} inbox {INBOX:#x} names {NAMES:#x} ends {ENDS:#x} records {RECORDS:#x} extras {EXTRAS:#x} \
             closed {:#x} {:#x} owners {OWNERS:#x} processes {PROCESSES:#x} total {TOTAL:#x}",
            CLOSED[0], CLOSED[1]
        ),
        Header::layout(),
        Counters::layout(),
        OwnersEntry::layout(),
        NameEntry::layout(),
    ];
    lines.extend(crate::flow::layouts());
    lines.join("\n") + "\n"
}

#[test]
fn every_field_of_every_stored_type_is_where_it_was() {
    assert_eq!(layouts(), include_str!("layout.txt"));
}

#[test]
fn every_stored_number_is_what_it_was() {
    use ResyncReason::{NewSocket, Overrun, Start, StateRefused};
    assert_eq!([Start, Overrun, StateRefused, NewSocket].map(|reason| reason as u32), [1, 2, 3, 4]);
    use TimeSource::{Estimated, Event, Kernel, Observed};
    assert_eq!([Kernel, Event, Observed, Estimated].map(|source| source as u8), [0, 1, 2, 3]);
    use EndReason::{Destroyed, Replaced, Resync};
    assert_eq!([Destroyed, Resync, Replaced].map(|reason| reason as u8), [0, 1, 2]);
    use Silence::{Masked, Tells, Unheard};
    assert_eq!([Tells, Unheard, Masked].map(|silence| silence as u8), [0, 1, 2]);
    use Confidence::{Exact, Inherited, Procfs, Reader, Shared, Snapshot};
    let process = ProcessNumber::new(3, 1);
    let numbers: [u32; 6] = [Exact, Reader, Snapshot, Inherited, Procfs, Shared]
        .map(|confidence| zerocopy::transmute!(OwnerNumber::new(process, confidence)));
    let number = |confidence: u32| confidence << 29 | 1 << 18 | 3;
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6].map(number));
    let opened = [None, Some(true), Some(false)]
        .map(|opened| -> u32 { zerocopy::transmute!(OwnerNumber::new(process, Exact).with_opened(opened)) });
    assert_eq!(opened, [0, 1, 2].map(|opened| number(1) | opened << 27));
    assert_eq!(crate::flow::present_bits(), [1, 2, 4, 8, 16, 32]);
    // The last byte of a key says how the others are to be read.
    let shape = |src: std::net::IpAddr, layer4| {
        let tuple = Tuple { src, dst: src, protocol: 6, layer4, zone: 0 };
        *Key::new(&tuple).as_bytes().last().unwrap()
    };
    let (v4, v6) = ("198.18.0.1".parse().unwrap(), "2001:2::1".parse().unwrap());
    let ports = Layer4::Ports { src: 1, dst: 2 };
    let icmp = Layer4::Icmp { kind: 8, code: 0, id: 1 };
    assert_eq!([shape(v4, Layer4::None), shape(v4, ports), shape(v4, icmp), shape(v6, ports)], [0, 2, 4, 3]);
}

const LIMITS: ClosedLimits = ClosedLimits { capacity: 8, maximum_age: Duration::from_secs(1 << 40) };
const NOW: Now = Now { realtime_usec: 1_700_000_000_000_000, boottime_usec: 5_000_000 };

fn flow(number: u16) -> Flow<'static> {
    let original = Tuple {
        src: Ipv4Addr::new(198, 18, 0, 1).into(),
        dst: Ipv4Addr::new(198, 18, 0, 2).into(),
        protocol: 17,
        layer4: Layer4::Ports { src: number, dst: 53 },
        zone: 7,
    };
    Flow {
        status: Some(Status::CONFIRMED | Status::ASSURED),
        id: Some(u32::from(number) << 8),
        timeout: Some(30),
        mark: Some(0x29),
        ..Flow::new(original, inverted(&original, 7))
    }
}

/// A state with an active flow, one that is translated and has a helper and labels, and one that ended.
fn example() -> State {
    let mut state = State::create().unwrap();
    state.header.epoch = *b"epoch of example";
    let mut table = Table::new(state, LIMITS);
    let mut changes = Changes::default();
    let mut change = table.change();
    for number in [1, 2] {
        change.apply(EventKind::New, &flow(number), NOW, &mut changes);
    }
    let reply = Tuple { dst: Ipv4Addr::new(198, 18, 0, 9).into(), ..flow(3).reply };
    let translated = Flow { helper: Some(b"ftp"), labels: Some(&[1, 2, 3, 4]), reply, ..flow(3) };
    change.apply(EventKind::New, &translated, NOW, &mut changes);
    let stopped = Flow { stop_nsec: Some(1_700_000_001_000_000_000), ..flow(2) };
    change.apply(EventKind::Destroy, &stopped, NOW, &mut changes);
    change.commit();
    let memfd = table.state().memfd().try_clone_to_owned().unwrap();
    drop(table);
    let (mut state, refused) = State::open(memfd).unwrap();
    assert!(refused.is_none());
    let process = Process {
        pid: 4711,
        tid: 4711,
        start_boottime_ns: 1_000,
        uid: 33,
        comm: *b"nginx\0\0\0\0\0\0\0\0\0\0\0",
        leader_comm: *b"nginx\0\0\0\0\0\0\0\0\0\0\0",
        cgroup: 99,
        execs: 0x1234,
        confidence: Confidence::Reader,
    };
    state.put_process(0, &ProcessEntry::example(&process, "/system.slice/nginx.service"));
    let owner = OwnerNumber::new(ProcessNumber::new(0, 0), Confidence::Reader);
    state.put_owners(0, Owners { initiator: owner, responder: OwnerNumber::default() });
    let mut record = *state.record(0);
    record.set_owned(true);
    state.put_record(0, &record);
    state.commit();
    state
}

/// The rows of 16 bytes that are not zero, as in "1000000: 00 01 ...". What an empty undo log has left is not among them.
fn rows(state: &State) -> String {
    use std::fmt::Write;
    let used = [
        HEADER..UNDO,
        NAMES..NAMES + 4096,
        ENDS..ENDS + 4096,
        RECORDS..RECORDS + 4096,
        EXTRAS..EXTRAS + 4096,
        CLOSED[0]..CLOSED[0] + 4096,
        CLOSED[1]..CLOSED[1] + 4096,
        OWNERS..OWNERS + 4096,
        PROCESSES..PROCESSES + 4096,
    ];
    let mut text = String::new();
    for start in used.into_iter().flat_map(|range| range.step_by(16)) {
        let row = &state.map[start..start + 16];
        if row.iter().any(|byte| *byte != 0) {
            let hex: String = row.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = writeln!(text, "{start:x}: {hex}");
        }
    }
    text
}

/// A memfd with what rows say.
fn memfd(rows: &str) -> OwnedFd {
    let memfd = memfd_create("golden", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&memfd, TOTAL as u64).unwrap();
    for row in rows.lines() {
        let (offset, hex) = row.split_once(": ").unwrap();
        let bytes: Vec<u8> =
            (0..16).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
        let offset = u64::from_str_radix(offset, 16).unwrap();
        assert_eq!(rustix::io::pwrite(&memfd, &bytes, offset), Ok(16));
    }
    memfd
}

#[test]
#[ignore = "writes files of the repository, after a change of the layout"]
fn the_golden_state_is_written() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/state");
    std::fs::write(format!("{directory}/golden.txt"), rows(&example())).unwrap();
    std::fs::write(format!("{directory}/layout.txt"), layouts()).unwrap();
}

#[test]
fn the_golden_state_is_read_as_what_was_written() {
    let (state, refused) = State::open(memfd(include_str!("golden.txt"))).unwrap();
    assert!(refused.is_none(), "{refused:?}");
    assert_eq!(state.epoch(), format!("{:032x}", u128::from_be_bytes(*b"epoch of example")));
    assert_eq!((state.header.sequence, state.header.last_id, state.header.active), (4, 3, 2));
    assert_eq!(state.ends(1..=4), crate::flow::Ends { count: 1, last: 4 });
    let mut table = Table::new(state, LIMITS);
    let active: Vec<_> = table.active_after(0).collect();
    let [plain, translated] = &active[..] else { panic!("{active:?}") };
    assert_eq!((plain.record.id, plain.original(), plain.reply()), (1, flow(1).original, flow(1).reply));
    assert_eq!(plain.record.status(), Status::CONFIRMED | Status::ASSURED);
    assert_eq!((plain.record.timeout(), plain.record.conntrack_id()), (Some(30), Some(256)));
    assert_eq!((plain.record.mark, plain.record.start_source()), (0x29, TimeSource::Event));
    assert_eq!(plain.record.start_usec, NOW.realtime_usec);
    let (process, confidence) = plain.owners.initiator.get().unwrap();
    assert_eq!((process, confidence), (ProcessNumber::new(0, 0), Confidence::Reader));
    let owner = table.process_texts().get(process).unwrap();
    let owner = owner.owner(confidence, None);
    assert_eq!((owner.pid, owner.comm, owner.uid), (Some(4711), Some("nginx"), Some(33)));
    assert_eq!(owner.exe, Some("/usr/bin/example"));
    assert_eq!((owner.unit, owner.cgroup), (Some("nginx.service"), Some("/system.slice/nginx.service")));
    assert_eq!((translated.record.id, translated.reply().dst), (3, Ipv4Addr::new(198, 18, 0, 9).into()));
    assert_eq!(translated.labels(), Some(&[1, 2, 3, 4][..]));
    assert_eq!(table.name_strings().get(translated.helper()).as_deref(), Some("ftp"));
    let closed: Vec<_> = table.closed_from(0, NOW).collect();
    let [ended] = &closed[..] else { panic!("{closed:?}") };
    let end = ended.end.unwrap();
    assert_eq!((ended.record.id, end.usec, end.sequence), (2, 1_700_000_001_000_000, 4));
    assert_eq!((end.source, end.reason), (TimeSource::Kernel, EndReason::Destroyed));
}

#[test]
fn a_state_of_an_older_layout_is_refused() {
    let memfd = memfd(include_str!("golden.txt"));
    // Whole and sound, but of the version before.
    let map = Mapping::new(memfd.as_fd(), 0, TOTAL).unwrap();
    let mut header = Header::read_from_bytes(&map[HEADER..HEADER + size_of::<Header>()]).unwrap();
    header.version = VERSION - 1;
    let mut bytes = header.as_bytes().to_vec();
    Header::write_checksum(&mut bytes);
    rustix::io::pwrite(&memfd, &bytes, HEADER as u64).unwrap();
    drop(map);
    let (state, refused) = State::open(memfd).unwrap();
    assert!(matches!(refused, Some(Refused::Version { found }) if found == VERSION - 1), "{refused:?}");
    assert_eq!((state.header.sequence, state.header.active), (0, 0), "it begins anew");
}

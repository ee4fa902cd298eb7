//! The state over the end of a life, whole, cut short and damaged.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use tracing::span::{Attributes, Id};
use tracing::{Level, Metadata, Subscriber};

use super::layout::{HEADER, NAMES, RECORDS, TOTAL, UNDO};
use super::*;

/// Opens the state's memfd in a new life: what was not committed is a change that a kill cut short.
fn next_life(state: State) -> (State, Option<Refused>) {
    let memfd = state.memfd.try_clone().unwrap();
    drop(state);
    State::open(memfd).unwrap()
}

fn write(memfd: &OwnedFd, offset: usize, bytes: &[u8]) {
    assert_eq!(rustix::io::pwrite(memfd, bytes, offset as u64), Ok(bytes.len()));
}

fn named() -> State {
    let mut state = State::create().unwrap();
    state.push_name(b"ftp");
    state.header.sequence = 7;
    state.commit();
    state
}

#[test]
fn what_was_committed_is_found_by_the_next_life() {
    let state = named();
    let epoch = state.epoch();
    let (state, refused) = next_life(state);
    assert!(refused.is_none());
    assert_eq!((state.epoch(), state.header.sequence, state.name(0).text()), (epoch, 7, &b"ftp"[..]));
}

#[test]
fn what_was_not_committed_is_undone() {
    let mut state = named();
    // A kill in mid-change: places were written, the header among them, and the log was not emptied.
    let other = NameEntry::new(b"other");
    state.write(NAMES, &other);
    state.header.sequence = 8;
    let header = state.header;
    state.write(HEADER, &header);
    let (state, refused) = next_life(state);
    assert!(refused.is_none());
    assert_eq!((state.header.sequence, state.name(0).text()), (7, &b"ftp"[..]));
}

/// Counts errors.
struct Errors(Arc<AtomicU32>);

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn a_change_larger_than_the_undo_log_is_an_error_in_the_journal_once() {
    let mut state = named();
    let errors = Arc::new(AtomicU32::new(0));
    tracing::subscriber::with_default(Errors(Arc::clone(&errors)), || {
        let largest = (UNDO_END - UNDO) / (size_of::<NameEntry>() + 16);
        let mut overwrite = |times| (0..times).for_each(|_| state.write(NAMES, &NameEntry::new(b"other")));
        overwrite(largest / 2);
        assert_eq!(errors.load(Ordering::Relaxed), 0, "a change that fits");
        overwrite(3 * largest);
        assert_eq!(errors.load(Ordering::Relaxed), 1);
    });
    state.commit();
    let (state, refused) = next_life(state);
    assert!(refused.is_none(), "a change that came to its end is found whole");
    assert_eq!(state.name(0).text(), b"other");
}

#[test]
fn an_empty_file_becomes_a_state() {
    let memfd = memfd_create("empty", MemfdFlags::ALLOW_SEALING).unwrap();
    let (state, refused) = State::open(memfd).unwrap();
    assert!(refused.is_none());
    assert_eq!(state.header.sequence, 0);
}

#[test]
fn a_damaged_state_is_refused_and_a_new_epoch_begins_in_a_memfd_that_nobody_else_has() {
    let damages: [(&str, usize, &[u8]); 6] = [
        ("the header", HEADER + 100, &[0xff; 4]),
        ("its beginning", HEADER, b"flowtop!"),
        ("its version", HEADER + 8, &99_u32.to_ne_bytes()),
        ("a name", NAMES + 8, b"x"),
        ("the undo log", UNDO, &u64::MAX.to_ne_bytes()),
        ("the undo log's entry", UNDO, &[40, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ];
    for (what, offset, bytes) in damages {
        let state = named();
        let epoch = state.epoch();
        let old = state.memfd.try_clone().unwrap();
        write(&old, offset, bytes);
        let (state, refused) = next_life(state);
        assert!(refused.is_some(), "{what}");
        // A process that has damaged it may have it still.
        write(&old, offset, bytes);
        assert_ne!(state.epoch(), epoch, "{what}");
        assert_eq!((state.header.sequence, state.header.names), (0, 0), "{what}");
        let (_, refused) = next_life(state);
        assert!(refused.is_none(), "{what}: the next life finds a sound state");
    }
}

#[test]
fn a_record_that_came_from_nowhere_is_refused() {
    let mut state = named();
    state.header.records = 1;
    state.commit();
    write(&state.memfd, RECORDS + Record::ID_OFFSET, &[1]);
    let (_, refused) = next_life(state);
    assert!(matches!(refused, Some(Refused::Checksum { what: "a flow" })), "{refused:?}");
}

#[test]
fn a_file_of_another_size_is_refused() {
    let memfd = memfd_create("short", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&memfd, TOTAL as u64 - 4096).unwrap();
    let (state, refused) = State::open(memfd).unwrap();
    assert!(matches!(refused, Some(Refused::Size { .. })));
    assert_eq!(state.header.sequence, 0);
}

fn sealed(size: usize, seals: SealFlags) -> OwnedFd {
    let memfd = new_memfd().unwrap();
    ftruncate(&memfd, size as u64).unwrap();
    fcntl_add_seals(&memfd, seals).unwrap();
    memfd
}

#[test]
fn what_is_no_memory_to_read_and_write_is_refused_and_a_new_epoch_begins() {
    use rustix::fs::{Mode, OFlags, open};
    let whole = || sealed(TOTAL, SealFlags::SHRINK | SealFlags::GROW);
    let opened = |path: &str, flags| open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let memfd = whole();
    let itself = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memfd));
    let file = OwnedFd::from(std::fs::File::from(opened("/tmp", OFlags::TMPFILE | OFlags::RDWR)));
    ftruncate(&file, TOTAL as u64).unwrap();
    let huge = memfd_create("huge", MemfdFlags::HUGETLB | MemfdFlags::ALLOW_SEALING);
    // The size is one that huge pages have.
    let huge = huge.and_then(|huge| ftruncate(&huge, TOTAL.next_multiple_of(2 << 20) as u64).map(|()| huge));
    let cases = [
        ("a pipe", std::io::pipe().unwrap().0.into()),
        ("a directory", opened("/", OFlags::RDONLY)),
        ("/dev/null", opened("/dev/null", OFlags::RDWR)),
        ("a file", file),
        ("a path", opened(&itself, OFlags::PATH)),
        ("for reading only", opened(&itself, OFlags::RDONLY)),
        ("sealed against writing", sealed(TOTAL, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)),
        ("sealed against a mapping", sealed(TOTAL, SealFlags::SHRINK | SealFlags::FUTURE_WRITE)),
        ("that can be cut", sealed(TOTAL, SealFlags::SEAL)),
        ("an empty one that cannot grow", sealed(0, SealFlags::GROW)),
        ("an empty one that can be cut", sealed(0, SealFlags::SEAL)),
        ("a larger one", sealed(2 * TOTAL, SealFlags::SHRINK)),
    ];
    for (what, descriptor) in cases.into_iter().chain(huge.ok().map(|huge| ("huge pages", huge))) {
        let (mut state, refused) = State::open(descriptor).unwrap();
        assert!(refused.is_some(), "{what}");
        state.push_name(b"ftp");
        state.commit();
        let (state, refused) = next_life(state);
        assert!(refused.is_none() && state.header.names == 1, "{what}: the next life finds a sound state");
    }
}

#[test]
fn nobody_takes_from_the_next_life_what_it_needs() {
    let state = named();
    for seals in [SealFlags::WRITE, SealFlags::FUTURE_WRITE, SealFlags::SEAL] {
        assert_eq!(fcntl_add_seals(&state.memfd, seals), Err(Errno::PERM));
    }
    assert!(ftruncate(&state.memfd, 4096).is_err());
    // One of a daemon that did not seal the seals is taken over, and sealed.
    let older = sealed(TOTAL, SealFlags::SHRINK | SealFlags::GROW);
    let mut bytes = vec![0; RECORDS];
    rustix::io::pread(&state.memfd, &mut bytes, 0).unwrap();
    write(&older, 0, &bytes);
    let (state, refused) = State::open(older).unwrap();
    assert!(refused.is_none(), "{refused:?}");
    assert_eq!(fcntl_add_seals(&state.memfd, SealFlags::WRITE), Err(Errno::PERM));
}

/// A message of 12 bytes that begins with its length.
fn message(number: u8) -> Vec<u8> {
    [&12_u32.to_ne_bytes()[..], &[number; 8]].concat()
}

fn receive(inbox: &mut Inbox, message: &[u8]) {
    inbox.prepare().unwrap()[..message.len()].copy_from_slice(message);
    inbox.keep(message.len());
}

/// What the next life finds, with its numbers.
fn received(state: &State) -> Vec<(u64, Vec<u8>)> {
    let inbox = state.inbox().unwrap();
    let first = inbox.number() + 1 - inbox.len() as u64;
    (first..).zip(inbox.messages().map(<[u8]>::to_vec)).collect()
}

#[test]
fn messages_that_were_received_and_not_applied_are_found_by_the_next_life() {
    let state = named();
    let mut inbox = state.inbox().unwrap();
    assert!(received(&state).is_empty());
    (1..=3).for_each(|number| receive(&mut inbox, &message(number)));
    drop(inbox);
    let (mut state, _) = next_life(state);
    let all: Vec<_> = (1..=3).map(|number| (number.into(), message(number))).collect();
    assert_eq!(received(&state), all);
    // One of them was applied.
    state.header.message = 1;
    state.commit();
    assert_eq!(received(&state), all[1..]);
    state.header.message = 3;
    state.commit();
    assert!(received(&state).is_empty());
}

#[test]
fn a_message_that_the_kernel_wrote_and_nobody_kept_is_found() {
    let state = named();
    let mut inbox = state.inbox().unwrap();
    receive(&mut inbox, &message(1));
    inbox.prepare().unwrap()[..12].copy_from_slice(&message(2));
    assert_eq!(received(&state), [(1, message(1)), (2, message(2))]);
}

#[test]
fn what_an_older_batch_left_behind_a_newer_one_is_not_found() {
    let mut state = named();
    let mut inbox = state.inbox().unwrap();
    (1..=3).for_each(|number| receive(&mut inbox, &message(number)));
    state.header.message = 3;
    state.commit();
    inbox.clear();
    receive(&mut inbox, &message(4));
    assert_eq!(received(&state), [(4, message(4))]);
    inbox.prepare();
    assert_eq!(received(&state), [(4, message(4))], "a prepared place has no message");
    // The kernel's answer to it is not kept.
    inbox.prepare().unwrap()[..12].copy_from_slice(&message(5));
    inbox.discard();
    assert_eq!(received(&state), [(4, message(4))]);
    receive(&mut inbox, &message(6));
    assert_eq!(received(&state), [(4, message(4)), (5, message(6))]);
}

#[test]
fn a_prepared_place_has_room_for_the_longest_message() {
    let state = named();
    let mut inbox = state.inbox().unwrap();
    let longest = [&(32_u32 * 1024).to_ne_bytes()[..], &[7; 32 * 1024 - 4]].concat();
    let mut kept = 0;
    while let Some(place) = inbox.prepare() {
        place[..longest.len()].copy_from_slice(&longest);
        inbox.keep(longest.len());
        kept += 1;
    }
    assert_eq!(kept, 1, "64 KiB have room for one of them and its number");
    assert_eq!(received(&state), [(1, longest)]);
}

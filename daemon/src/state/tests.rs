//! The state over the end of a life, whole, cut short and damaged.

use std::os::fd::OwnedFd;

use super::layout::{HEADER, NAMES, RECORDS, TOTAL, UNDO};
use super::*;

/// The same memfd in a new life: what was not committed is a change that a kill cut short.
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
    let other = NameEntry::new(b"other").sealed();
    state.write(NAMES, &other);
    state.header.sequence = 8;
    state.write(HEADER, &state.header.sealed());
    let (state, refused) = next_life(state);
    assert!(refused.is_none());
    assert_eq!((state.header.sequence, state.name(0).text()), (7, &b"ftp"[..]));
}

#[test]
fn an_empty_file_becomes_a_state() {
    let memfd = memfd_create("empty", MemfdFlags::ALLOW_SEALING).unwrap();
    let (state, refused) = State::open(memfd).unwrap();
    assert!(refused.is_none());
    assert_eq!(state.header.sequence, 0);
}

#[test]
fn a_damaged_state_is_refused_and_begins_a_new_epoch_in_the_same_file() {
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
        write(&state.memfd, offset, bytes);
        let (state, refused) = next_life(state);
        assert!(refused.is_some(), "{what}");
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

#[test]
fn a_message_that_was_received_and_not_applied_is_found_once() {
    let state = named();
    let mut slot = state.message_slot().unwrap();
    assert!(slot.pending().is_none());
    let message = [12_u32.to_ne_bytes(), *b"abcd", *b"efgh"].concat();
    slot.prepare()[..12].copy_from_slice(&message);
    drop(slot);
    let (mut state, _) = next_life(state);
    let mut slot = state.message_slot().unwrap();
    let (found, number) = slot.pending().unwrap();
    assert_eq!(found, message);
    state.header.message = number;
    state.commit();
    assert!(state.message_slot().unwrap().pending().is_none());
}

#[test]
fn a_place_that_was_prepared_and_got_no_message_is_empty() {
    let mut state = named();
    let mut slot = state.message_slot().unwrap();
    slot.prepare()[..4].copy_from_slice(&12_u32.to_ne_bytes());
    state.header.message = slot.number();
    state.commit();
    slot.prepare();
    let (state, _) = next_life(state);
    assert!(state.message_slot().unwrap().pending().is_none());
}

//! Damaged messages: an error each, the others untouched, never a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod common;

use common::{FIXTURES, bounds, fixture};
use ctnetlink::{DecodeError, messages};
use proptest::prelude::*;

/// A whole message to put behind a damaged one.
fn sound() -> &'static [u8] {
    fixture("udp4-plain-events")
}

#[test]
fn a_datagram_cut_anywhere_gives_what_came_before_and_one_error() {
    for (name, bytes) in FIXTURES {
        let whole: Vec<_> = messages(bytes).collect();
        let ends: Vec<_> = bounds(bytes).into_iter().map(|(_, end)| end).collect();
        for cut in 0..bytes.len() {
            let complete = ends.iter().filter(|end| **end <= cut).count();
            let at_end = cut == 0 || ends.contains(&cut);
            let left: Vec<_> = messages(&bytes[..cut]).collect();
            assert_eq!(left[..complete], whole[..complete], "{name} cut at {cut}");
            assert_eq!(left.len(), complete + usize::from(!at_end), "{name} cut at {cut}");
            if !at_end {
                assert!(
                    matches!(left[complete], Err(DecodeError::MessageLength { .. })),
                    "{name} cut at {cut}"
                );
            }
        }
    }
}

#[test]
fn a_message_cut_anywhere_costs_only_itself() {
    for (name, bytes) in FIXTURES {
        for (start, end) in bounds(bytes) {
            for length in 16..end - start {
                let mut damaged = bytes[start..start + length].to_vec();
                damaged[..4].copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
                damaged.resize(length.next_multiple_of(4), 0);
                damaged.extend(sound());
                let items: Vec<_> = messages(&damaged).collect();
                assert_eq!(
                    items[1..],
                    messages(sound()).collect::<Vec<_>>(),
                    "{name} at {start}, {length} bytes"
                );
                if let Ok(cut) = &items[0] {
                    let whole = messages(&bytes[start..end]).next().unwrap().unwrap();
                    // It can be less, as if the kernel had not sent the last attributes, or the same for an
                    // NLMSG_ERROR without the copy of its request.
                    assert!(format!("{cut:?}").len() <= format!("{whole:?}").len(), "{name} at {start}");
                }
            }
        }
    }
}

#[test]
fn an_attribute_cut_anywhere_costs_only_its_message() {
    for (name, bytes) in FIXTURES {
        for (start, end) in bounds(bytes) {
            let mut damaged = bytes[start..end].to_vec();
            damaged.resize((end - start).next_multiple_of(4), 0);
            damaged.extend(sound());
            // Every place where an attribute may begin; payloads among them are damaged as well.
            for at in (20..end - start).step_by(4) {
                let length = u16::from_ne_bytes([damaged[at], damaged[at + 1]]);
                for shorter in (0..length.min(300)).chain([length.saturating_add(1), 0x7fff, 0xffff]) {
                    damaged[at..at + 2].copy_from_slice(&shorter.to_ne_bytes());
                    let items: Vec<_> = messages(&damaged).collect();
                    assert_eq!(items.len(), 4, "{name} at {start}+{at}: {shorter}");
                    assert!(items[1..].iter().all(Result::is_ok), "{name} at {start}+{at}: {shorter}");
                }
                damaged[at..at + 2].copy_from_slice(&length.to_ne_bytes());
            }
        }
    }
}

#[test]
fn an_absurd_message_length_ends_the_datagram_with_one_error() {
    for length in [0, 1, 15, 1 << 20, u32::MAX - 2, u32::MAX] {
        let mut datagram = sound().to_vec();
        datagram[..4].copy_from_slice(&length.to_ne_bytes());
        let available = datagram.len();
        let items: Vec<_> = messages(&datagram).collect();
        assert_eq!(items, [Err(DecodeError::MessageLength { length, available })]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_never_panic_and_never_reach_the_next_datagram(
        which in 0..FIXTURES.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..16),
    ) {
        let mut bytes = FIXTURES[which].1.to_vec();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        // At least 16 bytes a message, or the end: it terminates.
        prop_assert!(messages(&bytes).count() <= bytes.len() / 16 + 1);
        for message in messages(&bytes) {
            if let Ok(ctnetlink::Message::Flow(_, _, flow)) = message {
                prop_assert_eq!(flow.original.src.is_ipv4(), flow.reply.dst.is_ipv4());
                prop_assert!(flow.labels.is_none_or(|labels| labels.len() <= 16));
            }
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(messages(&bytes).count() <= bytes.len() / 16 + 1);
    }
}

//! A decoder that remembers layouts reads what `messages` reads, whatever it has seen before.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod common;

use common::{FIXTURES, attribute, bounds, message, nest, ports, tuple, tuples};
use ctnetlink::{Decoder, messages};
use proptest::prelude::*;

/// The items as text: errors compare too.
fn assert_agrees(decoder: &mut Decoder, datagram: &[u8], context: &str) {
    let expected: Vec<_> = messages(datagram).collect();
    assert_eq!(decoder.messages(datagram).collect::<Vec<_>>(), expected, "{context}");
}

/// A decoder that has seen every fixture.
fn experienced() -> Decoder {
    let mut decoder = Decoder::default();
    for (name, datagram) in FIXTURES {
        assert_agrees(&mut decoder, datagram, name);
    }
    decoder
}

#[test]
fn every_fixture_reads_the_same_at_first_sight_and_again() {
    let mut decoder = experienced();
    for (name, datagram) in FIXTURES {
        assert_agrees(&mut decoder, datagram, name);
    }
}

#[test]
fn a_message_with_any_one_bit_changed_reads_the_same() {
    for (name, datagram) in FIXTURES {
        for (start, end) in bounds(datagram) {
            let mut decoder = Decoder::default();
            let mut damaged = datagram[start..end].to_vec();
            assert_agrees(&mut decoder, &damaged, name);
            for at in 0..damaged.len() {
                for bit in 0..8 {
                    damaged[at] ^= 1 << bit;
                    assert_agrees(
                        &mut decoder.clone(),
                        &damaged,
                        &format!("{name} at {start}+{at}, bit {bit}"),
                    );
                    damaged[at] ^= 1 << bit;
                }
            }
        }
    }
}

#[test]
fn attributes_that_come_twice_or_in_another_form_read_the_same() {
    let zone = attribute(18, &7_u16.to_be_bytes());
    let directed = |zone: u16| {
        let addresses = nest(1, &[attribute(1, &[198, 18, 0, 1]), attribute(2, &[198, 18, 0, 2])]);
        let protocol = nest(2, &[vec![attribute(1, &[17])], ports()].concat());
        nest(1, &[addresses, protocol, attribute(3, &zone.to_be_bytes())])
    };
    let both = [1, 3].map(|kind| attribute(kind, &[0x20; 16]));
    let mixed = nest(1, &[&both[..], &[attribute(2, &[198, 18, 0, 2]), attribute(4, &[1; 16])]].concat());
    let mut cases = vec![
        tuples(17),
        [tuples(17), vec![zone.clone()]].concat(),
        [vec![directed(1)], tuples(17)].concat(),
        [vec![directed(1), zone.clone()], tuples(17)[1..].to_vec()].concat(),
        [tuples(17), tuples(6)].concat(),
        vec![nest(1, &[mixed, nest(2, &[attribute(1, &[50])])]), tuple(2, 50, &[])],
    ];
    // Status, mark, counters of 64 and of 32 bits with padding, times, TCP, labels; whole, too long and too short.
    for (kind, inner) in
        [(3, vec![]), (8, vec![]), (9, vec![1, 2, 5]), (9, vec![3, 4]), (20, vec![1, 2, 3]), (22, vec![])]
    {
        for length in [0, 1, 2, 4, 8, 12, 16, 20] {
            let value = if inner.is_empty() {
                attribute(kind, &vec![9; length])
            } else {
                nest(kind, &inner.iter().map(|kind| attribute(*kind, &vec![9; length])).collect::<Vec<_>>())
            };
            cases.push([tuples(6), vec![value.clone()]].concat());
            cases.push([tuples(6), vec![value.clone(), value]].concat());
        }
    }
    let mut decoder = Decoder::default();
    for attributes in &cases {
        for (kind, flags) in [(0x100, 0x600), (0x100, 0), (0x102, 0), (0x100, 2)] {
            for _ in 0..2 {
                let message = message(kind, flags, attributes);
                assert_agrees(&mut decoder, &message, "by the decoder of all");
                assert_agrees(&mut Decoder::default(), &message.repeat(2), "by one of its own");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_messages_read_the_same(
        which in 0..FIXTURES.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..16),
    ) {
        let mut datagram = FIXTURES[which].1.to_vec();
        for (place, value) in changes {
            let place = place.index(datagram.len());
            datagram[place] = value;
        }
        let mut decoder = Decoder::default();
        // The fixture's layouts, then those of what was changed.
        assert_agrees(&mut decoder, FIXTURES[which].1, "before the change");
        assert_agrees(&mut decoder, &datagram, "changed");
        assert_agrees(&mut decoder, &datagram, "changed, again");
    }
}

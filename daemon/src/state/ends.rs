//! Which of the newest changes were ends, one bit for each: how many ends are forgotten stays known when the flows no
//! longer are.

use std::ops::RangeInclusive;

use super::State;
use super::layout::{ENDS, ENDS_BYTES};
use crate::flow::Ends;

/// For how many of the newest changes it is known which were ends. There are twice as many bits, because a change that was rolled
/// back has cleared some of those that came next.
pub(crate) const KNOWN_ENDS: u64 = ENDS_BYTES as u64 * 8 / 2;

impl State {
    /// Gives the next change its number.
    pub(crate) fn number_change(&mut self, is_end: bool) -> u64 {
        self.header.sequence += 1;
        let sequence = self.header.sequence;
        let (offset, bit) = place(sequence);
        // The first change of a word clears what was there KNOWN_ENDS * 2 changes ago.
        let word = if bit == 0 { 0 } else { *self.read::<u64>(offset) };
        if bit == 0 || is_end {
            self.put_number(offset, word | u64::from(is_end) << bit);
        }
        sequence
    }

    /// The ends among these changes, of which the newest [`KNOWN_ENDS`] are known.
    pub(crate) fn ends(&self, changes: RangeInclusive<u64>) -> Ends {
        let (first, last) = changes.into_inner();
        let mut ends = Ends::default();
        if first > last {
            return ends;
        }
        for start in (first - first % 64..=last).step_by(64) {
            let mut word = *self.read::<u64>(place(start).0);
            if start < first {
                word &= u64::MAX << (first - start);
            }
            if last - start < 63 {
                word &= (2 << (last - start)) - 1;
            }
            if word != 0 {
                ends.count += u64::from(word.count_ones());
                ends.last = start + 63 - u64::from(word.leading_zeros());
            }
        }
        ends
    }

    /// Clears the bits of changes that a kill has cut short: their numbers are given again.
    pub(super) fn clear_ends_after_sequence(&mut self) {
        let (offset, bit) = place(self.header.sequence + 1);
        if bit != 0 {
            let word = *self.read::<u64>(offset) & ((1 << bit) - 1);
            self.put_number(offset, word);
        }
    }
}

/// Where the bit of a change is: its word, and which bit of that.
fn place(sequence: u64) -> (usize, u32) {
    let word = sequence / 64 % (ENDS_BYTES as u64 / 8);
    (ENDS + flowbus_interfaces::fit::<_, usize>(word) * 8, flowbus_interfaces::fit(sequence % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_counted_in_any_range_however_often_the_map_went_around() {
        let mut state = State::create().unwrap();
        let is_end = |sequence: u64| sequence.is_multiple_of(3);
        state.header.sequence = ENDS_BYTES as u64 * 8 - 64;
        let begin = state.header.sequence;
        // What a turn of the map before this one would have left.
        for offset in (ENDS..ENDS + 64).step_by(8) {
            state.put_number(offset, u64::MAX);
        }
        while state.header.sequence < begin + 300 {
            state.number_change(is_end(state.header.sequence + 1));
        }
        for first in begin + 1..=begin + 300 {
            for last in first..=begin + 300 {
                let ends: Vec<_> = (first..=last).filter(|sequence| is_end(*sequence)).collect();
                let expected = Ends { count: ends.len() as u64, last: ends.last().copied().unwrap_or(0) };
                assert_eq!(state.ends(first..=last), expected, "{first} to {last}");
            }
        }
    }

    #[test]
    fn ends_that_a_kill_has_cut_short_are_none() {
        let mut state = State::create().unwrap();
        state.number_change(true);
        state.commit();
        for _ in 0..100 {
            state.number_change(true);
        }
        let memfd = state.memfd().try_clone_to_owned().unwrap();
        drop(state);
        let (mut state, refused) = State::open(memfd).unwrap();
        assert!(refused.is_none() && state.header.sequence == 1);
        for _ in 0..100 {
            state.number_change(false);
        }
        assert_eq!(state.ends(1..=101), Ends { count: 1, last: 1 });
    }
}

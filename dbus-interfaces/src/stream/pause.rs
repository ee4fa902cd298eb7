//! The time between a stream that ended too early and the next one.

use std::time::{Duration, Instant};

/// The pause before a stream that fell behind, or could not be followed, is resumed. Each stream begins with the whole table, so one
/// must not follow the other at once while the load lasts.
#[derive(Debug, Default)]
pub struct Pause {
    length: Duration,
    /// When the pause before ends.
    end: Option<Instant>,
}

impl Pause {
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(30);

    /// The length of a pause that begins now: nothing the first time, then 1 s and ever longer up to 30 s while less than 30 s lie
    /// between the end of one pause and the next.
    pub fn begin(&mut self) -> Duration {
        let now = Instant::now();
        let again = self.end.is_some_and(|end| now < end + Self::LONGEST);
        self.length =
            if again { (self.length * 2).clamp(Self::SHORTEST, Self::LONGEST) } else { Duration::ZERO };
        self.end = Some(now + self.length);
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_become_longer_up_to_their_bound() {
        let mut pause = Pause::default();
        let lengths: Vec<_> = std::iter::repeat_with(|| pause.begin().as_secs()).take(8).collect();
        assert_eq!(lengths, [0, 1, 2, 4, 8, 16, 30, 30]);
        pause.end = Instant::now().checked_sub(Pause::LONGEST);
        assert_eq!(pause.begin(), Duration::ZERO, "the last one is long ago");
    }
}

//! Numbers that are known to fit into a smaller type.

use std::fmt::Debug;

/// A type with a largest value.
pub trait Largest {
    /// The largest value.
    const LARGEST: Self;
}

/// The number as another type. The caller knows that it fits: where it does not we are wrong, which ends a debug build, and
/// so a test; a daemon goes on with the largest value.
pub fn fit<N: Copy + Debug, T: TryFrom<N> + Largest>(number: N) -> T {
    T::try_from(number).unwrap_or_else(|_| {
        debug_assert!(false, "{number:?} does not fit into {}", std::any::type_name::<T>());
        T::LARGEST
    })
}

macro_rules! largest {
    ($($type:ty)*) => {
        $(impl Largest for $type {
            const LARGEST: Self = Self::MAX;
        })*
    };
}
largest!(u8 u16 u32 u64 usize isize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_fits_is_the_same() {
        assert_eq!(fit::<usize, u16>(65_535), 65_535);
        assert_eq!(fit::<i64, u64>(7), 7);
    }

    #[test]
    #[should_panic(expected = "65536 does not fit into u16")]
    fn a_number_that_does_not_fit_fails_a_test() {
        fit::<usize, u16>(65_536);
    }
}

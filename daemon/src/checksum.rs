//! What every type has that lies in the restart state: a checksum of its own, and a layout that tests pin.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use flowbus_interfaces::fit;

/// A function for tests that shows name, offset and size of every field of a stored type. One that is left out does not
/// compile.
macro_rules! layout_of {
    ($type:ident { $($field:tt),* $(,)? }) => {
        #[cfg(test)]
        impl $type {
            pub(crate) fn layout() -> String {
                use std::fmt::Write;
                fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
                    size_of::<F>()
                }
                let _ = |$type { $($field: _),* }: $type| ();
                let mut text = format!("{} {}:", stringify!($type), size_of::<$type>());
                $(
                    let (at, size) = (std::mem::offset_of!($type, $field), size_of_field(|value: &$type| &value.$field));
                    let _ = write!(text, " {} {at}+{size}", stringify!($field));
                )*
                text
            }
        }
    };
}
pub(crate) use layout_of;

/// A value that carries a checksum of itself.
pub(crate) trait Checksummed: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {
    /// The offset of the checksum, a `u32`, in the value.
    const CHECK: usize;

    /// Writes the checksum of a value into its bytes.
    fn write_checksum(bytes: &mut [u8]) {
        let check = checksum::<Self>(bytes);
        bytes[Self::CHECK..Self::CHECK + size_of::<u32>()].copy_from_slice(&check.to_ne_bytes());
    }

    /// True when the value is as it was when its checksum was written.
    fn checksum_holds(&self) -> bool {
        let bytes = self.as_bytes();
        bytes[Self::CHECK..Self::CHECK + size_of::<u32>()] == checksum::<Self>(bytes).to_ne_bytes()
    }
}

/// The checksum of all bytes but its own. Fast, and enough against what is not malice: nobody else can write the memfd.
fn checksum<T: Checksummed>(bytes: &[u8]) -> u32 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = foldhash::fast::FixedState::with_seed(0x666c_6f77).build_hasher();
    hasher.write(&bytes[..T::CHECK]);
    hasher.write(&bytes[T::CHECK + size_of::<u32>()..]);
    let hash = hasher.finish();
    // Never 0, so that the checksum of a zeroed value does not hold.
    fit::<_, u32>((hash ^ hash >> 32) & 0xffff_ffff) | 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::NameEntry;

    #[test]
    fn the_checksum_is_the_one_of_this_version() {
        // When this fails the function has changed: VERSION has to grow with it.
        assert_eq!(checksum::<NameEntry>(NameEntry::new(b"the state of a flow table").as_bytes()), PINNED);
    }

    const PINNED: u32 = 1_943_567_057;
}

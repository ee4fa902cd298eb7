//! The processes that opened and accepted a flow, as numbers.

use flowbus_attribution::Confidence;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::checksum::layout_of;

/// The processes at the ends of a flow, as far as they are on this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Owners {
    /// The process whose socket the original direction begins at.
    pub(crate) initiator: OwnerNumber,
    /// The process whose socket the reply direction begins at.
    pub(crate) responder: OwnerNumber,
}

/// The number of a process, above it whether its end opened the connection (0 unknown, 1 yes, 2 no), and in the three highest
/// bits how surely it is the one; 0 is nobody, 1 that nobody can be named ([`OwnerNumber::CONTESTED`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub(crate) struct OwnerNumber(u32);

/// The slot of a process in the state, and in the bits above how often the slot was used before: a number that
/// outlives its process is distinguished from the next process's. See `owners/processes.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessNumber(u32);

layout_of!(Owners { initiator, responder });
layout_of!(OwnerNumber { 0 });

/// The number by which the state has a confidence; 0 is that of nobody.
const fn confidence_number(confidence: Confidence) -> u32 {
    match confidence {
        Confidence::Exact => 1,
        Confidence::Reader => 2,
        Confidence::Snapshot => 3,
        Confidence::Inherited => 4,
        Confidence::Procfs => 5,
        Confidence::Shared => 6,
        Confidence::Forwarded => 7,
    }
}

/// The confidence of a number, as [`confidence_number`] gives it.
const fn confidence_of(number: u32) -> Option<Confidence> {
    Some(match number {
        1 => Confidence::Exact,
        2 => Confidence::Reader,
        3 => Confidence::Snapshot,
        4 => Confidence::Inherited,
        5 => Confidence::Procfs,
        6 => Confidence::Shared,
        7 => Confidence::Forwarded,
        _ => return None,
    })
}

impl ProcessNumber {
    /// Bits of the slot.
    const SLOT: u32 = 18;
    /// Bits of the slot and of the uses before.
    const BITS: u32 = 27;
    /// How many slots can be numbered.
    pub(crate) const SLOTS: usize = 1 << Self::SLOT;

    /// The number of a process in this slot. `uses`: how many processes had the slot before.
    pub(crate) fn new(slot: u32, uses: u16) -> Self {
        Self((u32::from(uses) << Self::SLOT | slot) & ((1 << Self::BITS) - 1))
    }

    pub(crate) fn slot(self) -> usize {
        self.0 as usize & (Self::SLOTS - 1)
    }
}

impl OwnerNumber {
    /// Where the bits begin that say who opened the connection.
    const OPENED: u32 = ProcessNumber::BITS;
    /// Where the bits of the confidence begin.
    const CONFIDENCE: u32 = Self::OPENED + 2;

    /// Sockets of several namespaces may be the one that is meant: nobody is the owner, also when one alone is known later.
    pub(crate) const CONTESTED: Self = Self(1);

    pub(crate) fn new(process: ProcessNumber, confidence: Confidence) -> Self {
        Self(process.0 | confidence_number(confidence) << Self::CONFIDENCE)
    }

    /// This owner with another confidence.
    pub(crate) fn with(self, confidence: Confidence) -> Self {
        self.get().map_or(self, |(process, _)| Self::new(process, confidence).with_opened(self.opened()))
    }

    /// This owner with what is known of whether its end opened the connection; of nobody nothing is.
    pub(crate) fn with_opened(self, opened: Option<bool>) -> Self {
        let bits = opened.map_or(0, |opened| if opened { 1 } else { 2 });
        if self.get().is_none() { self } else { Self(self.0 & !(3 << Self::OPENED) | bits << Self::OPENED) }
    }

    /// Whether this end opened the connection; `None` where that is not known.
    pub(crate) fn opened(self) -> Option<bool> {
        match self.0 >> Self::OPENED & 3 {
            1 => Some(true),
            2 => Some(false),
            _ => None,
        }
    }

    pub(crate) fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The process and how surely it is the one.
    pub(crate) fn get(self) -> Option<(ProcessNumber, Confidence)> {
        let confidence = confidence_of(self.0 >> Self::CONFIDENCE)?;
        Some((ProcessNumber(self.0 & ((1 << ProcessNumber::BITS) - 1)), confidence))
    }
}

impl Owners {
    pub(crate) fn is_empty(&self) -> bool {
        self.initiator.is_none() && self.responder.is_none()
    }

    pub(crate) fn name_anybody(&self) -> bool {
        self.initiator.get().or(self.responder.get()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_keeps_its_process_and_how_sure_it_is() {
        let process = ProcessNumber::new(262_143, 511);
        assert!(OwnerNumber::default().is_none() && OwnerNumber::default().get().is_none());
        for confidence in (0..8).filter_map(confidence_of) {
            let owner = OwnerNumber::new(process, confidence);
            assert_eq!(owner.get(), Some((process, confidence)));
            assert_eq!(owner.with(Confidence::Shared).get(), Some((process, Confidence::Shared)));
        }
        assert!(OwnerNumber::default().with(Confidence::Shared).is_none());
    }

    #[test]
    fn who_opened_the_connection_stands_beside_the_process() {
        let process = ProcessNumber::new(262_143, 511);
        let owner = OwnerNumber::new(process, Confidence::Shared);
        for opened in [None, Some(true), Some(false)] {
            let known = owner.with_opened(Some(true)).with_opened(opened).with(Confidence::Exact);
            assert_eq!((known.opened(), known.get()), (opened, Some((process, Confidence::Exact))));
        }
        assert!(OwnerNumber::default().with_opened(Some(true)).is_none());
    }

    #[test]
    fn a_contested_number_names_nobody_and_stays() {
        let contested = OwnerNumber::CONTESTED;
        assert!(contested.get().is_none() && !contested.is_none());
        assert_eq!(contested.with(Confidence::Exact).with_opened(Some(true)), contested);
    }
}

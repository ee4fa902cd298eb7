//! Helper names and security contexts: few distinct strings that many flows share, each kept once.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use crate::flow::Name;

/// The most strings kept. A machine has a dozen; the bound is for one that makes them up.
const MAXIMUM: usize = 4096;

/// The tracker's side: gives out numbers.
#[derive(Debug, Default)]
pub(crate) struct Names {
    numbers: HashMap<Box<[u8]>, Name>,
    strings: NameStrings,
    /// Strings that found no room: their flows show none.
    pub(crate) refused: u64,
}

/// Everyone's side: the strings behind the numbers. Grows only.
#[derive(Clone, Debug, Default)]
pub(crate) struct NameStrings(Arc<RwLock<Vec<Arc<str>>>>);

impl Names {
    /// The number of a string, a new one at its first sight.
    pub(crate) fn intern(&mut self, bytes: &[u8]) -> Name {
        if let Some(name) = self.numbers.get(bytes) {
            return *name;
        }
        let mut strings = self.strings.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if strings.len() == MAXIMUM {
            self.refused += 1;
            return Name(0);
        }
        strings.push(String::from_utf8_lossy(bytes).into());
        let name = Name(u16::try_from(strings.len()).unwrap_or(0));
        self.numbers.insert(bytes.into(), name);
        name
    }

    /// The side to share.
    pub(crate) fn strings(&self) -> NameStrings {
        self.strings.clone()
    }
}

impl NameStrings {
    /// The string behind a number; `None` for [`Name`] 0.
    pub(crate) fn get(&self, name: Name) -> Option<Arc<str>> {
        let index = usize::from(name.0).checked_sub(1)?;
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(index).cloned()
    }
}

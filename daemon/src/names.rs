//! Helper names and security contexts: few distinct strings that many flows share, each kept once.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::flow::NameNumber;
use crate::state::{MAXIMUM_NAMES, State};
use flowbus_interfaces::fit;

/// The tracker's side: gives out numbers, in the state's order.
#[derive(Debug)]
pub(crate) struct Names {
    numbers: HashMap<Box<[u8]>, NameNumber>,
    strings: NameStrings,
}

/// The strings behind the numbers, for every thread that shows flows. They only grow in number.
#[derive(Clone, Debug, Default)]
pub(crate) struct NameStrings(Arc<RwLock<Vec<Arc<str>>>>);

impl Names {
    /// The names that the state holds.
    pub(crate) fn new(state: &State) -> Self {
        let mut names = Self { numbers: HashMap::new(), strings: NameStrings::default() };
        for index in 0..state.header.names as usize {
            names.add(state.name(index).text());
        }
        names
    }

    /// The number of a string, a new one at its first sight. There is room for more than a machine has; where one
    /// makes them up, the flows of the rest show none.
    pub(crate) fn intern(&mut self, state: &mut State, text: &[u8]) -> NameNumber {
        if let Some(name) = self.numbers.get(text) {
            return *name;
        }
        if state.header.names as usize == MAXIMUM_NAMES {
            state.header.counters.names_refused += 1;
            return NameNumber(0);
        }
        state.push_name(text);
        self.add(text)
    }

    fn add(&mut self, text: &[u8]) -> NameNumber {
        let mut strings = self.strings.0.write().unwrap_or_else(PoisonError::into_inner);
        strings.push(String::from_utf8_lossy(text).into());
        let name = NameNumber(fit(strings.len()));
        self.numbers.insert(text.into(), name);
        name
    }

    /// The strings, for other threads.
    pub(crate) fn strings(&self) -> NameStrings {
        self.strings.clone()
    }
}

impl NameStrings {
    /// The string behind a number; `None` for [`NameNumber`] 0.
    pub(crate) fn get(&self, name: NameNumber) -> Option<Arc<str>> {
        let index = usize::from(name.0).checked_sub(1)?;
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(index).cloned()
    }
}

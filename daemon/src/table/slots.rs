//! Numbered places for values of one size, used again when they are free.

/// Values in places whose number stays as long as the value does.
#[derive(Debug)]
pub(super) struct Slots<T> {
    values: Vec<T>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { values: Vec::new(), free: Vec::new() }
    }
}

impl<T: Copy> Slots<T> {
    /// Puts a value into a free place.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.values[slot as usize] = value;
            return slot;
        }
        self.values.push(value);
        // A table of 2^32 flows would take 512 GiB: the kernel's own is smaller.
        u32::try_from(self.values.len() - 1).unwrap_or(u32::MAX)
    }

    /// Frees a place and hands out what was in it.
    pub(super) fn remove(&mut self, slot: u32) -> T {
        self.free.push(slot);
        self.values[slot as usize]
    }
}

impl<T> std::ops::Index<u32> for Slots<T> {
    type Output = T;

    fn index(&self, slot: u32) -> &T {
        &self.values[slot as usize]
    }
}

impl<T> std::ops::IndexMut<u32> for Slots<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        &mut self.values[slot as usize]
    }
}

//! A set of ports in which each look-up takes the same few nanoseconds, however many it has.

const WORD: usize = u64::BITS as usize;
const WORDS: usize = (u16::MAX as usize + 1) / WORD;

/// A bit for each port; no memory while there is none.
#[derive(Debug, Default)]
pub(super) struct PortSet(Vec<u64>);

impl PortSet {
    pub(super) fn insert(&mut self, port: u16) {
        self.0.resize(WORDS, 0);
        let (word, bit) = place(port);
        self.0[word] |= bit;
    }

    pub(super) fn contains(&self, port: u16) -> bool {
        let (word, bit) = place(port);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn place(port: u16) -> (usize, u64) {
    let port = usize::from(port);
    (port / WORD, 1 << (port % WORD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_ports_that_were_put_in_and_no_others() {
        let mut ports = PortSet::default();
        assert!(ports.is_empty() && !ports.contains(0));
        let put = [0, 1, 63, 64, 5300, u16::MAX];
        put.into_iter().chain(put).for_each(|port| ports.insert(port));
        assert!(!ports.is_empty());
        let has: Vec<u16> = (0..=u16::MAX).filter(|port| ports.contains(*port)).collect();
        assert_eq!(has, put);
    }
}

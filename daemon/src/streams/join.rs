//! Joins a snapshot, which is read chunk by chunk while the table changes, with the changes that follow it.
//!
//! Chunks come by ascending ids, and each is right up to a change of its own. So the snapshot is not the table of any one instant: a
//! change may be in it for a flow with a large id, and not for a flow that was read before. Whether a change has been shown is therefore
//! asked of its flow's chunk ([`Join::includes`]); those that have not follow the snapshot. A flow that begins while chunks are read has an
//! id above all others and belongs to the last chunk, which has no end. A flow that ended before its chunk was read is not in the
//! snapshot, and its end counts as shown: the reader never saw it. Readers of closed flows need that end, and `push_change` sends it to
//! them all the same.

/// What each chunk of the snapshot includes: the last id in it, and the number of the newest change. A change of a flow is in
/// the snapshot when its number is not above that of the flow's chunk.
#[derive(Debug, Default)]
pub(super) struct Join {
    chunks: Vec<(u64, u64)>,
}

impl Join {
    /// Notes a chunk, `last` being `u64::MAX` for the one that ends the snapshot.
    pub(super) fn push(&mut self, last: u64, sequence: u64) {
        self.chunks.push((last, sequence));
    }

    /// True when the snapshot has shown what the change numbered `sequence` of this flow did.
    pub(super) fn includes(&self, id: u64, sequence: u64) -> bool {
        let chunk = self.chunks.partition_point(|(last, _)| *last < id);
        self.chunks.get(chunk).is_some_and(|(_, included)| sequence <= *included)
    }

    /// All changes up to this one are in the snapshot.
    pub(super) fn sequence(&self) -> u64 {
        self.chunks.last().map_or(0, |(_, sequence)| *sequence)
    }

    /// Changes after the snapshot need no look-up any more.
    pub(super) fn clear(&mut self) {
        self.chunks = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::Join;

    #[test]
    fn a_change_is_in_the_snapshot_up_to_the_number_of_its_flows_chunk() {
        let mut join = Join::default();
        join.push(100, 7);
        join.push(u64::MAX, 9);
        assert!(join.includes(100, 7) && !join.includes(100, 8));
        assert!(join.includes(101, 8) && join.includes(5_000, 9) && !join.includes(5_000, 10));
        assert!(!Join::default().includes(1, 1));
    }
}

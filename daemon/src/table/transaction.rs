//! A change of the table that the next life finds whole or not at all.

use ctnetlink::{EventKind, Flow};
use flowbus_attribution::Event;

use super::{Outcome, Table};
use crate::change::Changes;
use crate::clock::Now;
use crate::counters::ResyncReason;
use crate::state::Header;

/// One change of the table, for the next life. It is committed when this is dropped, for whatever reason, so that nobody can forget
/// to. Many messages in one change cost one commit; after a kill the next life applies the messages that it was about.
#[derive(Debug)]
pub(crate) struct Transaction<'t>(&'t mut Table);

impl Table {
    /// Begins a change.
    pub(crate) fn change(&mut self) -> Transaction<'_> {
        Transaction(self)
    }
}

impl Transaction<'_> {
    /// The header of the state: everything that is not a flow.
    pub(crate) fn header(&mut self) -> &mut Header {
        &mut self.0.state.header
    }

    /// Applies an event.
    pub(crate) fn apply(
        &mut self,
        kind: EventKind,
        flow: &Flow<'_>,
        now: Now,
        changes: &mut Changes,
    ) -> Outcome {
        self.0.apply(kind, flow, now, changes)
    }

    /// Merges one entry of the dump that was begun with [`Table::begin_dump`].
    pub(crate) fn apply_dump_entry(&mut self, flow: &Flow<'_>, now: Now, changes: &mut Changes) {
        self.0.apply_dump_entry(flow, now, changes);
    }

    /// Notes what an event reports of a socket. What it means for flows that are there is settled later.
    pub(crate) fn apply_socket(&mut self, event: &Event, now: Now) {
        self.0.apply_socket(event, now);
    }

    /// Notes that events were lost: what was live before may have ended unseen.
    pub(crate) fn note_loss(&mut self) {
        self.0.note_loss();
    }

    /// Notes a loss, for which the table is to be compared with the kernel's, by this life or the next. The first reason stays; true where
    /// this is the first.
    pub(crate) fn require_resync(&mut self, reason: ResyncReason) -> bool {
        self.note_loss();
        let header = self.header();
        let is_first = header.resync == 0;
        if is_first {
            header.resync = reason as u32;
        }
        is_first
    }

    /// The table, as it is by now.
    pub(crate) fn table(&mut self) -> &mut Table {
        self.0
    }

    /// Ends the change: the next life finds it.
    pub(crate) fn commit(self) {}
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        let table = &mut *self.0;
        table.state.commit();
        table.free_records.append(&mut table.released_records);
    }
}

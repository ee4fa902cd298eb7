//! What is on the screen, and what keys and reports make of it. It draws nothing and asks nobody.

use std::collections::VecDeque;
use std::time::Instant;

use flowbus_interfaces::{OwnedFlow, RawQuery};

use super::group::condition;
use super::message::{Report, Snapshot, Wish};
use super::tally::{Sample, TallyRow, sort};
use super::view::{Grouping, Order, View, parse_filter, with_condition};
use crate::resolve;

/// The widest sparkline.
const HISTORY: usize = 512;

/// The state of the screen.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) grouping: Grouping,
    /// The order that was chosen; absent until someone chooses.
    chosen: Option<Order>,
    /// The filter that holds, as it was written.
    pub(super) filter: String,
    raw: RawQuery,
    /// The filter being written.
    pub(super) edit: Option<String>,
    /// The filter that held before the writing began.
    undo: String,
    /// Why the filter that is being written does not hold.
    pub(super) mistake: Option<String>,
    /// Why the last question had no answer.
    pub(super) failure: Option<String>,
    pub(super) paused: bool,
    /// Whether addresses are shown by name.
    pub(super) resolve: bool,
    pub(super) pane: Pane,
    pub(super) snapshot: Option<Box<Snapshot>>,
    pub(super) history: VecDeque<Sample>,
    pub(super) selected: usize,
    /// How many rows fit; the screen says so.
    pub(super) page: usize,
}

/// What is shown below the head.
#[derive(Debug)]
pub(super) enum Pane {
    Table,
    Help,
    Detail(Detail),
}

/// All that is known of one flow.
#[derive(Debug)]
pub(super) struct Detail {
    pub(super) id: u64,
    /// The flow, or why it cannot be had; absent until the answer comes.
    pub(super) flow: Option<Result<OwnedFlow, String>>,
    pub(super) scroll: usize,
}

impl Model {
    /// A screen that begins with this filter, which is a good one.
    pub(super) fn new(filter: String, grouping: Grouping, order: Option<Order>) -> Self {
        let raw = parse_filter(&filter).unwrap_or_default();
        Self {
            grouping,
            chosen: order,
            undo: filter.clone(),
            filter,
            raw,
            edit: None,
            mistake: None,
            failure: None,
            paused: false,
            resolve: false,
            pane: Pane::Table,
            snapshot: None,
            history: VecDeque::new(),
            selected: 0,
            page: 1,
        }
    }

    /// What the feed is to ask.
    pub(super) fn wish(&self) -> Wish {
        let view = View { filter: self.raw.clone(), grouping: self.grouping, order: self.order() };
        let detail = match &self.pane {
            Pane::Detail(detail) => Some(detail.id),
            _ => None,
        };
        Wish { view, paused: self.paused, detail }
    }

    /// The order of the rows: the one that was chosen, else the highest rate first or, without counters, the latest flow.
    pub(super) fn order(&self) -> Order {
        let counting = self.snapshot.as_ref().is_none_or(|snapshot| snapshot.accounting);
        self.chosen.unwrap_or(if counting { Order::Rate } else { Order::New })
    }

    /// Whether the rows are of what is wished.
    pub(super) fn is_current(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|snapshot| snapshot.view == self.wish().view)
    }

    pub(super) fn rows(&self) -> &[TallyRow] {
        self.snapshot.as_ref().map_or(&[], |snapshot| &snapshot.counted.rows)
    }

    pub(super) fn report(&mut self, report: Report) {
        match report {
            Report::Snapshot(snapshot) => self.take(snapshot),
            Report::Failed(reason) => self.failure = Some(reason),
            Report::Detail { id, flow } => {
                if let Pane::Detail(detail) = &mut self.pane
                    && detail.id == id
                {
                    detail.flow = Some(flow);
                }
            }
        }
    }

    fn take(&mut self, mut snapshot: Box<Snapshot>) {
        // The snapshot was on its way when the picture was to hold, or when other flows were wished.
        if self.paused || snapshot.view.filter != self.raw || snapshot.view.grouping != self.grouping {
            return;
        }
        self.failure = None;
        if let Some(sample) = snapshot.counted.sample {
            self.history.truncate(HISTORY - 1);
            self.history.push_front(sample);
        }
        let selected = self.rows().get(self.selected).map(|row| (row.id, row.name.clone()));
        if let Some(before) = self.snapshot.take() {
            snapshot.keep_ended(*before, Instant::now());
        }
        self.snapshot = Some(snapshot);
        let order = self.order();
        self.sort(order);
        // The first row is whichever comes first; another that was chosen keeps its bar.
        let found = self.rows().iter().position(|row| Some((row.id, row.name.clone())) == selected);
        self.selected = if self.selected == 0 { 0 } else { found.unwrap_or(self.selected) };
        self.select(0);
    }

    /// When the next of the greyed rows goes; never while the picture is held.
    pub(super) fn next_end(&self) -> Option<Instant> {
        let ended = self.rows().iter().filter_map(|row| row.ended).min();
        ended.filter(|_| !self.paused).map(|ended| ended + Snapshot::GREYED)
    }

    /// Lets greyed rows go.
    pub(super) fn forget_ended(&mut self, now: Instant) {
        if let Some(snapshot) = &mut self.snapshot {
            let stays = |row: &TallyRow| row.ended.is_none_or(|ended| now < ended + Snapshot::GREYED);
            snapshot.counted.rows.retain(stays);
        }
        self.select(0);
    }

    fn sort(&mut self, order: Order) {
        if let Some(snapshot) = &mut self.snapshot {
            sort(&mut snapshot.counted.rows, order);
        }
    }

    /// Moves the bar.
    pub(super) fn select(&mut self, by: isize) {
        let last = self.rows().len().saturating_sub(1);
        self.selected = self.selected.saturating_add_signed(by).min(last);
    }

    pub(super) fn choose_next_order(&mut self) {
        let order = self.order().next();
        self.chosen = Some(order);
        // Sorts the rows that are here; the feed brings the first ones of all.
        self.sort(order);
        self.selected = 0;
    }

    pub(super) fn toggle_names(&mut self) {
        self.resolve = !self.resolve;
        if self.resolve {
            resolve::start();
        }
    }

    pub(super) fn group_by(&mut self, grouping: Grouping) {
        self.grouping = grouping;
        self.forget_rows();
    }

    /// Forgets the rows, because others are to come, also if the picture was held.
    fn forget_rows(&mut self) {
        self.paused = false;
        self.selected = 0;
        self.failure = None;
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.counted.rows.clear();
        }
    }

    pub(super) fn begin_edit(&mut self) {
        self.undo.clone_from(&self.filter);
        self.edit = Some(self.filter.clone());
    }

    /// Takes over what has been written so far, if it is a filter.
    pub(super) fn edited(&mut self, text: String) {
        self.mistake = self.set_filter(&text).err();
        self.edit = Some(text);
    }

    /// Ends the writing; a mistake has to be mended first.
    pub(super) fn end_edit(&mut self) {
        if self.mistake.is_none() {
            self.edit = None;
        }
    }

    pub(super) fn cancel_edit(&mut self) {
        self.edit = None;
        self.mistake = None;
        let undo = self.undo.clone();
        // The filter held before, so it is a good one.
        let _ = self.set_filter(&undo);
    }

    pub(super) fn set_filter(&mut self, text: &str) -> Result<(), String> {
        let raw = parse_filter(text)?;
        self.filter = text.trim().to_owned();
        if raw != self.raw {
            self.raw = raw;
            self.history.clear();
            self.forget_rows();
        }
        Ok(())
    }

    /// Shows all of the chosen flow, or the flows of the chosen group.
    pub(super) fn open(&mut self) {
        let Some(row) = self.rows().get(self.selected) else { return };
        if self.grouping == Grouping::Flow {
            self.pane = Pane::Detail(Detail { id: row.id, flow: None, scroll: 0 });
        } else if let Some(condition) = condition(self.grouping, &row.name)
            && self.set_filter(&with_condition(&self.filter, &condition)).is_ok()
        {
            self.group_by(Grouping::Flow);
        } else {
            self.failure = Some(format!("no filter chooses the flows without a {}", self.grouping.name()));
        }
    }
}

#[cfg(test)]
mod tests;

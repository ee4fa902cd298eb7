//! What is done to the kernel's table: the worker's part of each method.

use std::collections::HashMap;

use ctnetlink::{Conntrack, RequestError, Tuple, Update};
use flowbus_interfaces::{
    ChangeOptions, CpuStatistics, Error, Expectation, FieldSet, Filter, Flow, Key, LIMIT_MAXIMUM, SourceNames,
};
use flowbus_logging::message_id::TABLE_CHANGED;
use zbus::Variant;

use crate::worker::End;

/// What a method answers, `a{sv}`.
pub(crate) type Answer = HashMap<&'static str, Variant<'static>>;

/// The most expectations of an answer: more than kernels have by default.
const MOST_EXPECTATIONS: usize = 10_000;

/// What is to become of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The flows end.
    Delete,
    /// The mask's bits of the flows' marks become those of the value.
    Mark { value: u32, mask: u32 },
    /// Seconds without traffic after which the flows end.
    Timeout { seconds: u32 },
}

/// What became of the entries that matched.
#[derive(Clone, Debug, Default)]
struct Outcome {
    matched: u32,
    done: u32,
    gone: u32,
    failed: u32,
    more: bool,
    /// The flows of a dry run.
    shown: Option<Vec<HashMap<String, Variant<'static>>>>,
}

impl Outcome {
    /// Counts one more entry that matches; false when that is one too many.
    fn count(&mut self, options: ChangeOptions) -> bool {
        if self.matched == options.limit {
            self.more = true;
            return false;
        }
        self.matched += 1;
        true
    }

    fn show(&mut self, fields: impl FnOnce() -> HashMap<String, Variant<'static>>) {
        let shown = self.shown.get_or_insert_default();
        if shown.len() < usize::from(LIMIT_MAXIMUM) {
            shown.push(fields());
        }
    }

    /// Changes each entry, as long as the process is not to end.
    fn change<T>(
        &mut self,
        entries: Vec<T>,
        end: &End,
        mut change: impl FnMut(T) -> Result<(), RequestError>,
    ) {
        for entry in entries {
            if end.has_begun() {
                return;
            }
            match change(entry) {
                Ok(()) => self.done += 1,
                Err(RequestError::NotFound) => self.gone += 1,
                Err(error) => {
                    tracing::debug!(%error, "an entry was not changed");
                    self.failed += 1;
                }
            }
        }
    }

    /// How many entries are left because the process is to end.
    fn left(&self) -> Option<u32> {
        let left = self.matched - self.done - self.gone - self.failed;
        (left > 0).then_some(left)
    }

    /// The answer to a change; `done` is the key that counts what was done.
    fn of_change(self, done: &'static str) -> Result<Answer, Error> {
        match self.left() {
            None => Ok(self.answer(done)),
            Some(left) => Err(Error::Unavailable(format!(
                "flowbus-control was ended meanwhile: {} are {done}, {left} of {} are left",
                self.done, self.matched
            ))),
        }
    }

    fn answer(self, done: &'static str) -> Answer {
        let mut answer = Answer::from([
            ("matched", self.matched.into()),
            (done, self.done.into()),
            ("gone", self.gone.into()),
            ("failed", self.failed.into()),
        ]);
        if self.more {
            answer.insert("more", true.into());
        }
        if let Some(entries) = self.shown {
            answer.insert("flows", entries.into());
        }
        answer
    }
}

/// Changes the flows that pass the filter for this user, or shows them in a dry run.
pub(crate) fn change_flows(
    filter: &Filter,
    change: Change,
    options: ChangeOptions,
    caller: u32,
    end: &End,
) -> Result<Answer, Error> {
    let mut table = open()?;
    let mut outcome = Outcome { shown: options.dry_run.then(Vec::new), ..Outcome::default() };
    let mut found = Vec::new();
    let names = SourceNames::default();
    // Matched here: the kernel's comparison of IPv6 addresses is inverted.
    let dump = table.dump(None, |flow| {
        let seen = Flow::of_kernel(flow);
        if !filter.matches(&seen) || !outcome.count(options) {
            return;
        }
        if !options.dry_run {
            return found.push((flow.original, flow.id));
        }
        outcome.show(|| {
            let mut fields = HashMap::new();
            seen.visit(&names, FieldSet::ALL.without(Key::Id), |key, value| {
                fields.insert(key.name().to_owned(), value.into());
            });
            fields
        });
    });
    dump.map_err(|error| unavailable(&error))?;
    let done = match change {
        Change::Delete => "deleted",
        Change::Mark { .. } | Change::Timeout { .. } => "changed",
    };
    if options.dry_run {
        return Ok(outcome.answer(done));
    }
    outcome.change(found, end, |(original, id)| change_one(&mut table, &original, id, change));
    log(&outcome, change, caller);
    outcome.of_change(done)
}

/// Logs a change and its caller. It is logged here, so that nothing depends on whether the caller still waits for the answer.
fn log(outcome: &Outcome, change: Change, caller: u32) {
    let left = outcome.left();
    let Outcome { matched, done, gone, failed, .. } = *outcome;
    let message_id = TABLE_CHANGED;
    match change {
        Change::Delete => {
            tracing::info!(message_id, caller, matched, deleted = done, gone, failed, left, "flows deleted");
        }
        Change::Mark { value, mask } => {
            let mark = format!("{value:#x}/{mask:#x}");
            tracing::info!(
                message_id,
                caller,
                mark,
                matched,
                changed = done,
                gone,
                failed,
                left,
                "marks set"
            );
        }
        Change::Timeout { seconds } => {
            tracing::info!(
                message_id,
                caller,
                seconds,
                matched,
                changed = done,
                gone,
                failed,
                left,
                "timeouts set"
            );
        }
    }
}

fn change_one(
    table: &mut Conntrack,
    original: &Tuple,
    id: Option<u32>,
    change: Change,
) -> Result<(), RequestError> {
    let update = match change {
        Change::Delete => return table.delete(original, id),
        Change::Mark { value, mask } => Update { mark: Some((value, mask)), ..Update::default() },
        Change::Timeout { seconds } => Update { timeout: Some(seconds), ..Update::default() },
    };
    // The kernel does not compare the id of a change, so it is done here, just before.
    if table.get(original)?.id != id {
        return Err(RequestError::NotFound);
    }
    table.update(original, &update)
}

/// Ends all flows for this user.
pub(crate) fn flush(caller: u32) -> Result<(), Error> {
    let mut table = open()?;
    let flows = table.stats().map_err(|error| unavailable(&error))?.entries;
    table.flush(None).map_err(|error| unavailable(&error))?;
    tracing::info!(message_id = TABLE_CHANGED, caller, flows, "all flows deleted");
    Ok(())
}

/// The expectations that pass the filter.
pub(crate) fn list_expectations(filter: &Filter) -> Result<Vec<Expectation>, Error> {
    let mut expectations = Vec::new();
    let dump = open()?.expectations(None, |expectation| {
        if filter.matches(&Flow::of_expectation(expectation)) && expectations.len() <= MOST_EXPECTATIONS {
            expectations.push(expectation.into());
        }
    });
    dump.map_err(|error| unavailable(&error))?;
    if expectations.len() > MOST_EXPECTATIONS {
        let text = format!("more than {MOST_EXPECTATIONS} expectations match: narrow the query");
        return Err(Error::LimitExceeded(text));
    }
    Ok(expectations)
}

/// Takes the expectations back that pass the filter for this user, or counts them in a dry run.
pub(crate) fn delete_expectations(
    filter: &Filter,
    options: ChangeOptions,
    caller: u32,
    end: &End,
) -> Result<Answer, Error> {
    let mut table = open()?;
    let mut outcome = Outcome::default();
    let mut found = Vec::new();
    let dump = table.expectations(None, |expectation| {
        if !filter.matches(&Flow::of_expectation(expectation)) || !outcome.count(options) {
            return;
        }
        if !options.dry_run {
            found.push((expectation.tuple, expectation.id));
        }
    });
    dump.map_err(|error| unavailable(&error))?;
    if options.dry_run {
        return Ok(outcome.answer("deleted"));
    }
    outcome.change(found, end, |(tuple, id)| table.delete_expectation(&tuple, id));
    let left = outcome.left();
    let Outcome { matched, done: deleted, gone, failed, .. } = outcome;
    let message_id = TABLE_CHANGED;
    tracing::info!(message_id, caller, matched, deleted, gone, failed, left, "expectations deleted");
    outcome.of_change("deleted")
}

/// What each CPU has counted.
pub(crate) fn cpu_statistics() -> Result<Vec<CpuStatistics>, Error> {
    let cpus = open()?.cpu_stats().map_err(|error| unavailable(&error))?;
    Ok(cpus.into_iter().map(Into::into).collect())
}

/// Opens the table anew for each call, so that nothing is left of an earlier one.
fn open() -> Result<Conntrack, Error> {
    Conntrack::open().map_err(|error| unavailable(&error))
}

fn unavailable(error: &RequestError) -> Error {
    Error::Unavailable(format!("the kernel's table: {error}"))
}

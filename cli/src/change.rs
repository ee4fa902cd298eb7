//! `flowctl delete`, `set-mark`, `set-timeout` and `flush`: what will go is shown, and a person is asked.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;
use flowbus_interfaces::{
    ChangeOptions, Changes, Error as FlowError, FLOW_CONTROL_NAME, Filter, FlowControlProxy, QueryMap,
    Subject, fit, parse_number,
};
use zbus::fdo;

use crate::cell::counted;
use crate::chosen::Chosen;
use crate::daemon::Daemon;
use crate::error::{Error, bus_option};
use crate::format::Printer;
use crate::json::Tabled;
use crate::output::stdout;
use crate::query::Query;

/// Which flows, and how far to go.
#[derive(Args, Clone, Debug)]
pub(crate) struct Changed {
    #[command(flatten)]
    query: Query,
    #[command(flatten)]
    pub(crate) how: How,
}

/// How far to go.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct How {
    /// Do not ask
    #[arg(short, long, conflicts_with = "dry_run")]
    yes: bool,
    /// Show what would be changed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Change at most NUMBER
    #[arg(long, value_name = "NUMBER", default_value_t = ChangeOptions::LIMIT,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(ChangeOptions::MOST)))]
    limit: u32,
    #[command(flatten)]
    tabled: Tabled,
}

/// A mark, and which of its bits are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MaskedMark {
    value: u32,
    mask: u32,
}

/// What is done to flows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Delete,
    Mark(MaskedMark),
    Timeout(u32),
}

/// Reads `MARK` or `MARK/MASK`.
pub(crate) fn masked_mark(text: &str) -> Result<MaskedMark, String> {
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    match (parse_number::<u32>(value), parse_number::<u32>(mask)) {
        (Some(value), Some(mask)) if mask != 0 && value & !mask == 0 => Ok(MaskedMark { value, mask }),
        _ => Err("takes a mark such as 0x100, or value/mask such as 0x100/0x3f00, the value within the mask"
            .to_owned()),
    }
}

/// Changes the flows that match, after asking.
pub(crate) async fn change(daemon: &Daemon, changed: &Changed, change: Change) -> Result<(), Error> {
    let Changed { query, how } = changed;
    if query.is_for_all() {
        return Err(Error::Usage(
            "name at least one condition, such as dport=443; `flowctl flush` deletes all connections"
                .to_owned(),
        ));
    }
    how.must_have_terminal()?;
    let control = control(daemon).await?;
    let call = async |query: &QueryMap<'_>, dry_run: bool| {
        let options = how.options(dry_run);
        let answer = match change {
            Change::Delete => control.delete_flows(query, &options).await,
            Change::Mark(MaskedMark { value, mask }) => control.set_mark(query, value, mask, &options).await,
            Change::Timeout(seconds) => control.set_timeout(query, seconds, &options).await,
        };
        answer.map_err(|error| refused(daemon, error))
    };
    let verb = match change {
        Change::Delete => Verb::DELETE,
        Change::Mark(_) | Change::Timeout(_) => Verb::CHANGE,
    };
    // What the helper does not know of a flow, flowbusd does: sources that its configuration names, too.
    let chosen = match Filter::of_kernel(query.raw(), Subject::Flows) {
        Ok(_) => None,
        Err(_) => Some(Chosen::list(daemon, query.to_map(), how.limit()).await?),
    };
    if !how.yes {
        let seen = match &chosen {
            Some(chosen) => Changes { flows: Some(chosen.flows.clone()), ..chosen.sum(&[]) },
            None => call(&query.to_map(), true).await?,
        };
        let flows = seen.flows.as_deref().unwrap_or_default();
        let mut out = stdout();
        let mut printer = Printer::of_table(how.tabled);
        flows.iter().try_for_each(|flow| printer.flow(&mut out, flow, None))?;
        printer.end(&mut out)?;
        out.flush()?;
        let hidden = seen.matched.saturating_sub(fit(flows.len()));
        if hidden > 0 {
            anstream::eprintln!("... and {hidden} more.");
        }
        how.ask(verb, "connection", &seen)?;
        if how.dry_run {
            return Ok(());
        }
    }
    let Some(chosen) = chosen else {
        return how.tell(verb, "connection", &call(&query.to_map(), false).await?);
    };
    let mut answers = Vec::new();
    for query in chosen.queries() {
        answers.push(call(&query, false).await?);
    }
    how.tell(verb, "connection", &chosen.sum(&answers))
}

/// What is done, in the words of a question and of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verb {
    asked: &'static str,
    done: &'static str,
}

impl Verb {
    pub(crate) const DELETE: Self = Self { asked: "Delete", done: "deleted" };
    pub(crate) const CHANGE: Self = Self { asked: "Change", done: "changed" };
}

/// Deletes all flows, after asking.
pub(crate) async fn flush(daemon: &Daemon, yes: bool) -> Result<(), Error> {
    if !yes {
        must_have_terminal()?;
        confirm("Delete ALL connections that are tracked?")?;
    }
    control(daemon).await?.flush_flows(true).await.map_err(|error| refused(daemon, error))
}

/// The helper's methods.
pub(crate) async fn control(daemon: &Daemon) -> Result<FlowControlProxy<'static>, Error> {
    FlowControlProxy::new(daemon.monitor.inner().connection()).await.map_err(|error| daemon.failed(error))
}

/// The error of a failed call of the helper, which is not flowbusd: what to do next is something else.
pub(crate) fn refused(daemon: &Daemon, error: FlowError) -> Error {
    match error {
        FlowError::NotAuthorized(text) => Error::Refused(format!(
            "access denied: {text}\nTry again with sudo, or have an administrator grant it by a rule of polkit."
        )),
        FlowError::ZBus(zbus::Error::FDO(named)) if matches!(*named, fdo::Error::ServiceUnknown(_)) => {
            let bus = daemon.bus();
            Error::Refused(format!(
                "flowbus-control is not on {bus}: nobody owns {FLOW_CONTROL_NAME}.\nThe bus starts it where flowbus is \
                 installed; next to a flowbusd that root has started by hand, start it as root with\n\
                 `flowbus-control --bus {} --user root`.",
                bus_option(bus)
            ))
        }
        error => daemon.refused(error),
    }
}

impl How {
    /// The options of a call.
    pub(crate) fn options(self, dry_run: bool) -> QueryMap<'static> {
        QueryMap::from([("dry_run", dry_run.into()), ("limit", self.limit.into())])
    }

    /// The most that shall change.
    pub(crate) fn limit(self) -> usize {
        fit(self.limit)
    }

    /// Whether somebody is to be asked.
    pub(crate) const fn asks(self) -> bool {
        !self.yes
    }

    /// Fails where a person has to be asked and cannot be, before anything is called.
    pub(crate) fn must_have_terminal(self) -> Result<(), Error> {
        if self.yes || self.dry_run { Ok(()) } else { must_have_terminal() }
    }

    /// How results are printed.
    pub(crate) const fn tabled(self) -> Tabled {
        self.tabled
    }

    /// Whether nothing is to be changed.
    pub(crate) const fn is_dry(self) -> bool {
        self.dry_run
    }

    /// Says how many entries match and asks whether to go on; a dry run asks nothing.
    pub(crate) fn ask(self, verb: Verb, what: &str, seen: &Changes) -> Result<(), Error> {
        let Changes { matched, more, .. } = *seen;
        if matched == 0 {
            return Err(nothing(what));
        }
        let left = if more == Some(true) { ", and more match than --limit lets through" } else { "" };
        let counted = counted(matched.into(), what);
        if self.dry_run {
            anstream::eprintln!("{counted} would be {}{left}. Nothing was.", verb.done);
            return Ok(());
        }
        confirm(&format!("{} {counted}{left}?", verb.asked))
    }

    /// Says what was done.
    pub(crate) fn tell(self, verb: Verb, what: &str, done: &Changes) -> Result<(), Error> {
        let Changes { matched, deleted, changed, gone, failed, more, .. } = *done;
        let number = deleted.or(changed).unwrap_or(0);
        let verb = verb.done;
        if self.tabled.json.is_on() {
            let more = more == Some(true);
            let object = serde_json::json!({
                "matched": matched, verb: number, "gone": gone, "failed": failed, "more": more,
            });
            let mut out = stdout();
            self.tabled.json.print(&mut out, &object)?;
            out.flush()?;
        } else if matched > 0 {
            let mut text = format!("{} {verb}", counted(number.into(), what));
            if gone > 0 {
                text.push_str(&format!(", {gone} had ended already"));
            }
            if failed > 0 {
                text.push_str(&format!(", {failed} refused by the kernel"));
            }
            if more == Some(true) {
                text.push_str("; more match than --limit let through");
            }
            anstream::eprintln!("{text}.");
        }
        if matched == 0 { Err(nothing(what)) } else { Ok(()) }
    }
}

fn nothing(what: &str) -> Error {
    Error::Refused(format!("no {what} matches"))
}

fn must_have_terminal() -> Result<(), Error> {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    Err(Error::Usage(
        "there is no terminal to ask on: add --yes to go on, or --dry-run to see what would be changed"
            .to_owned(),
    ))
}

/// Asks a question that takes a yes.
fn confirm(question: &str) -> Result<(), Error> {
    anstream::eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Error::Refused("nothing was changed".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_stays_within_its_mask() {
        assert_eq!(masked_mark("0x100"), Ok(MaskedMark { value: 0x100, mask: u32::MAX }));
        assert_eq!(masked_mark("256/0x3f00"), Ok(MaskedMark { value: 0x100, mask: 0x3f00 }));
        for wrong in ["", "0x100/0xff", "1/0", "0/0", "red", "1/2/3", "-1"] {
            assert!(masked_mark(wrong).is_err(), "{wrong}");
        }
    }
}

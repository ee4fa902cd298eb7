//! What is no event: losses, restarts, the end.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use flowbus_interfaces::StreamItem;

use crate::cell;
use crate::format::Format;
use crate::output;

/// Something that whoever watches has to know.
#[derive(Debug)]
pub(super) enum Notice {
    /// Changes are missing.
    Gap { first: u64, last: u64, lost: u64, reason: String },
    /// The daemon's table was brought in line with the kernel's.
    Resync { reason: String, lost: u64, closed: u32, added: u32 },
    /// The daemon stops.
    Stopped { bus: String },
    /// The stream was cut off.
    Closed { bus: String },
    /// A new stream goes on where the one before it was.
    Back,
    /// A new stream, and a new table.
    NewEpoch,
    /// What was seen in all.
    Summary { usec: u64, new: u64, update: u64, destroy: u64, missed: u64 },
}

impl Notice {
    fn text(&self) -> String {
        match self {
            // What happened meanwhile is counted whatever the filter, so some of it may not be missed.
            Self::Gap { lost, reason, .. } if reason == "restart" => {
                let lost = cell::counted(*lost, "change");
                format!("up to {lost} missing here: it happened while flowbusd was away")
            }
            Self::Gap { lost, reason, .. } => {
                let why = match reason.as_str() {
                    "slow-reader" => "this reader was too slow",
                    "overrun" => "the kernel's events came too fast for flowbusd",
                    "forgotten" => {
                        let ends = cell::counted(*lost, "end");
                        return format!("up to {ends} missing here: flowbusd no longer remembers them");
                    }
                    other => other,
                };
                format!("{} missing here: {why}", cell::counted(*lost, "change"))
            }
            Self::Resync { reason, lost, closed, added } => format!(
                "in line with the kernel again ({reason}): {} lost, {} closed, {added} added",
                cell::counted(*lost, "event"),
                cell::counted((*closed).into(), "flow"),
            ),
            Self::Stopped { bus } => format!("flowbusd has left {bus}; waiting for it"),
            Self::Closed { bus } => format!("flowbusd on {bus} has cut the stream off; opening another"),
            Self::Back => "flowbusd is back".to_owned(),
            Self::NewEpoch => {
                "flowbusd is back with a new table: ids begin anew, and what happened meanwhile is not known"
                    .to_owned()
            }
            Self::Summary { usec, new, update, destroy, missed } => {
                let missed = match missed {
                    0 => "none missed".to_owned(),
                    missed => format!("{missed} missed"),
                };
                let lasted = cell::duration(*usec);
                format!("{new} new, {update} changed, {destroy} ended in {lasted}; {missed}")
            }
        }
    }

    /// The notice as a stream writes it; `None` for one that is not for programs.
    fn object(&self) -> Option<StreamItem<'_>> {
        match *self {
            Self::Gap { first, last, lost, ref reason } => {
                Some(StreamItem::Gap { first, last, lost, reason: reason.into() })
            }
            Self::Resync { ref reason, lost, closed, added } => {
                Some(StreamItem::Resync { reason: reason.into(), lost, closed, added })
            }
            Self::Stopped { .. } => Some(StreamItem::End { reason: "stopping".into() }),
            Self::Closed { .. } => Some(StreamItem::End { reason: "cut-off".into() }),
            _ => None,
        }
    }
}

/// Prints notices in the form of the rest.
pub(super) struct Notices {
    form: NoticeForm,
}

#[derive(Clone, Copy)]
enum NoticeForm {
    /// Lines among those of the table.
    Lines { colors: bool },
    /// Objects among those of the flows.
    Objects,
    /// Programs that read words or elements get none of it: it goes to standard error.
    Aside,
}

impl Notices {
    pub(super) const fn new(format: &Format, colors: bool) -> Self {
        Self {
            form: match format {
                Format::Table => NoticeForm::Lines { colors },
                Format::Json => NoticeForm::Objects,
                _ => NoticeForm::Aside,
            },
        }
    }

    /// Prints an item that only programs need.
    pub(super) fn print_item(&self, out: &mut dyn Write, item: &StreamItem<'_>) -> io::Result<()> {
        match self.form {
            NoticeForm::Objects => output::json_line(out, item),
            _ => Ok(()),
        }
    }

    pub(super) fn print(&self, out: &mut dyn Write, notice: &Notice) -> io::Result<()> {
        const STYLE: Style = AnsiColor::Yellow.on_default();
        let text = notice.text();
        match (self.form, notice.object()) {
            (NoticeForm::Lines { colors: true }, _) => writeln!(out, "{STYLE}-- {text}{STYLE:#}"),
            (NoticeForm::Lines { colors: false }, _) => writeln!(out, "-- {text}"),
            (NoticeForm::Objects, Some(object)) => output::json_line(out, &object),
            (NoticeForm::Objects, None) | (NoticeForm::Aside, _) => {
                anstream::eprintln!("flowctl: {text}");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(format: &Format, notice: &Notice) -> String {
        let mut out = Vec::new();
        Notices::new(format, false).print(&mut out, notice).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_loss_is_told_in_the_form_of_the_rest() {
        let gap = Notice::Gap { first: 3, last: 14, lost: 12, reason: "slow-reader".into() };
        assert_eq!(told(&Format::Table, &gap), "-- 12 changes missing here: this reader was too slow\n");
        let object = "{\"type\":\"gap\",\"first\":3,\"last\":14,\"lost\":12,\"reason\":\"slow-reader\"}\n";
        assert_eq!(told(&Format::Json, &gap), object);
        assert_eq!(told(&Format::Awk, &gap), "");
        assert!(Notices::new(&Format::Table, true).print(&mut Vec::new(), &gap).is_ok());
    }

    #[test]
    fn a_resync_and_a_summary_are_told() {
        let resync = Notice::Resync { reason: "overrun".into(), lost: 7, closed: 3, added: 0 };
        let text = "-- in line with the kernel again (overrun): 7 events lost, 3 flows closed, 0 added\n";
        assert_eq!(told(&Format::Table, &resync), text);
        assert!(told(&Format::Json, &resync).contains("\"type\":\"resync\""));
        let summary = Notice::Summary { usec: 65_000_000, new: 2, update: 1, destroy: 0, missed: 0 };
        assert_eq!(told(&Format::Table, &summary), "-- 2 new, 1 changed, 0 ended in 1m5s; none missed\n");
        assert_eq!(told(&Format::Json, &summary), "", "programs count themselves");
    }
}

//! `flowctl show` and `flowctl decode-mark`: one thing, in full.

use std::io::{self, Write};

use flowbus_interfaces::{Key, Mark, OwnedFlow, SourceNames, visit_mark_fields};

use crate::cell::Cells;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::format::{Format, Kind, Output, Printer};
use crate::json::Json;
use crate::output::stdout;
use crate::screen::Screen;

/// Prints one flow.
pub(crate) async fn show(daemon: &Daemon, id: u64, output: &Output, paged: bool) -> Result<(), Error> {
    let flow = daemon.monitor.get_flow(id).await.map_err(|error| daemon.refused(error))?;
    let mut screen = Screen::open(paged && *output.format() != Format::Json)?;
    if *output.format() == Format::Table {
        details(&mut screen, &flow, Cells { numeric: output.look().numeric, ..Cells::FOR_PEOPLE })?;
        return Ok(screen.close()?);
    }
    let kind = if flow.get(Key::EndUsec).is_some() { Kind::Closed } else { Kind::Active };
    let mut printer = Printer::new(output, kind, Vec::new());
    printer.begin(&mut screen)?;
    let event = output.format().event_of_closed().filter(|_| kind == Kind::Closed);
    printer.flow(&mut screen, &flow, event)?;
    printer.end(&mut screen)?;
    Ok(screen.close()?)
}

/// Prints what a mark means. The daemon knows the sources that its configuration names and the interfaces that
/// exist; without it the built-in names have to do.
pub(crate) async fn decode_mark(daemon: Result<Daemon, Error>, mark: Mark, json: Json) -> Result<(), Error> {
    let fields = match ask(daemon, mark).await {
        Ok(fields) => fields,
        Err(error) => {
            // The hint on the next line is for those who need the daemon.
            let error = error.to_string();
            let reason = error.lines().next().unwrap_or_default();
            anstream::eprintln!("flowctl: decoded without flowbusd, so without interface names: {reason}");
            without_daemon(mark)
        }
    };
    let mut out = stdout();
    if json.is_on() {
        json.print(&mut out, &fields)?;
    } else {
        details(&mut out, &fields, Cells::FOR_PEOPLE)?;
    }
    Ok(out.flush()?)
}

async fn ask(daemon: Result<Daemon, Error>, mark: Mark) -> Result<OwnedFlow, Error> {
    let daemon = daemon?;
    daemon.monitor.decode_mark(mark.0).await.map_err(|error| daemon.refused(error))
}

fn without_daemon(mark: Mark) -> OwnedFlow {
    let mut fields = Vec::new();
    visit_mark_fields(mark, None, &SourceNames::default(), |key, value| fields.push((key, value.into())));
    fields.into_iter().collect()
}

/// Prints a flow, one line a field, names aligned.
fn details(out: &mut dyn Write, flow: &OwnedFlow, cells: Cells) -> io::Result<()> {
    let width = flow.iter().map(|(key, _)| key.name().len()).max().unwrap_or(0);
    for (key, value) in flow.iter() {
        writeln!(out, "{:width$}  {}", key.name(), cells.value(key, value))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use flowbus_interfaces::OwnedValue;

    use super::*;

    const CELLS: Cells = Cells::FOR_PEOPLE;

    #[test]
    fn a_mark_is_decoded_without_a_daemon() {
        let mut out = Vec::new();
        details(&mut out, &without_daemon(Mark(0x040c_2900)), CELLS).unwrap();
        let expected = "\
mark           67905792 (0x040c2900)
source         0x29
source_id      41
vpn            none
qos            default
routing_table  1036
legacy_snat    no
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn details_are_for_people() {
        assert_eq!(CELLS.value(Key::DurationUsec, &OwnedValue::Number(192_000_000)), "3m12s");
        assert_eq!(CELLS.value(Key::Timeout, &OwnedValue::Number(30)), "30s");
        assert_eq!(
            CELLS.value(Key::Status, &OwnedValue::Names(vec!["assured".into(), "dying".into()])),
            "assured,dying"
        );
        assert_eq!(CELLS.value(Key::Labels, &OwnedValue::Bytes(vec![1, 255])), "01ff");
    }
}

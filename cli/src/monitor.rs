//! `flowctl monitor`.

use std::collections::HashMap;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use flowbus_interfaces::{FlowEvents, Resynced};
use futures_util::StreamExt;
use serde_json::{Value, json};
use zbus::{Message, OwnedVariant};

use crate::arguments::Format;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::{Kind, Printer, stdout};
use crate::status;

/// Prints changes until Ctrl-C. When the daemon restarts it goes on with the new one.
pub(crate) async fn monitor(daemon: &Daemon, format: Format) -> Result<(), Error> {
    let proxy = daemon.events().await?;
    let failed = |error| daemon.failed(error);
    // One stream for all signals, so that a resync stays in its place among the changes.
    let mut signals = proxy.inner().receive_all_signals().await.map_err(failed)?;
    let mut owner = proxy.inner().receive_owner_changed().await.map_err(failed)?;
    // Asked once subscribed: whoever gets no answer here would wait for events in vain.
    daemon.monitor.version().await.map_err(failed)?;

    let mut printer = Printer::new(format, Kind::Events, Vec::new());
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            biased;
            _ = &mut interrupt => return Ok(()),
            signal = signals.next() => match signal {
                Some(signal) => print(daemon, &mut printer, format, signal)?,
                None => return Err(Error::Closed),
            },
            change = owner.next() => match change {
                Some(Some(_)) => anstream::eprintln!("flowctl: flowbusd is on {} again.", daemon.bus()),
                Some(None) => anstream::eprintln!("flowctl: flowbusd has left {}; waiting for it.", daemon.bus()),
                None => return Err(Error::Closed),
            },
        }
    }
}

/// Prints what a signal says. Members that later versions add say nothing to this one.
fn print(daemon: &Daemon, printer: &mut Printer, format: Format, signal: Message) -> Result<(), Error> {
    let mut out = stdout();
    if let Some(batch) = FlowEvents::from_message(signal.clone()) {
        let batch = batch.args().map_err(|error| daemon.failed(error))?;
        if batch.lost > 0 {
            let text = format!("{} changes were not sent: they came too fast", batch.lost);
            note(&mut out, format, &text, &json!({"type": "gap", "lost": batch.lost}))?;
        }
        printer.print(&mut out, &batch.events)?;
    } else if let Some(resynced) = Resynced::from_message(signal) {
        let resynced = resynced.args().map_err(|error| daemon.failed(error))?;
        let (text, object) = describe(&resynced.details);
        note(&mut out, format, &text, &object)?;
    }
    Ok(out.flush()?)
}

/// A resync in words and as a stream has it.
fn describe(details: &HashMap<String, OwnedVariant>) -> (String, Value) {
    let number = |name| details.get(name).and_then(status::number).unwrap_or(0);
    let reason = details.get("reason").and_then(|reason| <&str>::try_from(reason).ok()).unwrap_or("unknown");
    let (lost, closed, added) = (number("lost"), number("closed"), number("added"));
    let text = format!(
        "in line with the kernel again ({reason}): {lost} events lost, {closed} flows closed, {added} added"
    );
    (text, json!({"type": "resync", "reason": reason, "lost": lost, "closed": closed, "added": added}))
}

/// Something that is no event. Programs that read words a line get none of it: it goes to standard error.
fn note(out: &mut dyn Write, format: Format, text: &str, object: &Value) -> io::Result<()> {
    const STYLE: Style = AnsiColor::Yellow.on_default();
    match format {
        Format::Table => writeln!(out, "{STYLE}-- {text}{STYLE:#}"),
        Format::Json => writeln!(out, "{object}"),
        Format::Awk => {
            anstream::eprintln!("flowctl: {text}");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_in_the_form_of_the_rest() {
        let object = json!({"type": "gap", "lost": 12});
        let told = |format| {
            let mut out = anstream::StripStream::new(Vec::new());
            note(&mut out, format, "12 lost", &object).unwrap();
            String::from_utf8(out.into_inner()).unwrap()
        };
        assert_eq!(told(Format::Table), "-- 12 lost\n");
        assert_eq!(told(Format::Json), "{\"lost\":12,\"type\":\"gap\"}\n");
        assert_eq!(told(Format::Awk), "");
    }

    #[test]
    fn a_resync_is_described() {
        let value = |value: zbus::Variant<'_>| value.try_to_owned().unwrap();
        let details = HashMap::from([
            ("reason".to_owned(), value("overrun".into())),
            ("lost".to_owned(), value(7_u64.into())),
            ("closed".to_owned(), value(3_u32.into())),
        ]);
        let (text, object) = describe(&details);
        assert_eq!(text, "in line with the kernel again (overrun): 7 events lost, 3 flows closed, 0 added");
        assert_eq!(
            object,
            json!({"type": "resync", "reason": "overrun", "lost": 7, "closed": 3, "added": 0})
        );
    }
}

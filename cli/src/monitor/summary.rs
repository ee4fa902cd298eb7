//! What `--exit-summary` prints: the connections that are alive, then those that ended, as monitor-conntrack does.

use std::collections::HashSet;
use std::io::{self, Write};

use flowbus_interfaces::{Key, QueryMap, StreamItem};

use super::session::Place;
use crate::arguments::Monitored;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::format::{Format, Kind, Printer};
use crate::screen::Screen;

/// Prints both lists. The daemon remembers what ended, so nothing has to be kept here in the meantime.
pub(super) async fn print(
    daemon: &Daemon,
    monitored: &Monitored,
    place: &Option<Place>,
    screen: &mut Screen,
) -> Result<(), Error> {
    title(monitored, screen, "Active connections:")?;
    let query = asked(monitored, false);
    let mut stream = daemon.stream(&query).await?;
    let mut printer = Printer::of(&monitored.query, &monitored.output, Kind::Active);
    let mut active = HashSet::new();
    let mut last = 0;
    printer.begin(screen)?;
    while let Some(item) = stream.next().await.map_err(Error::Stream)? {
        match item {
            StreamItem::Flow(flow) => {
                active.extend(flow.number(Key::Id));
                printer.flow(screen, &flow, None)?;
            }
            StreamItem::SnapshotEnd { sequence } => last = sequence,
            _ => {}
        }
    }
    printer.end(screen)?;

    title(monitored, screen, "Closed connections:")?;
    let query = asked(monitored, true);
    let mut stream = daemon.stream(&query).await?;
    let mut printer = Printer::of(&monitored.query, &monitored.output, Kind::Closed);
    let mut since = 0;
    printer.begin(screen)?;
    while let Some(item) = stream.next().await.map_err(Error::Stream)? {
        match item {
            // In another epoch all that is remembered ended while we watched.
            StreamItem::Begin { epoch, .. } => {
                let known = place.as_ref().filter(|place| place.epoch == epoch);
                since = known.map_or(0, |place| place.begin);
            }
            StreamItem::Closed(flow) => {
                let ended = flow.number(Key::Sequence).is_some_and(|end| end > since && end <= last);
                // One that ended while the first list was made is in that.
                if ended && flow.number(Key::Id).is_none_or(|id| !active.contains(&id)) {
                    printer.flow(screen, &flow, None)?;
                }
            }
            _ => {}
        }
    }
    printer.end(screen)?;
    Ok(())
}

/// Among lines for people and words a title is a line; what parsers read has none, so there it goes to standard error.
fn title(monitored: &Monitored, screen: &mut Screen, title: &str) -> io::Result<()> {
    match monitored.output.format() {
        Format::Table | Format::Awk | Format::Conntrack(_) => writeln!(screen, "{title}"),
        Format::Json | Format::Csv | Format::Xml(_) => {
            // In its place, where both go to a terminal.
            screen.flush()?;
            anstream::eprintln!("{title}");
            Ok(())
        }
    }
}

fn asked(monitored: &Monitored, closed: bool) -> QueryMap<'_> {
    let mut query = monitored.output.query(&monitored.query);
    query.extend([("follow", false.into()), ("snapshot", (!closed).into()), ("closed", closed.into())]);
    query
}

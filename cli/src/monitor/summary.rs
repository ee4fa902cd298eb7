//! What `--exit-summary` prints: the connections that are alive, then those that ended, as monitor-conntrack does.

use std::collections::HashSet;
use std::io::{self, Write};

use flowbus_interfaces::{Key, QueryMap, StreamItem};

use super::session::Place;
use crate::arguments::Monitored;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::flows::Listing;
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
    let mut listing = Listing::open(daemon, asked(monitored, false)).await?;
    let mut printer = Printer::of(&monitored.query, &monitored.output, Kind::Active);
    printer.begin(screen)?;
    let printed = print_active(&mut listing, &mut printer, screen).await;
    // What came of a list that was cut off is shown as well.
    printer.end(screen)?;
    let active = printed?;

    title(monitored, screen, "Closed connections:")?;
    let mut listing = Listing::open(daemon, asked(monitored, true)).await?;
    let mut printer = Printer::of(&monitored.query, &monitored.output, Kind::Closed);
    printer.begin(screen)?;
    let printed = print_closed(&mut listing, &mut printer, screen, place, &active).await;
    printer.end(screen)?;
    printed
}

/// The flows that were alive.
struct Active {
    ids: HashSet<u64>,
    /// The number of the last change that is in their list.
    last: u64,
}

async fn print_active(
    listing: &mut Listing,
    printer: &mut Printer,
    screen: &mut Screen,
) -> Result<Active, Error> {
    let mut active = Active { ids: HashSet::new(), last: 0 };
    while let Some(item) = listing.next().await? {
        match item {
            StreamItem::Flow(flow) => {
                active.ids.extend(flow.number(Key::Id));
                printer.flow(screen, &flow, None)?;
            }
            StreamItem::SnapshotEnd { sequence } => active.last = sequence,
            _ => {}
        }
    }
    Ok(active)
}

async fn print_closed(
    listing: &mut Listing,
    printer: &mut Printer,
    screen: &mut Screen,
    place: &Option<Place>,
    active: &Active,
) -> Result<(), Error> {
    let mut since = 0;
    while let Some(item) = listing.next().await? {
        match item {
            // In another epoch all that is remembered ended while we watched.
            StreamItem::Begin { epoch, .. } => {
                let known = place.as_ref().filter(|place| place.epoch == epoch);
                since = known.map_or(0, |place| place.begin);
            }
            StreamItem::Closed(flow) => {
                let ended = flow.number(Key::Sequence).is_some_and(|end| end > since && end <= active.last);
                // A flow that ended while the first list was made is in that.
                if ended && flow.number(Key::Id).is_none_or(|id| !active.ids.contains(&id)) {
                    printer.flow(screen, &flow, None)?;
                }
            }
            _ => {}
        }
    }
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
    let kind = if closed { Kind::Closed } else { Kind::Active };
    let mut query = monitored.output.query(&monitored.query, kind);
    query.extend([("snapshot", (!closed).into()), ("closed", closed.into())]);
    query
}

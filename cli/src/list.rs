//! `flowctl list` and `flowctl closed`.

use std::io::Write;

use flowbus_interfaces::{FlowRef, StreamItem};

use crate::arguments::Listed;
use crate::cell;
use crate::daemon::{Daemon, Statistics};
use crate::error::Error;
use crate::flows::Listing;
use crate::format::{Kind, Printer, late_names};
use crate::screen::Screen;
use crate::silence;
use crate::sort::{Sort, Sorted};

/// Why the table is not the kernel's.
const NOT_SYNCHRONIZED: &str = "flowbusd has not read the kernel's table since it started, or since a loss. \
     Try again in a moment; `flowctl status` says more.";
/// Flows that are asked for at once where pages are turned.
const PAGE: u32 = 1000;

/// Prints the flows that are alive as they come, or sorted.
pub(crate) async fn list(
    daemon: &Daemon,
    listed: &Listed,
    sort: Option<Sort>,
    paged: bool,
) -> Result<(), Error> {
    // Asked first: a list that begins when the table is the kernel's is whole.
    let synchronized = daemon.monitor.synchronized().await.unwrap_or(true);
    let most = listed.lines.unwrap_or(usize::MAX);
    let mut query = listed.output.query(&listed.query, Kind::Active);
    let sorted = sort.map(|sort| Sorted::new(sort, cell::now(), most, sort.extend(&mut query)));
    let mut listing = Listing::open(daemon, query).await?;
    let mut screen = Screen::open(paged)?;
    let mut printer = Printer::of(&listed.query, &listed.output, Kind::Active);
    printer.begin(&mut screen)?;
    let printed = match sorted {
        Some(sorted) => print_sorted(&mut listing, &mut printer, &mut screen, sorted).await,
        None => print(&mut listing, &mut printer, &mut screen, most).await,
    };
    // What came of a list that was cut off is shown as well.
    printer.end(&mut screen)?;
    late_names(&listed.output, &mut screen).await?;
    screen.close()?;
    let found = printed?;
    if !found && listed.query.is_for_all() {
        let (statistics, texts) = daemon.statistics_and_texts().await.unwrap_or_default();
        let silence = silence::reasons(&statistics, &texts);
        anstream::eprintln!("{}", why_none(synchronized, &statistics, &silence));
        return Ok(());
    }
    if !found {
        anstream::eprintln!("No flow matches.");
    }
    if !synchronized {
        anstream::eprintln!("flowctl: flows may be missing here, or have ended: {NOT_SYNCHRONIZED}");
    }
    Ok(())
}

/// Prints flows as they come, up to `most`; whether there was one.
async fn print(
    listing: &mut Listing,
    printer: &mut Printer,
    screen: &mut Screen,
    most: usize,
) -> Result<bool, Error> {
    let mut found = 0;
    while let Some(item) = listing.next().await? {
        if let StreamItem::Flow(flow) = item {
            if found == most {
                break;
            }
            found += 1;
            printer.flow(screen, &flow, None)?;
        }
        if !listing.has_line() {
            // Nothing is held back while more is waited for.
            printer.flush(screen)?;
            screen.flush()?;
        }
    }
    Ok(found > 0)
}

/// Prints flows when all have come; whether there was one.
async fn print_sorted(
    listing: &mut Listing,
    printer: &mut Printer,
    screen: &mut Screen,
    mut sorted: Sorted,
) -> Result<bool, Error> {
    let mut found = false;
    while let Some(item) = listing.next().await? {
        if let StreamItem::Flow(flow) = item {
            found = true;
            sorted.push(&flow);
        }
    }
    for line in sorted.lines() {
        let flow = FlowRef::parse(&line).map_err(|error| Error::Output(error.into()))?;
        printer.flow(screen, &flow, None)?;
    }
    Ok(found)
}

/// Prints the flows that ended, latest end first, page by page.
pub(crate) async fn closed(daemon: &Daemon, listed: &Listed, paged: bool) -> Result<(), Error> {
    let mut query = listed.output.query(&listed.query, Kind::Closed);
    let mut left = listed.lines.unwrap_or(usize::MAX);
    query.insert("limit", u32::try_from(left).map_or(PAGE, |left| left.clamp(1, PAGE)).into());
    let refused = |error| daemon.refused(error);
    let (mut flows, mut page) = daemon.monitor.list_closed(&query).await.map_err(refused)?;
    if flows.is_empty() {
        anstream::eprintln!(
            "{}",
            if listed.query.is_for_all() {
                "No flow has ended since flowbusd began to watch, or it no longer remembers one."
            } else {
                "No flow that is remembered matches."
            }
        );
    }
    let mut screen = Screen::open(paged)?;
    let mut printer = Printer::of(&listed.query, &listed.output, Kind::Closed);
    printer.begin(&mut screen)?;
    let event = listed.output.format().event_of_closed();
    loop {
        flows.iter().take(left).try_for_each(|flow| printer.flow(&mut screen, flow, event))?;
        left = left.saturating_sub(flows.len());
        printer.flush(&mut screen)?;
        screen.flush()?;
        let Some(next) = page.next.filter(|_| left > 0) else { break };
        query.insert("after", next.into());
        // One dump is enough.
        query.remove("refresh");
        (flows, page) = daemon.monitor.list_closed(&query).await.map_err(refused)?;
    }
    printer.end(&mut screen)?;
    late_names(&listed.output, &mut screen).await?;
    Ok(screen.close()?)
}

/// Why there are no active flows.
fn why_none(synchronized: bool, statistics: &Statistics, silence: &[String]) -> String {
    let kernel_count = statistics.get("kernel_count").copied();
    match kernel_count {
        _ if !synchronized => format!("No flows yet: {NOT_SYNCHRONIZED}"),
        Some(count @ 1..) if !silence.is_empty() => {
            format!("No flows yet, though the kernel counts {count}: {}", silence.join("; "))
        }
        Some(count @ 1..) => format!(
            "No flows, though the kernel counts {count}: they have just begun or ended, or they belong to another \
             network namespace than flowbusd's."
        ),
        Some(0) | None if statistics.get("events_new").is_some_and(|begun| *begun > 0) => {
            "No flows just now: those that flowbusd has seen have ended; `flowctl closed` lists them."
                .to_owned()
        }
        Some(0) | None => format!(
            "No flows: nothing is tracked in flowbusd's network namespace{}. Linux tracks connections only where a \
             firewall rule asks for it. Where flowbus is installed as a package, its unit asks for it:\n\
             \x20 systemctl enable --now flowbus-tracking\n\
             Elsewhere this turns it on without filtering anything:\n\
             \x20 nft add table inet track\n\
             \x20 nft 'add chain inet track watch {{ type filter hook prerouting priority raw; }}'\n\
             \x20 nft add rule inet track watch ct state invalid\n\
             and this off again: nft delete table inet track",
            if kernel_count.is_some() { "" } else { ", as far as it can tell" }
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_says_why() {
        let counted = |count| Statistics::from([("kernel_count".to_owned(), count)]);
        assert!(why_none(false, &counted(0), &[]).starts_with("No flows yet"));
        assert!(why_none(true, &counted(3), &[]).contains("the kernel counts 3"));
        let muted = why_none(true, &counted(3), &["events are off".to_owned()]);
        assert!(muted.contains("counts 3: events are off"), "{muted}");
        let off = why_none(true, &counted(0), &[]);
        assert!(
            off.contains("nft 'add chain inet track watch { type filter hook prerouting priority raw; }'"),
            "{off}"
        );
        assert!(why_none(true, &Statistics::new(), &[]).contains("as far as it can tell"));
        let mut ended = counted(0);
        ended.insert("events_new".to_owned(), 200_000);
        assert!(why_none(true, &ended, &[]).starts_with("No flows just now: "));
    }
}

//! `flowctl list` and `flowctl closed`.

use std::io::Write;

use flowbus_interfaces::Page;

use crate::arguments::Listed;
use crate::daemon::{Daemon, Listing};
use crate::error::Error;
use crate::output::{Kind, Printer, stdout};

/// Prints every page of a listing as it comes.
pub(crate) async fn list(daemon: &Daemon, listing: Listing, listed: &Listed) -> Result<(), Error> {
    let Listed { query, output } = listed;
    let kind = match listing {
        Listing::Active => Kind::Active,
        Listing::Closed => Kind::Closed,
    };
    let mut printer = Printer::new(output.format(), kind, query.fields());
    let (mut flows, mut page) = daemon.page(listing, query, None).await?;
    if flows.is_empty() {
        let reason = match listing {
            _ if !query.is_for_all() => "No flow matches.".to_owned(),
            Listing::Active => why_none(&page, kernel_count(daemon).await),
            Listing::Closed => {
                "No flow has ended since flowbusd began to watch, or it no longer remembers one.".to_owned()
            }
        };
        anstream::eprintln!("{reason}");
    }
    loop {
        // Locked for a page at a time: the lock must not be held while the next one is awaited.
        let mut out = stdout();
        printer.print(&mut out, &flows)?;
        out.flush()?;
        drop(out);
        match page.next {
            Some(next) => (flows, page) = daemon.page(listing, query, Some(next)).await?,
            None => return Ok(()),
        }
    }
}

/// How many flows the kernel has, if the daemon can tell.
async fn kernel_count(daemon: &Daemon) -> Option<u64> {
    let statistics = daemon.monitor.get_statistics().await.ok()?;
    crate::status::number(statistics.get("kernel_count")?)
}

/// Why there are no active flows.
fn why_none(page: &Page, kernel_count: Option<u64>) -> String {
    match kernel_count {
        _ if !page.synchronized => {
            "No flows yet: flowbusd has not read the kernel's table since it started, or since a loss. \
             Try again in a moment; `flowctl status` says more."
                .to_owned()
        }
        Some(count @ 1..) => format!(
            "No flows, though the kernel counts {count}: they have just begun or ended, or they belong to another \
             network namespace than flowbusd's."
        ),
        Some(0) | None => format!(
            "No flows: nothing is tracked in flowbusd's network namespace{}. Linux tracks connections only where a \
             firewall rule asks for it. If there is none, this turns it on without filtering anything:\n\
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
        let page = Page { synchronized: true, ..Page::default() };
        assert!(why_none(&Page::default(), Some(0)).starts_with("No flows yet"));
        assert!(why_none(&page, Some(3)).contains("the kernel counts 3"));
        let off = why_none(&page, Some(0));
        assert!(
            off.contains("nft 'add chain inet track watch { type filter hook prerouting priority raw; }'"),
            "{off}"
        );
        assert!(why_none(&page, None).contains("as far as it can tell"));
    }
}

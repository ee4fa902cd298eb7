//! Lists of flows that come to an end: one to read, and every flow for those who add them up.

use std::time::Duration;

use flowbus_interfaces::{FlowRef, FlowStream, Key, QueryMap, StreamItem};

use crate::daemon::Daemon;
use crate::error::Error;

/// flowbusd takes a dump that is younger for new enough when it is asked to refresh counters.
const REFRESH_AGE: Duration = Duration::from_secs(1);

/// A stream that does not follow, item by item. One that ends before its end is an error.
pub(crate) struct Listing(FlowStream);

impl Listing {
    /// Asks for the flows of `query`.
    pub(crate) async fn open(daemon: &Daemon, mut query: QueryMap<'_>) -> Result<Self, Error> {
        query.insert("follow", false.into());
        Ok(Self(daemon.stream(&query).await?))
    }

    /// The next item; `None` after the last one, when all were there.
    pub(crate) async fn next(&mut self) -> Result<Option<StreamItem<'_>>, Error> {
        match self.0.next().await.map_err(Error::Stream)? {
            Some(StreamItem::End { reason }) if reason == "complete" => Ok(None),
            Some(StreamItem::End { .. }) | None => Err(Error::CutOff),
            item => Ok(item),
        }
    }

    /// Whether the next item is there, so that nothing has to be waited for.
    pub(crate) fn has_line(&mut self) -> bool {
        self.0.has_line()
    }
}

/// Visits every flow that is alive and returns the number of the latest change that is in what it saw.
pub(crate) async fn alive(
    daemon: &Daemon,
    fields: &[Key],
    visit: impl FnMut(&FlowRef<'_>),
) -> Result<u64, Error> {
    each(daemon, fields, QueryMap::new(), visit).await
}

/// Visits every flow that ended then or later (microseconds since 1970) and is remembered.
pub(crate) async fn ended_since(
    daemon: &Daemon,
    since: u64,
    fields: &[Key],
    visit: impl FnMut(&FlowRef<'_>),
) -> Result<(), Error> {
    let query =
        QueryMap::from([("snapshot", false.into()), ("closed", true.into()), ("since", since.into())]);
    each(daemon, fields, query, visit).await.map(|_| ())
}

/// Brings counters up to date and waits, if need be, until flowbusd takes no earlier dump for that: rates of counters
/// that are older than they seem would be wrong.
pub(crate) async fn refresh(daemon: &Daemon) -> Result<(), Error> {
    loop {
        let before = dumps(daemon).await?;
        let query = QueryMap::from([("refresh", true.into()), ("limit", 1_u32.into())]);
        daemon.monitor.list_active(&query).await.map_err(|error| daemon.refused(error))?;
        if dumps(daemon).await? != before {
            return Ok(());
        }
        tokio::time::sleep(REFRESH_AGE).await;
    }
}

async fn dumps(daemon: &Daemon) -> Result<Option<u64>, Error> {
    Ok(daemon.statistics().await?.get("dumps").copied())
}

async fn each(
    daemon: &Daemon,
    fields: &[Key],
    mut query: QueryMap<'_>,
    mut visit: impl FnMut(&FlowRef<'_>),
) -> Result<u64, Error> {
    query.insert("fields", fields.iter().map(|key| key.name()).collect::<Vec<_>>().into());
    let mut listing = Listing::open(daemon, query).await?;
    let mut latest = 0;
    while let Some(item) = listing.next().await? {
        match item {
            StreamItem::Flow(flow) | StreamItem::Closed(flow) => visit(&flow),
            StreamItem::Begin { sequence, .. } | StreamItem::SnapshotEnd { sequence } => latest = sequence,
            _ => {}
        }
    }
    Ok(latest)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    async fn read(lines: &str) -> Result<usize, Error> {
        let (reader, mut writer) = std::io::pipe()?;
        writer.write_all(lines.as_bytes())?;
        drop(writer);
        let mut listing = Listing(FlowStream::from_fd(reader.into()).unwrap());
        let mut items = 0;
        while listing.next().await?.is_some() {
            items += 1;
        }
        Ok(items)
    }

    #[tokio::test]
    async fn a_listing_that_is_cut_off_is_an_error() {
        const FLOWS: &str = "{\"type\":\"flow\",\"id\":7}\n{\"type\":\"flow\",\"id\":8}\n";
        let end = |reason| format!("{FLOWS}{{\"type\":\"end\",\"reason\":\"{reason}\"}}\n");
        assert_eq!(read(&end("complete")).await.unwrap(), 2);
        for cut in [FLOWS, &end("stopping"), ""] {
            assert!(matches!(read(cut).await, Err(Error::CutOff)), "{cut}");
        }
    }
}

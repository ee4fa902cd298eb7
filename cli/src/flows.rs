//! Every flow, for those who add them up.

use std::time::Duration;

use flowbus_interfaces::{FlowRef, Key, QueryMap, StreamItem};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::stats;

/// flowbusd takes a dump that is younger for new enough when it is asked to refresh counters.
const REFRESH_AGE: Duration = Duration::from_secs(1);

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
    Ok(stats::ask(daemon).await?.get("dumps").copied())
}

async fn each(
    daemon: &Daemon,
    fields: &[Key],
    mut query: QueryMap<'_>,
    mut visit: impl FnMut(&FlowRef<'_>),
) -> Result<u64, Error> {
    query.insert("fields", fields.iter().map(|key| key.name()).collect::<Vec<_>>().into());
    query.insert("follow", false.into());
    let mut stream = daemon.stream(&query).await?;
    let mut latest = 0;
    while let Some(item) = stream.next().await.map_err(Error::Stream)? {
        match item {
            StreamItem::Flow(flow) | StreamItem::Closed(flow) => visit(&flow),
            StreamItem::Begin { sequence, .. } | StreamItem::SnapshotEnd { sequence } => latest = sequence,
            StreamItem::End { reason } if reason == "complete" => return Ok(latest),
            _ => {}
        }
    }
    Err(Error::CutOff)
}

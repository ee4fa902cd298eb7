//! Every flow of a listing, for those who add them up.

use std::time::Duration;

use flowbus_interfaces::{Key, OwnedFlow, QueryMap};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::stats;

/// flowbusd takes a dump that is younger for new enough when it is asked to refresh counters.
const REFRESH_AGE: Duration = Duration::from_secs(1);

/// A listing of the daemon.
#[derive(Clone, Copy, Debug)]
enum Listing {
    Active,
    Closed,
}

/// Visits every flow that is alive and returns the number of the latest change that the listing may include.
pub(crate) async fn alive(
    daemon: &Daemon,
    fields: &[Key],
    visit: impl FnMut(OwnedFlow),
) -> Result<u64, Error> {
    each(daemon, Listing::Active, fields, QueryMap::new(), visit).await
}

/// Visits every flow that ended then or later (microseconds since 1970) and is remembered.
pub(crate) async fn ended_since(
    daemon: &Daemon,
    since: u64,
    fields: &[Key],
    visit: impl FnMut(OwnedFlow),
) -> Result<(), Error> {
    let query = QueryMap::from([("since", since.into())]);
    each(daemon, Listing::Closed, fields, query, visit).await.map(|_| ())
}

/// Brings counters up to date and waits, if need be, until flowbusd takes no earlier dump for that: rates of counters that
/// are older than they seem would be wrong.
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
    listing: Listing,
    fields: &[Key],
    mut query: QueryMap<'_>,
    mut visit: impl FnMut(OwnedFlow),
) -> Result<u64, Error> {
    query.insert("fields", fields.iter().map(|key| key.name()).collect::<Vec<_>>().into());
    query.insert("limit", 1000_u32.into());
    loop {
        let page = match listing {
            Listing::Active => daemon.monitor.list_active(&query).await,
            Listing::Closed => daemon.monitor.list_closed(&query).await,
        };
        let (flows, page) = page.map_err(|error| daemon.refused(error))?;
        flows.into_iter().for_each(&mut visit);
        let Some(next) = page.next else { return Ok(page.sequence) };
        query.insert("after", next.into());
    }
}

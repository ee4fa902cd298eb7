//! The daemon, over the bus.

use flowbus_interfaces::{FlowEventsProxy, FlowMonitorProxy, OwnedFlow, Page};
use zbus::proxy::CacheProperties;
use zbus::{Connection, connection};

use crate::error::{Error, SYSTEM_BUS};
use crate::query::Query;

/// A connection to the bus that the daemon is on.
pub(crate) struct Daemon {
    bus: String,
    pub(crate) connection: Connection,
    pub(crate) monitor: FlowMonitorProxy<'static>,
}

/// A listing of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listing {
    Active,
    Closed,
}

impl Daemon {
    /// Connects to `system` or an address. Whether the daemon is there shows at the first call.
    pub(crate) async fn connect(bus: &str) -> Result<Self, Error> {
        let (name, builder) = match bus {
            "system" => (SYSTEM_BUS, connection::Builder::system()),
            address => (address, connection::Builder::address(address)),
        };
        let failed = |source| Error::Bus { bus: name.to_owned(), source };
        let connection = builder.build().await.map_err(failed)?;
        let builder = FlowMonitorProxy::builder(&connection).cache_properties(CacheProperties::No);
        let monitor = builder.build().await.map_err(failed)?;
        Ok(Self { bus: name.to_owned(), connection, monitor })
    }

    /// How messages call the bus.
    pub(crate) fn bus(&self) -> &str {
        &self.bus
    }

    /// The signals of this daemon alone.
    pub(crate) async fn events(&self) -> Result<FlowEventsProxy<'static>, Error> {
        FlowEventsProxy::new(&self.connection).await.map_err(|error| self.failed(error))
    }

    /// One page of a listing, after the `next` of the page before.
    pub(crate) async fn page(
        &self,
        listing: Listing,
        query: &Query,
        after: Option<u64>,
    ) -> Result<(Vec<OwnedFlow>, Page), Error> {
        let mut query = query.to_map();
        if let Some(after) = after {
            query.insert("after", after.into());
        }
        let page = match listing {
            Listing::Active => self.monitor.list_active(&query).await,
            Listing::Closed => self.monitor.list_closed(&query).await,
        };
        page.map_err(|error| self.refused(error))
    }

    /// From a failed method call.
    pub(crate) fn refused(&self, error: flowbus_interfaces::Error) -> Error {
        Error::from_call(&self.bus, error)
    }

    /// From a failed property or subscription.
    pub(crate) fn failed(&self, error: zbus::Error) -> Error {
        Error::from_zbus(&self.bus, error)
    }
}

//! The daemon, over the bus.

use flowbus_interfaces::{BusAddress, FlowMonitorProxy, FlowStream, QueryMap, StreamError};
use zbus::proxy::CacheProperties;

use crate::error::{Error, SYSTEM_BUS};

/// A connection to the bus that the daemon is on.
pub(crate) struct Daemon {
    bus: String,
    pub(crate) monitor: FlowMonitorProxy<'static>,
}

impl Daemon {
    /// Connects to a bus. Whether the daemon is there shows at the first call.
    pub(crate) async fn connect(bus: &BusAddress) -> Result<Self, Error> {
        let name = match bus {
            BusAddress::System => SYSTEM_BUS.to_owned(),
            BusAddress::Address(address) => address.to_string(),
        };
        let failed = |source| Error::Bus { bus: name.clone(), source };
        let connection = bus.connect().build().await.map_err(failed)?;
        let builder = FlowMonitorProxy::builder(&connection).cache_properties(CacheProperties::No);
        let monitor = builder.build().await.map_err(failed)?;
        Ok(Self { bus: name, monitor })
    }

    /// How messages call the bus.
    pub(crate) fn bus(&self) -> &str {
        &self.bus
    }

    /// Flows and changes as they come.
    pub(crate) async fn stream(&self, query: &QueryMap<'_>) -> Result<FlowStream, Error> {
        FlowStream::open(&self.monitor, query).await.map_err(|error| match error {
            StreamError::Refused(error) => self.refused(error),
            other => Error::Stream(other),
        })
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

//! The daemon, over the bus.

use std::collections::BTreeMap;
use std::time::Duration;

use flowbus_interfaces::{
    BusAddress, Cursor, FLOW_MONITOR_NAME, FlowMonitorProxy, FlowStream, QueryMap, StreamError,
};
use zbus::fdo::DBusProxy;
use zbus::names::{BusName, WellKnownName};
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Proxy, Variant};

use crate::error::{Error, SYSTEM_BUS};

/// The statistics by name, also those of later versions.
pub(crate) type Statistics = BTreeMap<String, u64>;

/// The statistics that are texts, by name.
pub(crate) type Texts = BTreeMap<String, String>;

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
        match bus {
            BusAddress::System => activate(&connection).await?,
            BusAddress::Address(_) => await_owner(&connection).await,
        }
        let builder = FlowMonitorProxy::builder(&connection).cache_properties(CacheProperties::No);
        let monitor = builder.build().await.map_err(failed)?;
        Ok(Self { bus: name, monitor })
    }

    /// The bus, as messages name it.
    pub(crate) fn bus(&self) -> &str {
        &self.bus
    }

    /// Flows and changes as they come.
    pub(crate) async fn stream(&self, query: &QueryMap<'_>) -> Result<FlowStream, Error> {
        FlowStream::open(&self.monitor, query).await.map_err(|error| self.unopened(error))
    }

    /// Flows and changes from where an earlier stream was.
    pub(crate) async fn resume(&self, query: QueryMap<'_>, cursor: &Cursor) -> Result<FlowStream, Error> {
        FlowStream::resume(&self.monitor, query, cursor).await.map_err(|error| self.unopened(error))
    }

    fn unopened(&self, error: StreamError) -> Error {
        match error {
            StreamError::Refused(error) => self.refused(error),
            other => Error::Stream(other),
        }
    }

    /// The daemon's statistics.
    pub(crate) async fn statistics(&self) -> Result<Statistics, Error> {
        Ok(self.statistics_and_texts().await?.0)
    }

    /// The statistics, and the texts among them.
    pub(crate) async fn statistics_and_texts(&self) -> Result<(Statistics, Texts), Error> {
        let all = self.monitor.get_statistics().await.map_err(|error| self.refused(error))?;
        let text = |(name, value): (&String, &OwnedVariant)| match &**value {
            Variant::Str(text) => Some((name.clone(), text.to_string())),
            _ => None,
        };
        let texts = all.iter().filter_map(text).collect();
        Ok((all.into_iter().filter_map(|(name, value)| Some((name, number(&value)?))).collect(), texts))
    }

    /// The error of a failed method call.
    pub(crate) fn refused(&self, error: flowbus_interfaces::Error) -> Error {
        Error::from_call(&self.bus, error)
    }

    /// The error of a failed property or subscription.
    pub(crate) fn failed(&self, error: zbus::Error) -> Error {
        Error::from_zbus(&self.bus, error)
    }
}

/// The value of a counter, which is an unsigned integer.
fn number(value: &OwnedVariant) -> Option<u64> {
    match **value {
        Variant::U64(number) => Some(number),
        Variant::U32(number) => Some(number.into()),
        _ => None,
    }
}

/// Has the system bus start the service, unless it runs. One that cannot start would keep the first call waiting until the bus gives
/// up, 25 seconds later.
async fn activate(connection: &Connection) -> Result<(), Error> {
    let (Ok(bus), Ok(name)) = (DBusProxy::new(connection).await, WellKnownName::try_from(FLOW_MONITOR_NAME))
    else {
        return Ok(());
    };
    // What keeps any of this from being answered, the first call meets again and reports.
    if bus.name_has_owner(BusName::WellKnown(name.clone())).await.unwrap_or(true) {
        return Ok(());
    }
    tokio::select! {
        _ = bus.start_service_by_name(name, 0) => Ok(()),
        () = failure(connection) => Err(Error::DoesNotStart),
    }
}

/// Waits a moment for a flowbusd that was just started by hand. Where none comes, the first call reports it.
async fn await_owner(connection: &Connection) {
    const PATIENCE: Duration = Duration::from_secs(2);
    let (Ok(bus), Ok(name)) = (DBusProxy::new(connection).await, WellKnownName::try_from(FLOW_MONITOR_NAME))
    else {
        return;
    };
    let has_owner = async {
        while !bus.name_has_owner(BusName::WellKnown(name.clone())).await.unwrap_or(true) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, has_owner).await;
}

/// Returns once systemd has given the service up.
async fn failure(connection: &Connection) {
    loop {
        // The first time too: what failed before is being started again now.
        tokio::time::sleep(Duration::from_millis(200)).await;
        if matches!(service_state(connection).await.as_deref(), Ok("failed")) {
            return;
        }
    }
}

async fn service_state(connection: &Connection) -> zbus::Result<String> {
    const SYSTEMD: &str = "org.freedesktop.systemd1";
    let manager =
        Proxy::new(connection, SYSTEMD, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
            .await?;
    let path: OwnedObjectPath = manager.call("GetUnit", &"flowbusd.service").await?;
    Proxy::new(connection, SYSTEMD, path, "org.freedesktop.systemd1.Unit")
        .await?
        .get_property("ActiveState")
        .await
}

//! Which bus a program talks to.

use std::fmt;
use std::str::FromStr;

use zbus::connection::Builder;

/// The system bus, or a bus at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusAddress {
    /// The system bus, which DBUS_SYSTEM_BUS_ADDRESS can place elsewhere.
    System,
    /// A bus at an address such as `unix:path=/tmp/bus`.
    Address(Box<zbus::Address>),
}

impl BusAddress {
    /// The builder of a connection to this bus.
    pub fn connect(&self) -> Builder<'static> {
        match self {
            Self::System => Builder::system(),
            Self::Address(address) => Builder::address((**address).clone()),
        }
    }
}

impl FromStr for BusAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "system" {
            return Ok(Self::System);
        }
        let address = text.parse().map_err(|error| {
            format!("{error}: takes \"system\" or a D-Bus address such as unix:path=/tmp/bus")
        })?;
        Ok(Self::Address(Box::new(address)))
    }
}

impl fmt::Display for BusAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

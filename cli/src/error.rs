//! What can go wrong, and what to do next.

use std::io;
use std::process::ExitCode;

use flowbus_interfaces::{Error as FlowError, FLOW_MONITOR_NAME};
use zbus::fdo;

/// Why flowctl ends with exit status 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no bus to ask on.
    #[error(
        "cannot connect to {bus}: {source}\n\
         Is a dbus-daemon or dbus-broker running there? Another bus is chosen with --bus."
    )]
    Bus { bus: String, source: zbus::Error },

    /// There is nobody to ask.
    #[error(
        "flowbusd is not on {bus}: nobody owns {FLOW_MONITOR_NAME}.\n\
         Start it with `systemctl start flowbusd`, or by hand as root with `flowbusd --bus {}`.",
        bus_option(bus)
    )]
    NoDaemon { bus: String },

    /// The bus does not let us ask.
    #[error(
        "access denied: {0}\n\
         flowbusd answers root and members of the group flowbus. Try again with sudo, or join the group with\n\
         `sudo usermod -aG flowbus $USER` and log in again."
    )]
    Denied(String),

    /// The daemon said no.
    #[error("{0}")]
    Refused(String),

    /// The bus failed in between.
    #[error("the bus failed: {0}")]
    Failed(zbus::Error),

    /// What was asked for cannot be done like this.
    #[cfg(feature = "top")]
    #[error("{0}")]
    Usage(String),

    /// The bus closed the connection.
    #[error("the bus closed the connection: it was stopped, or it restarted. Run flowctl again.")]
    Closed,

    /// Output failed. A reader that has seen enough is no failure; `main` ends quietly then.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// How `bus` would be given on the command line.
fn bus_option(bus: &str) -> &str {
    if bus == SYSTEM_BUS { "system" } else { bus }
}

/// How messages call the bus behind `--bus system`.
pub(crate) const SYSTEM_BUS: &str = "the system bus";

impl Error {
    /// From a failed call on `bus`.
    pub(crate) fn from_call(bus: &str, error: FlowError) -> Self {
        match error {
            FlowError::ZBus(error) => Self::from_zbus(bus, error),
            FlowError::InvalidArgument(text)
            | FlowError::NotFound(text)
            | FlowError::LimitExceeded(text)
            | FlowError::Unavailable(text) => Self::Refused(text),
            FlowError::NotAuthorized(text) => Self::Denied(text),
        }
    }

    /// From the bus.
    pub(crate) fn from_zbus(bus: &str, error: zbus::Error) -> Self {
        let zbus::Error::FDO(named) = &error else { return Self::Failed(error) };
        match &**named {
            fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_) => {
                Self::NoDaemon { bus: bus.to_owned() }
            }
            fdo::Error::AccessDenied(text) => Self::Denied(text.clone()),
            _ => Self::Failed(error),
        }
    }

    /// 2 for wrong usage, 1 for the rest.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            #[cfg(feature = "top")]
            Self::Usage(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }

    /// Whether whoever reads our output has closed it.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_to_do_next() {
        let unknown = zbus::Error::FDO(Box::new(fdo::Error::ServiceUnknown(String::new())));
        let text = Error::from_call("unix:path=/x", FlowError::ZBus(unknown)).to_string();
        assert!(text.contains("flowbusd --bus unix:path=/x"), "{text}");
        let text = Error::NoDaemon { bus: SYSTEM_BUS.into() }.to_string();
        assert!(text.contains("flowbusd --bus system"), "{text}");
        let denied = zbus::Error::FDO(Box::new(fdo::Error::AccessDenied("rejected".into())));
        assert!(Error::from_zbus("b", denied).to_string().contains("group flowbus"));
    }
}

//! What can go wrong, and what to do next.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use flowbus_interfaces::{Error as FlowError, FLOW_MONITOR_NAME, StreamError};
use zbus::fdo;

/// Why flowctl ends with exit status 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The bus cannot be reached.
    #[error(
        "cannot connect to {bus}: {source}\n\
         Is a dbus-daemon or dbus-broker running there? Another bus is chosen with --bus."
    )]
    Bus { bus: String, source: zbus::Error },

    /// flowbusd is not on the bus.
    #[error(
        "flowbusd is not on {bus}: nobody owns {FLOW_MONITOR_NAME}.\n\
         Start it with `systemctl start flowbusd`, or by hand as root with `flowbusd --bus {}`.",
        bus_option(bus)
    )]
    NoDaemon { bus: String },

    /// systemd has given flowbusd up.
    #[error("flowbusd does not start: `journalctl -u flowbusd` says why.")]
    DoesNotStart,

    /// The bus denies access.
    #[error(
        "access denied: {0}\n\
         flowbusd answers root and members of the group flowbus. Try again with sudo, or join the group with\n\
         `sudo usermod -aG flowbus $USER` and log in again."
    )]
    Denied(String),

    /// The daemon refused the call.
    #[error("{0}")]
    Refused(String),

    /// The bus failed in between.
    #[error("the bus failed: {0}")]
    Failed(zbus::Error),

    /// What was asked for cannot be done like this.
    #[error("{0}")]
    Usage(String),

    /// The bus closed the connection.
    #[error("the bus closed the connection: it was stopped, or it restarted. Run flowctl again.")]
    Closed,

    /// The daemon is older than flowctl.
    #[error(
        "flowbusd is older than flowctl {VERSION} and has no {0}.\n\
         Upgrade it, and restart it with `systemctl restart flowbusd`; `flowctl status` shows its version."
    )]
    Older(String),

    /// A stream failed.
    #[error("{0}")]
    Stream(StreamError),

    /// The place of an earlier run cannot be read or kept.
    #[error("cannot use the cursor file {}: {source}", path.display())]
    CursorFile { path: PathBuf, source: io::Error },

    /// A listing was cut off before its end.
    #[error("flowbusd stopped in the middle: what was printed is not all. Run flowctl again.")]
    CutOff,

    /// The log cannot be listed.
    #[error("cannot read the flow log in {}: {source}{}", directory.display(), log_hint(source))]
    Log { directory: PathBuf, source: io::Error },

    /// There is nothing to search.
    #[error(
        "there is no flow log in {}.\n\
         flowbus-export writes it: `systemctl enable --now flowbus-export@log`. Another place is named with --directory.",
        directory.display()
    )]
    NoLog { directory: PathBuf },

    /// The answer lacks what could not be read.
    #[error(
        "{files} of the log could not be read: the answer is not complete.{}",
        if *denied { LOG_GROUP } else { "" }
    )]
    Unread { files: String, denied: bool },

    /// Output failed. A reader that has seen enough is no failure; `main` ends quietly then.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// The hint that says who may read the log.
const LOG_GROUP: &str = "\nroot and members of the group flowbus can read the log. Try again with sudo, or join the group with\n\
     `sudo usermod -aG flowbus $USER` and log in again.";

/// What to do where the log's directory cannot be listed.
fn log_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => LOG_GROUP,
        io::ErrorKind::NotFound => {
            "\nflowbus-export writes the log: `systemctl enable --now flowbus-export@log`. Another place is named with --directory."
        }
        _ => "",
    }
}

/// This program's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How `bus` would be given on the command line.
pub(crate) fn bus_option(bus: &str) -> &str {
    if bus == SYSTEM_BUS { "system" } else { bus }
}

/// How messages call the bus behind `--bus system`.
pub(crate) const SYSTEM_BUS: &str = "the system bus";

impl Error {
    /// The error of a failed method call on `bus`.
    pub(crate) fn from_call(bus: &str, error: FlowError) -> Self {
        match error {
            FlowError::ZBus(error) => Self::from_zbus(bus, error),
            // flowctl has checked the query: a daemon that does not know a key of it is older.
            FlowError::InvalidArgument(text) if text.starts_with("unknown key ") => {
                let key = text.split('"').nth(1).unwrap_or_default();
                Self::Older(format!("key {key} of queries"))
            }
            FlowError::InvalidArgument(text) => Self::Usage(text),
            FlowError::NotFound(text) | FlowError::LimitExceeded(text) | FlowError::Unavailable(text) => {
                Self::Refused(text)
            }
            FlowError::NotAuthorized(text) => Self::Denied(text),
        }
    }

    /// The error of what failed on `bus` itself.
    pub(crate) fn from_zbus(bus: &str, error: zbus::Error) -> Self {
        let zbus::Error::FDO(named) = &error else { return Self::Failed(error) };
        match &**named {
            fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_) => {
                Self::NoDaemon { bus: bus.to_owned() }
            }
            // The bus quotes its rule, with every header of the message.
            fdo::Error::AccessDenied(text) if text.contains("matched rules") => {
                Self::Denied("the bus does not let this user call flowbusd".to_owned())
            }
            fdo::Error::AccessDenied(text) => Self::Denied(text.clone()),
            fdo::Error::UnknownMethod(text)
            | fdo::Error::UnknownInterface(text)
            | fdo::Error::UnknownProperty(text) => Self::Older(quoted(text)),
            _ => Self::Failed(error),
        }
    }

    /// 2 for wrong usage, 1 for the rest.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }

    /// Whether whoever reads our output has closed it.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// What a bus library says is unknown, without the words around it.
fn quoted(text: &str) -> String {
    let inner = text.split(['"', '\'', '`']).nth(1);
    inner.map_or_else(|| text.to_owned(), |name| format!("{name} on D-Bus"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_to_do_next() {
        let unknown = zbus::Error::FDO(Box::new(fdo::Error::ServiceUnknown(String::new())));
        let text = Error::from_call("unix:path=/x", FlowError::ZBus(unknown)).to_string();
        assert!(text.contains("flowbusd --bus unix:path=/x"), "{text}");
        let method = fdo::Error::UnknownMethod("Unknown method 'OpenStream'".into());
        let text = Error::from_zbus("b", zbus::Error::FDO(Box::new(method))).to_string();
        assert!(text.contains("and has no OpenStream on D-Bus.") && text.contains("Upgrade"), "{text}");
        let key = FlowError::InvalidArgument("unknown key \"future\"; there are id, src".into());
        assert!(Error::from_call("b", key).to_string().contains("no key future of queries"));
        let text = Error::NoDaemon { bus: SYSTEM_BUS.into() }.to_string();
        assert!(text.contains("flowbusd --bus system"), "{text}");
        let denied = zbus::Error::FDO(Box::new(fdo::Error::AccessDenied("rejected".into())));
        assert!(Error::from_zbus("b", denied).to_string().contains("group flowbus"));
        let rule = "Rejected send message, 2 matched rules; type=\"method_call\", sender=\":1.9\"";
        let denied = zbus::Error::FDO(Box::new(fdo::Error::AccessDenied(rule.into())));
        let text = Error::from_zbus("b", denied).to_string();
        assert!(text.starts_with("access denied: the bus does not let this user call flowbusd\n"), "{text}");
    }
}

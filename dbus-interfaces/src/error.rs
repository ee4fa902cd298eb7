//! The errors of flowbus on D-Bus.

/// What a method of flowbus answers instead of a result: `org.flowbus.Error.*`. Services return it, proxies hand
/// it to the caller; the text says what was wrong and what would be right.
#[derive(Clone, Debug, PartialEq, zbus::DBusError)]
#[zbus(prefix = "org.flowbus.Error")]
pub enum Error {
    /// The bus itself failed, or the service does not run.
    #[zbus(error)]
    ZBus(zbus::Error),
    /// An argument is unknown, repeated, of the wrong type or out of range; the text names it and what it takes.
    InvalidArgument(String),
    /// There is no such flow.
    NotFound(String),
    /// The caller or the service has reached a limit; the text names it.
    LimitExceeded(String),
    /// The caller may not do this.
    NotAuthorized(String),
    /// Something that the answer depends on does not respond, or is not ready yet.
    Unavailable(String),
}

//! Who may call: one user, asked of the bus for every call.

use std::path::Path;

use flowbus_interfaces::Error;
use zbus::Connection;
use zbus::fdo::DBusProxy;
use zbus::message::Header;
use zbus::names::BusName;

/// Where systemd-sysusers and adduser write users.
const USERS: &str = "/etc/passwd";

/// Why the user who may call is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("{USERS}: {0}")]
    Read(std::io::Error),
    #[error(
        "{USERS} has no user {0}; `systemd-sysusers flowbus.conf` makes the user of the service, --user names another"
    )]
    Unknown(String),
}

/// The one user who may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Permitted {
    name: String,
    uid: u32,
}

impl Permitted {
    /// The user of this name. Not even root is let in besides: nobody else has a use for it.
    pub(crate) fn named(name: &str) -> Result<Self, UserError> {
        let users = std::fs::read_to_string(Path::new(USERS)).map_err(UserError::Read)?;
        let uid = uid(&users, name).ok_or_else(|| UserError::Unknown(name.to_owned()))?;
        Ok(Self { name: name.to_owned(), uid })
    }

    /// Asks the bus who sent the call. The bus's policy has let it pass already; this holds also where an
    /// administrator's policy is too generous.
    pub(crate) async fn check(&self, connection: &Connection, header: &Header<'_>) -> Result<(), Error> {
        let sender = header.sender().ok_or_else(|| Error::NotAuthorized("the call has no sender".into()))?;
        let uid = async {
            let bus = DBusProxy::new(connection).await?;
            bus.get_connection_unix_user(BusName::from(sender)).await
        };
        match uid.await {
            Ok(uid) if uid == self.uid => Ok(()),
            Ok(uid) => {
                tracing::debug!(caller = uid, "a call was refused");
                Err(Error::NotAuthorized(format!(
                    "only the user {} may call this, not user id {uid}",
                    self.name
                )))
            }
            // Who has left the bus cannot be told either.
            Err(error) => Err(Error::NotAuthorized(format!("the bus does not say who calls: {error}"))),
        }
    }
}

/// The third field of the line that begins with the name; see passwd(5).
fn uid(users: &str, name: &str) -> Option<u32> {
    let fields = users.lines().map(|line| line.split(':'));
    fields
        .into_iter()
        .find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uid_is_the_third_field_of_the_whole_name() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\nflowbusx:x:7:7::/:\nflowbus:x:998:997::/:/usr/sbin/nologin\n";
        assert_eq!(uid(users, "flowbus"), Some(998));
        assert_eq!(uid(users, "root"), Some(0));
        assert_eq!(uid(users, "flow"), None);
        assert_eq!(uid(users, ""), None);
        assert_eq!(uid("flowbus:x::", "flowbus"), None);
    }
}

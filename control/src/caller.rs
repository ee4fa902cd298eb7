//! Checks whether a caller may call, by asking the bus and polkit for every call. The bus's policy has let the call pass
//! already; this holds also where an administrator's policy is too generous.

use std::collections::HashMap;
use std::path::Path;

use flowbus_interfaces::Error;
use zbus::Connection;
use zbus::fdo::{ConnectionCredentials, DBusProxy};
use zbus::message::{Flags, Header};
use zbus::names::BusName;
use zbus::proxy::CacheProperties;
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

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

/// The user of the daemon, and the group of those who may read what it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Permitted {
    name: String,
    uid: u32,
    gid: u32,
}

impl Permitted {
    /// The user of this name and its group.
    pub(crate) fn named(name: &str) -> Result<Self, UserError> {
        let users = std::fs::read_to_string(Path::new(USERS)).map_err(UserError::Read)?;
        let (uid, gid) = numbers(&users, name).ok_or_else(|| UserError::Unknown(name.to_owned()))?;
        Ok(Self { name: name.to_owned(), uid, gid })
    }

    /// The daemon's user.
    pub(crate) const fn daemon(&self) -> u32 {
        self.uid
    }

    /// Passes the daemon alone. Not even root is let in besides, because nobody else has a use for it.
    pub(crate) fn check_daemon(&self, caller: &Caller) -> Result<(), Error> {
        if caller.uid == self.uid {
            return Ok(());
        }
        Err(caller.refused(format!("only the user {} may call this", self.name)))
    }

    /// Passes those who may read the table: root and the daemon's group.
    pub(crate) fn check_reader(&self, caller: &Caller) -> Result<(), Error> {
        if caller.uid == 0 || caller.groups.contains(&self.gid) {
            return Ok(());
        }
        Err(caller.refused(format!("only root and the group {} may call this", self.name)))
    }
}

/// The sender of a call.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    groups: Vec<u32>,
}

impl Caller {
    /// Asks the bus who sent the call.
    pub(crate) async fn of(connection: &Connection, header: &Header<'_>) -> Result<Self, Error> {
        let sender = header.sender().ok_or_else(|| Error::NotAuthorized("the call has no sender".into()))?;
        let credentials: zbus::fdo::Result<ConnectionCredentials> = async {
            let bus = DBusProxy::new(connection).await?;
            bus.get_connection_credentials(BusName::from(sender)).await
        }
        .await;
        let unknown =
            |reason: String| Error::NotAuthorized(format!("the bus does not say who calls: {reason}"));
        // A sender that has left the bus is not known to it any more.
        let credentials = credentials.map_err(|error| unknown(error.to_string()))?;
        let uid = credentials.unix_user_id().ok_or_else(|| unknown("no user id".into()))?;
        let groups = credentials.unix_group_ids().cloned().unwrap_or_default();
        Ok(Self { uid, groups })
    }

    /// Asks polkit whether the *sender* of the call may do this. Root may, also where there is no polkit, which is what polkit
    /// would say.
    pub(crate) async fn authorize(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        action: Action,
    ) -> Result<(), Error> {
        if self.uid == 0 {
            return Ok(());
        }
        let id = action.id();
        let flags = match header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH) {
            true => CheckAuthorizationFlags::ALLOW_USER_INTERACTION,
            false => CheckAuthorizationFlags::empty(),
        };
        let silent = |error: &dyn std::fmt::Display| {
            self.refused(format!("polkit cannot be asked for {id}, so only root may: {error}"))
        };
        let subject = Subject::new_for_message_header(header).map_err(|error| silent(&error))?;
        let answer = async {
            let builder = AuthorityProxy::builder(connection).cache_properties(CacheProperties::No);
            builder.build().await?.check_authorization(&subject, id, &HashMap::new(), flags, "").await
        };
        match answer.await.map_err(|error| silent(&error))? {
            answer if answer.is_authorized => Ok(()),
            _ => Err(self.refused(format!("polkit does not grant {id}"))),
        }
    }

    fn refused(&self, reason: String) -> Error {
        tracing::debug!(caller = self.uid, reason, "a call was refused");
        Error::NotAuthorized(format!("{reason}; the caller is user id {}", self.uid))
    }
}

/// What polkit is asked for; the actions' file says what each is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Delete,
    SetMark,
    SetTimeout,
    Flush,
    ListExpectations,
    DeleteExpectations,
}

impl Action {
    const fn id(self) -> &'static str {
        match self {
            Self::Delete => "org.flowbus.control.delete",
            Self::SetMark => "org.flowbus.control.set-mark",
            Self::SetTimeout => "org.flowbus.control.set-timeout",
            Self::Flush => "org.flowbus.control.flush",
            Self::ListExpectations => "org.flowbus.control.list-expectations",
            Self::DeleteExpectations => "org.flowbus.control.delete-expectations",
        }
    }
}

/// User id and group id, the third and fourth field of the line that begins with the name; see passwd(5).
fn numbers(users: &str, name: &str) -> Option<(u32, u32)> {
    users.lines().map(|line| line.split(':')).find_map(|mut fields| {
        (fields.next() == Some(name))
            .then(|| Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?)))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_are_fields_of_the_line_of_the_whole_name() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\nflowbusx:x:7:7::/:\nflowbus:x:998:997::/:/usr/sbin/nologin\n";
        assert_eq!(numbers(users, "flowbus"), Some((998, 997)));
        assert_eq!(numbers(users, "root"), Some((0, 0)));
        assert_eq!(numbers(users, "flow"), None);
        assert_eq!(numbers(users, ""), None);
        assert_eq!(numbers("flowbus:x::", "flowbus"), None);
    }
}

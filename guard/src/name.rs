//! A well-known name for a connection, also where the bus does not see that its old owner has gone.
//!
//! dbus-daemon stops reading a connection while too much of what was sent on it has not been read by others, and does not see its
//! end meanwhile. The name stays with it, so a new connection takes it over: from one of this process, or of one that has ended.

use flowbus_interfaces::BusAddress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use zbus::fdo::{DBusProxy, Error as BusReply, RequestNameFlags, RequestNameReply};
use zbus::names::{BusName, UniqueName, WellKnownName};
use zbus::{Connection, fdo};

use crate::BusError;

/// How often the name is asked for while its owners come and go.
const ATTEMPTS: u32 = 10;

/// Requests the name. It may be taken from us likewise: the bus lets only those take it who may own it.
pub(crate) async fn acquire(
    connection: &Connection,
    name: &'static str,
    address: &BusAddress,
) -> Result<(), BusError> {
    match try_acquire(connection, name).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(BusError::NameTaken { name, address: address.clone() }),
        Err(error @ BusReply::AccessDenied(_)) => {
            Err(BusError::NotAllowed { name, address: address.clone(), source: error.into() })
        }
        Err(error) => Err(BusError::Failed { address: address.clone(), source: error.into() }),
    }
}

async fn try_acquire(connection: &Connection, name: &'static str) -> fdo::Result<bool> {
    let bus = DBusProxy::new(connection).await?;
    let name = WellKnownName::from_static_str(name)?;
    let ask = RequestNameFlags::ALLOW_REPLACEMENT | RequestNameFlags::DO_NOT_QUEUE;
    let take = ask | RequestNameFlags::REPLACE_EXISTING;
    for _ in 0..ATTEMPTS {
        if is_owner(&bus.request_name(name.clone(), ask).await?) {
            return Ok(true);
        }
        let owner = match bus.get_name_owner(BusName::from(name.clone())).await {
            Ok(owner) => owner,
            // The owner has just gone.
            Err(BusReply::NameHasNoOwner(_)) => continue,
            Err(error) => return Err(error),
        };
        if is_ours_or_gone(&bus, connection, owner.into()).await? {
            return Ok(is_owner(&bus.request_name(name, take).await?));
        }
        return Ok(false);
    }
    Ok(false)
}

/// Gives the name up: the library does not, since it did not request it.
pub(crate) async fn release(connection: &Connection, name: &'static str) -> fdo::Result<()> {
    let bus = DBusProxy::new(connection).await?;
    bus.release_name(WellKnownName::from_static_str(name)?).await.map(drop)
}

fn is_owner(reply: &RequestNameReply) -> bool {
    matches!(reply, RequestNameReply::PrimaryOwner | RequestNameReply::AlreadyOwner)
}

/// Whether a connection is of this process, or its process has ended. A process whose number was given to another is not seen to
/// have ended.
async fn is_ours_or_gone(
    bus: &DBusProxy<'_>,
    connection: &Connection,
    owner: UniqueName<'_>,
) -> fdo::Result<bool> {
    let Some(us) = connection.unique_name() else { return Ok(false) };
    let us = bus.get_connection_unix_process_id(us.as_ref().into()).await?;
    let owner = match bus.get_connection_unix_process_id(owner.into()).await {
        Ok(owner) => owner,
        Err(BusReply::NameHasNoOwner(_)) => return Ok(true),
        Err(error) => return Err(error),
    };
    // Process ids are those of the bus. They mean something here only where ours is the same.
    Ok(owner == us || (us == std::process::id() && has_ended(owner)))
}

fn has_ended(process: u32) -> bool {
    let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) else { return false };
    match pidfd_open(pid, PidfdFlags::empty()) {
        // The descriptor of a process that has ended, and that nobody has waited for, is readable.
        Ok(process) => poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&Timespec::default()))
            .is_ok_and(|ready| ready > 0),
        Err(error) => error == Errno::SRCH,
    }
}

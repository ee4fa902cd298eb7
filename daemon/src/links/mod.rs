//! The names of the network interfaces, kept live: a mark's routing table tells an interface by its index. And the
//! addresses: what is sent to one of them is meant for a socket here.

mod message;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::netlink::SocketAddrNetlink;
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use crate::descriptors;
use crate::handle::{Command, Handle};
use message::{Message, RouteDump, messages};

/// The kernel's datagrams have up to 32 KiB, but for an interface with the most alternative names that it takes: a little over
/// 64 KiB. What is not used takes no memory.
const BUFFER: usize = 128 * 1024;
/// The most names that are kept. Interfaces come and go on a machine with containers.
const MAXIMUM: usize = 4096;

/// Index to name. A link that was deleted keeps its name until the index is used again: flows that ended on
/// it still show it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Links(Arc<RwLock<HashMap<u32, Link>>>);

#[derive(Clone, Debug)]
struct Link {
    name: Arc<str>,
    /// False once the link was deleted.
    exists: bool,
}

impl Links {
    /// The name of the interface with this index.
    pub(crate) fn name(&self, index: u32) -> Option<Arc<str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&index).map(|link| Arc::clone(&link.name))
    }

    /// Fills the names and follows their changes, on the socket that was handed over or on one of our own; ends only
    /// with an error.
    pub(crate) async fn follow(self, handed: Option<OwnedFd>, tracker: Handle) -> io::Result<Infallible> {
        // For tokio a datagram socket is one like another; its type for descriptors of any kind takes unsafe code.
        let socket = UnixDatagram::from_std(descriptors::link_socket(handed)?.into())?;
        let mut buffer = vec![0; BUFFER];
        // The socket has joined its groups before the dumps: what appears in between arrives as an event.
        let mut addresses = HashSet::new();
        let mut wanted = vec![RouteDump::Addresses, RouteDump::Links];
        let (mut running, mut asked) = (false, None);
        loop {
            // One dump at a time.
            if !running && let Some(dump) = wanted.pop() {
                socket.send(&dump.request()).await?;
                (running, asked) = (true, Some(dump));
                // The dump brings what there is. Of what went unseen nothing will be heard.
                match dump {
                    RouteDump::Addresses => addresses.clear(),
                    RouteDump::Links => self.note_all_deleted(),
                }
            }
            match receive(&socket, &mut buffer).await {
                Ok(length) => {
                    let mut changed = false;
                    for message in messages(&buffer[..length]) {
                        match message {
                            Message::Link { index, name } => self.set(index, &name),
                            Message::Deleted { index } => self.note_deleted(index),
                            Message::Address(address) => changed |= addresses.insert(address),
                            Message::AddressDeleted if wanted.contains(&RouteDump::Addresses) => {}
                            Message::AddressDeleted => wanted.push(RouteDump::Addresses),
                            Message::Done => {
                                running = false;
                                changed = true;
                            }
                            // Asked for again when that dump has ended.
                            Message::Refused => wanted.extend(asked.take()),
                        }
                    }
                    // While addresses are being asked for, not all are known.
                    if changed && !running && wanted.is_empty() {
                        tell(&tracker, &addresses);
                    }
                }
                // Something was missed: all is asked for again.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    wanted = vec![RouteDump::Addresses, RouteDump::Links];
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn set(&self, index: u32, name: &str) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= MAXIMUM {
            names.retain(|_, link| link.exists);
        }
        // A known interface gets another name, however many there are.
        if names.len() < MAXIMUM || names.contains_key(&index) {
            names.insert(index, Link { name: name.into(), exists: true });
        }
    }

    fn note_deleted(&self, index: u32) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = names.get_mut(&index) {
            link.exists = false;
        }
    }

    fn note_all_deleted(&self) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        names.values_mut().for_each(|link| link.exists = false);
    }
}

/// The next datagram from the kernel; one from another process, which has to be root's, counts as empty.
async fn receive(socket: &UnixDatagram, buffer: &mut [u8]) -> io::Result<usize> {
    let received = || Ok(rustix::net::recvfrom(socket, &mut *buffer, RecvFlags::DONTWAIT)?);
    let (_, length, sender) = socket.async_io(Interest::READABLE, received).await?;
    let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
    Ok(if sender.is_some_and(|sender| sender.pid() == 0) { length.min(buffer.len()) } else { 0 })
}

/// Hands the addresses to the tracker. One whose queue is full receives them with the next change.
fn tell(tracker: &Handle, addresses: &HashSet<IpAddr>) {
    if let Err(error) = tracker.send(Command::SetAddresses(addresses.clone())) {
        tracing::debug!(%error, "reporting this machine's addresses to the tracker failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first index that has no place beside those below it.
    const MOST: u32 = 4096;
    const _: () = assert!(MOST as usize == MAXIMUM);

    fn full() -> Links {
        let links = Links::default();
        (0..MOST).for_each(|index| links.set(index, "old"));
        links
    }

    #[test]
    fn when_all_places_are_taken_a_name_changes_and_a_new_one_waits_for_a_deleted_one() {
        let links = full();
        links.set(7, "new");
        links.set(MOST, "one more");
        assert_eq!((links.name(7).as_deref(), links.name(MOST)), (Some("new"), None));
        // A deleted one is known until its place is needed.
        links.note_deleted(8);
        assert_eq!(links.name(8).as_deref(), Some("old"));
        links.set(MOST, "one more");
        assert_eq!((links.name(MOST).as_deref(), links.name(8)), (Some("one more"), None));
    }

    #[test]
    fn what_went_unseen_gives_its_place_away_after_the_next_dump() {
        let links = full();
        links.note_all_deleted();
        (1..MOST).for_each(|index| links.set(index, "old"));
        links.set(MOST, "one more");
        assert_eq!((links.name(MOST).as_deref(), links.name(0)), (Some("one more"), None));
    }
}

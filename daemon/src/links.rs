//! The names of the network interfaces, kept live: a mark's routing table tells an interface by its index.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use rustix::fd::OwnedFd;

use crate::descriptors;

/// So many names are kept. Interfaces come and go on a machine with containers.
const MAXIMUM: usize = 4096;

/// Index to name. A link that was deleted keeps its name until the index is used again: flows that ended on
/// it still show it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Links(Arc<RwLock<HashMap<u32, Link>>>);

#[derive(Clone, Debug)]
struct Link {
    name: Arc<str>,
    /// False once it was deleted.
    exists: bool,
}

impl Links {
    /// The name of the interface with this index.
    pub(crate) fn name(&self, index: u32) -> Option<Arc<str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&index).map(|link| Arc::clone(&link.name))
    }

    /// Fills the names and follows their changes, on the socket that was handed over or on one of our own; ends only
    /// with an error.
    pub(crate) async fn follow(
        self,
        handed: Option<OwnedFd>,
    ) -> Result<std::convert::Infallible, rtnetlink::Error> {
        let (connection, handle, mut messages) = match handed {
            Some(descriptor) => rtnetlink::from_socket(descriptors::link_socket(descriptor)),
            None => new_multicast_connection(&[MulticastGroup::Link])
                .map_err(|_| rtnetlink::Error::RequestFailed)?,
        };
        let connection = tokio::spawn(connection);
        // Subscribed before the dump: a link born in between is told.
        loop {
            let mut dump = handle.link().get().execute();
            while let Some(link) = dump.try_next().await? {
                self.set(&link);
            }
            loop {
                match messages.next().await.map(|(message, _)| message.payload) {
                    Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))) => self.set(&link),
                    Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))) => {
                        self.note_deleted(link.header.index);
                    }
                    Some(NetlinkPayload::Overrun(_)) => break, // Links were missed: ask again.
                    Some(_) => {}
                    None => {
                        connection.abort();
                        return Err(rtnetlink::Error::RequestFailed);
                    }
                }
            }
        }
    }

    fn set(&self, link: &LinkMessage) {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        });
        let Some(name) = name else { return };
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= MAXIMUM {
            names.retain(|_, link| link.exists);
        }
        if names.len() < MAXIMUM {
            names.insert(link.header.index, Link { name: name.into(), exists: true });
        }
    }

    fn note_deleted(&self, index: u32) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = names.get_mut(&index) {
            link.exists = false;
        }
    }
}

//! The interface org.flowbus.FlowControl1.

use std::collections::HashMap;

use ctnetlink::{Socket, SocketError, dump_request};
use flowbus_interfaces::{Error, KernelState};
use tokio::sync::{Semaphore, SemaphorePermit};
use zbus::message::Header;
use zbus::{Connection, OwnedVariant, interface};

use crate::caller::Permitted;

/// The daemon has one dump and one question under way; what is more than this is a fault or an attack.
const CALLS_AT_ONCE: usize = 16;

/// The object.
#[derive(Debug)]
pub(crate) struct FlowControl {
    permitted: Permitted,
    calls: Semaphore,
}

impl FlowControl {
    pub(crate) fn new(permitted: Permitted) -> Self {
        Self { permitted, calls: Semaphore::new(CALLS_AT_ONCE) }
    }

    /// Counts the call in until the permit is dropped, and checks who sent it.
    async fn admit(
        &self,
        connection: &Connection,
        header: &Header<'_>,
    ) -> Result<SemaphorePermit<'_>, Error> {
        let permit = self.calls.try_acquire();
        let permit =
            permit.map_err(|_| Error::LimitExceeded(format!("at most {CALLS_AT_ONCE} calls at once")))?;
        self.permitted.check(connection, header).await?;
        Ok(permit)
    }
}

#[interface(name = "org.flowbus.FlowControl1")]
impl FlowControl {
    /// Sends one request for a dump of the connection tracking table on the passed socket, a netlink socket of
    /// the netfilter protocol, with `sequence` as its nlmsg_seq. The replies come on the socket, and so does a
    /// refusal by the kernel (EBUSY while an earlier dump is not read to its end). For the daemon's user alone.
    ///
    /// `filter` has no key yet; an unknown one is InvalidArgument, as is any other kind of descriptor.
    async fn request_dump(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        socket: zbus::OwnedFd,
        sequence: u32,
        filter: HashMap<String, OwnedVariant>,
    ) -> Result<(), Error> {
        let _permit = self.admit(connection, &header).await?;
        if let Some(key) = filter.keys().min() {
            return Err(Error::InvalidArgument(format!(
                "filter.{key}: no such key; the filter has to be empty"
            )));
        }
        // The descriptor comes from another process: nothing is written to it before it is known what it is.
        let socket = Socket::from_fd(socket.into())
            .map_err(|error| Error::InvalidArgument(format!("socket: {error}")))?;
        socket.send(&dump_request(sequence, None)).map_err(|error| not_sent(&error))?;
        tracing::debug!(sequence, "a dump was requested");
        Ok(())
    }

    /// The state of the kernel's connection tracking, in the host's network namespace. For the daemon's user alone.
    ///
    /// Keys: `count` u and `maximum` u (flows in the table), `accounting` b and `timestamping` b (new flows count
    /// packets, note their time), `events` y (nf_conntrack_events: 0 none, 1 all flows, 2 those made while somebody
    /// listens), `early_drop` t and `insert_failed` t (flows evicted to make room, and not inserted, since boot).
    /// What is not known is absent.
    #[zbus(out_args("state"))]
    async fn get_kernel_state(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<KernelState, Error> {
        let _permit = self.admit(connection, &header).await?;
        Ok(ctnetlink::KernelState::read().into())
    }
}

fn not_sent(error: &SocketError) -> Error {
    Error::Unavailable(format!("the dump request could not be sent: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::object_server::Interface;

    #[tokio::test]
    async fn the_published_xml_is_what_the_object_says_of_itself() {
        let control = FlowControl::new(Permitted::named("root").unwrap());
        let mut said = String::new();
        control.introspect_to_writer(&mut said, 2);
        assert!(flowbus_interfaces::FLOW_CONTROL_XML.contains(said.trim_end()), "{said}");
    }
}

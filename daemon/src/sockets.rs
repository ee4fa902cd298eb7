//! Where the tracker's sockets come from: run by hand, the daemon opens them itself.

use ctnetlink::{Groups, Socket};

use crate::tracker::{Sockets, TrackerError};

/// Opens both sockets in the namespace that the daemon was started in. Joining the groups needs CAP_NET_ADMIN.
pub(crate) fn open(receive_buffer: u32) -> Result<Sockets, TrackerError> {
    let events = Socket::open()?;
    let buffer_bytes = events.set_receive_buffer(receive_buffer as usize)?;
    events.join(Groups::all())?;
    let dump = Socket::open()?;
    Ok(Sockets { events, dump, buffer_bytes })
}

//! The table, for programs that list and change it: requests sent, their answers read, in one call each.

use rustix::io::Errno;

use crate::change::{
    create_request, delete_request, expectation_create_request, expectation_delete_request,
    expectation_dump_request, expectation_flush_request, flush_request, get_request, update_request,
};
use crate::{
    CpuStats, DecodeError, Expectation, Family, Flow, FlowFilter, Header, Message, NLM_F_DUMP_INTR, Received,
    Socket, SocketError, Stats, Tuple, Update, cpu_stats_request, dump_request, messages, stats_request,
};

/// Why the kernel's table could not be read or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The socket failed, or the kernel refused the request for another reason than the ones below.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// There is no such entry, or it is another one by now (ENOENT).
    #[error("the table has no such entry (any more)")]
    NotFound,
    /// One of the tuples belongs to another flow (EEXIST).
    #[error("the table has an entry of that tuple already")]
    Exists,
    /// The table changed under the dump: ask again.
    #[error("the table changed while it was read; ask again")]
    Interrupted,
    /// The kernel did not answer all of the request.
    #[error("the kernel's answer has no end")]
    Unanswered,
    /// The answer cannot be understood.
    #[error("the kernel's answer cannot be read: {0}")]
    Answer(#[from] DecodeError),
}

/// What became of the flows that a filter matched; `matched` is the sum of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Flows of the table that matched.
    pub matched: u32,
    /// Flows that this call ended.
    pub deleted: u32,
    /// Flows that had ended already, or whose tuple belonged to a flow with another id by then, which was left alone.
    pub gone: u32,
    /// Flows that the kernel would not end.
    pub failed: u32,
}

/// The connection tracking table of a network namespace, to be listed and changed. It needs CAP_NET_ADMIN there, and
/// never waits but for the kernel's work.
///
/// ```no_run
/// use ctnetlink::{Conntrack, End, FlowFilter, Network};
///
/// let mut table = Conntrack::open()?;
/// table.dump(None, |flow| println!("{flow}"))?;
///
/// // End what goes to port 443 of a network.
/// let mut filter = FlowFilter::default();
/// filter.protocol(6)?;
/// filter.address(End::OriginalDestination, Network::new("198.18.0.0".parse()?, 15)?)?;
/// filter.port(End::OriginalDestination, 443)?;
/// println!("{:?}", table.delete_matching(None, &[filter])?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Conntrack {
    /// Opens the table of the network namespace of this thread.
    ///
    /// # Errors
    /// When there can be no socket. That CAP_NET_ADMIN is missing shows at the first request.
    pub fn open() -> Result<Self, RequestError> {
        // The kernel makes no answer longer than 32 KiB.
        Ok(Self { socket: Socket::open()?, sequence: 0, buffer: vec![0; 65_536] })
    }

    /// Shows every flow, or every flow of one family. One that moves in the kernel's hash meanwhile may be shown twice or
    /// not at all.
    ///
    /// # Errors
    /// When the kernel refuses, or its answer cannot be read to its end.
    pub fn dump(
        &mut self,
        family: Option<Family>,
        mut show: impl FnMut(&Flow<'_>),
    ) -> Result<(), RequestError> {
        self.multiple(
            |sequence| dump_request(sequence, family),
            "IPCTNL_MSG_CT_GET",
            |message| {
                if let Message::Flow(_, _, flow) = message {
                    show(&flow);
                }
            },
        )
    }

    /// The flow of this original tuple and its zone.
    ///
    /// # Errors
    /// [`RequestError::NotFound`] where there is none.
    pub fn get(&mut self, original: &Tuple) -> Result<Flow<'_>, RequestError> {
        match self.single(|sequence| get_request(sequence, original))? {
            Message::Flow(_, _, flow) => Ok(flow),
            Message::Error(_, code) => Err(refused("IPCTNL_MSG_CT_GET", code)),
            _ => Err(RequestError::Unanswered),
        }
    }

    /// Makes a flow: see [`create_request`].
    ///
    /// # Errors
    /// [`RequestError::Exists`] where one of its tuples is taken.
    pub fn create(&mut self, flow: &Flow<'_>) -> Result<(), RequestError> {
        self.change(|sequence| create_request(sequence, flow), "IPCTNL_MSG_CT_NEW")
    }

    /// Changes the flow of this original tuple and its zone: see [`update_request`].
    ///
    /// # Errors
    /// [`RequestError::NotFound`] where there is none.
    pub fn update(&mut self, original: &Tuple, update: &Update<'_>) -> Result<(), RequestError> {
        self.change(|sequence| update_request(sequence, original, update), "IPCTNL_MSG_CT_NEW")
    }

    /// Ends the flow of this original tuple and its zone, with an `id` only if it still is that flow: see
    /// [`delete_request`].
    ///
    /// # Errors
    /// [`RequestError::NotFound`] where there is none, or another.
    pub fn delete(&mut self, original: &Tuple, id: Option<u32>) -> Result<(), RequestError> {
        self.change(|sequence| delete_request(sequence, original, id), "IPCTNL_MSG_CT_DELETE")
    }

    /// Ends every flow that matches one of the filters, of one family or of all. A filter that asks nothing matches nothing.
    ///
    /// # Errors
    /// When the table cannot be read; a flow that cannot be ended is counted.
    pub fn delete_matching(
        &mut self,
        family: Option<Family>,
        filters: &[FlowFilter],
    ) -> Result<Deleted, RequestError> {
        // All of the dump first: the socket answers one request after another.
        let mut found = Vec::new();
        self.dump(family, |flow| {
            if filters.iter().any(|filter| filter.matches(flow)) {
                found.push((flow.original, flow.id));
            }
        })?;
        let mut deleted = Deleted::default();
        for (original, id) in found {
            deleted.matched += 1;
            match self.delete(&original, id) {
                Ok(()) => deleted.deleted += 1,
                Err(RequestError::NotFound) => deleted.gone += 1,
                Err(_) => deleted.failed += 1,
            }
        }
        Ok(deleted)
    }

    /// Ends every flow, or every flow of one family.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flush(&mut self, family: Option<Family>) -> Result<(), RequestError> {
        self.change(|sequence| flush_request(sequence, family), "IPCTNL_MSG_CT_DELETE")
    }

    /// Shows every expectation, or every one of a family.
    ///
    /// # Errors
    /// When the kernel refuses, or its answer cannot be read to its end.
    pub fn expectations(
        &mut self,
        family: Option<Family>,
        mut show: impl FnMut(&Expectation<'_>),
    ) -> Result<(), RequestError> {
        self.multiple(
            |sequence| expectation_dump_request(sequence, family),
            "IPCTNL_MSG_EXP_GET",
            |message| {
                if let Message::Expectation(_, _, expectation) = message {
                    show(&expectation);
                }
            },
        )
    }

    /// Makes an expectation: see [`expectation_create_request`].
    ///
    /// # Errors
    /// [`RequestError::NotFound`] where the master is no flow.
    pub fn create_expectation(&mut self, expectation: &Expectation<'_>) -> Result<(), RequestError> {
        self.change(|sequence| expectation_create_request(sequence, expectation), "IPCTNL_MSG_EXP_NEW")
    }

    /// Takes back the expectation of this tuple and its zone, with an `id` only if it still is that one.
    ///
    /// # Errors
    /// [`RequestError::NotFound`] where there is none, or another.
    pub fn delete_expectation(&mut self, tuple: &Tuple, id: Option<u32>) -> Result<(), RequestError> {
        self.change(|sequence| expectation_delete_request(sequence, tuple, id), "IPCTNL_MSG_EXP_DELETE")
    }

    /// Takes back every expectation.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flush_expectations(&mut self) -> Result<(), RequestError> {
        self.change(expectation_flush_request, "IPCTNL_MSG_EXP_DELETE")
    }

    /// How full the table is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn stats(&mut self) -> Result<Stats, RequestError> {
        match self.single(stats_request)? {
            Message::Stats(_, stats) => Ok(stats),
            Message::Error(_, code) => Err(SocketError::refused("IPCTNL_MSG_CT_GET_STATS", code).into()),
            _ => Err(RequestError::Unanswered),
        }
    }

    /// The kernel's counters, one entry a CPU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cpu_stats(&mut self) -> Result<Vec<CpuStats>, RequestError> {
        let mut cpus = Vec::new();
        self.multiple(cpu_stats_request, "IPCTNL_MSG_CT_GET_STATS_CPU", |message| {
            if let Message::CpuStats(_, cpu) = message {
                cpus.push(cpu);
            }
        })?;
        Ok(cpus)
    }

    /// Sends a request that is acknowledged.
    fn change(
        &mut self,
        request: impl FnOnce(u32) -> Vec<u8>,
        name: &'static str,
    ) -> Result<(), RequestError> {
        match self.single(request)? {
            Message::Error(_, 0) => Ok(()),
            Message::Error(_, code) => Err(refused(name, code)),
            _ => Err(RequestError::Unanswered),
        }
    }

    /// Sends a request that has one answer, and returns it.
    fn single(&mut self, request: impl FnOnce(u32) -> Vec<u8>) -> Result<Message<'_>, RequestError> {
        let sequence = self.send(request)?;
        // The kernel answers while it is asked: there is nothing to wait for.
        let length = loop {
            let length = self.receive()?;
            // Another nlmsg_seq is left over from an answer that was given up. It is compared as bytes, because an
            // answer that cannot be decoded has one as well.
            if self.buffer[..length].get(8..12) == Some(&sequence.to_ne_bytes()) {
                break length;
            }
        };
        Ok(messages(&self.buffer[..length]).next().ok_or(RequestError::Unanswered)??)
    }

    /// Sends a request that has many answers and an end, and shows them.
    fn multiple(
        &mut self,
        request: impl FnOnce(u32) -> Vec<u8>,
        name: &'static str,
        mut show: impl FnMut(Message<'_>),
    ) -> Result<(), RequestError> {
        let sequence = self.send(request)?;
        let mut interrupted = false;
        loop {
            let length = self.receive()?;
            for message in messages(&self.buffer[..length]) {
                // An entry that cannot be read costs itself only.
                let Ok(message) = message else { continue };
                let Some(header) = header(&message).filter(|header| header.sequence == sequence) else {
                    continue;
                };
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match message {
                    Message::Done(_, 0) if interrupted => return Err(RequestError::Interrupted),
                    Message::Done(_, 0) => return Ok(()),
                    Message::Done(_, code) | Message::Error(_, code) => {
                        return Err(SocketError::refused(name, code).into());
                    }
                    message => show(message),
                }
            }
        }
    }

    fn send(&mut self, request: impl FnOnce(u32) -> Vec<u8>) -> Result<u32, RequestError> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&request(self.sequence))?;
        Ok(self.sequence)
    }

    /// The next datagram of the kernel.
    fn receive(&mut self) -> Result<usize, RequestError> {
        loop {
            match self.socket.receive(&mut self.buffer)? {
                Received::Datagram(length) => return Ok(length),
                // Not the kernel's, or cut: not ours to read.
                Received::Foreign(_) | Received::Truncated(_) => {}
                Received::Empty | Received::Overrun => return Err(RequestError::Unanswered),
            }
        }
    }
}

fn header(message: &Message<'_>) -> Option<Header> {
    match message {
        Message::Flow(header, ..)
        | Message::Expectation(header, ..)
        | Message::Done(header, _)
        | Message::Error(header, _)
        | Message::Stats(header, _)
        | Message::CpuStats(header, _)
        | Message::Other(header, _) => Some(*header),
    }
}

/// What a negative errno means in the answer to a request about one entry. EINVAL and EOPNOTSUPP refuse the request itself
/// here; in the answer to a dump they mean a missing module.
fn refused(call: &'static str, code: i32) -> RequestError {
    match Errno::from_raw_os_error(code.saturating_neg()) {
        Errno::NOENT => RequestError::NotFound,
        Errno::EXIST => RequestError::Exists,
        errno @ (Errno::PERM | Errno::ACCESS) => SocketError::PermissionDenied { call, errno }.into(),
        errno => SocketError::System { call, errno }.into(),
    }
}

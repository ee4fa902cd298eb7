//! The reader of `OpenStream`: flows and changes as they come, one JSON object a line.

mod cursor;
mod flow_ref;
mod item;
mod pause;

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::net::unix::pipe;

use crate::{Error, FlowMonitorProxy, QueryMap};

pub(crate) use cursor::parse_epoch;
pub use cursor::{Cursor, CursorError};
pub use flow_ref::FlowRef;
pub use item::StreamItem;
pub use pause::Pause as StreamPause;

/// The bound of a line of a stream or of the flow log, in bytes: the daemon writes none that is longer than an eighth of it.
pub const STREAM_LINE_BYTES: usize = 1024 * 1024;
/// What one read takes at most: as much as the pipe holds.
const READ_BYTES: usize = 256 * 1024;

/// Why a stream cannot be opened or read on.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The daemon does not open it.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The pipe cannot be read.
    #[error("cannot read the stream: {0}")]
    Read(#[from] io::Error),
    /// A line is no JSON object of the kind that its type says.
    #[error("a line of the stream cannot be read: {source}: {line}")]
    Line {
        /// The line, at most 200 bytes of it.
        line: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A line is longer than any that the daemon writes.
    #[error("a line of the stream is longer than {STREAM_LINE_BYTES} bytes")]
    TooLong,
}

/// The read end of `OpenStream`.
///
/// Flows borrow from the reader's buffer: an item lives until the next one is asked for, and
/// [`FlowRef::to_owned_flow`] makes of it what can be kept.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use flowbus_interfaces::{FlowMonitorProxy, FlowStream, Key, QueryMap, StreamItem};
///
/// let bus = zbus::Connection::system().await?;
/// let monitor = FlowMonitorProxy::new(&bus).await?;
/// let mut stream = FlowStream::open(&monitor, &QueryMap::from([("dport", "443".into())])).await?;
/// while let Some(item) = stream.next().await? {
///     match item {
///         StreamItem::Flow(flow) => println!("{:?} is alive", flow.number(Key::Id)),
///         StreamItem::Event { kind, flow, .. } => println!("{kind:?} {:?}", flow.number(Key::Id)),
///         StreamItem::Gap { lost, .. } => println!("{lost} changes were missed"),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FlowStream {
    pipe: pipe::Receiver,
    buffer: Vec<u8>,
    /// What of the buffer has been handed out.
    done: usize,
    /// How far the buffer has no line's end that was not handed out.
    searched: usize,
}

impl FlowStream {
    /// Opens a stream.
    ///
    /// # Errors
    /// If the daemon refuses the query or does not run, or what it answers is no pipe.
    pub async fn open(monitor: &FlowMonitorProxy<'_>, query: &QueryMap<'_>) -> Result<Self, StreamError> {
        let descriptor = monitor.open_stream(query).await?;
        Self::from_fd(descriptor.into())
    }

    /// Opens a stream that goes on where an earlier one was: first come the flows that ended since, then those that are alive.
    ///
    /// `closed` and `snapshot` of the query are set. Flows that the earlier stream had shown are shown again where they are alive; of
    /// what has an id [`Cursor::has_seen`] says which these are.
    ///
    /// ```no_run
    /// # async fn example(mut cursor: flowbus_interfaces::Cursor) -> Result<(), Box<dyn std::error::Error>> {
    /// use flowbus_interfaces::{FlowMonitorProxy, FlowStream, Key, QueryMap, StreamItem};
    ///
    /// let bus = zbus::Connection::system().await?;
    /// let monitor = FlowMonitorProxy::new(&bus).await?;
    /// let mut stream = FlowStream::resume(&monitor, QueryMap::new(), &cursor).await?;
    /// while let Some(item) = stream.next().await? {
    ///     match &item {
    ///         StreamItem::Flow(flow) if !cursor.has_seen(flow) => println!("{:?} began", flow.number(Key::Id)),
    ///         StreamItem::Closed(flow) => println!("{:?} ended", flow.number(Key::Id)),
    ///         StreamItem::Event { kind, flow, .. } => println!("{kind:?} {:?}", flow.number(Key::Id)),
    ///         _ => {}
    ///     }
    ///     cursor.advance(&item);
    ///     // Once this is written somewhere, another life can parse it and resume.
    ///     println!("{cursor}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the daemon refuses the query or does not run, or what it answers is no pipe.
    pub async fn resume<'a>(
        monitor: &FlowMonitorProxy<'_>,
        mut query: QueryMap<'a>,
        cursor: &'a Cursor,
    ) -> Result<Self, StreamError> {
        query.extend([("closed", true.into()), ("snapshot", true.into())]);
        query.extend(cursor.keys());
        Self::open(monitor, &query).await
    }

    /// Reads from the descriptor that `OpenStream` has answered. Needs a tokio runtime with IO.
    ///
    /// # Errors
    /// If it is not the read end of a pipe.
    pub fn from_fd(descriptor: OwnedFd) -> Result<Self, StreamError> {
        let pipe = pipe::Receiver::from_owned_fd(descriptor)?;
        Ok(Self { pipe, buffer: Vec::with_capacity(READ_BYTES), done: 0, searched: 0 })
    }

    /// The next item; `None` when the daemon has closed its end. A stream whose last item is not
    /// [`StreamItem::End`] was cut off: the daemon is gone. Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the pipe fails, or a line is not one of a stream; after such a line the stream can be read on.
    pub async fn next(&mut self) -> Result<Option<StreamItem<'_>>, StreamError> {
        match self.next_line().await? {
            None => Ok(None),
            Some(line) => {
                let wrong = |source| StreamError::Line { line: shortened(line), source };
                StreamItem::parse(line).map(Some).map_err(wrong)
            }
        }
    }

    /// The next line without its end, as the daemon wrote it.
    ///
    /// # Errors
    /// If the pipe fails, or a line is longer than any that the daemon writes ([`StreamError::TooLong`]).
    pub async fn next_line(&mut self) -> Result<Option<&[u8]>, StreamError> {
        while !self.has_line() {
            if !self.read().await? {
                return Ok(None);
            }
        }
        let line = self.done..self.searched;
        self.searched += 1;
        self.done = self.searched;
        Ok(Some(&self.buffer[line]))
    }

    /// Waits until the next item is there, or the end. Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the pipe fails, or a line is longer than any that the daemon writes ([`StreamError::TooLong`]).
    pub async fn ready(&mut self) -> Result<(), StreamError> {
        while !self.has_line() && self.read().await? {}
        Ok(())
    }

    /// Whether the next item is there already: a caller that gathers output flushes it when there is none.
    pub fn has_line(&mut self) -> bool {
        match self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
            Some(length) => {
                self.searched += length;
                true
            }
            None => {
                self.searched = self.buffer.len();
                false
            }
        }
    }

    /// Waits for more; false at the end.
    async fn read(&mut self) -> Result<bool, StreamError> {
        self.buffer.drain(..self.done);
        self.searched -= self.done;
        self.done = 0;
        if self.buffer.len() > STREAM_LINE_BYTES {
            return Err(StreamError::TooLong);
        }
        self.buffer.reserve(READ_BYTES);
        loop {
            self.pipe.ready(Interest::READABLE).await?;
            match self.pipe.try_read_buf(&mut self.buffer) {
                Ok(length) => return Ok(length > 0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn shortened(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned()
}

#[cfg(test)]
mod tests;

//! OpenStream: flows and changes as JSON lines through a pipe, one task a stream.
//!
//! A reader that is slow, stopped or gone costs nobody: the task waits for it alone, what the change log drops in the
//! meantime becomes a `gap` line, and the memory of a stream is bounded.

mod join;
mod line;
mod writer;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flowbus_interfaces::StreamQuery;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::dictionary::FlowNames;
use crate::handle::Handle;
use writer::Writer;

#[cfg(test)]
pub(crate) use line::Lines;

/// Streams of one user.
const USER_STREAMS: usize = 16;
/// Streams of all users together.
const STREAMS: usize = 64;
/// A reader wakes less often with a larger pipe; what a user's pipes may take is bounded by the kernel.
const PIPE_BYTES: usize = 256 * 1024;
/// How long readers have to take the last line when the daemon stops.
const LAST_LINE: Duration = Duration::from_millis(500);

/// Why a stream was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("this user has {USER_STREAMS} streams open, which is the limit; close one")]
    User,
    #[error("{STREAMS} streams are open, which is the limit for all users together")]
    All,
    #[error("creating a pipe failed: {0}")]
    Pipe(#[from] io::Error),
}

/// All open streams.
#[derive(Clone, Debug)]
pub(crate) struct Streams(Arc<Common>);

#[derive(Debug)]
struct Common {
    handle: Handle,
    names: FlowNames,
    /// The id of the machine, where it has one.
    machine: Option<String>,
    /// How many streams each user has open.
    users: Mutex<HashMap<u32, usize>>,
    gaps: AtomicU64,
    stopping: watch::Sender<bool>,
}

/// Permission for one more stream, given back when this is dropped. A stream is no call: it goes on for hours after the call that
/// opened it was answered, and has no bytes that wait for the bus.
#[derive(Debug)]
struct Permit {
    common: Arc<Common>,
    user: u32,
}

impl Streams {
    pub(crate) fn new(handle: Handle, names: FlowNames, machine: Option<String>) -> Self {
        Self(Arc::new(Common {
            handle,
            names,
            machine,
            users: Mutex::default(),
            gaps: AtomicU64::new(0),
            stopping: watch::Sender::new(false),
        }))
    }

    /// Opens a stream for a user and starts its task; the result is the end to read.
    pub(crate) fn open(&self, user: u32, query: StreamQuery) -> Result<OwnedFd, OpenError> {
        let permit = self.permit(user)?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        // A user beyond the kernel's limit for pipes gets a smaller one.
        let _ = fcntl_setpipe_size(&writer, PIPE_BYTES);
        let sender = pipe::Sender::from_owned_fd(writer)?;
        let Common { handle, names, stopping, .. } = &*self.0;
        let writer = Writer::new(sender, handle.clone(), names.clone(), query, stopping.subscribe());
        tokio::spawn(async move { writer.run(permit.common.machine.as_deref(), &permit.common.gaps).await });
        Ok(reader)
    }

    fn permit(&self, user: u32) -> Result<Permit, OpenError> {
        let mut users = self.0.users();
        if users.values().sum::<usize>() >= STREAMS {
            return Err(OpenError::All);
        }
        let count = users.entry(user).or_default();
        if *count >= USER_STREAMS {
            return Err(OpenError::User);
        }
        *count += 1;
        Ok(Permit { common: Arc::clone(&self.0), user })
    }

    /// How many streams are open.
    pub(crate) fn count(&self) -> u64 {
        self.0.users().values().sum::<usize>() as u64
    }

    /// How many gap lines were ever written.
    pub(crate) fn gaps(&self) -> u64 {
        self.0.gaps.load(Ordering::Relaxed)
    }

    /// Ends every stream with a line that says that the daemon stops.
    pub(crate) async fn stop(&self) {
        self.0.stopping.send_replace(true);
        // Each task holds a receiver until its last line is written.
        let _ = tokio::time::timeout(LAST_LINE, self.0.stopping.closed()).await;
    }
}

impl Common {
    fn users(&self) -> std::sync::MutexGuard<'_, HashMap<u32, usize>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut users = self.common.users();
        if let Some(count) = users.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.user);
            }
        }
    }
}

//! The thread that talks to the kernel, so that a large dump holds up no other call. One piece of work after another: two
//! changes at once would meet each other's flows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use flowbus_interfaces::Error;
use tokio::sync::oneshot;

type Work = Box<dyn FnOnce(&End) + Send>;

/// The handle of the thread, which ends with the process.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    queue: SyncSender<Work>,
    end: Arc<End>,
}

/// Whether the process is to end, which work of many steps looks at before each.
#[derive(Debug, Default)]
pub(crate) struct End {
    begun: AtomicBool,
    /// Locked while work is done.
    working: Mutex<()>,
}

impl End {
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    fn hold(&self) -> MutexGuard<'_, ()> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Starts the thread, for which at most `waiting` pieces of work wait, and returns when it runs.
    pub(crate) async fn start(waiting: usize) -> std::io::Result<Self> {
        let (queue, receiver) = sync_channel::<Work>(waiting);
        let end = Arc::new(End::default());
        let seen = Arc::clone(&end);
        thread::Builder::new().name("worker".into()).spawn(move || {
            for work in receiver {
                let _working = seen.hold();
                if !seen.has_begun() {
                    work(&seen);
                }
            }
        })?;
        let worker = Self { queue, end };
        // A thread that is still being started needs system calls that are refused once the process is confined.
        worker.run(|_| ()).await.map_err(std::io::Error::other)?;
        Ok(worker)
    }

    /// Has the thread do some work, and waits for the result.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&End) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        // The caller may have gone; the work is done all the same.
        let work = Box::new(move |end: &End| drop(reply.send(work(end))));
        self.queue.try_send(work).map_err(|error| match error {
            TrySendError::Full(_) => Error::LimitExceeded("too many calls wait already".into()),
            TrySendError::Disconnected(_) => Error::Unavailable("the worker's thread has ended".into()),
        })?;
        answer.await.map_err(|_| Error::Unavailable("flowbus-control is being ended, ask again".into()))
    }

    /// Lets no more work begin, and has what is being done end at its next step.
    pub(crate) fn stop(&self) {
        self.end.begun.store(true, Ordering::Relaxed);
    }

    /// Stops, and returns when nothing is being done: what was, is logged.
    pub(crate) fn finish(&self) {
        self.stop();
        drop(self.end.hold());
    }
}

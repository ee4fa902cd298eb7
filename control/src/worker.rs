//! The thread that talks to the kernel, so that a large dump holds up no other call. One piece of work after another: two
//! changes at once would meet each other's flows.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use flowbus_interfaces::Error;
use tokio::sync::oneshot;

use crate::calls::OTHERS;

type Work = Box<dyn FnOnce() + Send>;

/// So many pieces of work wait at most: all that the calls in flight can bring.
const WAITING: usize = OTHERS;

/// The way to the thread. It ends with the process.
#[derive(Clone, Debug)]
pub(crate) struct Worker(SyncSender<Work>);

impl Worker {
    /// Starts the thread and returns when it runs.
    pub(crate) async fn start() -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel::<Work>(WAITING);
        thread::Builder::new()
            .name("worker".into())
            .spawn(move || receiver.into_iter().for_each(|work| work()))?;
        let worker = Self(sender);
        // A thread that is still being started needs system calls that are soon refused.
        worker.run(|| ()).await.map_err(std::io::Error::other)?;
        Ok(worker)
    }

    /// Has it do some work, and waits for the result.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        // Who asked may have gone; the work is done all the same.
        let work = Box::new(move || drop(reply.send(work())));
        self.0.try_send(work).map_err(|_| Error::LimitExceeded(format!("{WAITING} calls wait already")))?;
        answer.await.map_err(|_| Error::Unavailable("the worker's thread has ended".into()))
    }
}

//! How the show is asked to end.

use std::cell::Cell;
use std::process::exit;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use flowbus_tests::process::DEADLINE;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// Receives the signals that ask us to end.
pub(crate) struct Stop {
    receiver: Receiver<Request>,
    /// What was asked for.
    request: Cell<Option<Request>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// Ctrl-C: enough of the events.
    Events,
    /// Someone ends us, or nobody is there any more.
    All,
}

impl Stop {
    /// Catches the signals that would kill this process, among them the end of the process that started it.
    pub(crate) fn catch() -> Self {
        let (sender, receiver) = channel();
        let (ready, installed) = channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()
                .expect("a runtime");
            runtime.block_on(pass_on(&sender, &ready));
        });
        installed.recv().expect("signals can be caught");
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).expect("root may ask for it");
        Self { receiver, request: Cell::new(None) }
    }

    /// Waits; whether nobody asked us to end meanwhile.
    pub(crate) fn wait(&self, duration: Duration) -> bool {
        match self.receiver.recv_timeout(duration) {
            Ok(request) => {
                self.request.set(Some(request));
                false
            }
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => false,
        }
    }

    /// Whether the tables are to be shown: Ctrl-C ends the events alone.
    pub(crate) fn tables_are_wanted(&self) -> bool {
        self.request.get() != Some(Request::All)
    }
}

/// Hands on what signals ask for. When main does not come to an end, because it writes to a pipe that nobody reads, the process
/// ends here: what it leaves is taken care of without it.
async fn pass_on(sender: &Sender<Request>, ready: &Sender<()>) {
    let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be caught");
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be caught");
    let mut hangup = signal(SignalKind::hangup()).expect("SIGHUP can be caught");
    ready.send(()).expect("main waits");
    loop {
        let request = tokio::select! {
            _ = interrupt.recv() => Request::Events,
            _ = terminate.recv() => Request::All,
            _ = hangup.recv() => Request::All,
        };
        // Main may be past waiting.
        let _ = sender.send(request);
        if request == Request::All {
            tokio::time::sleep(DEADLINE / 10).await;
            exit(1);
        }
    }
}

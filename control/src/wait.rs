//! The one caller at a time that waits until flows may exist that no event reports.

use std::time::Duration;

use ctnetlink::Notices;
use flowbus_interfaces::Error;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// The longest wait: a caller may have gone.
const LONGEST: Duration = Duration::from_secs(300);
/// The delay after a notice: one change of rules sends many messages, and others may follow, which one read then serves.
const SETTLING: Duration = Duration::from_secs(1);

/// The one wait that there is at a time.
#[derive(Debug)]
pub(crate) struct Wait {
    notices: std::io::Result<Notices>,
    /// Counts the waits that began; a new one ends the one before it.
    latest: watch::Sender<u64>,
}

impl Wait {
    /// Opens what is waited with. Call it before files are confined.
    pub(crate) fn new() -> Self {
        Self { notices: Notices::open(), latest: watch::Sender::new(0) }
    }

    /// Waits until `is_there`, at most 300 s, and until somebody else waits.
    pub(crate) async fn until(&self, is_there: impl Fn() -> bool) -> Result<(), Error> {
        self.end();
        let waited = self.wait(self.latest.subscribe(), is_there).await;
        waited.map_err(|error| Error::Unavailable(format!("settings and rules are not watched: {error}")))
    }

    async fn wait(
        &self,
        mut latest: watch::Receiver<u64>,
        is_there: impl Fn() -> bool,
    ) -> std::io::Result<()> {
        let notices = self.notices.as_ref().map_err(|error| std::io::Error::other(error.to_string()))?;
        let end = Instant::now() + LONGEST;
        loop {
            // Earlier notices go before the look: what changes from here on sends another.
            notices.discard();
            if is_there() {
                return Ok(());
            }
            // For tokio what is read is a pipe; its type for descriptors of any kind takes unsafe code.
            let [setting, rules] = notices.descriptors()?.map(Receiver::from_owned_fd_unchecked);
            let [setting, rules] = [setting?, rules?];
            tokio::select! {
                readable = setting.readable() => readable?,
                readable = rules.readable() => readable?,
                () = sleep_until(end) => return Ok(()),
                _ = latest.changed() => return Ok(()),
            }
            sleep(SETTLING).await;
        }
    }

    /// Ends the wait of whoever waits.
    pub(crate) fn end(&self) {
        self.latest.send_modify(|number| *number += 1);
    }
}

//! One stream after the other, each into a file of its own.

use std::io;
use std::time::{Duration, Instant};

use flowbus_interfaces::{
    Cursor, Error as CallError, FLOW_MONITOR_NAME, FlowMonitorProxy, FlowStream, StreamError, StreamItem,
};
use futures_util::StreamExt;
use sd_notify::NotifyState;
use zbus::Connection;
use zbus::fdo::DBusProxy;
use zbus::names::{BusName, WellKnownName};
use zbus::proxy::CacheProperties;

use crate::config::{Config, LogOptions};
use crate::keeper::Keeper;
use crate::log::LogFile;
use crate::place;
use crate::{Error, Stop};

/// The room on a disk that was full, in bytes, from which on it is written again.
const ROOM: u64 = 1 << 20;

/// The time before a daemon is asked again that has ended a stream: it may own its name for a moment more.
const RETURN: Duration = Duration::from_millis(100);

/// Writes what flowbusd's streams have.
pub(crate) struct Follower<'a> {
    config: &'a Config,
    options: &'a LogOptions,
    bus: DBusProxy<'a>,
    monitor: FlowMonitorProxy<'a>,
    /// Where the next stream goes on; `None` where only the files know.
    cursor: Option<Cursor>,
    /// The file that is written.
    file: Option<LogFile>,
    keeper: Keeper,
    /// A file could not be written, which was said.
    is_failing: bool,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The file is full.
    Full,
    /// Changes came faster than they were written.
    Behind,
    /// The daemon stops, or is gone.
    Away,
    /// There is no daemon to ask.
    Nobody,
}

impl Ended {
    /// The reason in the file's last line.
    const fn reason(self) -> &'static str {
        match self {
            Self::Full => "rotated",
            Self::Behind => "behind",
            Self::Away | Self::Nobody => "service-stopped",
        }
    }
}

/// Why a stream is not written on.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("flowbusd does not answer: {0}")]
    Bus(#[from] zbus::Error),
    #[error("cannot follow flowbusd: {0}")]
    Stream(#[from] StreamError),
    #[error("a line of the stream cannot be read: {source}")]
    Line { source: serde_json::Error },
    #[error("cannot write the log: {0}")]
    File(#[from] io::Error),
}

impl<'a> Follower<'a> {
    pub(crate) async fn new(config: &'a Config, bus: &'a Connection) -> Result<Self, Error> {
        let monitor = FlowMonitorProxy::builder(bus).cache_properties(CacheProperties::No).build().await?;
        Ok(Self {
            config,
            options: &config.log,
            bus: DBusProxy::new(bus).await?,
            monitor,
            cursor: None,
            file: None,
            keeper: Keeper::new(config.log.clone()),
            is_failing: false,
        })
    }

    /// Writes until the process is to stop.
    pub(crate) async fn run(mut self, mut stop: Stop) -> Result<(), Error> {
        // Watched from before the first stream on: a daemon that comes back in between is not missed.
        let mut owners = self.monitor.inner().receive_owner_changed().await?;
        // A log that cannot be read now is an error of the start.
        self.options.directory.read_dir().map_err(|error| self.unusable(error))?;
        notify(&[NotifyState::Ready]);
        let mut pause = Pause::default();
        let mut wait = Duration::ZERO;
        loop {
            let next = {
                let writing = async {
                    tokio::time::sleep(wait).await;
                    self.write_stream().await
                };
                tokio::pin!(writing);
                loop {
                    tokio::select! {
                        biased;
                        () = stop.requested() => break None,
                        written = &mut writing => break Some(written),
                        // flowbusd changes its connection now and then; what nobody receives would fill ours.
                        change = owners.next() => if change.is_none() { return Err(Error::Closed) },
                    }
                }
            };
            let Some(written) = next else { break };
            wait = match written.and_then(|ended| self.close(ended)) {
                Ok(Ended::Full) => Duration::ZERO,
                Ok(Ended::Behind) => pause.next(),
                Ok(Ended::Away) => RETURN,
                Ok(Ended::Nobody) => {
                    status("waiting for flowbusd");
                    tokio::select! {
                        biased;
                        () = stop.requested() => break,
                        change = owners.next() => if change.is_none() { return Err(Error::Closed) },
                    }
                    Duration::ZERO
                }
                Err(failure) => {
                    self.handle(failure)?;
                    pause.next()
                }
            };
        }
        notify(&[NotifyState::Stopping]);
        if let Some(file) = self.file.take() {
            file.close("stopping").map_err(|error| self.unusable(error))?;
        }
        self.keeper.finish();
        Ok(())
    }

    fn unusable(&self, source: io::Error) -> Error {
        Error::Log { path: self.options.directory.clone(), source }
    }

    /// Writes a stream into a file until one of them ends. Dropping the future loses nothing that was not written.
    async fn write_stream(&mut self) -> Result<Ended, Failure> {
        let name = WellKnownName::from_static_str_unchecked(FLOW_MONITOR_NAME);
        // A call would start a service that an administrator has stopped.
        if !self.bus.name_has_owner(BusName::WellKnown(name)).await.map_err(zbus::Error::from)? {
            return Ok(Ended::Nobody);
        }
        self.check_room()?;
        let cursor = match self.cursor.take() {
            Some(cursor) => cursor,
            None => place::newest(&self.options.directory, &self.monitor.epoch().await?)?,
        };
        let cursor = self.cursor.insert(cursor);
        let mut stream = FlowStream::resume(&self.monitor, self.config.stream_query(), cursor).await?;
        // The file begins when its stream does, and not before.
        let begin = stream.next().await?;
        let Some(StreamItem::Begin { epoch, sequence, machine }) = &begin else { return Ok(Ended::Away) };
        let file = LogFile::create(&self.options.directory, epoch, machine.as_deref(), *sequence, cursor)?;
        begin.iter().for_each(|item| cursor.advance(item));
        let file = self.file.insert(file);
        self.keeper.look(file.path());
        if std::mem::take(&mut self.is_failing) {
            tracing::info!("the log is written again");
        }
        status(&format!(
            "writing {}; {} files were removed at the bounds",
            file.path().display(),
            self.keeper.removed()
        ));
        loop {
            if !stream.has_line() || file.has_gathered() {
                file.flush()?;
                if file.is_full(self.options) {
                    return Ok(Ended::Full);
                }
                self.keeper.check(file.path(), file.bytes());
            }
            if !stream.has_line()
                && let Some(due) = file.due(self.options)
                && tokio::time::timeout_at(due.into(), stream.ready()).await.is_err()
            {
                continue;
            }
            let Some(line) = stream.next_line().await? else { return Ok(Ended::Away) };
            let item = StreamItem::parse(line).map_err(|source| Failure::Line { source })?;
            match &item {
                StreamItem::End { .. } => return Ok(Ended::Away),
                // What ended among them comes with the next stream.
                StreamItem::Gap { reason, .. } if reason == "slow-reader" => return Ok(Ended::Behind),
                StreamItem::Gap { .. } | StreamItem::Resync { .. } => file.push_now(line),
                _ => file.push(line),
            }
            cursor.advance(&item);
            if matches!(item, StreamItem::SnapshotEnd { .. }) {
                file.end_head();
            }
        }
    }

    /// Ends the file of a stream that has ended.
    fn close(&mut self, ended: Ended) -> Result<Ended, Failure> {
        if let Some(file) = self.file.take() {
            file.close(ended.reason())?;
        }
        Ok(ended)
    }

    /// What follows from a failure: the next stream, unless none can be right.
    fn handle(&mut self, failure: Failure) -> Result<(), Error> {
        if let Failure::Stream(StreamError::Refused(error @ CallError::InvalidArgument(_))) = failure {
            return Err(Error::Query(error));
        }
        if let Failure::File(_) = failure {
            // Only the files know now how far they are.
            self.file = None;
            self.cursor = None;
        } else if let Err(error) = self.close(Ended::Away) {
            return self.handle(error);
        }
        status(&format!("{failure}; trying again"));
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(
                "{failure}; trying again, flowbusd remembers what ends meanwhile as far as it can"
            );
        }
        Ok(())
    }

    /// After a failure a stream, with all that is alive, is not asked for again until there is room for it.
    fn check_room(&self) -> io::Result<()> {
        if !self.is_failing {
            return Ok(());
        }
        let disk = rustix::fs::statvfs(&self.options.directory)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < ROOM {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

/// The time before the next stream after one that could not be followed. Each begins with all that is alive, so that they must not
/// follow each other at once.
#[derive(Default)]
struct Pause {
    length: Duration,
    ended: Option<Instant>,
}

impl Pause {
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(30);

    /// Nothing the first time, then ever longer while they come shortly after each other.
    fn next(&mut self) -> Duration {
        let again = self.ended.is_some_and(|ended| ended.elapsed() < self.length + Self::LONGEST);
        self.length =
            if again { (self.length * 2).clamp(Self::SHORTEST, Self::LONGEST) } else { Duration::ZERO };
        self.ended = Some(Instant::now());
        self.length
    }
}

fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// Without a service manager this does nothing.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "notifying the service manager failed");
    }
}

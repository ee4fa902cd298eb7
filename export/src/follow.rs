//! One stream after the other, each into a file of its own.

use std::fs::{File, TryLockError};
use std::io;
use std::time::Duration;

use flowbus_interfaces::{
    Cursor, Error as CallError, FLOW_MONITOR_NAME, FlowMonitorProxy, FlowStream, Key, StreamError,
    StreamItem, StreamPause,
};
use futures_util::StreamExt;
use sd_notify::NotifyState;
use zbus::Connection;
use zbus::fdo::DBusProxy;
use zbus::names::{BusName, WellKnownName};
use zbus::proxy::CacheProperties;

use crate::collector::Collector;
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
    log: Option<Log<'a>>,
    collector: Option<Collector>,
    bus: DBusProxy<'a>,
    monitor: FlowMonitorProxy<'a>,
    /// Where the next stream goes on; `None` where only the files know, if there are any.
    cursor: Option<Cursor>,
    /// The epoch, and its newest flow before the first stream, until the table was read once: a collector hears nothing of what was before.
    first: Option<(String, u64)>,
    /// A stream could not be followed, which was said.
    is_failing: bool,
}

/// The files of the log.
struct Log<'a> {
    options: &'a LogOptions,
    /// The one that is written.
    file: Option<LogFile>,
    keeper: Keeper,
    /// Locked: what another instance writes would be a file that a kill has left.
    _directory: File,
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
        let log = config.log.as_ref().map(Log::open).transpose()?;
        let collector = config.ipfix.as_ref().map(Collector::live).transpose().map_err(Error::collector)?;
        let bus = DBusProxy::new(bus).await?;
        Ok(Self { config, bus, monitor, log, collector, cursor: None, first: None, is_failing: false })
    }

    /// Writes until the process is to stop.
    pub(crate) async fn run(mut self, mut stop: Stop) -> Result<(), Error> {
        // Watched from before the first stream on: a daemon that comes back in between is not missed.
        let mut owners = self.monitor.inner().receive_owner_changed().await?;
        notify(&[NotifyState::Ready]);
        let mut pause = StreamPause::default();
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
                Ok(Ended::Behind) => pause.begin(),
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
                    pause.begin()
                }
            };
        }
        notify(&[NotifyState::Stopping]);
        if let Some(collector) = &mut self.collector {
            collector.flush();
        }
        if let Some(log) = &mut self.log {
            log.close("stopping").map_err(|error| log.unusable(error))?;
            log.keeper.finish();
        }
        Ok(())
    }

    /// Writes a stream into a file until one of them ends. Dropping the future loses nothing that was not written.
    async fn write_stream(&mut self) -> Result<Ended, Failure> {
        let name = WellKnownName::from_static_str_unchecked(FLOW_MONITOR_NAME);
        // A call would start a service that an administrator has stopped.
        if !self.bus.name_has_owner(BusName::WellKnown(name)).await.map_err(zbus::Error::from)? {
            return Ok(Ended::Nobody);
        }
        if let Some(log) = self.log.as_ref().filter(|_| self.is_failing) {
            log.check_room()?;
        }
        let cursor = match (self.cursor.take(), &mut self.log) {
            (Some(cursor), _) => cursor,
            (None, Some(log)) => {
                let epoch = self.monitor.epoch().await?;
                // No file gets another name while they are read.
                log.keeper.finish();
                place::newest(&log.options.directory, &epoch)?
            }
            (None, None) => Cursor::default(),
        };
        let cursor = self.cursor.insert(cursor);
        let mut stream = FlowStream::resume(&self.monitor, self.config.stream_query(), cursor).await?;
        // The file begins when its stream does, and not before.
        let begin = stream.next().await?;
        let Some(StreamItem::Begin { epoch, sequence, newest_id, machine }) = &begin else {
            return Ok(Ended::Away);
        };
        if let Some(log) = &mut self.log {
            let directory = &log.options.directory;
            let file = LogFile::create(directory, epoch, machine.as_deref(), *sequence, cursor, self.config)?;
            log.begin(file);
        }
        if !cursor.goes_on(epoch, *sequence) {
            self.first = Some((epoch.to_string(), newest_id.unwrap_or(u64::MAX)));
        }
        // What a collector has not heard of since is sent to it, but not what was before the first stream.
        let newest = self.first.as_ref().filter(|(first, _)| first == epoch).map(|(_, newest)| *newest);
        let mut is_sent = newest.is_none();
        begin.iter().for_each(|item| cursor.advance(item));
        if std::mem::take(&mut self.is_failing) {
            tracing::info!("following flowbusd again");
        }
        loop {
            let is_drained = !stream.has_line();
            if let Some(collector) = self.collector.as_mut().filter(|_| is_drained) {
                collector.flush();
            }
            let mut due = None;
            if let Some(log) = &mut self.log {
                if log.flush(is_drained)? {
                    return Ok(Ended::Full);
                }
                due = log.file.as_ref().and_then(|file| file.due(log.options));
            }
            if let Some(due) = due.filter(|_| is_drained)
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
                _ => {}
            }
            if let Some(file) = self.log.as_mut().and_then(|log| log.file.as_mut()) {
                file.push(&item, line);
            }
            match &item {
                // It began, or was found, while the table was read.
                StreamItem::Flow(flow) => is_sent |= flow.number(Key::Id) > newest,
                StreamItem::SnapshotEnd { .. } => {
                    self.first = None;
                    is_sent = true;
                }
                _ => {}
            }
            if let Some(collector) = self.collector.as_mut().filter(|_| is_sent) {
                collector.push(&item, cursor);
            }
            cursor.advance(&item);
        }
    }

    /// Ends the file of a stream that has ended.
    fn close(&mut self, ended: Ended) -> Result<Ended, Failure> {
        if let Some(log) = &mut self.log {
            log.close(ended.reason())?;
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
            self.cursor = None;
            if let Some(log) = &mut self.log {
                log.file = None;
            }
        } else if let Err(error) = self.close(Ended::Away) {
            return self.handle(error);
        }
        status(&format!("{failure}; retrying"));
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!("{failure}; retrying, flowbusd remembers as many ended flows meanwhile as it can");
        }
        Ok(())
    }
}

impl<'a> Log<'a> {
    /// A log that cannot be read is an error of the start.
    fn open(options: &'a LogOptions) -> Result<Self, Error> {
        let path = &options.directory;
        let failed = |source| Error::Log { path: path.clone(), source };
        path.read_dir().map_err(failed)?;
        let directory = File::open(path).map_err(failed)?;
        directory.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::Locked(path.clone()),
            TryLockError::Error(source) => failed(source),
        })?;
        Ok(Self { options, file: None, keeper: Keeper::new(options.clone()), _directory: directory })
    }

    fn unusable(&self, source: io::Error) -> Error {
        Error::Log { path: self.options.directory.clone(), source }
    }

    /// Goes on with a new file; those before it are complete.
    fn begin(&mut self, file: LogFile) {
        self.keeper.look(file.path());
        let (path, removed) = (file.path().display(), self.keeper.removed());
        status(&format!("writing {path}; {removed} files were removed at the bounds"));
        self.file = Some(file);
    }

    /// Writes what the file has gathered, when it is much or nothing follows at once. True where the file is full.
    fn flush(&mut self, is_drained: bool) -> io::Result<bool> {
        let Some(file) = self.file.as_mut().filter(|file| is_drained || file.has_gathered()) else {
            return Ok(false);
        };
        file.flush()?;
        self.keeper.check(file.path(), file.bytes());
        Ok(file.is_full(self.options))
    }

    fn close(&mut self, reason: &str) -> io::Result<()> {
        self.file.take().map_or(Ok(()), |file| file.close(reason))
    }

    /// After a failure a stream, with all that is alive, is not asked for again until there is room for it.
    fn check_room(&self) -> io::Result<()> {
        let disk = rustix::fs::statvfs(&self.options.directory)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < ROOM {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
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

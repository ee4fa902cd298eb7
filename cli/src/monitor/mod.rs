//! `flowctl monitor`: flows as they begin, change and end.

mod cursor_file;
mod notice;
mod session;
mod summary;

use std::io::Write;

use flowbus_interfaces::{FlowStream, Key, QueryMap, StreamPause};
use futures_util::StreamExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::arguments::Monitored;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::format::{Kind, Printer};
use crate::screen::{Look, Screen};
use cursor_file::CursorFile;
use notice::Notices;
use session::{Ended, Session};

/// Prints changes until Ctrl-C. When the daemon restarts it goes on with the new one.
pub(crate) async fn monitor(daemon: &Daemon, monitored: &Monitored) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    // Watched from before the first stream on: a daemon that comes back in between is not missed.
    let mut owners = daemon.monitor.inner().receive_owner_changed().await.map_err(|e| daemon.failed(e))?;
    let mut session = Session {
        printer: Printer::of(&monitored.query, &monitored.output, Kind::Events),
        notices: Notices::new(monitored.output.format(), Look::new(false).colors),
        screen: Screen::direct()?,
        monitored,
        totals: session::Totals::default(),
        place: None,
        cursor: monitored.cursor_file.as_deref().map(CursorFile::open).transpose()?,
        resumed: false,
        knows_begins: false,
        away: false,
        told_nameless: false,
    };
    session.begin()?;
    let mut stream = open(daemon, monitored, &mut session).await?;
    let mut pause = StreamPause::default();
    loop {
        let ended = {
            let following = session.follow(&mut stream);
            tokio::pin!(following);
            loop {
                tokio::select! {
                    biased;
                    () = signals.wait() => break None,
                    ended = &mut following => break Some(ended?),
                    // flowbusd changes its connection now and then; what nobody receives would fill ours.
                    Some(_) = owners.next() => {}
                }
            }
        };
        let Some(ended) = ended else { break };
        session.note_end(&ended, daemon.bus())?;
        drop(stream);
        if ended == Ended::Behind {
            tokio::select! {
                biased;
                () = signals.wait() => break,
                () = tokio::time::sleep(pause.begin()) => {}
            }
        }
        stream = loop {
            match open(daemon, monitored, &mut session).await {
                Ok(stream) => break stream,
                // The daemon is waited for, whether it has said goodbye or was killed.
                Err(Error::NoDaemon { .. } | Error::Failed(_)) => {}
                Err(error) => return Err(error),
            }
            tokio::select! {
                biased;
                () = signals.wait() => return finish(daemon, monitored, session, true).await,
                change = owners.next() => if change.is_none() { return Err(Error::Closed) },
            }
        };
    }
    finish(daemon, monitored, session, false).await
}

/// What is left to say at Ctrl-C.
async fn finish(
    daemon: &Daemon,
    monitored: &Monitored,
    mut session: Session<'_>,
    daemon_gone: bool,
) -> Result<(), Error> {
    session.end()?;
    if monitored.exit_summary {
        if daemon_gone {
            return Err(Error::NoDaemon { bus: daemon.bus().to_owned() });
        }
        summary::print(daemon, monitored, &session.place, &mut session.screen).await?;
    }
    Ok(session.screen.flush()?)
}

/// Opens the next stream: where there is a place to go on from, there.
async fn open(
    daemon: &Daemon,
    monitored: &Monitored,
    session: &mut Session<'_>,
) -> Result<FlowStream, Error> {
    match session.cursor.as_ref().map(CursorFile::cursor) {
        Some(cursor) => {
            session.resumed = !cursor.is_fresh();
            daemon.resume(asked(monitored), cursor).await
        }
        None => daemon.stream(&asked(monitored)).await,
    }
}

/// What the daemon is asked for.
fn asked(monitored: &Monitored) -> QueryMap<'_> {
    // The place in the cursor file is made of ids, too.
    let keys: &[Key] = if monitored.cursor_file.is_some() { &[Key::Id] } else { &[] };
    let mut query = monitored.output.query_with(&monitored.query, Kind::Events, keys);
    query.insert("snapshot", monitored.snapshot.into());
    let events = monitored.events();
    if !events.is_empty() {
        query.insert("events", events.into());
    }
    query
}

/// What ends a monitor.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(Error::Output);
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

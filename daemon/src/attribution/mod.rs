//! Where the flows' owners come from: BPF programs that report sockets, loaded by this process or handed to it; or /proc.
//!
//! It is done by a thread of its own. By hand, loading takes a third of a second and all of root's powers, which no
//! other thread has by then; it ends when that is done. In the service it waits for flowbus-attribution, which comes
//! when the daemon has started, and whenever somebody starts it again.

mod procfs;

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use flowbus_attribution::handover::{Handed, HandoverError, LISTENER, Loader, Request, check_listener};
use flowbus_attribution::{DEFAULT_RING_BYTES, DescriptorError, LoadError, Programs};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::oneshot;

use crate::confinement;
use crate::handle::{Command, Handle};
use crate::owners::{Probe, ProbeError};
use crate::systemd;

/// Where the programs come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// This process loads them; where they are refused, /proc tells.
    Load,
    /// /proc tells, without them.
    Procfs,
    /// They were kept from the last life, or are not there yet; who connects to this socket hands over what is wanted and not there:
    /// the programs that report sockets, the filter of the event socket.
    Handover { listener: Option<OwnedFd>, kept: Vec<(String, OwnedFd)>, programs: bool, filter: bool },
}

/// Why no sockets are reported.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Handover(#[from] HandoverError),
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("waiting for flowbus-attribution failed: {0}")]
    Poll(#[from] rustix::io::Errno),
    #[error("the tracker is ending")]
    Tracker,
}

/// Whether the thread has given up the powers that a daemon that serves does not need.
pub(crate) type GivenUp = Result<(), Errno>;

/// Starts the thread. The receiver gets its word when it needs no more than a daemon that serves: until then it makes
/// system calls that nobody else may make.
pub(crate) fn start(source: Source, handle: Handle) -> std::io::Result<oneshot::Receiver<GivenUp>> {
    let (given_up, loading) = oneshot::channel();
    thread::Builder::new().name("attribution".into()).spawn(move || {
        let loaded = match &source {
            Source::Load => load(),
            Source::Procfs | Source::Handover { .. } => Ok(None),
        };
        // First drop them, then report it: the system calls that this takes are refused next.
        let powers = confinement::drop_capabilities_but_to_look();
        let confined = powers.is_ok();
        // Nobody listens any more when the daemon is already on its way out.
        let _ = given_up.send(powers);
        if !confined {
            return;
        }
        match (source, loaded) {
            (Source::Handover { listener, kept, programs, filter }, _) => {
                // With programs comes a snapshot; whoever has programs wants that alone.
                let mut wanted = Request { programs, snapshot: programs, filter };
                if programs {
                    wanted.programs = !take_kept(&handle, kept);
                }
                receive(&handle, listener, wanted);
            }
            (_, Ok(Some(probe))) => drop(hand_on(&handle, probe)),
            (_, Ok(None)) => procfs::run(&handle),
            (_, Err(error)) => {
                tracing::warn!(
                    %error,
                    "BPF is refused: connections are not reported, and owners are looked up in /proc, which misses short connections"
                );
                procfs::run(&handle);
            }
        }
    })?;
    Ok(loading)
}

fn load() -> Result<Option<Probe>, SourceError> {
    let (programs, snapshot) = flowbus_attribution::load(DEFAULT_RING_BYTES)?;
    Ok(Some(Probe::open(programs, Some(snapshot))?))
}

/// Takes over the programs of the last life. True where they run.
fn take_kept(handle: &Handle, kept: Vec<(String, OwnedFd)>) -> bool {
    if kept.is_empty() {
        return false;
    }
    let names: Vec<String> = kept.iter().map(|(name, _)| name.clone()).collect();
    let opened = Programs::from_named(kept).map_err(SourceError::from);
    let result = opened.and_then(|programs| hand_on(handle, Probe::open(programs, None)?));
    if let Err(error) = &result {
        systemd::forget(names.iter().map(String::as_str));
        tracing::warn!(%error, "the BPF programs of the last run are of no use, waiting for others");
    }
    result.is_ok()
}

/// Takes what comes from flowbus-attribution, for ever.
fn receive(handle: &Handle, listener: Option<OwnedFd>, mut wanted: Request) {
    let Some(listener) = listener else { return };
    if let Err(error) = check_listener(listener.as_fd()) {
        systemd::forget([LISTENER].into_iter());
        return tracing::warn!("{error}, not waiting for BPF programs");
    }
    while wanted != Request::default() {
        match receive_once(handle, &listener, &mut wanted) {
            Ok(()) => {}
            Err(SourceError::Poll(_) | SourceError::Tracker) => return,
            Err(error) => {
                tracing::warn!(%error, "receiving BPF programs from flowbus-attribution failed");
                // What fails again does not keep us busy.
                thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

/// Takes what one loader hands over. What is there is not wanted any more.
fn receive_once(handle: &Handle, listener: &OwnedFd, wanted: &mut Request) -> Result<(), SourceError> {
    let loader = loop {
        wait(listener)?;
        if let Some(loader) = Loader::accept(listener.as_fd(), *wanted)? {
            break loader;
        }
    };
    let Handed { programs, snapshot, filter, refused } = loop {
        wait(&loader)?;
        if let Some(handed) = loader.receive()? {
            break handed;
        }
    };
    if let Some(error) = refused {
        tracing::warn!(%error, "events are received from the socket, not by a ring");
    }
    if let Some(filter) = filter {
        // Kept before it is attached: a filter without its ring would make the next life's socket deaf.
        systemd::store_programs(filter.named());
        handle.send_blocking(Command::ReadByRing(filter)).map_err(|_| SourceError::Tracker)?;
        wanted.filter = false;
    }
    match (programs, snapshot) {
        (Some(programs), snapshot) => {
            let probe = Probe::open(programs, snapshot)?;
            systemd::store_programs(probe.programs.named());
            hand_on(handle, probe)?;
            wanted.programs = false;
        }
        (None, Some(snapshot)) => {
            handle.send_blocking(Command::ReadSnapshot(snapshot)).map_err(|_| SourceError::Tracker)?;
        }
        (None, None) => {}
    }
    Ok(())
}

fn wait(descriptor: &impl AsFd) -> Result<(), rustix::io::Errno> {
    loop {
        match poll(&mut [PollFd::new(descriptor, PollFlags::IN)], None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The programs that do not run, those with the same reason together: `accept_exact, accept_reader: not permitted; udp_send: ...`.
fn failures<'a>(failures: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, reason) in failures {
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(name),
            None => reasons.push((reason, vec![name])),
        }
    }
    let lines = reasons.iter().map(|(reason, names)| format!("{}: {reason}", names.join(", ")));
    lines.collect::<Vec<_>>().join("; ")
}

fn hand_on(handle: &Handle, probe: Probe) -> Result<(), SourceError> {
    let failures = failures(probe.report.failures());
    if !failures.is_empty() {
        tracing::info!(programs = failures, "BPF programs do not run, continuing without them");
    }
    tracing::info!(accept = probe.report.accept().name(), "flows get their owners by BPF");
    handle.send_blocking(Command::Attribute(Box::new(probe))).map_err(|_| SourceError::Tracker)
}

//! flowbusd keeps Linux's connection tracking table in memory, live from netlink events, and offers it on D-Bus.
//!
//! The tracker thread owns the table; the bus tasks ask it through a handle and follow its change log.
//! docs/architecture.md has the map.

mod attribution;
mod bus;
mod change;
mod checksum;
mod clock;
mod config;
mod confinement;
mod connection;
mod counters;
mod descriptors;
mod dictionary;
mod dump_requests;
mod event_source;
mod expectation;
mod flow;
mod handle;
mod index;
mod instructions;
mod kernel_state;
mod links;
mod log;
mod lookout;
mod machine;
mod names;
mod owners;
mod published;
mod report;
mod state;
mod streams;
mod systemd;
mod table;
mod tracker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use rustix::fd::OwnedFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use attribution::{GivenUp, Source};
use bus::BusError;
use config::{Config, ConfigError, SourceChoice, TierChoice};
use descriptors::{DescriptorError, Descriptors};
use dictionary::FlowNames;
use dump_requests::DumpRequest;
use event_source::EventSource;
use flowbus_attribution::events::EventFilter;
use flowbus_interfaces::BusAddress;
use flowbus_logging::message_id;
use handle::{Command, Handle};
use kernel_state::{Kernel, Reader};
use links::Links;
use state::State;
use streams::Streams;
use tracker::{Requester, Setup, Tracker, TrackerError};

/// Keeps Linux's connection tracking table in memory and offers it on D-Bus.
///
/// Run by hand as root, it tracks the network namespace that it is started in.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The bus to offer the table on: "system" or a D-Bus address
    #[arg(long, value_name = "system|ADDRESS", default_value = "system")]
    bus: BusAddress,
    /// The configuration file [default: /etc/flowbus/flowbusd.toml, where there is one]
    #[arg(long, value_name = "FILE", overrides_with = "config")]
    config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
}

/// Why the daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    #[error(transparent)]
    Tracker(#[from] TrackerError),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("allocating memory for the table failed: {0}")]
    State(rustix::io::Errno),
    #[error("dropping capabilities failed: {0}")]
    Powers(rustix::io::Errno),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    #[error("the tracker thread ended unexpectedly")]
    TrackerGone,
    #[error("the attribution thread ended unexpectedly")]
    AttributionGone,
}

/// Exit status of a start with a wrong configuration, which the unit does not restart: `EX_CONFIG` of sysexits.h.
const WRONG_CONFIGURATION: u8 = 78;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    flowbus_logging::start();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(message_id = message_id::CANNOT_SERVE, "{error}");
            match error {
                Error::Config(_) if !arguments.check => ExitCode::from(WRONG_CONFIGURATION),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let config = Config::load(arguments.config.as_deref())?;
    if arguments.check {
        return Ok(());
    }
    let mut handed = Descriptors::take()?;
    let links = handed.links.take();
    // Who may not ask the kernel has flowbus-control ask it.
    let (requester, requests) = if descriptors::may_ask_the_kernel() {
        (Requester::Ourselves, None)
    } else {
        let (sender, requests) = mpsc::channel(1);
        (Requester::Helper(sender), Some(requests))
    };
    let was_kept = !handed.filter.is_empty();
    let opened = open(&config, &mut handed, requester)?;
    let links = descriptors::handed_links(links, &opened.events);
    let (tracker, handle) = Tracker::new(opened)?;
    let has_ring = handle.properties().borrow().event_source == EventSource::RING;
    if was_kept && !has_ring {
        systemd::forget(EventFilter::NAMES.into_iter());
    }
    let source = source(&config, &mut handed, has_ring);
    let start =
        |source: Option<Source>| source.map(|source| attribution::start(source, handle.clone())).transpose();
    // By hand that thread needs root's powers, which end here for all others. The service has none.
    let (mut loading, mut source) = (None, source);
    if requests.is_none() {
        loading = start(source.take())?;
    }
    confinement::drop_capabilities().map_err(Error::Powers)?;
    confinement::files(arguments.config.as_deref());
    let access = match requests {
        None => Access::Ours(Reader::start()?),
        Some(requests) => Access::Helper(requests),
    };
    if source.is_some() {
        loading = start(source)?;
    }
    let (ended, tracker_ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("tracker".into()).spawn(move || {
        // Nobody listens any more when the daemon is already on its way out.
        let _ = ended.send(tracker.run());
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let background = BackgroundTasks { links, access, loading };
    let serving = serve(arguments, config, handle.clone(), background, tracker_ended);
    let result = runtime.block_on(serving);
    // Closed before the tracker: a call that came late is refused, not left without an answer.
    drop(runtime);
    let _ = handle.send_blocking(Command::Stop);
    let joined = thread.join().map_err(|_| Error::TrackerGone);
    result.and(joined)
}

/// Where BPF programs come from, if anybody wants them. `has_ring`: events come by a ring already.
fn source(config: &Config, handed: &mut Descriptors, has_ring: bool) -> Option<Source> {
    if descriptors::may_ask_the_kernel() {
        return match config.attribution.tier {
            TierChoice::None => None,
            TierChoice::Auto => Some(Source::Load),
            TierChoice::Procfs => Some(Source::Procfs),
        };
    }
    if config.attribution.tier == TierChoice::Procfs {
        tracing::warn!("attribution.tier = \"procfs\" is for a flowbusd by hand: flows have no owners");
    }
    let programs = config.attribution.tier == TierChoice::Auto;
    let filter = config.events.source == SourceChoice::Auto && !has_ring;
    let (listener, kept) = (handed.listener.take(), std::mem::take(&mut handed.programs));
    (programs || filter).then_some(Source::Handover { listener, kept, programs, filter })
}

/// What the tracker starts with: what was handed over, and the rest opened here.
fn open(config: &Config, handed: &mut Descriptors, requester: Requester) -> Result<Setup, Error> {
    let is_our_socket = handed.events.is_none();
    let events = descriptors::event_socket(handed.events.take(), &config.events)?;
    let filter = descriptors::event_filter(std::mem::take(&mut handed.filter), is_our_socket, &config.events);
    let dump = descriptors::dump_socket(handed.dump.take(), &events)?;
    let (state, refused) = match handed.state.take() {
        Some(memfd) => State::open(memfd).map_err(Error::State)?,
        None => (State::create().map_err(Error::State)?, None),
    };
    if !handed.state_is_kept || refused.is_some() {
        systemd::store_state(state.memfd());
    }
    Ok(Setup {
        events,
        filter,
        dump,
        requester,
        state,
        refused,
        closed_limits: config.closed_limits(),
        sweep_interval: Duration::from_secs(config.events.sweep_interval_sec),
    })
}

/// How the kernel is asked.
enum Access {
    /// This process; a thread reads settings and rules.
    Ours(Reader),
    /// flowbus-control, for these dumps among other things.
    Helper(mpsc::Receiver<DumpRequest>),
}

/// What goes on beside the bus.
struct BackgroundTasks {
    /// The route socket, if one was handed over.
    links: Option<OwnedFd>,
    access: Access,
    /// From the thread that loads BPF programs, where there is one.
    loading: Option<oneshot::Receiver<GivenUp>>,
}

/// Serves the bus until a signal or an error ends it.
async fn serve(
    arguments: &Arguments,
    config: Config,
    handle: Handle,
    background: BackgroundTasks,
    mut tracker_ended: oneshot::Receiver<Result<(), TrackerError>>,
) -> Result<(), Error> {
    let BackgroundTasks { links: link_socket, access, loading } = background;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (configuration, config) = watch::channel(Arc::new(config));
    let links = Links::default();
    let mut following = tokio::spawn(links.clone().follow(link_socket, handle.clone()));
    let mut links_live = true;
    let connection = watch::Sender::new(None);
    let kernel = match access {
        Access::Ours(reader) => Kernel::here(reader),
        Access::Helper(requests) => {
            tokio::spawn(dump_requests::relay(requests, connection.subscribe(), handle.clone()));
            Kernel::helper(connection.subscribe())
        }
    };
    tokio::spawn(lookout::watch(kernel.clone(), handle.clone()));
    tokio::spawn(systemd::feed_watchdog(handle.clone()));
    let names = FlowNames::new(&handle, links, config.clone());
    let streams = Streams::new(handle.clone(), names.clone(), machine::id());
    let services = bus::Services { handle: handle.clone(), names, streams: streams.clone(), kernel };
    let (loaded, confinable) = oneshot::channel();
    let bus = bus::serve(&arguments.bus, services, connection, Some(confinable), config);
    tokio::pin!(bus);
    let loading = async {
        match loading {
            Some(loading) => loading.await.map_err(|_| Error::AttributionGone)?.map_err(Error::Powers),
            None => Ok(()),
        }
    };
    tokio::pin!(loading);
    let mut loaded = Some(loaded);
    loop {
        tokio::select! {
            result = &mut bus => match result? {},
            result = &mut loading, if loaded.is_some() => {
                result?;
                // The threads may be confined.
                loaded = None;
            }
            ended = &mut tracker_ended => return Ok(ended.map_err(|_| Error::TrackerGone)??),
            ended = &mut following, if links_live => {
                links_live = false;
                if let Ok(Err(error)) = ended {
                    tracing::warn!(%error, "interface names are no longer followed");
                }
            }
            _ = hangup.recv() => reload(arguments, &configuration, &handle),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("stopping");
    systemd::stopping();
    streams.stop().await;
    Ok(())
}

/// Reads the configuration again; a bad one changes nothing.
fn reload(arguments: &Arguments, configuration: &watch::Sender<Arc<Config>>, handle: &Handle) {
    let new = match Config::load(arguments.config.as_deref()) {
        Ok(new) => new,
        Err(error) => {
            tracing::error!("configuration: {error}; the old one stays in force");
            return;
        }
    };
    let old = Arc::clone(&configuration.borrow());
    if new.events != old.events || new.attribution != old.attribution {
        tracing::warn!("changed options of [events] and [attribution] take effect after a restart");
    }
    if new.closed != old.closed
        && let Err(error) = handle.send(Command::SetClosedLimits(new.closed_limits()))
    {
        tracing::error!("configuration: {error}; the old one stays in force");
        return;
    }
    configuration.send_replace(Arc::new(new));
    tracing::info!("configuration reloaded");
}

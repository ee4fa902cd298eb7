//! flowbus-export writes the flows that flowbusd knows to a log of files and sends them to collectors of IPFIX, as an ordinary client
//! of the bus. It needs no privilege but the group flowbus.

mod collector;
mod config;
mod follow;
mod ipfix;
mod keeper;
mod log;
mod place;
mod replay;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use flowbus_interfaces::BusAddress;
use rustix::io::Errno;
use tokio::signal::unix::{Signal, SignalKind, signal};

use collector::Collector;
use config::{Config, ConfigError, IpfixOptions};
use follow::Follower;

/// Writes each begin and each end of a flow once to log files, and sends them to an IPFIX collector
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", required_unless_present = "replay")]
    config: Option<PathBuf>,
    /// The bus that flowbusd is on: "system" or a D-Bus address
    #[arg(long, value_name = "system|ADDRESS", default_value = "system")]
    bus: BusAddress,
    /// Check the configuration and exit
    #[arg(long, requires = "config")]
    check: bool,
    /// Send a file of the log to an IPFIX collector, and exit
    #[arg(long, value_name = "FILE", requires = "to", conflicts_with_all = ["config", "bus"])]
    replay: Option<PathBuf>,
    /// The collector that the file is sent to
    #[arg(long, value_name = "ADDRESS:PORT", requires = "replay")]
    to: Option<SocketAddr>,
}

/// Why it could not start or go on.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("flowbusd refuses the query: {0}")]
    Query(flowbus_interfaces::Error),
    #[error("{}: {source}", path.display())]
    Log { path: PathBuf, source: std::io::Error },
    #[error("another flowbus-export writes to {}: each needs a directory of its own", .0.display())]
    Locked(PathBuf),
    #[error("the bus: {0}")]
    Bus(#[from] zbus::Error),
    #[error("the bus has closed the connection")]
    Closed,
    #[error("ipfix.collector: {0}")]
    Collector(std::io::Error),
    #[error(
        "ipfix.collector: the service has no network; `systemctl edit flowbus-export@NAME` and the drop-in in flowbus-export(8) open it"
    )]
    NoNetwork,
    #[error("cannot start: {0}")]
    Start(std::io::Error),
}

impl Error {
    /// A wrong configuration stays wrong: EX_CONFIG, with which the service is not started again.
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Query(_) | Self::Locked(_) | Self::NoNetwork => ExitCode::from(78),
            _ => ExitCode::FAILURE,
        }
    }

    fn collector(error: std::io::Error) -> Self {
        // By RestrictAddressFamilies= of the unit.
        let is_restricted = error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error());
        if is_restricted { Self::NoNetwork } else { Self::Collector(error) }
    }
}

/// What ends the process.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn requested(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    flowbus_logging::start();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            error.exit_code()
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    if let (Some(path), Some(collector)) = (&arguments.replay, arguments.to) {
        let mut collector = Collector::new(&IpfixOptions::to(collector)).map_err(Error::collector)?;
        return replay::replay(path, &mut collector)
            .map_err(|source| Error::Log { path: path.clone(), source });
    }
    let Some(path) = &arguments.config else { return Ok(()) };
    let config = Config::load(path)?;
    if arguments.check {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    runtime.block_on(async {
        let stop = Stop::new().map_err(Error::Start)?;
        let bus = arguments.bus.connect().build().await?;
        Follower::new(&config, &bus).await?.run(stop).await
    })
}

//! flowbus-control asks the kernel what flowbusd may not, and changes its table for those whom polkit lets: it holds
//! CAP_NET_ADMIN and nothing else, is started by the bus when it is called, and exits when nobody has called for a while.
//!
//! docs/security.md says why it is a process of its own.

mod bus;
mod caller;
mod control;
mod table;
mod wait;
mod worker;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use bus::ServeError;
use caller::{Permitted, UserError};
use flowbus_interfaces::BusAddress;
use flowbus_logging::message_id;
use rustix::thread::CapabilitySet;

/// Queries the kernel's connection tracking for flowbusd, which holds no capability, and changes it for authorized callers.
///
/// The bus starts it. It needs CAP_NET_ADMIN, and acts in the network namespace that it is started in. Root and users
/// authorized by polkit may change the table.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The bus to serve: "system" or a D-Bus address
    #[arg(long, value_name = "system|ADDRESS", default_value = "system")]
    bus: BusAddress,
    /// The user that flowbusd runs as, who alone may request dumps; its group may read statistics
    #[arg(long, value_name = "NAME", default_value = "flowbus")]
    user: String,
    /// Seconds without a call after which it exits
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    idle: u64,
}

/// Why the helper could not start or go on.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("dropping capabilities failed: {0}")]
    Powers(rustix::io::Errno),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    flowbus_logging::start();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(message_id = message_id::CONTROL_CANNOT_SERVE, "{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    // By hand. The service has this one alone.
    flowbus_seccomp::keep(CapabilitySet::NET_ADMIN).map_err(Error::Powers)?;
    let permitted = Permitted::named(&arguments.user)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let idle = Duration::from_secs(arguments.idle);
    Ok(runtime.block_on(bus::run(&arguments.bus, permitted, idle))?)
}

//! What `./run` shows: the main job on a network of its own, or with `--host` on this machine's traffic.
//!
//! Nothing is left behind, whatever ends it, because little has to be undone: network namespaces and temporary files lie on a
//! tmpfs of a mount namespace that ends with the last process in it, the kernel kills what was started here when this process
//! ends, and what `--host` changes is undone by a process that waits for our end (`host.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here ends the show, with its reason")]

mod host;
mod show;
mod stop;

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use flowbus_tests::network::{
    BOTH_NAT, CHROME, CROSTINI, LATE_MARK, MASQUERADED, MASQUERADED_SERVER_V4, PLAIN, REDIRECTED, ROUTER_V4,
    ROUTER_V6, SERVER_V4, SERVER_V6, UNKNOWN_SOURCE, ip_address, socket_address,
};
use flowbus_tests::process::{complain, tied, wait_for};
use flowbus_tests::{Bus, Daemon, Namespace, Network, conntrack, traffic};

use show::{Events, say};
use stop::Stop;

/// The first argument of the process that has the mount namespace.
const ENCLOSED: &str = "--enclosed";

struct Options {
    host: bool,
    seconds: u64,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    let enclosed = arguments.next_if_eq(ENCLOSED).is_some();
    let options = match options(arguments) {
        Ok(options) => options,
        Err(argument) => {
            complain(&format!("{argument:?} is not understood; ./run --help says what is."));
            return ExitCode::from(2);
        }
    };
    if !enclosed {
        let error = enclose();
        complain(&format!("./run cannot have a mount namespace of its own: {error}"));
        return ExitCode::FAILURE;
    }
    hide_run();
    let duration = Duration::from_secs(options.seconds);
    let stop = Stop::catch();
    if options.host { show_host(duration, &stop) } else { show_network(duration, &stop) }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { host: false, seconds: 20 };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--host" => options.host = true,
            "--seconds" => {
                let seconds = arguments.next().unwrap_or_default();
                options.seconds = seconds.parse().map_err(|_| format!("--seconds {seconds}"))?;
            }
            _ => return Err(argument),
        }
    }
    Ok(options)
}

/// Starts this program again, as this process, in a mount namespace of its own. Returns only if that fails.
fn enclose() -> std::io::Error {
    let itself = std::env::current_exe().expect("a program knows its own path");
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(itself)
        .arg(ENCLOSED)
        .args(std::env::args_os().skip(1))
        .env("TMPDIR", show::RUN)
        .exec()
}

/// Covers /run, where `ip netns` keeps its namespaces, by a tmpfs that nobody else sees.
fn hide_run() {
    use rustix::mount::{MountFlags, mount};
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("run", show::RUN, "tmpfs", flags, Some(c"mode=0755")).expect("a tmpfs can be mounted");
}

fn show_network(duration: Duration, stop: &Stop) -> ExitCode {
    say("A client, a router and a server, each in a network namespace; flowbusd runs on the router.");
    let network = Network::new();
    // So that flows end while one looks on: a dump takes out what has timed out, which the kernel would do half a minute later.
    for (timeout, seconds) in [
        ("tcp_timeout_time_wait", "2"),
        ("udp_timeout", "4"),
        ("udp_timeout_stream", "4"),
        ("icmp_timeout", "2"),
    ] {
        network.router.sysctl(&format!("net.netfilter.nf_conntrack_{timeout}"), seconds);
    }
    let bus = Bus::start();
    let daemon = start(&network.router, &bus);
    let mut events = Events::show(&bus);
    let tcp = [
        (SERVER_V4, PLAIN),
        (SERVER_V6, PLAIN),
        (SERVER_V6, CHROME),
        (SERVER_V4, CROSTINI),
        (SERVER_V4, MASQUERADED),
        (SERVER_V4, LATE_MARK),
    ]
    .map(|(address, port)| (network.tcp_service(address, port), address, port));
    let udp = [(SERVER_V4, PLAIN), (SERVER_V6, CROSTINI), (SERVER_V4, UNKNOWN_SOURCE)]
        .map(|(address, port)| (network.udp_service(address, port), address, port));
    let mut open = Vec::new();
    let end = Instant::now() + duration;
    for round in 0.. {
        let (service, address, port) = &tcp[round % tcp.len()];
        open.extend(service.connect(&network.client, socket_address(address, *port), 1));
        let (service, address, port) = &udp[round % udp.len()];
        service.exchange(&network.client, socket_address(address, *port), 1);
        match round % 4 {
            0 => traffic::ping(&network.client, ip_address(MASQUERADED_SERVER_V4), 7),
            1 => open.extend(tcp[0].0.connect(&network.client, socket_address(ROUTER_V4, REDIRECTED), 1)),
            2 => traffic::ping(&network.client, ip_address(SERVER_V6), 7),
            _ => open.extend(tcp[1].0.connect(&network.client, socket_address(ROUTER_V6, BOTH_NAT), 1)),
        }
        if open.len() > 8 {
            open.drain(..2).for_each(traffic::Connection::close);
        }
        let _ = conntrack::list(&network.router);
        if !events.watch(stop, Duration::from_millis(700)) || Instant::now() > end {
            break;
        }
    }
    finish(events, daemon, &bus, stop)
}

/// Starts a flowbusd with [attribution] as it is by default: which process each connection belongs to, whatever namespace it is in.
fn start(namespace: &Namespace, bus: &Bus) -> Daemon {
    let mut command = tied(&Daemon::command(namespace, bus));
    let mut daemon = Daemon::spawn(command.args(["--config", "/dev/null"]));
    daemon.wait_until_synchronized(bus);
    wait_for("attribution", || (bus.property("Attribution").ok()? != "none").then_some(()));
    daemon
}

fn show_host(duration: Duration, stop: &Stop) -> ExitCode {
    let changes = match host::Changes::make() {
        Ok(changes) => changes,
        Err(host::Busy) => {
            complain(
                "Another ./run --host shows this machine's traffic already. Wait for its end, then start again.",
            );
            return ExitCode::FAILURE;
        }
    };
    let bus = Bus::start();
    let daemon = start(&Namespace::host(), &bus);
    say("\nThis machine's connections, as they appear, change and end. Open some in another terminal.");
    let mut events = Events::show(&bus);
    // A machine may be quiet; this is something to see.
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback interface is up");
    let connection = TcpStream::connect(listener.local_addr().expect("it is bound"));
    let _ = events.watch(stop, duration);
    drop(connection);
    let code = finish(events, daemon, &bus, stop);
    changes.undo();
    code
}

/// Ends the events and shows what is in the tables, unless nobody wants to see it.
fn finish(events: Events, daemon: Daemon, bus: &Bus, stop: &Stop) -> ExitCode {
    events.end();
    if stop.tables_are_wanted() {
        show::tables(bus, stop);
    }
    daemon.stop();
    ExitCode::SUCCESS
}

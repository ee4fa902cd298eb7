//! What `./run` shows: the main job on a network of its own, or with `--host` on this machine's traffic.
#![allow(clippy::print_stdout, reason = "it is for someone to look at")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here ends the show, with its reason")]

use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use flowbus_tests::daemon::binary;
use flowbus_tests::network::{
    BOTH_NAT, CHROME, CROSTINI, LATE_MARK, MASQUERADED, MASQUERADED_SERVER_V4, PLAIN, REDIRECTED, ROUTER_V4,
    ROUTER_V6, SERVER_V4, SERVER_V6, UNKNOWN_SOURCE, ip_address, socket_address,
};
use flowbus_tests::{Bus, Daemon, Namespace, Network, conntrack, process, traffic};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

struct Options {
    host: bool,
    seconds: u64,
}

fn main() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(argument) => {
            eprintln!("{argument:?} is not understood; ./run --help says what is.");
            return ExitCode::from(2);
        }
    };
    let duration = Duration::from_secs(options.seconds);
    let stop = stopped();
    if options.host {
        show_host(duration, &stop)
    } else {
        show_network(duration, &stop)
    }
    ExitCode::SUCCESS
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

/// Receives when someone asks us to end. All is taken down by leaving `main` in order, so neither signal may kill us.
fn stopped() -> Receiver<()> {
    let (sender, receiver) = channel();
    let (ready, installed) = channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be caught");
            let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be caught");
            ready.send(()).expect("main waits");
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
            // Main may be past waiting.
            let _ = sender.send(());
        });
    });
    installed.recv().expect("signals can be caught");
    receiver
}

/// Waits; false if it was told to end meanwhile.
fn wait(stop: &Receiver<()>, duration: Duration) -> bool {
    matches!(stop.recv_timeout(duration), Err(RecvTimeoutError::Timeout))
}

fn show_network(duration: Duration, stop: &Receiver<()>) {
    println!("A client, a router and a server, each in a network namespace; flowbusd runs on the router.");
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
    let daemon = Daemon::start(&network.router, &bus);
    let events = Events::show(&bus);
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
        if !wait(stop, Duration::from_millis(700)) || Instant::now() > end {
            break;
        }
    }
    events.end();
    tables(&bus);
    daemon.stop();
}

fn show_host(duration: Duration, stop: &Receiver<()>) {
    let changes = HostChanges::make();
    let bus = Bus::start();
    let daemon = Daemon::start(&Namespace::host(), &bus);
    println!("\nThis machine's connections, as they appear, change and end. Open some in another terminal.");
    let events = Events::show(&bus);
    let _ = wait(stop, duration);
    events.end();
    tables(&bus);
    daemon.stop();
    drop(changes);
}

/// A running `flowctl monitor` that writes where we write.
struct Events(Child);

impl Events {
    fn show(bus: &Bus) -> Self {
        println!("\nEvents as flowctl monitor shows them. Look yourself from another terminal, as root:");
        println!(
            "  busctl --address={} introspect org.flowbus.FlowMonitor1 /org/flowbus/FlowMonitor1\n",
            bus.address()
        );
        Self(flowctl(bus, "monitor").spawn().expect("flowctl is built"))
    }

    fn end(mut self) {
        process::signal(&self.0, Signal::TERM);
        let _ = self.0.wait();
    }
}

fn flowctl(bus: &Bus, command: &str) -> Command {
    let mut flowctl = Command::new(binary("flowctl"));
    flowctl.args(["--bus", &bus.address(), command]).stdin(Stdio::null());
    flowctl
}

fn tables(bus: &Bus) {
    for (title, command) in [("Active flows", "list"), ("Closed flows", "closed"), ("The daemon", "status")] {
        println!("\n{title} (flowctl {command}):\n");
        let status = flowctl(bus, command).status().expect("flowctl is built");
        assert!(status.success(), "flowctl {command} ended with {status}");
    }
}

/// Added and deleted first, so that what an earlier run left behind when it was killed is replaced.
const RULES: &str = "
add table inet flowbus_run
delete table inet flowbus_run
table inet flowbus_run {
    chain track {
        type filter hook prerouting priority raw
        ct state invalid
    }
}
";

/// What has to be on for this machine's traffic to be tracked with counters and times. Dropped, it is as before.
struct HostChanges {
    host: Namespace,
    before: Vec<(&'static str, String)>,
}

impl HostChanges {
    fn make() -> Self {
        let host = Namespace::host();
        println!("To see this machine's traffic, this run changes, and undoes at its end:");
        println!("  an nft table turns connection tracking on    undo: nft delete table inet flowbus_run");
        host.nft(RULES);
        let mut changes = Self { host, before: Vec::new() };
        for parameter in ["net.netfilter.nf_conntrack_acct", "net.netfilter.nf_conntrack_timestamp"] {
            let value = changes.host.sysctl_value(parameter);
            println!("  {parameter} = 1 (was {value})    undo: sysctl -w {parameter}={value}");
            changes.host.sysctl(parameter, "1");
            changes.before.push((parameter, value));
        }
        changes
    }
}

impl Drop for HostChanges {
    fn drop(&mut self) {
        for (parameter, value) in &self.before {
            self.host.sysctl(parameter, value);
        }
        self.host.run("nft delete table inet flowbus_run");
        println!("\nAll that was changed on this machine is undone.");
    }
}

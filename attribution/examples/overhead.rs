//! What the programs cost: connect and close over loopback, with and without them, alternating in one run.
//!
//! `cargo run --release -p flowbus-attribution --example overhead`, as root. docs/performance.md has what it said.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement")]

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flowbus_attribution::{DEFAULT_RING_BYTES, Ring, load};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: u8 = 21;
const CONNECTIONS: usize = 1000;

fn main() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().for_each(|connection| drop(connection.unwrap())));
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // An address of its own, so that no port of a connection that lingers is in the way.
        without.push(sample(SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, round), port)));
        with.push(with_programs(|| sample(SocketAddrV4::new(Ipv4Addr::new(127, 0, 2, round), port))));
    }
    let ratio = |with: f64, without: f64| with / without;
    let [wall, cpu] = [0, 1].map(|index| {
        let median = |samples: &[[f64; 2]]| {
            let mut values: Vec<_> = samples.iter().map(|sample| sample[index]).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        (median(&with), median(&without))
    });
    println!("connect + close, us, median of {ROUNDS} samples of {CONNECTIONS}: with, without, ratio");
    println!("wall  {:.2}  {:.2}  {:.3}", wall.0, wall.1, ratio(wall.0, wall.1));
    println!("cpu   {:.2}  {:.2}  {:.3}", cpu.0, cpu.1, ratio(cpu.0, cpu.1));
}

/// Microseconds of wall clock and of this process's CPU for a connection: the client connects, the server accepts and closes, the client sees that and closes.
fn sample(server: SocketAddrV4) -> [f64; 2] {
    let cpu = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Duration::try_from(time).unwrap()
    };
    let (wall_before, cpu_before) = (Instant::now(), cpu());
    for _ in 0..CONNECTIONS {
        let mut client = TcpStream::connect(server).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    [wall_before.elapsed(), cpu() - cpu_before].map(|time| time.as_secs_f64() * 1e6 / CONNECTIONS as f64)
}

/// Reads as the daemon does: woken by the first record, then asleep for 5 ms while others gather.
fn with_programs<T>(work: impl FnOnce() -> T) -> T {
    let (programs, _) = load(DEFAULT_RING_BYTES).unwrap();
    let mut ring = Ring::map(&programs).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                poll(&mut [PollFd::new(&ring.as_fd(), PollFlags::IN)], Some(&timeout)).unwrap();
                thread::sleep(Duration::from_millis(5));
                while !ring.drain(|_| {}) {}
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
}

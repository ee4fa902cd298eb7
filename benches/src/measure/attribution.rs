//! What the BPF programs cost a process that connects.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flowbus_attribution::{DEFAULT_RING_BYTES, Ring, load};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::cpu::pin;
use crate::document::Section;
use crate::figure::{Bar, Figure};
use crate::size::Size;

/// Connections of a sample.
const CONNECTIONS: u32 = 1000;
/// Samples for each round of the other measures: each is short.
const SAMPLES: usize = 4;
/// Wall clock with the programs, as a part of that without.
const BAR: f64 = 1.10;

/// Which threads connect, accept and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// A thread connects, another one accepts and closes, each on a processor of its own: each waits until the other is woken.
    TwoProcessors,
    /// A thread connects, another one accepts and closes, both on one processor, which never waits.
    OneProcessor,
    /// One thread connects, accepts and closes.
    OneThread,
}

/// What a connection took, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Cost {
    wall: f64,
    /// Processor time of this process, the reader of the programs included.
    cpu: f64,
}

pub(crate) fn measure(size: Size) -> Section {
    let mut section = Section::new(
        "Attribution",
        format!(
            "A connection over loopback is opened, accepted, closed by the server and then by the client, {CONNECTIONS} times with and \
             {CONNECTIONS} times without the programs, in turns; with them a reader drains the ring as flowbusd does. Who \
             runs on which processor is fixed: where the scheduler puts them would count for more than the programs do."
        ),
    );
    let all = sched_getaffinity(None).expect("a thread may know where it runs");
    pin(CLIENT);
    let mut address = 0;
    for (ends, name) in [
        (Ends::TwoProcessors, "two processors"),
        (Ends::OneProcessor, "two threads of one processor"),
        (Ends::OneThread, "one thread"),
    ] {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..size.rounds * SAMPLES {
            // An address of its own, so that no port of a connection that lingers is in the way.
            let mut next = || {
                address += 1;
                let [.., high, low] = u32::to_be_bytes(address);
                Ipv4Addr::new(127, 1, high, low)
            };
            without.push(sample(ends, next()));
            with.push(with_programs(|| sample(ends, next())));
        }
        let part = |samples: &[Cost], of: fn(&Cost) -> f64| samples.iter().map(of).collect::<Vec<f64>>();
        let ratio = |of: fn(&Cost) -> f64| {
            with.iter().zip(&without).map(|(with, without)| of(with) / of(without)).collect()
        };
        let wall = |cost: &Cost| cost.wall;
        let cpu = |cost: &Cost| cost.cpu;
        let figures = &mut section.figures;
        figures.push(Figure::new(format!("a connection, {name}: without"), "µs", part(&without, wall)));
        figures.push(Figure::new(format!("a connection, {name}: with"), "µs", part(&with, wall)));
        let ratio_wall = Figure::new(format!("with against without, {name}: wall clock"), "x", ratio(wall));
        figures.push(if ends == Ends::TwoProcessors { ratio_wall.bar(Bar::AtMost(BAR)) } else { ratio_wall });
        figures.push(Figure::new(
            format!("with against without, {name}: CPU, the reader's included"),
            "x",
            ratio(cpu),
        ));
    }
    sched_setaffinity(None, &all).expect("a thread may go back to where it was");
    section
}

/// The processor of who connects, and that of the reader of the ring and, where it has one, of the other end.
const CLIENT: usize = 0;
const OTHER: usize = 1;

fn sample(ends: Ends, address: Ipv4Addr) -> Cost {
    let listener = TcpListener::bind((address, 0)).expect("loopback has all of 127.0.0.0/8");
    let server = SocketAddrV4::new(address, listener.local_addr().expect("it is bound").port());
    match ends {
        Ends::OneThread => measured(|| {
            connect(server, || drop(listener.accept().expect("a connection waits")));
        }),
        Ends::TwoProcessors | Ends::OneProcessor => thread::scope(|scope| {
            scope.spawn(|| {
                pin(if ends == Ends::TwoProcessors { OTHER } else { CLIENT });
                for connection in listener.incoming().take(CONNECTIONS as usize) {
                    drop(connection.expect("a connection can be accepted"));
                }
            });
            measured(|| connect(server, || {}))
        }),
    }
}

/// Opens and closes the connections of a sample, `accept` having its turn between.
fn connect(server: SocketAddrV4, accept: impl Fn()) {
    for _ in 0..CONNECTIONS {
        let mut client = TcpStream::connect(server).expect("the server listens");
        accept();
        assert_eq!(client.read(&mut [0]).expect("the server closes"), 0);
    }
}

fn measured(work: impl FnOnce()) -> Cost {
    let cpu = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Duration::try_from(time).expect("time goes forward")
    };
    let (begin, cpu_begin) = (Instant::now(), cpu());
    work();
    let [wall, cpu] =
        [begin.elapsed(), cpu() - cpu_begin].map(|time| time.as_secs_f64() * 1e6 / f64::from(CONNECTIONS));
    Cost { wall, cpu }
}

/// Reads as flowbusd does: woken by the first record, then asleep for 5 ms while others gather.
fn with_programs<T>(work: impl FnOnce() -> T) -> T {
    let (programs, _) = load(DEFAULT_RING_BYTES).expect("the kernel takes the programs");
    let mut ring = Ring::map(&programs).expect("their ring can be mapped");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(OTHER);
            while !done.load(Ordering::Relaxed) {
                let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                poll(&mut [PollFd::new(&ring.as_fd(), PollFlags::IN)], Some(&timeout))
                    .expect("it can be waited for");
                thread::sleep(Duration::from_millis(5));
                while !ring.drain(|_| {}) {}
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
}

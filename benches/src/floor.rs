//! Readers that only receive and count: what reading conntrack's events costs before anything is done with them.

use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use ctnetlink::{Groups, Socket};
use flowbus_attribution::events::{DEFAULT_EVENT_RING_BYTES, EventFilter};
use flowbus_tests::{EventRing, Namespace};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::time::{ClockId, clock_gettime};

use crate::cpu::own_sleeps;
use crate::size::BUFFER;

/// How a floor waits for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Floor {
    /// Blocks in recv and is woken for every event.
    Blocking,
    /// Reads until there is nothing, then sleeps for 2 ms, and polls when quiet, as flowbusd does.
    Napping,
    /// Naps likewise; a BPF filter on the socket puts the messages into a ring, which is read without system calls.
    Ring,
}

/// What a floor did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    /// Events that came.
    pub(crate) received: u32,
    /// Processor time.
    pub(crate) used: Duration,
    /// How often the floor was woken.
    pub(crate) woken: u64,
}

/// A floor that is reading in a thread of its own.
#[derive(Debug)]
pub(crate) struct Reader {
    wanted: Sender<u32>,
    done: Receiver<Done>,
}

impl Reader {
    /// Starts to read the events of the namespace.
    pub(crate) fn start(namespace: &Namespace, floor: Floor) -> Self {
        let socket = namespace.enter(|| {
            let socket = Socket::open().expect("a netlink socket can be opened");
            socket.set_receive_buffer(BUFFER).expect("its buffer can be set");
            socket
        });
        let join = |socket: &Socket| socket.join(Groups::all()).expect("its groups can be joined");
        let mut source: Box<dyn FnMut(u32) -> Done + Send> = if floor == Floor::Ring {
            let filter = EventFilter::load(DEFAULT_EVENT_RING_BYTES).expect("root may load programs");
            let mut ring = EventRing::attach(socket, &filter);
            join(ring.reader.socket());
            Box::new(move |count| read_ring(&mut ring, count))
        } else {
            join(&socket);
            Box::new(move |count| read(&socket, floor, count))
        };
        let (wanted, orders) = channel();
        let (answers, done) = channel();
        thread::spawn(move || {
            for count in orders {
                if answers.send(source(count)).is_err() {
                    return;
                }
            }
        });
        Self { wanted, done }
    }

    /// Reads until `count` events were sent, while `send` sends them.
    pub(crate) fn during(&self, count: u32, send: impl FnOnce()) -> Done {
        self.wanted.send(count).expect("the reader lives");
        send();
        self.done.recv().expect("the reader lives")
    }
}

fn read(socket: &Socket, floor: Floor, count: u32) -> Done {
    let fd = socket.as_fd();
    let flags = fcntl_getfl(fd).expect("a descriptor has flags");
    fcntl_setfl(fd, flags - OFlags::NONBLOCK).expect("flags can be set");
    let dropped = socket.drops().expect("the kernel counts drops");
    let missed = || socket.drops().expect("the kernel counts drops").wrapping_sub(dropped);
    let mut buffer = vec![0_u8; 64 * 1024];
    let mut received = 0;
    let mut lost = 0;
    let mut busy = false;
    let slept = own_sleeps();
    let begin = clock_gettime(ClockId::ThreadCPUTime);
    while received + lost < count {
        let how = if floor == Floor::Blocking { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        match recv(fd, &mut *buffer, how) {
            Ok(_) => {
                received += 1;
                busy = true;
            }
            Err(Errno::NOBUFS) => lost = missed(),
            Err(Errno::AGAIN) => {
                if std::mem::take(&mut busy) {
                    thread::sleep(Duration::from_millis(2));
                } else {
                    let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], None);
                }
            }
            Err(error) => panic!("recv: {error}"),
        }
    }
    let end = clock_gettime(ClockId::ThreadCPUTime);
    let used = Duration::try_from(end - begin).expect("time goes forward");
    Done { received, used, woken: own_sleeps() - slept }
}

fn read_ring(ring: &mut EventRing, count: u32) -> Done {
    let drops = |ring: &EventRing| ring.reader.socket().drops().expect("the kernel counts drops");
    let dropped = drops(ring);
    let (mut received, mut seen) = (0, 0);
    let slept = own_sleeps();
    let begin = clock_gettime(ClockId::ThreadCPUTime);
    while received + drops(ring).wrapping_sub(dropped) < count {
        ring.read(|_| received += 1);
        if std::mem::replace(&mut seen, received) != received || ring.reader.is_held_back() {
            thread::sleep(Duration::from_millis(2));
        } else if ring.reader.prepare_to_sleep() {
            let descriptors = ring.reader.descriptors();
            let mut waiting = descriptors.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
            let _ = poll(&mut waiting, None);
        }
    }
    let end = clock_gettime(ClockId::ThreadCPUTime);
    let used = Duration::try_from(end - begin).expect("time goes forward");
    Done { received, used, woken: own_sleeps() - slept }
}

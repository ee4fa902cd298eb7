//! Flows by the hundred thousand, made by real packets as fast as one core sends them.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::net::addr::SocketAddrArg as _;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{
    AddressFamily, MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, SocketFlags, SocketType, bind,
    sendmmsg, socket_with,
};

use crate::Namespace;

/// The source of all packets.
const SOURCE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const SOURCE_PORT: u16 = 4000;
/// The most flows that a test has.
const LARGEST: u32 = 262_144;
/// How many packets go with one system call.
const BATCH: u32 = 256;
/// Destinations are 198.19.0.0/16, one destination port after the other.
const ADDRESSES: u32 = 1 << 16;
const FIRST_PORT: u16 = 5000;

/// Gives the namespace a network that swallows what is sent to it, and flows that do not end by themselves.
///
/// # Panics
/// If the namespace has one already, or the kernel takes fewer flows than a burst has: a limit of the whole machine.
pub fn prepare(namespace: &Namespace) {
    let maximum = namespace.sysctl_value("net.netfilter.nf_conntrack_max");
    assert!(
        maximum.parse::<u32>().is_ok_and(|flows| flows >= LARGEST),
        "nf_conntrack_max is {maximum}, as on a machine of less than 4 GB: ./test makes it {LARGEST} while it runs"
    );
    // The other end stays down: packets have made their flow when they are dropped there.
    namespace.run("ip link add sink type veth peer name void");
    namespace.run(&format!("ip address add {SOURCE}/32 dev sink"));
    namespace.run("ip link set sink up");
    namespace.run("ip neighbor add 198.18.0.2 lladdr 02:00:00:00:00:02 nud permanent dev sink");
    namespace.run("ip route add 198.19.0.0/16 via 198.18.0.2 dev sink onlink");
    namespace.sysctl("net.netfilter.nf_conntrack_udp_timeout", "600");
}

/// Sends one UDP packet for each of the flows numbered `first` to `first + count`, every number being a tuple of its
/// own. It returns when the kernel has taken the last.
///
/// # Panics
/// If a packet cannot be sent.
pub fn create(namespace: &Namespace, first: u32, count: u32) {
    Sender::open(namespace).create(first, count);
}

/// A socket that packets come from. Several share their port, each has flows of its own.
#[derive(Debug)]
pub struct Sender(OwnedFd);

impl Sender {
    /// Opens the socket in the namespace, which is [`prepare`]d.
    ///
    /// # Panics
    /// If the port is somebody else's.
    #[must_use]
    pub fn open(namespace: &Namespace) -> Self {
        let socket = namespace.enter(|| {
            let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
                .expect("a UDP socket can be made");
            // A child that some other thread is starting holds a socket of the burst before until it has become its program.
            set_socket_reuseaddr(&socket, true).expect("sockets take the option");
            bind(&socket, &SocketAddrV4::new(SOURCE, SOURCE_PORT)).expect("the source address is there");
            socket
        });
        Self(socket)
    }

    /// Makes flows, ten a millisecond from the one numbered `first` on, until the flag is true. Returns the number behind the last.
    ///
    /// # Panics
    /// If a packet cannot be sent.
    pub fn create_until(&self, stop: &AtomicBool, first: u32) -> u32 {
        let mut next = first;
        while !stop.load(Ordering::Relaxed) {
            self.create(next, 10);
            next += 10;
            thread::sleep(Duration::from_millis(1));
        }
        next
    }

    /// Does what [`create`] does, by this socket.
    ///
    /// # Panics
    /// If a packet cannot be sent.
    pub fn create(&self, first: u32, count: u32) {
        let payload = [IoSlice::new(b"x")];
        let mut next = first;
        while next < first + count {
            let last = (next + BATCH).min(first + count);
            let addresses: Vec<SocketAddrAny> =
                (next..last).map(|number| destination(number).as_any()).collect();
            let mut controls: Vec<_> = addresses.iter().map(|_| SendAncillaryBuffer::default()).collect();
            let mut messages: Vec<MMsgHdr<'_>> = addresses
                .iter()
                .zip(&mut controls)
                .map(|(address, control)| MMsgHdr::new_with_addr(address, &payload, control))
                .collect();
            let sent = sendmmsg(&self.0, &mut messages, SendFlags::empty()).expect("packets can be sent");
            next += u32::try_from(sent).expect("no more are sent than were given");
        }
    }
}

/// The original tuple of a flow: source and destination, of UDP.
///
/// # Panics
/// If there are fewer flows.
#[must_use]
pub fn tuple(number: u32) -> (SocketAddrV4, SocketAddrV4) {
    (SocketAddrV4::new(SOURCE, SOURCE_PORT), destination(number))
}

/// Where the packet of a flow goes.
fn destination(number: u32) -> SocketAddrV4 {
    let [_, _, high, low] = (number % ADDRESSES).to_be_bytes();
    let port = FIRST_PORT + u16::try_from(number / ADDRESSES).expect("there are not so many flows");
    SocketAddrV4::new(Ipv4Addr::new(198, 19, high, low), port)
}

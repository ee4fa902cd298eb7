//! A steady load: flows are made by packets and deleted again, at a rate of events a second.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ctnetlink::Socket;
use flowbus_tests::{Namespace, burst, companion};

/// The time between two pieces of the load.
const TICK: Duration = Duration::from_millis(10);
/// Flows of the load that are alive at a time.
const ALIVE: u32 = 5_000;

/// Does `work` while flows come and go, `rate` events a second: half of them NEW, half DESTROY. The flows have numbers from
/// `first` on, each used again and again. The number of events comes with the result of `work`; when this returns, the flows
/// of the load are gone.
pub(crate) fn during<T>(namespace: &Namespace, first: u32, rate: u32, work: impl FnOnce() -> T) -> (T, u64) {
    companion::during(|stop| run(namespace, first, rate, stop), work)
}

fn run(namespace: &Namespace, first: u32, rate: u32, stop: &AtomicBool) -> u64 {
    let sender = burst::Sender::open(namespace);
    let netlink = namespace.enter(|| Socket::open().expect("a netlink socket can be opened"));
    let started = Instant::now();
    // Counted from the beginning of the load; `number % ROUND` says which flow it is.
    const ROUND: u64 = 2 * ALIVE as u64;
    let (mut made, mut deleted) = (0_u64, 0_u64);
    let flow = |number: u64| first + u32::try_from(number % ROUND).expect("a round is short");
    while !stop.load(Ordering::Relaxed) {
        let due =
            u64::try_from(started.elapsed().as_millis()).expect("a load is short") * u64::from(rate) / 2_000;
        // After a pause of this thread not all at once: a flow is made again when it has been deleted.
        let due = due.min(deleted + ROUND);
        while made < due {
            // Not across the end of a round: the numbers of one call are consecutive.
            let count = (due - made).min(ROUND - made % ROUND).min(256);
            sender.create(flow(made), u32::try_from(count).expect("it is at most 256"));
            made += count;
        }
        delete(&netlink, (deleted..made.saturating_sub(ALIVE.into())).map(flow));
        deleted = deleted.max(made.saturating_sub(ALIVE.into()));
        thread::sleep(TICK.saturating_sub(Duration::from_micros(100)));
    }
    delete(&netlink, (deleted..made).map(flow));
    2 * made
}

/// Deletes flows of [`burst`] by their numbers.
pub(crate) fn delete(netlink: &Socket, numbers: impl Iterator<Item = u32>) {
    let requests: Vec<_> = numbers.map(|number| delete_request(burst::tuple(number))).collect();
    // The kernel handles all requests of a datagram before it returns, and answers none of those that succeed.
    for requests in requests.chunks(64) {
        netlink.send(&requests.concat()).expect("the kernel takes requests");
    }
}

/// `IPCTNL_MSG_CT_DELETE` of the flow with this original tuple, of UDP over IPv4.
fn delete_request((src, dst): (SocketAddrV4, SocketAddrV4)) -> Vec<u8> {
    const NESTED: u16 = 0x8000;
    let addresses = [attribute(1, &src.ip().octets()), attribute(2, &dst.ip().octets())].concat();
    let protocol = [
        attribute(1, &[17]),
        attribute(2, &src.port().to_be_bytes()),
        attribute(3, &dst.port().to_be_bytes()),
    ];
    let tuple = [attribute(NESTED | 1, &addresses), attribute(NESTED | 2, &protocol.concat())].concat();
    let tuple = attribute(NESTED | 1, &tuple); // CTA_TUPLE_ORIG
    let length = u32::try_from(20 + tuple.len()).expect("it is short");
    let header = [
        &length.to_ne_bytes()[..],
        &0x102_u16.to_ne_bytes(), // NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
        &1_u16.to_ne_bytes(),     // NLM_F_REQUEST
        &[0; 8],
        &[2, 0, 0, 0], // AF_INET, NFNETLINK_V0
    ];
    [header.concat(), tuple].concat()
}

/// `struct nlattr`, padded.
fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + payload.len()).expect("it is short");
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), payload].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

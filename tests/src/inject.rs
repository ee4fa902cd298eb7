//! Flows put into the kernel's table by hand, many at once: real entries and events, without the packets.

use std::fmt::Write as _;

use ctnetlink::{Layer4, Tuple};

use crate::Namespace;
use crate::process::{Directory, output_of};

/// One direction of a flow of a protocol with ports.
///
/// # Panics
/// If one of the addresses is not an address.
#[must_use]
pub fn tuple(src: &str, dst: &str, protocol: u8, sport: u16, dport: u16) -> Tuple {
    let address = |text: &str| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    let layer4 = Layer4::Ports { src: sport, dst: dport };
    Tuple { src: address(src), dst: address(dst), protocol, layer4, zone: 0 }
}

/// Puts `count` UDP flows with destination port `port` into the table of a namespace; each lives for an hour. The port is what
/// [`conntrack::delete`](crate::conntrack::delete) can take to end them.
///
/// # Panics
/// If one of them is there already, or there are more than a table of 198.18.0.0/16 can name.
pub fn udp(namespace: &Namespace, port: u16, count: u32) {
    let mut lines = String::new();
    for number in 0..count {
        let [_, _, high, low] = number.to_be_bytes();
        writeln!(
            lines,
            "-I -p udp -s 198.18.{high}.{low} -d 198.19.0.1 --sport 4000 --dport {port} -t 3600 -u SEEN_REPLY"
        )
        .expect("a string takes all");
    }
    assert!(count <= 1 << 16, "{count} flows: at most 65536 have names of their own");
    let directory = Directory::new("inject");
    let file = directory.file("flows", &lines);
    output_of(namespace.command("conntrack").arg("--load-file").arg(file));
}

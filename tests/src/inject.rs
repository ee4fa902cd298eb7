//! Flows put into the kernel's table by hand, many at once: real entries and events, without the packets.

use std::fmt::Write as _;

use crate::Namespace;
use crate::process::{Directory, output_of};

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

//! How long decoding one event takes: `cargo run --release -p ctnetlink --example speed`.

use std::hint::black_box;
use std::time::Instant;

const FIXTURES: [(&str, &[u8]); 4] = [
    ("UDP without anything", include_bytes!("../fixtures/udp4-plain-events.bin")),
    ("TCP with label, mark, counters, times", include_bytes!("../fixtures/tcp4-events.bin")),
    ("IPv6 and ICMP", include_bytes!("../fixtures/tcp6-udp6-icmp-events.bin")),
    ("FTP: helper, master", include_bytes!("../fixtures/ftp-events.bin")),
];
const ROUNDS: usize = 300_000;

#[expect(clippy::print_stdout, reason = "this is a command line")]
#[expect(clippy::cast_precision_loss, reason = "a mean")]
fn main() {
    for (name, bytes) in FIXTURES {
        let events = ctnetlink::messages(bytes).count();
        let start = Instant::now();
        for _ in 0..ROUNDS {
            for message in ctnetlink::messages(black_box(bytes)) {
                let _ = black_box(message);
            }
        }
        let nanoseconds = start.elapsed().as_nanos() as f64 / (ROUNDS * events) as f64;
        println!("{nanoseconds:6.1} ns an event of {:3} bytes  {name}", bytes.len() / events);
    }
}

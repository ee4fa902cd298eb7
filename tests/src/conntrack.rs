//! The kernel's table and its events as the real `conntrack` tool prints them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::Namespace;
use crate::process::wait_for;

/// One direction of a flow, as printed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Direction {
    /// `src=`.
    pub src: String,
    /// `dst=`.
    pub dst: String,
    /// `sport=`, or GRE's `srckey=`: protocols with ports only.
    pub sport: Option<u16>,
    /// `dport=` or `dstkey=`.
    pub dport: Option<u16>,
    /// `type=`: ICMP and ICMPv6 only.
    pub icmp_type: Option<u8>,
    /// `code=`.
    pub icmp_code: Option<u8>,
    /// `id=` of an ICMP tuple.
    pub icmp_id: Option<u16>,
    /// `packets=`: only with net.netfilter.nf_conntrack_acct.
    pub packets: Option<u64>,
    /// `bytes=`.
    pub bytes: Option<u64>,
    /// `zone-orig=` or `zone-reply=`.
    pub zone: Option<u16>,
}

/// One line of `conntrack -L -o id,extended` or one event of `conntrack -E`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// NEW, UPDATE or DESTROY; empty in a listing.
    pub event: String,
    /// ipv4 or ipv6.
    pub family: String,
    /// tcp, udp, icmp, icmpv6 ... or unknown.
    pub protocol: String,
    /// The protocol's number.
    pub protocol_number: u8,
    /// Seconds left.
    pub timeout: Option<u32>,
    /// SYN_SENT, ESTABLISHED ...
    pub state: Option<String>,
    /// The tuple of the direction that opened the flow.
    pub original: Direction,
    /// The tuple of the answers.
    pub reply: Direction,
    /// No answer has been seen.
    pub unreplied: bool,
    /// Not to be dropped early when the table is full.
    pub assured: bool,
    /// `mark=`.
    pub mark: Option<u32>,
    /// `zone=`: of both directions.
    pub zone: Option<u16>,
    /// `use=`: the kernel's references.
    pub references: Option<u32>,
    /// `id=`: the kernel's.
    pub id: u32,
    /// `helper=`.
    pub helper: Option<String>,
}

/// The whole table of a namespace, both families.
///
/// # Panics
/// If conntrack fails or prints what this module cannot read.
#[must_use]
pub fn list(namespace: &Namespace) -> Vec<Entry> {
    namespace.run("conntrack -L -o id,extended").lines().map(parse).collect()
}

/// Deletes flows; `filter` is conntrack's, as in `-p tcp --orig-port-dst 7000`.
///
/// # Panics
/// If conntrack finds none.
pub fn delete(namespace: &Namespace, filter: &str) {
    namespace.run(&format!("conntrack -D {filter}"));
}

/// Reads one line.
///
/// # Panics
/// If it has a word that this module does not know: a comparison that passes over a field would prove nothing.
#[must_use]
pub fn parse(line: &str) -> Entry {
    let mut entry = Entry::default();
    let mut words = line.split_whitespace().peekable();
    if let Some(event) = words.peek().and_then(|word| word.strip_prefix('[')) {
        entry.event = event.trim_end_matches(']').to_owned();
        words.next();
    }
    // Family, its number, protocol, its number; then the timeout, which destroy events lack, and the state, which few have.
    let mut head = Vec::new();
    while let Some(word) = words.next_if(|word| !word.contains(['=', '['])) {
        head.push(word);
    }
    let [family, _, protocol, protocol_number, rest @ ..] = head.as_slice() else {
        panic!("too short: {line:?}")
    };
    entry.family = (*family).to_owned();
    entry.protocol = (*protocol).to_owned();
    entry.protocol_number = protocol_number.parse().unwrap_or_else(|error| panic!("{line:?}: {error}"));
    for word in rest {
        match word.parse() {
            Ok(seconds) => entry.timeout = Some(seconds),
            Err(_) => entry.state = Some((*word).to_owned()),
        }
    }
    for word in words {
        match word {
            "[ASSURED]" => entry.assured = true,
            "[UNREPLIED]" => entry.unreplied = true,
            // Asked for by a program, whose netlink port follows.
            "[USERSPACE]" => {}
            _ => {
                let (key, value) =
                    word.split_once('=').unwrap_or_else(|| panic!("unknown word {word:?} in {line:?}"));
                entry.set(key, value).unwrap_or_else(|| panic!("unknown field {word:?} in {line:?}"));
            }
        }
    }
    entry
}

impl Entry {
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        // The reply's fields follow the original's under the same names.
        let second = match key {
            "src" => !self.original.src.is_empty(),
            _ => !self.reply.src.is_empty(),
        };
        let tuple = if second { &mut self.reply } else { &mut self.original };
        match key {
            "src" => value.clone_into(&mut tuple.src),
            "dst" => value.clone_into(&mut tuple.dst),
            "sport" => tuple.sport = Some(value.parse().ok()?),
            "dport" => tuple.dport = Some(value.parse().ok()?),
            // GRE's keys, which the kernel keeps where others have their ports.
            "srckey" => tuple.sport = Some(u16::from_str_radix(value.strip_prefix("0x")?, 16).ok()?),
            "dstkey" => tuple.dport = Some(u16::from_str_radix(value.strip_prefix("0x")?, 16).ok()?),
            "type" => tuple.icmp_type = Some(value.parse().ok()?),
            "code" => tuple.icmp_code = Some(value.parse().ok()?),
            // An ICMP tuple's comes right after its code; the kernel's own is the last field of the line.
            "id" if tuple.icmp_code.is_some() && tuple.icmp_id.is_none() => {
                tuple.icmp_id = Some(value.parse().ok()?)
            }
            "id" => self.id = value.parse().ok()?,
            "packets" => tuple.packets = Some(value.parse().ok()?),
            "bytes" => tuple.bytes = Some(value.parse().ok()?),
            "zone-orig" => self.original.zone = Some(value.parse().ok()?),
            "zone-reply" => self.reply.zone = Some(value.parse().ok()?),
            "mark" => self.mark = Some(value.parse().ok()?),
            "zone" => self.zone = Some(value.parse().ok()?),
            "use" => self.references = Some(value.parse().ok()?),
            "helper" => self.helper = Some(value.to_owned()),
            "delta-time" | "portid" | "progname" => {}
            _ => return None,
        }
        Some(())
    }

    /// What makes it one flow among all others: family, protocol, original tuple, zone of the original direction.
    #[must_use]
    pub fn key(&self) -> String {
        let Direction { src, dst, sport, dport, icmp_type, icmp_code, icmp_id, .. } = &self.original;
        let zone = self.zone.or(self.original.zone).unwrap_or(0);
        let number = |value: Option<u16>| value.map(|value| value.to_string()).unwrap_or_default();
        let icmp = [icmp_type.map(u16::from), icmp_code.map(u16::from), *icmp_id].map(number).join(",");
        let ports = [*sport, *dport].map(number).join(",");
        format!("{} {} {src}>{dst} {ports} {icmp} zone {zone}", self.family, self.protocol_number)
    }
}

/// A running `conntrack -E`: an independent witness of the kernel's events.
#[derive(Debug)]
pub struct Events {
    process: Child,
    seen: Arc<Mutex<Vec<Entry>>>,
}

impl Events {
    /// Starts to listen to new and destroy events in the namespace, and returns once they arrive.
    ///
    /// # Panics
    /// If conntrack cannot be started or prints what this module cannot read.
    #[must_use]
    pub fn listen(namespace: &Namespace) -> Self {
        let mut process = namespace
            .command("stdbuf")
            .args(["-oL", "conntrack", "-E", "-b", "16777216", "-e", "NEW,DESTROY", "-o", "id,extended"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("conntrack is installed");
        let lines = BufReader::new(process.stdout.take().expect("stdout is piped")).lines();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                sink.lock().expect("no one panics with the list in hand").push(parse(&line));
            }
        });
        let events = Self { process, seen };
        // conntrack does not say when it has joined the groups: make flows until it reports one.
        let mut last = 0;
        wait_for("conntrack -E to report events", || {
            last += 1;
            let probe = format!("-p udp -s 198.19.255.1 -d 198.19.255.2 --sport {last} --dport 1");
            namespace.run(&format!("conntrack -I {probe} -t 60"));
            namespace.run(&format!("conntrack -D {probe}"));
            (!events.seen().is_empty()).then_some(())
        });
        events.wait_for("the last probe's end", |seen| {
            seen.last().is_some_and(|event| event.event == "DESTROY" && event.original.sport == Some(last))
        });
        events.seen.lock().expect("no one panics with the list in hand").clear();
        events
    }

    /// All events so far, in their order.
    ///
    /// # Panics
    /// Never, unless the thread that collects them has.
    #[must_use]
    pub fn seen(&self) -> Vec<Entry> {
        self.seen.lock().expect("no one panics with the list in hand").clone()
    }

    /// Waits until the events so far are enough.
    ///
    /// # Panics
    /// If they never are.
    pub fn wait_for(&self, what: &str, mut enough: impl FnMut(&[Entry]) -> bool) {
        wait_for(what, || enough(&self.seen()).then_some(()));
    }

    /// How many events of one kind each flow had.
    #[must_use]
    pub fn count(&self, event: &str) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for entry in self.seen().iter().filter(|entry| entry.event == event) {
            *counts.entry(entry.key()).or_default() += 1;
        }
        counts
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_line_with_every_field_is_read() {
        let entry = parse(
            "ipv4     2 tcp      6 431999 ESTABLISHED src=198.18.0.2 dst=198.18.1.2 sport=40000 dport=80 packets=3 bytes=200 \
             src=198.18.1.2 dst=198.18.1.1 sport=80 dport=50000 packets=2 bytes=120 [ASSURED] mark=67895552 zone=7 \
             delta-time=3 helper=ftp use=2 id=4242",
        );
        assert_eq!((entry.timeout, entry.state.as_deref()), (Some(431_999), Some("ESTABLISHED")));
        assert_eq!((entry.original.sport, entry.reply.dport), (Some(40000), Some(50000)));
        assert_eq!((entry.original.bytes, entry.reply.packets), (Some(200), Some(2)));
        assert_eq!(
            (entry.mark, entry.zone, entry.references, entry.id),
            (Some(0x040C_0100), Some(7), Some(2), 4242)
        );
        assert!(entry.assured && !entry.unreplied);
        assert_eq!(entry.key(), "ipv4 6 198.18.0.2>198.18.1.2 40000,80 ,, zone 7");
    }

    #[test]
    fn the_id_of_an_icmp_tuple_is_not_the_kernels() {
        let entry = parse(
            "    [NEW] ipv4     2 icmp     1 30 src=198.18.0.2 dst=198.18.1.2 type=8 code=0 id=77 [UNREPLIED] \
             src=198.18.1.2 dst=198.18.1.1 type=0 code=0 id=1024 id=209895624",
        );
        assert_eq!(entry.event, "NEW");
        assert_eq!(
            (entry.original.icmp_id, entry.reply.icmp_id, entry.id),
            (Some(77), Some(1024), 209_895_624)
        );
        assert!(entry.unreplied);
    }
}

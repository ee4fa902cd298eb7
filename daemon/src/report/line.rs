//! One flow of a report.

use std::fmt::Write as _;
use std::net::IpAddr;

use ctnetlink::{Counters, Family, Layer4, Status, Tuple};
use flowbus_interfaces::{EndReason, Flow, Mark, SourceNames, Span, Time, TimeSource, protocol_name};

use super::redact::{Interface, Name, Redactor};

/// The bytes of a line that is hardly ever shorter. Where many are, a report keeps fewer flows than would fit, and says so.
pub(super) const SHORT: usize = 60;

/// What a report says of a flow: as much of it as it takes to write the line, should it fit. No number that other
/// logs know the flow by is kept.
#[derive(Clone, Debug)]
pub(super) struct ReportLine {
    original: Tuple,
    reply: Tuple,
    state: Option<&'static str>,
    status: Option<Status>,
    source: u8,
    counters: [Option<Counters>; 2],
    start: Option<Time>,
    end: Option<Time>,
    duration_usec: Option<u64>,
    end_reason: Option<EndReason>,
    interface: Option<Box<str>>,
    process: Option<Box<str>>,
}

impl ReportLine {
    pub(super) fn new(flow: &Flow<'_>, with_process: bool) -> Self {
        let owner = flow.initiator.or(flow.responder).filter(|_| with_process);
        Self {
            original: flow.original,
            reply: flow.reply,
            state: flow.state,
            status: flow.status,
            source: Mark(flow.mark).source_id(),
            counters: [flow.original_counters, flow.reply_counters],
            start: flow.start,
            end: flow.end,
            duration_usec: flow.duration_usec,
            end_reason: flow.end_reason,
            interface: flow.interface.map(Box::from),
            process: owner.and_then(|owner| owner.comm).map(Box::from),
        }
    }

    /// The line, with its end. Writing to a string cannot fail.
    pub(super) fn text(&self, redactor: &mut Redactor, names: &SourceNames, now_usec: u64) -> String {
        let mut out = String::with_capacity(160);
        self.write_times(&mut out, now_usec);
        let Tuple { protocol, layer4, .. } = self.original;
        let _ = match protocol_name(protocol) {
            Some(name) => write!(out, "{name}"),
            None => write!(out, "protocol {protocol}"),
        };
        if let Some(state) = self.state {
            let _ = write!(out, " {state}");
        }
        if let Layer4::Icmp { kind, code, .. } = layer4 {
            let _ = write!(out, " type {kind} code {code}");
        }
        if self.status.is_some_and(|status| !status.contains(Status::SEEN_REPLY)) {
            out.push_str(" unreplied");
        }
        if self.original.family() == Family::Ipv6 {
            out.push_str(" ipv6");
        }
        let _ = write!(out, " {}", names.name(self.source));
        self.write_ends(&mut out, redactor);
        if let Some(interface) = &self.interface {
            let _ = write!(out, " via {}", Interface(interface));
        }
        if let [Some(original), Some(reply)] = self.counters {
            out.push_str(", bytes ");
            redactor.bytes(&mut out, original.bytes);
            out.push('/');
            redactor.bytes(&mut out, reply.bytes);
        }
        if let Some(process) = &self.process {
            let _ = write!(out, ", process {}", Name(process));
        }
        out.push('\n');
        out
    }

    /// Writes when the flow began or ended. A flow that was there before flowbusd is older than is known.
    fn write_times(&self, out: &mut String, now_usec: u64) {
        let older = match self.start {
            Some(Time { source: TimeSource::Observed, .. }) => ">",
            _ => "",
        };
        let since =
            |time: Option<Time>| Span(now_usec.saturating_sub(time.map_or(now_usec, |time| time.usec)));
        let _ = match (self.end, self.duration_usec) {
            (None, _) => write!(out, "since {older}{}: ", since(self.start)),
            (end, None) => write!(out, "ended {} ago", since(end)),
            (end, Some(duration)) => write!(out, "ended {} ago after {older}{}", since(end), Span(duration)),
        };
        if self.end.is_some() {
            let _ = match self.end_reason {
                Some(reason) if reason != EndReason::Destroyed => write!(out, " ({}): ", reason.name()),
                _ => write!(out, ": "),
            };
        }
    }

    /// Writes both ends, and what translation makes of them.
    fn write_ends(&self, out: &mut String, redactor: &mut Redactor) {
        let [src, dst] = ends(&self.original);
        // What the reply comes from and goes to.
        let [reply_src, reply_dst] = ends(&self.reply);
        for (word, (address, port)) in [(" ", src), (" > ", dst)] {
            out.push_str(word);
            redactor.endpoint(out, address, port);
        }
        for (word, translated, plain) in [(" from ", reply_dst, src), (" to ", reply_src, dst)] {
            if translated != plain {
                out.push_str(word);
                redactor.endpoint(out, translated.0, translated.1);
            }
        }
    }
}

/// Source and destination. The keys of GRE are numbers that identify, not ports.
fn ends(tuple: &Tuple) -> [(IpAddr, Option<u16>); 2] {
    const GRE: u8 = 47;
    match tuple.layer4 {
        Layer4::Ports { src, dst } if tuple.protocol != GRE => {
            [(tuple.src, Some(src)), (tuple.dst, Some(dst))]
        }
        _ => [(tuple.src, None), (tuple.dst, None)],
    }
}

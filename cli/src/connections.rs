//! `flowctl connections`: what TCP connections do and which process does it, in the lines of tcptracer.

use std::io::Write;
use std::net::IpAddr;

use flowbus_interfaces::{ConnectionKind, OwnedConnection, StreamError, StreamItem};
use tokio::signal::ctrl_c;

use crate::arguments::Connections;
use crate::cell;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::stdout;

/// The BPF programs' source, in the order in which it is read.
const PROGRAM: [(&str, &str); 14] = [
    ("attribution.bpf.c", include_str!("../../attribution/bpf/attribution.bpf.c")),
    ("kernel.h", include_str!("../../attribution/bpf/kernel.h")),
    ("record.h", include_str!("../../attribution/bpf/record.h")),
    ("common.h", include_str!("../../attribution/bpf/common.h")),
    ("process.h", include_str!("../../attribution/bpf/process.h")),
    ("attempt.h", include_str!("../../attribution/bpf/attempt.h")),
    ("tcp.h", include_str!("../../attribution/bpf/tcp.h")),
    ("reading.h", include_str!("../../attribution/bpf/reading.h")),
    ("accept.h", include_str!("../../attribution/bpf/accept.h")),
    ("connect.h", include_str!("../../attribution/bpf/connect.h")),
    ("addresses.h", include_str!("../../attribution/bpf/addresses.h")),
    ("udp.h", include_str!("../../attribution/bpf/udp.h")),
    ("cgroup.h", include_str!("../../attribution/bpf/cgroup.h")),
    ("snapshot.h", include_str!("../../attribution/bpf/snapshot.h")),
];

/// Prints the programs.
pub(crate) fn print_program() -> Result<(), Error> {
    let mut out = stdout();
    for (name, text) in PROGRAM {
        writeln!(out, "/* attribution/bpf/{name} */\n{text}")?;
    }
    Ok(out.flush()?)
}

/// Prints what connections do until Ctrl-C.
pub(crate) async fn connections(daemon: &Daemon, asked: &Connections) -> Result<(), Error> {
    let mut query = asked.query.to_map();
    query.insert("snapshot", false.into());
    query.insert("connections", true.into());
    query.insert("events", "none".into());
    let mut stream = daemon.stream(&query).await?;
    let attribution = daemon.monitor.attribution().await.map_err(|error| daemon.failed(error))?;
    if attribution != "bpf" {
        anstream::eprintln!(
            "flowctl: flowbusd receives no connections (Attribution is {attribution}): its BPF programs do not run, \
             and its log says why; waiting for them"
        );
    }
    let mut lines = Lines { asked, first_nsec: None };
    let mut out = stdout();
    if !asked.json.is_on() {
        lines.header(&mut out)?;
    }
    out.flush()?;
    let mut interrupted = std::pin::pin!(ctrl_c());
    loop {
        let item = tokio::select! {
            biased;
            _ = &mut interrupted => return Ok(out.flush()?),
            item = stream.next() => item.map_err(|error: StreamError| Error::Stream(error))?,
        };
        match item {
            Some(StreamItem::Connection(connection)) if lines.shows(&connection) => {
                lines.print(&mut out, &connection)?;
            }
            Some(StreamItem::ConnectionGap { first, last, lost, reason }) => {
                lines.gap(&mut out, [first, last, lost], &reason)?;
            }
            Some(StreamItem::End { .. }) | None => {
                out.flush()?;
                return Err(Error::CutOff);
            }
            Some(_) => {}
        }
        if !stream.has_line() {
            out.flush()?;
        }
    }
}

/// The writer of the lines.
struct Lines<'a> {
    asked: &'a Connections,
    /// When the first event was: times are counted from it.
    first_nsec: Option<u64>,
}

impl Lines<'_> {
    fn header(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let Connections { verbose, timestamp, network_namespace, .. } = self.asked;
        match (timestamp, verbose) {
            (true, true) => write!(out, "{:<14}", "TIME(ns)")?,
            (true, false) => write!(out, "{:<9}", "TIME(s)")?,
            (false, _) => {}
        }
        write!(out, "{:<width$} ", if *verbose { "TYPE" } else { "T" }, width = self.type_width())?;
        write!(
            out,
            "{:<6} {:<16} {:<2} {:<16} {:<16} {:<6} {:<6}",
            "PID", "COMM", "IP", "SADDR", "DADDR", "SPORT", "DPORT"
        )?;
        if *verbose && network_namespace.is_none() {
            write!(out, " {:<8}", "NETNS")?;
        }
        writeln!(out, " DETAILS")
    }

    /// A failed connection is the longest word, which tcptracer does not have.
    fn type_width(&self) -> usize {
        if self.asked.verbose { 14 } else { 2 }
    }

    fn shows(&self, connection: &OwnedConnection) -> bool {
        self.asked.network_namespace.is_none_or(|wanted| connection.network_namespace == Some(wanted))
    }

    fn print(&mut self, out: &mut dyn Write, connection: &OwnedConnection) -> std::io::Result<()> {
        let Connections { verbose, timestamp, network_namespace, json, .. } = *self.asked;
        if json.is_on() {
            return json.print(out, connection);
        }
        let first = *self.first_nsec.get_or_insert(connection.monotonic_nsec);
        let passed = connection.monotonic_nsec.saturating_sub(first);
        match (timestamp, verbose) {
            (true, true) => write!(out, "{passed:<14}")?,
            (true, false) => {
                write!(out, "{:<9}", format!("{}.{:03}", passed / 1_000_000_000, passed / 1_000_000 % 1_000))?
            }
            (false, _) => {}
        }
        let word = match (connection.kind, verbose) {
            (ConnectionKind::Connect, false) => "C",
            (ConnectionKind::Accept, false) => "A",
            (ConnectionKind::Close, false) => "X",
            (ConnectionKind::ConnectFailed, false) => "F",
            (kind, true) => kind.name(),
        };
        write!(out, "{word:<width$} ", width = self.type_width())?;
        let pid = connection.pid.map(|pid| pid.to_string()).unwrap_or_else(|| "-".to_owned());
        let comm = cell::clean(connection.comm.as_deref().unwrap_or("-").into());
        let version = if connection.src.is_ipv4() { 4 } else { 6 };
        let (src, dst) = (address(connection.src), address(connection.dst));
        write!(
            out,
            "{pid:<6} {comm:<16} {version:<2} {src:<16} {dst:<16} {:<6} {:<6}",
            connection.sport, connection.dport
        )?;
        if verbose && network_namespace.is_none() {
            let namespace =
                connection.network_namespace.map(|inode| inode.to_string()).unwrap_or_else(|| "-".to_owned());
            write!(out, " {namespace:<8}")?;
        }
        for (name, value) in details(connection) {
            write!(out, " {name}={value}")?;
        }
        writeln!(out)
    }

    fn gap(&self, out: &mut dyn Write, [first, last, lost]: [u64; 3], reason: &str) -> std::io::Result<()> {
        if self.asked.json.is_on() {
            let gap = StreamItem::ConnectionGap { first, last, lost, reason: reason.into() };
            return self.asked.json.print(out, &gap);
        }
        out.flush()?;
        let lost = cell::counted(lost, "event");
        anstream::eprintln!("flowctl: {lost} missing here: this reader was too slow");
        Ok(())
    }
}

/// What is known besides the ends, by the names that it has in JSON.
fn details(connection: &OwnedConnection) -> impl Iterator<Item = (&'static str, String)> {
    let number = |number: Option<u32>| number.map(|number| number.to_string());
    let bytes = |number: Option<u64>| number.map(|number| number.to_string());
    let details = [
        ("error", connection.error.clone()),
        ("sent_bytes", bytes(connection.sent_bytes)),
        ("received_bytes", bytes(connection.received_bytes)),
        ("rtt_usec", number(connection.rtt_usec)),
        ("retransmissions", number(connection.retransmissions)),
        ("connect_usec", number(connection.connect_usec)),
    ];
    details.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

/// The address, in brackets if it is IPv6.
fn address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use serde_json::json;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn lines(options: &str) -> String {
        let events = [
            r#"{"type":"connect","sequence":1,"flow":7,"family":"ipv4","protocol":"tcp","src":"192.168.1.2","sport":59306,"dst":"192.168.1.1","dport":23,"network_namespace":4026531840,"monotonic_nsec":5000000000,"time_usec":1,"pid":28943,"tid":28943,"comm":"telnet","uid":0}"#,
            r#"{"type":"accept","sequence":2,"family":"ipv6","protocol":"tcp","src":"::1","sport":80,"dst":"::1","dport":55758,"network_namespace":4026532000,"monotonic_nsec":8546000000,"time_usec":1,"pid":28817,"comm":"nc"}"#,
            r#"{"type":"connect-failed","sequence":3,"family":"ipv4","protocol":"tcp","src":"192.168.1.2","sport":59308,"dst":"192.168.1.1","dport":24,"network_namespace":4026531840,"monotonic_nsec":9000000000,"time_usec":1,"pid":28944,"comm":"telnet","error":"ECONNREFUSED"}"#,
        ];
        printed(options, &events)
    }

    fn printed(options: &str, events: &[&str]) -> String {
        let line = format!("flowctl connections {options}");
        let asked = match Arguments::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Connections(asked) => asked,
            other => panic!("{other:?}"),
        };
        let event = |json: &str| serde_json::from_str::<OwnedConnection>(json).unwrap();
        let mut out = Vec::new();
        let mut lines = Lines { asked: &asked, first_nsec: None };
        lines.header(&mut out).unwrap();
        for event in events.iter().map(|json| event(json)) {
            if lines.shows(&event) {
                lines.print(&mut out, &event).unwrap();
            }
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_those_of_tcptracer() {
        let expected = "\
T  PID    COMM             IP SADDR            DADDR            SPORT  DPORT  DETAILS\n\
C  28943  telnet           4  192.168.1.2      192.168.1.1      59306  23    \n\
A  28817  nc               6  [::1]            [::1]            80     55758 \n\
F  28944  telnet           4  192.168.1.2      192.168.1.1      59308  24     error=ECONNREFUSED\n";
        assert_eq!(lines(""), expected);
    }

    #[test]
    fn what_a_connection_did_stands_behind_its_end() {
        let event = r#"{"type":"close","sequence":4,"family":"ipv4","protocol":"tcp","src":"198.18.0.1","sport":40000,"dst":"198.18.0.2","dport":80,"monotonic_nsec":1,"time_usec":1,"pid":7,"comm":"nc","reset":false,"sent_bytes":0,"received_bytes":9,"rtt_usec":45,"retransmissions":0,"connect_usec":80}"#;
        let text = printed("", &[event]);
        let details =
            "40000  80     sent_bytes=0 received_bytes=9 rtt_usec=45 retransmissions=0 connect_usec=80\n";
        assert!(text.starts_with("T ") && text.ends_with(details), "{text}");
    }

    #[test]
    fn times_words_and_namespaces_are_there_when_asked_for() {
        let text = lines("-t");
        assert!(text.starts_with("TIME(s)  T  PID "), "{text}");
        assert!(text.contains("\n0.000    C  28943  ") && text.contains("\n3.546    A  28817  "), "{text}");
        let text = lines("-v");
        assert!(text.contains("\nconnect        28943  ") && text.contains(" 4026531840\n"), "{text}");
        assert!(
            text.contains("\nconnect-failed 28944  ") && text.ends_with(" 4026531840 error=ECONNREFUSED\n"),
            "{text}"
        );
        let text = lines("-N 4026532000");
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn what_a_process_calls_itself_is_no_command_to_a_terminal() {
        let event = r#"{"type":"accept","sequence":2,"family":"ipv6","protocol":"tcp","src":"::1","sport":80,"dst":"::1","dport":55758,"monotonic_nsec":8546000000,"time_usec":1,"pid":28817,"comm":"\u001b]0;x\u0007\n"}"#;
        for options in ["", "-v -t"] {
            let text = printed(options, &[event]);
            assert!(
                text.contains(r"\u{1b}]0;x\u{7}\n") && !text.contains('\x1b') && text.lines().count() == 2,
                "{text}"
            );
        }
        assert!(!printed("--json", &[event]).contains('\x1b'));
    }

    #[test]
    fn a_gap_of_json_is_that_of_the_stream() {
        let Command::Connections(asked) =
            Arguments::try_parse_from(["flowctl", "connections", "--json"]).unwrap().command
        else {
            panic!("another command");
        };
        let mut out = Vec::new();
        Lines { asked: &asked, first_nsec: None }.gap(&mut out, [4, 6, 3], "slow-reader").unwrap();
        let gap =
            json!({"type": "connection-gap", "first": 4, "last": 6, "lost": 3, "reason": "slow-reader"});
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&out).unwrap(), gap);
    }

    #[test]
    fn the_program_is_the_one_that_is_built() {
        let text: String = PROGRAM.iter().map(|(_, text)| *text).collect();
        assert!(text.contains("Dual MIT/GPL"));
        let included: Vec<_> = PROGRAM[0]
            .1
            .lines()
            .filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'))
            .collect();
        let printed: Vec<_> = PROGRAM.iter().skip(1).map(|(name, _)| *name).collect();
        assert_eq!(printed, included, "what attribution.bpf.c includes is printed, in its order");
    }
}

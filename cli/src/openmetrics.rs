//! `flowctl stats --openmetrics`: text that OpenMetrics and the older Prometheus format read alike.
//!
//! Only types of the older format are used, because node_exporter's textfile collector refuses the whole file otherwise.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use flowbus_interfaces::{FlowRef, Key, Statistic, StatisticKind};

use crate::daemon::{Daemon, Statistics};
use crate::error::Error;
use crate::flows;

const FIELDS: [Key; 5] = [Key::Protocol, Key::State, Key::Source, Key::OrigBytes, Key::ReplyBytes];

/// What there is of each combination of labels: few, however many flows there are.
#[derive(Default)]
struct FlowTotals {
    /// Flows by source, protocol and state.
    flows: BTreeMap<[String; 3], u64>,
    /// Bytes by source and direction; none without accounting.
    bytes: BTreeMap<[String; 2], u64>,
}

/// The statistics and the totals of the flows that are alive, with the end mark.
pub(crate) async fn text(daemon: &Daemon, statistics: &Statistics) -> Result<String, Error> {
    let monitor = &daemon.monitor;
    let version = monitor.version().await.map_err(|error| daemon.failed(error))?;
    let synchronized = monitor.synchronized().await.map_err(|error| daemon.failed(error))?;
    let mut totals = FlowTotals::default();
    flows::refresh(daemon).await?;
    flows::alive(daemon, &FIELDS, |flow| totals.add(flow)).await?;
    Ok(exposition(&version, synchronized, statistics, &totals))
}

impl FlowTotals {
    fn add(&mut self, flow: &FlowRef<'_>) {
        let source = flow.text(Key::Source).unwrap_or_default();
        // What the network chooses must not choose how many lines there are: protocols without a name are one.
        let protocol = flow
            .text(Key::Protocol)
            .filter(|name| name.starts_with(|first: char| first.is_ascii_alphabetic()));
        let state = flow.text(Key::State).unwrap_or_default();
        *self
            .flows
            .entry([&source, protocol.as_deref().unwrap_or("other"), &state].map(str::to_owned))
            .or_default() += 1;
        for (direction, key) in [("original", Key::OrigBytes), ("reply", Key::ReplyBytes)] {
            if let Some(bytes) = flow.number(key) {
                let sum = self.bytes.entry([&source, direction].map(str::to_owned)).or_default();
                *sum = sum.saturating_add(bytes);
            }
        }
    }
}

fn exposition(version: &str, synchronized: bool, statistics: &Statistics, totals: &FlowTotals) -> String {
    let mut text = String::new();
    family(&mut text, "flowbus_build_info", "gauge", "The version of flowbusd.");
    sample(&mut text, "flowbus_build_info", &[("version", version)], 1);
    family(&mut text, "flowbus_synchronized", "gauge", "Whether the table agrees with the kernel's.");
    sample(&mut text, "flowbus_synchronized", &[], synchronized.into());
    // The type of a statistic that a later version adds is not known.
    for Statistic { name, kind, description } in Statistic::ALL {
        let Some(&value) = statistics.get(*name) else { continue };
        let name = format!("flowbus_{name}");
        match kind {
            StatisticKind::Gauge => {
                family(&mut text, &name, "gauge", description);
                sample(&mut text, &name, &[], value);
            }
            StatisticKind::Counter => {
                family(&mut text, &name, "counter", description);
                sample(&mut text, &format!("{name}_total"), &[], value);
            }
        }
    }
    family(&mut text, "flowbus_flows", "gauge", "Active flows.");
    for ([source, protocol, state], &flows) in &totals.flows {
        sample(
            &mut text,
            "flowbus_flows",
            &[("source", source), ("protocol", protocol), ("state", state)],
            flows,
        );
    }
    family(&mut text, "flowbus_flow_bytes", "gauge", "Bytes of active flows, with IP headers.");
    for ([source, direction], &bytes) in &totals.bytes {
        sample(&mut text, "flowbus_flow_bytes", &[("source", source), ("direction", direction)], bytes);
    }
    text.push_str("# EOF\n");
    text
}

/// Rewrites OpenMetrics text for Prometheus's older format, whose TYPE and HELP carry the name of the samples: node_exporter
/// takes a counter for untyped otherwise.
pub(crate) fn prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut counter = "";
    for line in openmetrics.lines() {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "UNIT" | "EOF", ..] => continue,
            ["#", "TYPE", name, "counter"] => {
                counter = name;
                let _ = writeln!(text, "# TYPE {name}_total counter");
            }
            ["#", "HELP", name, help] if name == counter => {
                let _ = writeln!(text, "# HELP {name}_total {help}");
            }
            _ => {
                let _ = writeln!(text, "{line}");
            }
        }
    }
    text
}

/// Type, unit and meaning of a metric. Writing to a string cannot fail.
fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# TYPE {name} {kind}");
    if name.ends_with("_bytes") {
        let _ = writeln!(text, "# UNIT {name} bytes");
    }
    let _ = writeln!(text, "# HELP {name} {}", escaped(help));
}

fn sample(text: &mut String, name: &str, labels: &[(&str, &str)], value: u64) {
    // An empty label is no label.
    let labels: Vec<_> = labels
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
        .collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let _ = writeln!(text, "{name}{labels} {value}");
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn in_the_older_format_type_and_help_carry_the_name_of_the_samples() {
        let text = super::prometheus(
            "# TYPE a counter\n# HELP a Seen.\na_total 7\n# TYPE b_bytes gauge\n# UNIT b_bytes bytes\n# HELP b_bytes B.\nb_bytes{x=\"y z\"} 1\n# EOF\n",
        );
        assert_eq!(
            text,
            "# TYPE a_total counter\n# HELP a_total Seen.\na_total 7\n# TYPE b_bytes gauge\n# HELP b_bytes B.\nb_bytes{x=\"y z\"} 1\n"
        );
    }

    use super::*;

    #[test]
    fn labels_are_few_and_escaped() {
        let mut totals = FlowTotals::default();
        for flow in [
            r#"{"protocol":"tcp","state":"ESTABLISHED","source":"CHROME","orig_bytes":5,"reply_bytes":7}"#,
            r#"{"protocol":"tcp","state":"ESTABLISHED","source":"CHROME","orig_bytes":6,"reply_bytes":0}"#,
            r#"{"protocol":"253","source":"a\"b\\c\nd"}"#,
            r#"{"protocol":"254","source":"a\"b\\c\nd"}"#,
        ] {
            totals.add(&FlowRef::parse(flow).unwrap());
        }
        let statistics = Statistics::from(
            [("buffer_bytes", 4096), ("events_new", 3), ("unheard_of", 7)]
                .map(|(name, value)| (name.to_owned(), value)),
        );
        let expected = r#"# TYPE flowbus_build_info gauge
# HELP flowbus_build_info The version of flowbusd.
flowbus_build_info{version="0.1.0"} 1
# TYPE flowbus_synchronized gauge
# HELP flowbus_synchronized Whether the table agrees with the kernel's.
flowbus_synchronized 1
# TYPE flowbus_events_new counter
# HELP flowbus_events_new Events of new flows.
flowbus_events_new_total 3
# TYPE flowbus_buffer_bytes gauge
# UNIT flowbus_buffer_bytes bytes
# HELP flowbus_buffer_bytes Size of the receive buffer as the kernel counts it, in bytes.
flowbus_buffer_bytes 4096
# TYPE flowbus_flows gauge
# HELP flowbus_flows Active flows.
flowbus_flows{source="CHROME",protocol="tcp",state="ESTABLISHED"} 2
flowbus_flows{source="a\"b\\c\nd",protocol="other"} 2
# TYPE flowbus_flow_bytes gauge
# UNIT flowbus_flow_bytes bytes
# HELP flowbus_flow_bytes Bytes of active flows, with IP headers.
flowbus_flow_bytes{source="CHROME",direction="original"} 11
flowbus_flow_bytes{source="CHROME",direction="reply"} 7
# EOF
"#;
        assert_eq!(exposition("0.1.0", true, &statistics, &totals), expected);
    }
}

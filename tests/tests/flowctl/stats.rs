//! flowctl stats and flowctl sources: what they add up is what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use flowbus_interfaces::Statistic;
use flowbus_tests::daemon::binary;
use flowbus_tests::flow::agreed;
use flowbus_tests::network::{
    CHROME, CROSTINI, SERVER_V4, SERVER_V6, UNKNOWN_SOURCE, ip_address, socket_address,
};
use flowbus_tests::process::{output_of, output_with_input};
use flowbus_tests::{Bus, Daemon, Network, conntrack, traffic};
use serde_json::{Value, json};

use super::json_lines;

fn flowctl(bus: &Bus, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("flowctl"));
    command.args(["--bus", &bus.address()]).args(arguments).stdin(Stdio::null());
    command
}

/// Flows of several sources, protocols and states.
fn started() -> (Network, Bus, Daemon) {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    for (address, port) in
        [(SERVER_V4, CHROME), (SERVER_V6, CHROME), (SERVER_V4, UNKNOWN_SOURCE), (SERVER_V4, CROSTINI)]
    {
        network.udp_service(address, port).exchange(&network.client, socket_address(address, port), 2);
        let service = network.tcp_service(address, port);
        let open = service.connect(&network.client, socket_address(address, port), 3);
        open.into_iter().for_each(traffic::Connection::close);
    }
    traffic::ping(&network.client, ip_address(SERVER_V6), 7);
    let _ = agreed(&bus, &network.router);
    (network, bus, daemon)
}

/// Sums of a field of flows, by source.
fn sums(flows: &[Value], field: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for flow in flows {
        *sums.entry(flow["source"].as_str().unwrap().to_owned()).or_default() +=
            flow[field].as_u64().unwrap();
    }
    sums
}

#[test]
fn sources_add_up_to_the_flows() {
    let (_network, bus, daemon) = started();
    let lines = json_lines(&output_of(&mut flowctl(&bus, &["sources", "--interval", "0", "--json"])));
    let flows = bus.list("ListActive", &[["refresh", "b", "true"]]).unwrap();
    for field in ["orig_bytes", "reply_bytes", "orig_packets", "reply_packets"] {
        let expected = sums(&flows, field);
        assert!(expected.len() >= 4 && expected.values().all(|sum| *sum > 0), "{expected:?}");
        assert_eq!(sums(&lines, field), expected, "{field}");
    }
    for line in &lines {
        let number = flows.iter().filter(|flow| flow["source"] == line["source"]).count();
        assert_eq!(line["flows"], number, "{line}");
        assert!(line.get("orig_bytes_per_second").is_none(), "a rate without an interval: {line}");
    }
    let text = output_of(&mut flowctl(&bus, &["sources", "--interval", "0"]));
    assert!(text.starts_with("SOURCE") && text.contains("CROSTINI_VM") && text.contains("0x29"), "{text}");
    daemon.stop();
}

#[test]
fn rates_count_the_flows_that_begin_and_end_between_the_readings() {
    let (network, bus, daemon) = started();
    let service = network.udp_service(SERVER_V4, CHROME);
    let mut sources = flowctl(&bus, &["sources", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    while sources.try_wait().unwrap().is_none() {
        service.exchange(&network.client, socket_address(SERVER_V4, CHROME), 20);
        conntrack::delete(&network.router, "-p udp");
    }
    let output = sources.wait_with_output().unwrap();
    assert!(output.status.success());
    let lines = json_lines(&String::from_utf8(output.stdout).unwrap());
    let of = |name: &str| lines.iter().find(|line| line["source"] == name).unwrap().clone();
    for rate in
        ["new_flows_per_second", "orig_bytes_per_second", "reply_bytes_per_second", "orig_packets_per_second"]
    {
        assert!(of("CHROME")[rate].as_u64().unwrap() > 0, "{rate}: {}", of("CHROME"));
        assert_eq!(of("CROSTINI_VM")[rate], 0, "{rate}: {}", of("CROSTINI_VM"));
    }
    daemon.stop();
}

#[test]
fn the_statistics_are_those_of_the_vocabulary_and_of_the_kernel() {
    let (network, bus, daemon) = started();
    let answered = bus.monitor_call("GetStatistics", &[]).unwrap()[0].take();
    let names: BTreeSet<&str> = answered.as_object().unwrap().keys().map(String::as_str).collect();
    // No BPF programs run for this daemon.
    let known = Statistic::ALL.iter().map(|statistic| statistic.name);
    let known: BTreeSet<&str> = known.filter(|name| !name.starts_with("bpf_")).collect();
    assert_eq!(names, known, "what the daemon answers, and dbus-interfaces/src/statistic.rs");

    let stats = json_lines(&output_of(&mut flowctl(&bus, &["stats", "--json"]))).remove(0);
    assert_eq!(stats.as_object().unwrap().keys().map(String::as_str).collect::<BTreeSet<_>>(), known);
    let count = network.router.run("conntrack -C").trim().parse::<u64>().unwrap();
    assert_eq!(stats["kernel_count"], count, "conntrack -C");
    let cpus = network.router.run("conntrack -S");
    let sum = |name: &str| -> u64 {
        let words = cpus.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        words.map(|number| number.parse::<u64>().unwrap()).sum()
    };
    for (ours, theirs) in [
        ("kernel_early_drop", "early_drop"),
        ("kernel_drop", "drop"),
        ("kernel_insert_failed", "insert_failed"),
        ("kernel_clash_resolve", "clash_resolve"),
        ("kernel_chain_toolong", "chaintoolong"),
    ] {
        assert!(cpus.contains(theirs), "conntrack -S: {cpus}");
        assert_eq!(stats[ours], sum(theirs), "{ours}: {cpus}");
    }
    let text = output_of(&mut flowctl(&bus, &["stats"]));
    assert!(text.starts_with("The kernel's table is 0.0 % full: "), "{text}");
    assert!(known.iter().all(|name| text.contains(name)), "{text}");
    daemon.stop();
}

/// Prints what a parser sees: name, labels and value of each sample, type of each family that has any.
const PARSE: &str = r#"
import json, sys
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client import parser as prometheus
text = sys.stdin.read()
def seen(families):
    return {s.name + json.dumps(s.labels, sort_keys=True): [f.type, s.value] for f in families for s in f.samples}
json.dump([seen(p.text_string_to_metric_families(text)) for p in (openmetrics, prometheus)], sys.stdout)
"#;

/// Prints what the parser of the older text format sees: type and help of each sample.
const PARSE_TEXT: &str = r#"
import json, sys
from prometheus_client import parser
families = parser.text_string_to_metric_families(sys.stdin.read())
json.dump({s.name: [f.type, f.documentation] for f in families for s in f.samples}, sys.stdout)
"#;

#[test]
fn prometheus_text_has_the_type_and_the_help_of_each_sample() {
    let (_network, bus, daemon) = started();
    let text = output_of(&mut flowctl(&bus, &["stats", "--prometheus"]));
    let parsed = output_with_input(Command::new("/usr/bin/python3").args(["-c", PARSE_TEXT]), &text);
    let samples: BTreeMap<String, [String; 2]> = serde_json::from_str(&parsed).unwrap();
    assert!(samples.len() > 20 && samples.contains_key("flowbus_kernel_early_drop_total"), "{text}");
    for (name, [kind, help]) in &samples {
        let expected = if name.ends_with("_total") { "counter" } else { "gauge" };
        assert!(kind == expected && !help.is_empty(), "{name} is a {kind}: {help:?}");
        assert!(text.contains(&format!("# TYPE {name} {expected}\n# HELP {name} ")), "{name}: {text}");
    }
    daemon.stop();
}

#[test]
fn openmetrics_text_is_read_by_a_strict_parser_and_by_that_of_prometheus() {
    let (_network, bus, daemon) = started();
    let text = output_of(&mut flowctl(&bus, &["stats", "--openmetrics"]));
    // Debian's own python: it is the one whose modules Debian's packages are.
    let parsed = output_with_input(Command::new("/usr/bin/python3").args(["-c", PARSE]), &text);
    let parsed: Value = serde_json::from_str(&parsed).unwrap();
    let (strict, older) = (&parsed[0], &parsed[1]);
    for (name, kind) in [("flowbus_synchronized{}", "gauge"), ("flowbus_events_new_total{}", "counter")] {
        assert_eq!(strict[name][0], kind, "{name}");
    }
    for samples in [strict, older] {
        let flows = bus.list("ListActive", &[["refresh", "b", "true"]]).unwrap();
        let mut expected = BTreeMap::<String, f64>::new();
        for flow in &flows {
            let mut labels = json!({ "source": flow["source"], "protocol": flow["protocol"] });
            if let Some(state) = flow.get("state") {
                labels["state"] = state.clone();
            }
            let labels = labels.to_string().replace(':', ": ").replace(",\"", ", \"");
            *expected.entry(format!("flowbus_flows{labels}")).or_default() += 1.0;
        }
        let samples = samples.as_object().unwrap();
        let value = |value: &Value| value[1].as_f64().unwrap();
        let seen: BTreeMap<String, f64> = samples
            .iter()
            .filter(|(name, _)| name.starts_with("flowbus_flows{"))
            .map(|(name, sample)| (name.clone(), value(sample)))
            .collect();
        assert_eq!(seen, expected);
        assert!(seen.len() >= 6, "{seen:?}");
        assert_eq!(value(&samples["flowbus_synchronized{}"]), 1.0);
        assert_eq!(value(&samples["flowbus_active{}"]), flows.len() as f64);
        for statistic in Statistic::ALL.iter().filter(|statistic| !statistic.name.starts_with("bpf_")) {
            let name = format!("flowbus_{}", statistic.name);
            assert!(samples.keys().any(|sample| sample.starts_with(&name)), "{name}");
        }
        assert!(samples.keys().any(|name| name.starts_with("flowbus_flow_bytes{\"direction\": \"reply\"")));
    }
    daemon.stop();
}

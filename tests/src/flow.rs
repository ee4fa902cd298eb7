//! A flow dictionary of the daemon against the kernel's own entry, field by field.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use crate::conntrack::{self, Direction, Entry};
use crate::process::DEADLINE;
use crate::{Bus, Namespace};

/// Every way in which the daemon's flows differ from the kernel's table: a line each, empty if they agree.
///
/// The daemon's fields that change without an event are as the kernel last reported them. So a timeout may be higher than the
/// kernel's, which counts down, and counters and references lower or, for a flow that only events have reported, absent.
#[must_use]
pub fn differences(flows: &[Value], table: &[Entry]) -> Vec<String> {
    let mut unseen: BTreeMap<String, &Entry> = table.iter().map(|entry| (entry.key(), entry)).collect();
    assert_eq!(unseen.len(), table.len(), "the kernel's table has one entry a key");
    let mut lines = Vec::new();
    for flow in flows {
        match unseen.remove(&key(flow)) {
            Some(entry) => {
                lines.extend(
                    flow_differences(flow, entry).iter().map(|line| format!("{}: {line}", entry.key())),
                );
            }
            None => lines.push(format!("the kernel has no such flow, or the daemon has it twice: {flow}")),
        }
    }
    lines.extend(unseen.values().map(|entry| format!("the daemon does not have {entry:?}")));
    lines
}

/// [`Entry::key`] of a flow dictionary.
#[must_use]
pub fn key(flow: &Value) -> String {
    let text =
        |name: &str| flow.get(name).map(|value| value.to_string().replace('"', "")).unwrap_or_default();
    let zone = flow.get("zone").or(flow.get("orig_zone")).unwrap_or(&Value::Null).as_u64().unwrap_or(0);
    format!(
        "{} {} {}>{} {},{} {},{},{} zone {zone}",
        text("family"),
        text("protocol_number"),
        text("src"),
        text("dst"),
        text("sport"),
        text("dport"),
        text("icmp_type"),
        text("icmp_code"),
        text("icmp_id"),
    )
}

fn flow_differences(flow: &Value, entry: &Entry) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, kernel) in exact_fields(entry) {
        let daemon = flow.get(name).cloned().unwrap_or_default();
        if daemon != kernel {
            lines.push(format!("{name} is {daemon}, in the kernel {kernel}"));
        }
    }
    for (name, wanted) in status_words(entry) {
        let has = flow["status"].as_array().is_some_and(|words| words.iter().any(|word| word == name));
        if has != wanted {
            lines.push(format!("status is {}, in the kernel {name} is {wanted}", flow["status"]));
        }
    }
    if let (Some(kernel), Some(daemon)) = (entry.timeout, flow.get("timeout").and_then(Value::as_u64))
        && daemon < kernel.into()
    {
        lines.push(format!("timeout is {daemon}, in the kernel still {kernel}"));
    }
    if entry.timeout.is_some() && flow.get("timeout").is_none() {
        lines.push("timeout is absent".to_owned());
    }
    for (name, kernel) in counters(entry) {
        if let Some(daemon) = flow.get(name).map(|value| value.as_u64().unwrap_or(u64::MAX))
            && kernel.is_none_or(|kernel| daemon > kernel)
        {
            lines.push(format!("{name} is {daemon}, in the kernel {kernel:?}"));
        }
    }
    lines
}

/// What both print of a flow and what must be equal at all times; null is a field that must be absent.
fn exact_fields(entry: &Entry) -> Vec<(&'static str, Value)> {
    let (original, reply) = (&entry.original, &entry.reply);
    let source = (reply.dst != original.src || reply.dport != original.sport).then_some(reply);
    let destination = (reply.src != original.dst || reply.sport != original.dport).then_some(reply);
    let protocol = match entry.protocol.as_str() {
        "unknown" => entry.protocol_number.to_string(),
        name => name.to_owned(),
    };
    vec![
        ("conntrack_id", json!(entry.id)),
        ("family", json!(entry.family)),
        ("protocol", json!(protocol)),
        ("protocol_number", json!(entry.protocol_number)),
        ("src", json!(original.src)),
        ("sport", json!(original.sport)),
        ("dst", json!(original.dst)),
        ("dport", json!(original.dport)),
        ("reply_src", json!(reply.src)),
        ("reply_sport", json!(reply.sport)),
        ("reply_dst", json!(reply.dst)),
        ("reply_dport", json!(reply.dport)),
        ("nat_src", json!(source.map(|reply| &reply.dst))),
        ("nat_sport", json!(source.and_then(|reply| reply.dport))),
        ("nat_dst", json!(destination.map(|reply| &reply.src))),
        ("nat_dport", json!(destination.and_then(|reply| reply.sport))),
        ("icmp_type", json!(original.icmp_type)),
        ("icmp_code", json!(original.icmp_code)),
        ("icmp_id", json!(original.icmp_id)),
        ("reply_icmp_type", json!(reply.icmp_type)),
        ("reply_icmp_code", json!(reply.icmp_code)),
        ("reply_icmp_id", json!(reply.icmp_id)),
        ("zone", json!(entry.zone)),
        ("orig_zone", json!(original.zone)),
        ("reply_zone", json!(reply.zone)),
        ("state", json!(entry.state)),
        ("mark", json!(entry.mark)),
        ("helper", json!(entry.helper)),
    ]
}

fn status_words(entry: &Entry) -> [(&'static str, bool); 5] {
    let Entry { original, reply, .. } = entry;
    let identifiers = |direction: &Direction| direction.icmp_id;
    [
        ("seen-reply", !entry.unreplied),
        ("assured", entry.assured),
        ("confirmed", true),
        (
            "src-nat",
            reply.dst != original.src
                || reply.dport != original.sport
                || identifiers(reply) != identifiers(original),
        ),
        ("dst-nat", reply.src != original.dst || reply.sport != original.dport),
    ]
}

fn counters(entry: &Entry) -> [(&'static str, Option<u64>); 4] {
    [
        ("orig_packets", entry.original.packets),
        ("orig_bytes", entry.original.bytes),
        ("reply_packets", entry.reply.packets),
        ("reply_bytes", entry.reply.bytes),
    ]
}

/// Whether the daemon's counters of a flow are the kernel's, to the byte.
#[must_use]
pub fn counters_agree(flow: &Value, entry: &Entry) -> bool {
    counters(entry).iter().all(|(name, kernel)| flow.get(name).and_then(Value::as_u64) == *kernel)
}

/// Lists the daemon's active flows and the kernel's table until they agree, which they do once the last events have arrived.
/// Returns both.
///
/// # Panics
/// If they never agree; the message has every difference.
#[must_use]
pub fn agreed(bus: &Bus, namespace: &Namespace) -> (Vec<Value>, Vec<Entry>) {
    let started = Instant::now();
    loop {
        let flows = bus.list("ListActive", &[]).unwrap_or_else(|error| panic!("ListActive: {error}"));
        let table = conntrack::list(namespace);
        let lines = differences(&flows, &table);
        if lines.is_empty() {
            return (flows, table);
        }
        assert!(started.elapsed() < DEADLINE, "{} differences:\n{}", lines.len(), lines.join("\n"));
    }
}

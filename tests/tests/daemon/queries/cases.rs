//! What is asked of a table with everything in it, key by key.

use flowbus_tests::network::{MASQUERADED_SERVER_V4, ROUTER_V4, SERVER_V4, SERVER_V6};
use serde_json::Value;

/// What `busctl` takes for one key: the key, a signature, and the value's words.
pub(crate) type Entry<'a> = [&'a str; 3];
/// Whether a flow, as it was listed, is what a query asks for.
type Naive = fn(&Value) -> bool;

/// Queries each of which finds some of the flows of [`super::Everything`], and not all.
pub(crate) const FOUND: &[(Entry<'_>, Naive)] = &[
    (["family", "s", "ipv6"], |flow| flow["family"] == "ipv6"),
    (["protocol", "s", "tcp"], |flow| flow["protocol"] == "tcp"),
    (["protocol", "as", "2 UDP icmpv6"], |flow| flow["protocol"] == "udp" || flow["protocol"] == "icmpv6"),
    (["protocol", "y", "1"], |flow| flow["protocol_number"] == 1),
    (["src", "s", "198.18.0.2"], |flow| flow["src"] == "198.18.0.2"),
    (["src", "s", "::ffff:198.18.0.2"], |flow| flow["src"] == "198.18.0.2"),
    (["dst", "s", "198.18.1.0/24"], |flow| starts(&flow["dst"], "198.18.1.")),
    (["dst", "as", "2 198.18.1.3 2001:2:0:2::/64"], |flow| {
        flow["dst"] == MASQUERADED_SERVER_V4 || starts(&flow["dst"], "2001:2:0:2:")
    }),
    (["reply_src", "s", SERVER_V6], |flow| flow["reply_src"] == SERVER_V6),
    (["reply_dst", "s", "198.18.1.1"], |flow| flow["reply_dst"] == "198.18.1.1"),
    (["nat_src", "s", "198.18.1.1/32"], |flow| flow["nat_src"] == "198.18.1.1"),
    (["nat_dst", "s", "2001:2::/32"], |flow| starts(&flow["nat_dst"], "2001:2:")),
    (["address", "s", ROUTER_V4], |flow| has_address(flow, ROUTER_V4)),
    (["sport", "s", "32768-45000"], |flow| within(&flow["sport"], 32_768, 45_000)),
    (["dport", "q", "7000"], |flow| flow["dport"] == 7000),
    (["dport", "av", "2 q 7001 s 7100-7299"], |flow| {
        flow["dport"] == 7001 || within(&flow["dport"], 7100, 7299)
    }),
    (["reply_sport", "u", "7001"], |flow| flow["reply_sport"] == 7001),
    (["reply_dport", "s", "1024-40000"], |flow| within(&flow["reply_dport"], 1024, 40_000)),
    (["nat_sport", "s", "1-65535"], |flow| within(&flow["nat_sport"], 1, 65_535)),
    (["nat_dport", "i", "7000"], |flow| flow["nat_dport"] == 7000),
    (["port", "t", "7000"], |flow| {
        ["sport", "dport", "reply_sport", "reply_dport"].iter().any(|key| flow[key] == 7000)
    }),
    (["icmp_type", "y", "8"], |flow| flow["icmp_type"] == 8),
    (["icmp_code", "n", "0"], |flow| flow["icmp_code"] == 0),
    (["icmp_id", "aq", "2 301 302"], |flow| flow["icmp_id"] == 301 || flow["icmp_id"] == 302),
    (["nat", "s", "source"], |flow| flow.get("nat_src").is_some() || source_identifier_changed(flow)),
    (["nat", "s", "destination"], |flow| flow.get("nat_dst").is_some()),
    (["nat", "s", "any"], |flow| {
        flow.get("nat_src").is_some() || flow.get("nat_dst").is_some() || source_identifier_changed(flow)
    }),
    (["nat", "s", "none"], |flow| {
        flow.get("nat_src").is_none() && flow.get("nat_dst").is_none() && !source_identifier_changed(flow)
    }),
    (["mark", "u", "0"], |flow| flow["mark"] == 0),
    (["mark", "s", "0x040c0000/0xffff0000"], |flow| mark(flow) & 0xffff_0000 == 0x040c_0000),
    (["source", "s", "chrome"], |flow| flow["source"] == "CHROME"),
    (["source", "as", "2 0x29 CROSTINI_VM"], |flow| {
        flow["source"] == "0x29" || flow["source"] == "CROSTINI_VM"
    }),
    (["vpn", "s", "route"], |flow| flow["vpn"] == "route"),
    (["qos", "s", "network-control"], |flow| flow["qos"] == "network-control"),
    (["routing_table", "q", "1036"], |flow| flow["routing_table"] == 1036),
    (["interface", "s", "wlan0"], |flow| flow["interface"] == "wlan0"),
    (["zone", "q", "7"], |flow| flow["zone"] == 7),
    (["orig_zone", "aq", "2 7 9"], |flow| flow["zone"] == 7 || flow["orig_zone"] == 9),
    (["reply_zone", "q", "0"], |flow| {
        flow.get("zone").is_none() && flow["reply_zone"].as_u64().unwrap_or(0) == 0
    }),
    (["state", "s", "established"], |flow| flow["state"] == "ESTABLISHED"),
    (["status", "s", "dst-nat"], |flow| has_status(flow, "dst-nat")),
    (["status", "as", "2 !assured src_nat"], |flow| {
        !has_status(flow, "assured") && has_status(flow, "src-nat")
    }),
    (["min_bytes", "t", "300"], |flow| {
        ["orig_bytes", "reply_bytes"].map(|key| flow[key].as_u64().unwrap_or(0)).iter().sum::<u64>() >= 300
    }),
];

/// Queries each of which finds none of the flows of [`super::Everything`].
pub(crate) const NOT_FOUND: &[Entry<'_>] = &[
    ["family", "as", "1 ipv4"],
    ["protocol", "s", "sctp"],
    ["src", "s", "198.18.9.0/24"],
    ["dst", "s", "::/128"],
    ["reply_src", "s", "198.18.0.2"],
    ["reply_dst", "s", SERVER_V4],
    ["nat_src", "s", "198.18.0.2"],
    ["nat_dst", "s", ROUTER_V4],
    ["address", "s", "198.19.0.0/16"],
    ["sport", "q", "7000"],
    ["dport", "q", "1"],
    ["reply_sport", "q", "1"],
    ["reply_dport", "q", "1"],
    ["nat_sport", "q", "1"],
    ["nat_dport", "q", "7001"],
    ["port", "s", "1-7"],
    ["icmp_type", "y", "0"],
    ["icmp_code", "y", "1"],
    ["icmp_id", "q", "9"],
    ["mark", "u", "1"],
    ["source", "s", "ARC"],
    ["vpn", "s", "route+bypass"],
    ["qos", "s", "webrtc"],
    ["routing_table", "q", "1037"],
    ["interface", "s", "eth9"],
    ["zone", "q", "8"],
    ["orig_zone", "q", "8"],
    ["reply_zone", "q", "9"],
    ["state", "s", "TIME_WAIT"],
    ["status", "s", "offload"],
    ["helper", "s", "ftp"],
    ["labels", "y", "1"],
    ["id", "t", "18446744073709551615"],
    ["conntrack_id", "u", "1"],
    ["pid", "u", "1"],
    ["comm", "s", "init"],
    ["uid", "u", "0"],
    ["unit", "s", "init.scope"],
    ["container", "s", "3f2a"],
    ["pod", "s", "d7b1c2ab-1f2e-4a5b-9c8d-0a1b2c3d4e5f"],
    ["exe", "s", "/usr/bin/no-such-program"],
    ["min_bytes", "t", "1000000000"],
    ["until", "t", "1"],
];

/// Queries each of which is refused by its key's name.
pub(crate) const REFUSED: &[Entry<'_>] = &[
    ["family", "s", "ipv5"],
    ["protocol", "s", "tpc"],
    ["protocol", "u", "256"],
    ["src", "s", "198.18.0.2/33"],
    ["dst", "s", "198.18.0"],
    ["reply_src", "s", "server"],
    ["reply_dst", "u", "3"],
    ["nat_src", "s", "::/129"],
    ["address", "as", "0"],
    ["sport", "s", "9-3"],
    ["dport", "u", "65536"],
    ["dport", "s", "+7000"],
    ["reply_sport", "i", "-1"],
    ["reply_dport", "s", "1-"],
    ["nat_sport", "b", "true"],
    ["nat_dport", "d", "7000"],
    ["port", "s", "http"],
    ["icmp_type", "u", "256"],
    ["icmp_code", "s", "x"],
    ["icmp_id", "u", "65536"],
    ["nat", "s", "both"],
    ["mark", "s", "0x100/0xff"],
    ["mark", "t", "4294967296"],
    ["source", "s", "CHROMIUM"],
    ["source", "u", "64"],
    ["vpn", "s", "yes"],
    ["qos", "u", "8"],
    ["routing_table", "q", "999"],
    ["interface", "s", "a_name_of_sixteen"],
    ["zone", "u", "65536"],
    ["orig_zone", "s", "x"],
    ["reply_zone", "i", "-1"],
    ["state", "s", "OPENED"],
    ["status", "s", "!new"],
    ["helper", "u", "3"],
    ["labels", "u", "128"],
    ["id", "s", "first"],
    ["conntrack_id", "t", "4294967296"],
    ["pid", "s", "init"],
    ["comm", "u", "3"],
    ["uid", "s", "root"],
    ["unit", "b", "true"],
    ["container", "u", "3"],
    ["pod", "s", ""],
    ["exe", "b", "true"],
    ["min_bytes", "as", "2 1 2"],
    ["since", "s", "now"],
    ["until", "i", "-1"],
    ["refresh", "s", "true"],
    ["snapshot", "b", "true"],
    ["events", "s", "new"],
];

fn starts(value: &Value, prefix: &str) -> bool {
    value.as_str().is_some_and(|text| text.starts_with(prefix))
}

fn within(value: &Value, low: u64, high: u64) -> bool {
    value.as_u64().is_some_and(|number| (low..=high).contains(&number))
}

fn mark(flow: &Value) -> u64 {
    flow["mark"].as_u64().unwrap()
}

fn has_address(flow: &Value, address: &str) -> bool {
    ["src", "dst", "reply_src", "reply_dst"].iter().any(|key| flow[key] == address)
}

fn has_status(flow: &Value, name: &str) -> bool {
    flow["status"].as_array().is_some_and(|names| names.iter().any(|other| other == name))
}

/// A ping behind another address keeps no port that could show it.
fn source_identifier_changed(flow: &Value) -> bool {
    flow.get("icmp_id").is_some() && flow["icmp_id"] != flow["reply_icmp_id"]
}

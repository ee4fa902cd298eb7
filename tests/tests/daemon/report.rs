//! The report for feedback: whoever reads it learns what went wrong, and no address of anyone.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::process::{Command, Stdio};

use flowbus_interfaces::{FLOW_MONITOR_INTERFACE, FLOW_MONITOR_NAME, FLOW_MONITOR_PATH, QueryMap};
use flowbus_tests::bus::{call, dictionary};
use flowbus_tests::daemon::binary;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, CallError, Client, Daemon, Namespace, burst};
use rustix::process::Signal;
use serde_json::Value;

/// IPv4 sources, destinations and what stands for the source in a report; the destination port is 1000 and the place in the list.
const V4: [(&str, &str, &str); 10] = [
    ("10.1.2.3", "198.18.5.6", "(IPv4 private 10: "),
    ("172.16.9.8", "198.18.5.6", "(IPv4 private 172: "),
    ("192.168.7.9", "198.19.5.7", "(IPv4 private 192: "),
    ("127.0.0.9", "127.0.0.10", "(IPv4 loopback: "),
    ("169.254.3.4", "224.0.0.251", "(IPv4 link-local: "),
    ("198.18.9.9", "8.8.8.8", "(IPv4: "),
    ("198.18.9.10", "1.1.1.1", "(IPv4: "),
    ("100.115.92.5", "8.8.4.4", "100.115.92.5"),
    ("198.18.9.9", "255.255.255.255", "(IPv4: "),
    ("10.1.2.3", "198.18.5.8", "(IPv4 private 10: "),
];
/// IPv6 sources, destinations and tokens; the destination port is 1100 and the place in the list.
const V6: [(&str, &str, &str); 7] = [
    ("2001:2:0:7::5", "2001:2:0:8::6", "(IPv6: "),
    ("fd00:12:34::5", "2001:2:0:8::6", "(IPv6 unique local: "),
    ("fe80::1234:5678", "ff02::fb", "(IPv6 link-local: "),
    ("::1", "ff02::2", "[::1]:EPH"),
    ("::ffff:198.18.9.9", "2001:2:0:8::6", "(IPv4: "),
    ("64:ff9b::c612:b0b", "2001:2:0:8::7", "(IPv4: "),
    ("::ffff:10.1.2.3", "2001:2:0:8::8", "(IPv4 private 10: "),
];
/// Addresses that Chrome's redaction tool keeps.
const KEPT: [&str; 7] =
    ["8.8.8.8", "8.8.4.4", "1.1.1.1", "100.115.92.5", "255.255.255.255", "::1", "ff02::2"];
/// A mark of source CHROME, over the interface of index 36.
const MARK: u32 = 0x040C_0100;

/// A daemon whose table has every kind of address, one flow translated, and all of them marked; half are closed too.
fn started() -> (Namespace, Bus, Daemon) {
    let (namespace, bus) = (Namespace::tracked("report"), Bus::start());
    namespace.run("ip link add tun7 index 36 type veth peer name tun8");
    let daemon = Daemon::start(&namespace, &bus);
    let insert = |more: &str| {
        namespace.run(&format!("conntrack -I -t 600 -m {MARK} {more}"));
    };
    let flows = |place: usize, src: &str, dst: &str| {
        insert(&format!("-p udp -s {src} -d {dst} --sport 40123 --dport {}", 1000 + place));
        insert(&format!(
            "-p tcp --state ESTABLISHED -s {src} -d {dst} --sport 2345 --dport {}",
            2000 + place
        ));
    };
    V4.iter().enumerate().for_each(|(place, (src, dst, _))| flows(place, src, dst));
    V6.iter().enumerate().for_each(|(place, (src, dst, _))| flows(100 + place, src, dst));
    insert(
        "-p udp -s 192.168.7.9 -d 198.19.5.7 -r 198.19.5.7 -q 198.19.44.55 --sport 40124 --dport 1200 --reply-port-src 1200 \
         --reply-port-dst 40124",
    );
    insert("-p icmp -s 198.18.9.11 -d 198.18.5.6 --icmp-type 8 --icmp-code 0 --icmp-id 31337");
    namespace.run("conntrack -D -f ipv4 -p tcp");
    namespace.run("conntrack -D -f ipv6 -p tcp");
    let ended = V4.len() + V6.len();
    wait_for("the ends", || (bus.property("ClosedCount").unwrap() == ended).then_some(()));
    wait_for("the flows", || (bus.property("ActiveCount").unwrap() == ended + 2).then_some(()));
    (namespace, bus, daemon)
}

/// All forms in which an address could be written that a redactor would not know, and the usual one.
fn forms(address: IpAddr) -> Vec<String> {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            let number = u32::from(v4);
            vec![
                v4.to_string(),
                format!("{d}.{c}.{b}.{a}"),
                format!("{a}-{b}-{c}-{d}"),
                format!("{number:08x}"),
                format!("{number:08X}"),
                format!("{:08x}", number.swap_bytes()),
                number.to_string(),
            ]
        }
        IpAddr::V6(v6) => {
            let digits = format!("{:032x}", u128::from(v6));
            let groups = v6.segments().map(|group| format!("{group:04x}")).join(":");
            let reversed: String = digits.chars().rev().flat_map(|digit| [digit, '.']).collect();
            vec![v6.to_string(), digits, groups, reversed]
        }
    }
}

fn addresses(flows: &[Value]) -> BTreeSet<IpAddr> {
    let keys = ["src", "dst", "reply_src", "reply_dst"];
    let texts = flows.iter().flat_map(|flow| keys.map(|key| flow[key].as_str().unwrap().to_owned()));
    texts.map(|text| text.parse().unwrap()).collect()
}

/// What Chrome's redaction tool, which reads a report after us, would take for an address: dotted quads, with or without a
/// port or a length, runs of hexadecimal groups, and whatever has an at sign.
fn look_alikes(text: &str) -> BTreeSet<String> {
    let pieces = text.split(|letter: char| !letter.is_ascii_hexdigit() && letter != '.' && letter != ':');
    let groups = |piece: &str| {
        let groups = piece.trim_matches(':').split(':').filter(|group| !group.contains('.')).count();
        (piece.contains("::") || groups > 3).then(|| piece.to_owned())
    };
    let addresses = pieces.filter_map(|piece| {
        let v4 = piece.parse::<SocketAddrV4>().map(|with_port| IpAddr::from(*with_port.ip()));
        let bare = piece.trim_end_matches([':', '.']);
        let address = v4.ok().or_else(|| piece.parse().ok()).or_else(|| bare.parse().ok());
        address.map(|address| address.to_string()).or_else(|| groups(piece))
    });
    addresses.chain(text.matches('@').map(str::to_owned)).collect()
}

fn line<'a>(report: &'a str, port: &str) -> &'a str {
    let lines: Vec<_> = report.lines().filter(|line| line.contains(port)).collect();
    assert_eq!(lines.len(), 1, "{port} in {report}");
    lines[0]
}

/// The token of the source on the line of a flow: what stands before its port.
fn source(line: &str) -> &str {
    let end = line.find(":EPH").unwrap_or_else(|| panic!("no ephemeral port in {line:?}"));
    let begin = line[..end].rfind('(').unwrap_or_else(|| panic!("no token in {line:?}"));
    &line[begin..end]
}

#[test]
fn no_address_of_the_table_is_in_a_report_in_any_form() {
    let (_namespace, bus, daemon) = started();
    let report = Client::connect(&bus).report(&QueryMap::new()).unwrap();
    let mut flows = bus.list("ListActive", &[]).unwrap();
    flows.extend(bus.list("ListClosed", &[]).unwrap());
    let kept: Vec<IpAddr> = KEPT.iter().map(|text| text.parse().unwrap()).collect();
    let mut hidden = addresses(&flows);
    // Addresses inside of others are hidden as well.
    hidden.extend([Ipv4Addr::new(198, 18, 11, 11), Ipv4Addr::new(198, 19, 44, 55)].map(IpAddr::from));
    hidden.retain(|address| !kept.contains(address));
    assert!(hidden.len() > 20, "{hidden:?}");
    for address in &hidden {
        for form in forms(*address) {
            assert!(!report.contains(&form), "{form} is in the report:\n{report}");
        }
    }
    for found in look_alikes(&report) {
        assert!(KEPT.contains(&found.as_str()), "{found} is in the report:\n{report}");
    }
    for hidden in
        [MARK.to_string(), format!("{MARK:x}"), "40123".to_owned(), "40124".to_owned(), "31337".to_owned()]
    {
        assert!(!report.contains(&hidden), "{hidden} is in the report:\n{report}");
    }
    for flow in &flows {
        let kernels = flow["conntrack_id"].to_string();
        assert!(!report.contains(&kernels), "conntrack_id {kernels} is in the report");
    }

    for (place, (_, _, token)) in V4.iter().enumerate().chain((100..).zip(&V6)) {
        let line = line(&report, &format!(":{}", 1000 + place));
        assert!(line.contains(token) && line.contains("CHROME"), "{token} on {line}");
        assert!(line.contains(" via tun7"), "{line}");
    }
    assert!(report.contains("\n  interface tun7: "), "{report}");
    let time = report.lines().nth(1).and_then(|line| line.strip_prefix("time: ")).unwrap();
    assert!(time.len() == 20 && time.starts_with("20") && time.ends_with('Z'), "{time}");
    // The same address is the same token, whatever it is wrapped in.
    let source_of = |port: &str| source(line(&report, port)).to_owned();
    assert_eq!(source_of(":1000"), source_of(":1009"));
    assert_eq!(source_of(":1000"), source_of(":1106"));
    assert_eq!(source_of(":1005"), source_of(":1008"));
    assert_eq!(source_of(":1005"), source_of(":1104"));
    assert_ne!(source_of(":1005"), source_of(":1006"));
    assert!(report.lines().last().unwrap().starts_with("Summary"), "{report}");
    daemon.stop();
}

#[test]
fn a_report_on_200000_flows_is_not_over_512_kib_and_says_what_it_leaves_out() {
    const FLOWS: u32 = 200_000;
    let (namespace, bus) = (Namespace::tracked("report"), Bus::start());
    burst::prepare(&namespace);
    let daemon = Daemon::start(&namespace, &bus);
    namespace.sysctl("net.netfilter.nf_conntrack_udp_timeout", "600");
    burst::create(&namespace, 0, FLOWS);
    wait_for("all flows", || (bus.property("ActiveCount").unwrap() == FLOWS).then_some(()));
    let client = Client::connect(&bus);
    for (options, most) in [
        (QueryMap::new(), 512 * 1024),
        (QueryMap::from([("max_bytes", 4_096_u32.into())]), 4_096),
        (QueryMap::from([("redact", false.into())]), 512 * 1024),
    ] {
        let report = client.report(&options).unwrap();
        let unused = most - report.len();
        assert!(unused < 512, "{unused} bytes of {most} are not used");
        let left_out = report.lines().find(|line| line.contains("left out")).unwrap();
        let shown = report.lines().filter(|line| line.starts_with("since ")).count();
        let number = (FLOWS as usize - shown).to_string();
        assert!(shown > 0 && left_out.contains(&number), "{shown} shown, {left_out}");
        assert!(report.lines().last().unwrap().starts_with("Summary"), "{left_out}");
    }
    daemon.stop();
}

fn nobodys_report(bus: &Bus, options: &[[&str; 3]]) -> Result<Value, CallError> {
    let mut busctl = Command::new("setpriv");
    busctl.args(["--reuid=65534", "--regid=65534", "--clear-groups", "busctl", "--json=short"]);
    busctl.arg(format!("--address={}", bus.address())).stdin(Stdio::null());
    let target = [FLOW_MONITOR_NAME, FLOW_MONITOR_PATH, FLOW_MONITOR_INTERFACE, "GetReport"];
    call(busctl, target, &dictionary(options).iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn only_root_gets_a_report_that_is_not_redacted() {
    let (_namespace, bus, daemon) = started();
    let redacted = nobodys_report(&bus, &[]).unwrap();
    assert!(!redacted[0].as_str().unwrap().contains("10.1.2.3"));
    nobodys_report(&bus, &[["redact", "b", "true"]]).unwrap();
    let error = nobodys_report(&bus, &[["redact", "b", "false"]]).unwrap_err();
    assert_eq!(error.name, "org.flowbus.Error.NotAuthorized", "{error}");
    assert!(error.message.contains("redact"), "{error}");

    let client = Client::connect(&bus);
    let report = client.report(&QueryMap::from([("redact", false.into())])).unwrap();
    for address in ["10.1.2.3:40123", "[fe80::1234:5678]:40123", "198.19.44.55"] {
        assert!(report.contains(address), "{address} is not in {report}");
    }
    for (option, value) in
        [("max_bytes", 4_095_u32.into()), ("max_bytes", "all".into()), ("redact", 1_u32.into())]
    {
        let error = client.report(&QueryMap::from([(option, value)])).unwrap_err().to_string();
        assert!(error.contains(option), "{error}");
    }
    daemon.stop();
}

#[test]
fn flowctl_reports_with_a_daemon_without_one_and_without_a_bus() {
    let (_namespace, mut bus, daemon) = started();
    let flowctl = |bus: &Bus, options: &[&str]| {
        let mut flowctl = Command::new(binary("flowctl"));
        let output = flowctl
            .args(["--bus", &bus.address(), "report"])
            .args(options)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("flowbus report\n"), "{text}");
        assert!(text.lines().last().unwrap().starts_with("Summary"), "{text}");
        text
    };
    assert!(flowctl(&bus, &[]).contains("(IPv4 private 10: "));
    let totals = flowctl(&bus, &["--totals"]);
    assert!(totals.contains("interface tun7: ") && !totals.contains("(IPv4"), "{totals}");
    daemon.signal(Signal::STOP);
    assert!(flowctl(&bus, &[]).contains("flowbusd cannot be asked: no answer within 8 s"));
    daemon.signal(Signal::CONT);
    daemon.stop();
    assert!(flowctl(&bus, &[]).contains("flowbusd cannot be asked: it does not run"));
    bus.stop();
    assert!(flowctl(&bus, &[]).contains("flowbusd cannot be asked: there is no bus"));
}

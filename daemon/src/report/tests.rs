use std::net::IpAddr;

use ctnetlink::{Counters, Layer4, Status, Tuple};
use flowbus_interfaces::{EndReason, Owner, Time, TimeSource};

use super::*;

const NOW: u64 = 1_700_000_000_000_000;

fn state() -> DaemonState {
    DaemonState {
        version: "0.1.0",
        uptime_usec: 7_500_000_000,
        synchronized: true,
        attribution: "none",
        events_received: 1000,
        events_lost: 3,
        resyncs: 1,
        closed_capacity: 20_000,
        closed_evicted: 5,
        buffer_bytes: 16 << 20,
        kernel: KernelState {
            count: Some(131_072),
            maximum: Some(262_144),
            accounting: Some(true),
            timestamping: Some(false),
            events: Some(2),
            early_drop: Some(2),
            insert_failed: None,
            ..KernelState::default()
        },
    }
}

fn flow(id: u64, src: &str, dst: &str) -> Flow<'static> {
    let [src, dst]: [IpAddr; 2] = [src, dst].map(|address| address.parse().unwrap());
    let ports = |src, dst| Layer4::Ports { src, dst };
    let original = Tuple { src, dst, protocol: 6, layer4: ports(40000, 443), zone: 0 };
    let reply = Tuple { src: dst, dst: src, layer4: ports(443, 40000), ..original };
    Flow {
        state: Some("ESTABLISHED"),
        status: Some(Status::SEEN_REPLY | Status::ASSURED),
        mark: 0x040c_0100,
        start: Some(Time { usec: NOW - 192_000_000, source: TimeSource::Kernel }),
        original_counters: Some(Counters { packets: 9, bytes: 12_345 }),
        reply_counters: Some(Counters { packets: 9, bytes: 99 }),
        ..Flow::new(id, original, reply)
    }
}

fn closed(id: u64, src: &str, dst: &str) -> Flow<'static> {
    Flow {
        end: Some(Time { usec: NOW - 5_000_000, source: TimeSource::Event }),
        duration_usec: Some(187_000_000),
        end_reason: Some(EndReason::Destroyed),
        ..flow(id, src, dst)
    }
}

fn finished(report: &Report) -> String {
    report.finish(&state(), &SourceNames::default())
}

#[test]
fn a_report_has_the_state_then_the_flows_then_the_summary() {
    let id = "3f2a90b1c4d5e6f7".repeat(4);
    let owner = Owner { comm: Some("curl"), pid: Some(4242), container: Some(&id), ..Owner::default() };
    let options = ReportOptions { processes: true, ..ReportOptions::default() };
    let mut report = Report::new(options, NOW);
    let first = flow(1, "10.0.0.2", "198.18.1.2");
    report.add_active(&Flow {
        reply: Tuple {
            dst: "198.18.3.2".parse().unwrap(),
            layer4: Layer4::Ports { src: 443, dst: 1024 },
            ..first.reply
        },
        interface: Some("tun0"),
        initiator: Some(&owner),
        ..first
    });
    report.add_active(&Flow {
        status: Some(Status::empty()),
        state: None,
        start: Some(Time { usec: NOW - 1_000_000, source: TimeSource::Observed }),
        ..flow(2, "2001:2::1", "8.8.8.8")
    });
    report.add_closed(&closed(4, "10.0.0.2", "198.18.1.2"));
    report.add_closed(&Flow { end_reason: Some(EndReason::Resync), ..closed(3, "10.0.0.2", "10.0.0.3") });
    let expected = "\
flowbus report
time: 2023-11-14T22:13:20Z
Redacted: a token stands for the same address throughout this report, EPH for a port from 32768 up; byte counts have two \
digits.

Daemon:
  version: 0.1.0
  up: 2h5m
  synchronized: yes
  events: 1000 received, 3 lost
  resyncs: 1
  receive buffer: 16777216 bytes
  processes: none
  closed flows: at most 20000 remembered, 5 forgotten

Kernel:
  nf_conntrack_acct: on
  nf_conntrack_timestamp: off
  nf_conntrack_events: 2
  table: 131072 of 262144 (50%)
  early drops: 2
  insert failures: unknown

Flows by source, interface, container, protocol and state (active, closed):
  source CHROME: 2, 2
  interface tun0: 1, 0
  container 3f2a90b1c4d5: 1, 0
  protocol tcp: 2, 2
  state ESTABLISHED: 1, 2

Closed flows, latest last:
ended 5s ago after 3m7s (resync): tcp ESTABLISHED CHROME (IPv4 private 10: 1):EPH > (IPv4 private 10: 3):443, bytes 12k/99
ended 5s ago after 3m7s: tcp ESTABLISHED CHROME (IPv4 private 10: 1):EPH > (IPv4: 2):443, bytes 12k/99

Active flows, latest last:
since 3m12s: tcp ESTABLISHED CHROME (IPv4 private 10: 1):EPH > (IPv4: 2):443 from (IPv4: 4):1024 via tun0, bytes 12k/99, process curl
since >1s: tcp unreplied ipv6 CHROME (IPv6: 1):EPH > 8.8.8.8:443, bytes 12k/99

Summary: flowbusd 0.1.0 up 2h5m, synchronized, 3 events lost, 1 resyncs, kernel table 131072 of 262144 (50%); 2 active \
and 2 closed flows, of which 0 and 0 are left out above.
";
    assert_eq!(finished(&report), expected);
}

/// Every kind of address, in both directions, translated; the ids, uids, labels and contexts of a flow.
#[test]
fn nothing_that_identifies_is_in_a_report() {
    let addresses = [
        "198.18.7.11",
        "10.77.88.99",
        "172.20.33.44",
        "192.168.55.66",
        "127.9.8.7",
        "169.254.12.13",
        "224.9.8.7",
        "100.64.33.22",
        "203.0.113.77",
        "2001:2::abcd",
        "fe80::1234:5678:9abc:def0",
        "fd12:3456:789a::17",
        "ff02::1:ff12:3456",
        "::ffff:198.18.9.21",
        "64:ff9b::198.18.9.22",
        "2002:c612:922::1",
        "::198.18.9.23",
        "240.1.2.3",
        "0.1.2.3",
        "::1",
    ];
    let owner = Owner {
        pid: Some(424_242),
        comm: Some("secret-process"),
        leader_comm: Some("secret-leader"),
        uid: Some(313_131),
        unit: Some("secret.service"),
        cgroup: Some("/secret.slice"),
        container: Some("secret-container"),
        pod: Some("secret-pod"),
        exe: Some("/secret/program"),
        network_namespace: Some(4_026_555_555),
        opened: None,
        confidence: Some("exact"),
    };
    let mut report = Report::new(ReportOptions::default(), NOW);
    for (index, src) in addresses.iter().enumerate() {
        let dst = addresses[(index + 1) % addresses.len()];
        let nat: IpAddr = addresses[(index + 2) % addresses.len()].parse().unwrap();
        let plain = closed(987_654, src, dst);
        let secret = Flow {
            conntrack_id: Some(876_543_210),
            sequence: Some(765_432),
            reply: Tuple { src: nat, dst: nat, zone: 54321, ..plain.reply },
            mark: 0x7a69_0100,
            interface: Some("wlan0"),
            labels: Some(&[0xde, 0xad]),
            security_context: Some("secret_u"),
            initiator: Some(&owner),
            responder: Some(&owner),
            ..plain
        };
        report.add_closed(&secret);
        report.add_active(&Flow { end: None, end_reason: None, duration_usec: None, ..secret });
    }
    let text = finished(&report);
    let shown = text.split_once("Closed flows").unwrap().1.to_lowercase();
    for address in addresses {
        let address: IpAddr = address.parse().unwrap();
        for form in forms(address).into_iter().flat_map(|form| [form.to_uppercase(), form]) {
            // "1" is in counts: nobody's address. "::1" is everybody's.
            if form.len() > 3 {
                assert!(!shown.contains(&form), "{address} as {form}:\n{text}");
            }
        }
    }
    assert!(shown.contains(" [::1]:eph") && shown.contains(" via wlan0"), "{text}");
    for secret in [
        "secret",
        "987654",
        "876543210",
        "765432",
        "54321",
        "424242",
        "313131",
        "dead",
        "7a69",
        "31337",
        "2053701888",
        "40000",
        "1699999",
    ] {
        assert!(!shown.contains(secret), "{secret}:\n{text}");
    }
    assert!(text.contains("CHROME") && text.contains(":EPH"));
    // What root gets who asks for no redaction.
    let open = Report { options: ReportOptions { redact: false, ..report.options }, ..report };
    let text = finished(&open);
    let shown = |address: &&str| text.contains(&address.parse::<IpAddr>().unwrap().to_string());
    assert!(addresses.iter().all(shown), "{text}");
    assert!(text.contains("NOT redacted") && text.contains(":40000"));
}

/// The forms that redactors and people know, and those that redactors miss.
fn forms(address: IpAddr) -> Vec<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut forms = vec![address.to_string()];
    let mut inner = None;
    match address {
        IpAddr::V4(v4) => inner = Some(v4.octets()),
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            let full: Vec<_> = v6.segments().iter().map(|segment| format!("{segment:04x}")).collect();
            forms.extend([full.join(":"), hex(&octets)]);
            let mut reversed = octets;
            reversed.reverse();
            forms.push(hex(&reversed));
            if address.to_string().contains('.') || address.to_string().starts_with("64:ff9b::") {
                inner = octets.last_chunk().copied();
            }
        }
    }
    if let Some([a, b, c, d]) = inner {
        forms.extend([format!("{a}.{b}.{c}.{d}"), format!("{d}.{c}.{b}.{a}"), format!("{a}-{b}-{c}-{d}")]);
        forms.extend([
            hex(&[a, b, c, d]),
            hex(&[d, c, b, a]),
            format!("{a}.{b}.{c}."),
            format!("{b}.{c}.{d}"),
        ]);
        forms.extend(
            [u32::from_be_bytes([a, b, c, d]), u32::from_le_bytes([a, b, c, d])].map(|n| n.to_string()),
        );
    }
    forms
}

#[test]
fn a_report_is_cut_from_the_oldest_on_and_says_so() {
    for max_bytes in [ReportOptions::LEAST, 10_000, ReportOptions::MOST] {
        for redact in [true, false] {
            let mut report = Report::new(
                ReportOptions { max_bytes, redact, processes: true, ..ReportOptions::default() },
                NOW,
            );
            for id in 0..20_000_u32 {
                let address =
                    IpAddr::from((0x2001_0002_u128 << 96 | u128::from(id)).to_be_bytes()).to_string();
                let usec = NOW - u64::from(20_000 - id) * 1_000_000;
                let start = Some(Time { usec, source: TimeSource::Event });
                // Every kind there may be, so that the totals are as long as they get.
                let mark = (id % 64) << 8;
                let interface = format!("interface-{:05}", id % 500);
                let interface = Some(interface.as_str());
                let mut flow = Flow { mark, start, interface, ..flow(id.into(), &address, "198.18.0.1") };
                flow.original.protocol = (id % 256).to_le_bytes()[0];
                report.add_active(&flow);
                report.add_closed(&Flow { end: start, duration_usec: Some(1), ..flow });
            }
            let text = finished(&report);
            let sources = text.lines().filter(|line| line.starts_with("  source ")).count();
            assert!(sources == 64 || max_bytes == ReportOptions::LEAST && sources > 20, "{text}");
            assert!(text.len() <= max_bytes && text.len() > max_bytes - 500, "{} of {max_bytes}", text.len());
            let lines = |word: &str| text.lines().filter(|line| line.starts_with(word)).collect::<Vec<_>>();
            let (active, closed) = (lines("since "), lines("ended "));
            assert!(
                active.len().abs_diff(closed.len()) < active.len() / 4 + 2,
                "{} {}",
                active.len(),
                closed.len()
            );
            let summary =
                format!("{} and {} are left out above.\n", 20_000 - active.len(), 20_000 - closed.len());
            assert!(text.ends_with(&summary), "{text}");
            // Newest last: of the active ones that is the last added, of the closed ones the first.
            assert!(active.last().unwrap().starts_with("since 1s:"), "{active:?}");
            assert!(closed.last().unwrap().starts_with("ended 5h33m ago"), "{closed:?}");
        }
    }
}

#[test]
fn what_one_kind_of_flow_does_not_need_is_for_the_other() {
    let options = ReportOptions { max_bytes: 10_000, ..ReportOptions::default() };
    for only_closed in [false, true] {
        let mut report = Report::new(options, NOW);
        for id in 0..1000 {
            match only_closed {
                true => report.add_closed(&closed(id, "198.18.0.1", "198.18.0.2")),
                false => report.add_active(&flow(id, "198.18.0.1", "198.18.0.2")),
            }
        }
        let text = finished(&report);
        assert!(text.len() > 9_700 && text.len() <= 10_000, "{}", text.len());
    }
    let empty = finished(&Report::new(options, NOW));
    assert!(
        empty.contains("Closed flows, latest last:\n\nActive flows, latest last:\n\nSummary: "),
        "{empty}"
    );
}

#[test]
fn totals_alone_list_no_flow_and_count_all() {
    let mut report = Report::new(ReportOptions { flows: false, ..ReportOptions::default() }, NOW);
    for id in 0..1000 {
        report.add_closed(&closed(id, "198.18.0.1", "198.18.0.2"));
        report.add_active(&flow(id, "198.18.0.1", "198.18.0.2"));
    }
    let text = finished(&report);
    assert!(text.contains("\n  source CHROME: 1000, 1000\n"), "{text}");
    assert!(!text.contains("IPv4") && !text.contains(":443") && !text.contains("latest last"), "{text}");
    assert!(text.ends_with("1000 active and 1000 closed flows, which were not asked for.\n"), "{text}");
}

#[test]
fn flows_that_ended_earlier_are_passed_over() {
    let ended = |usec| Flow {
        end: Some(Time { usec, source: TimeSource::Event }),
        ..closed(1, "198.18.0.1", "198.18.0.2")
    };
    let mut report = Report::new(ReportOptions { since: NOW - 10, ..ReportOptions::default() }, NOW);
    report.add_active(&flow(2, "198.18.0.1", "198.18.0.2"));
    for usec in [NOW - 11, NOW - 10, NOW] {
        report.add_closed(&ended(usec));
    }
    let text = finished(&report);
    assert!(text.contains("\nflows since: 2023-11-14T22:13:19Z\n"), "{text}");
    assert!(text.contains("1 active and 2 closed flows, of which 0 and 0 are left out"), "{text}");
}

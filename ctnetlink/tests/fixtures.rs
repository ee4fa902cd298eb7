//! What the kernel sent (fixtures/README.md has the commands) decodes to what was done.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod common;

use std::net::IpAddr;

use common::{fixture, flow, flows, messages};
use ctnetlink::EventKind::{Destroy, New, Update};
use ctnetlink::{Counters, Layer4, Message, NLM_F_MULTI, ProtocolInfo, Status, Synproxy, Tuple, state_name};

/// When the fixtures were made or later, 2026-11-01, and before 2100: CLOCK_REALTIME.
const TIMES: std::ops::Range<u64> = 1_793_491_200_000_000_000..4_102_444_800_000_000_000;

fn tuple(src: &str, sport: u16, dst: &str, dport: u16, protocol: u8, zone: u16) -> Tuple {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let layer4 = Layer4::Ports { src: sport, dst: dport };
    Tuple { src: address(src), dst: address(dst), protocol, layer4, zone }
}

fn state(info: Option<ProtocolInfo>, protocol: u8) -> &'static str {
    state_name(protocol, info.expect("a CTA_PROTOINFO").state()).expect("a known state")
}

#[test]
fn no_fixture_has_an_attribute_that_is_not_known() {
    for (name, bytes) in common::FIXTURES {
        for (_, flow) in flows(bytes) {
            assert_eq!(flow.unknown_attributes, 0, "{name}");
        }
    }
}

#[test]
fn a_tcp_connection_is_new_then_goes_through_its_states_then_is_destroyed() {
    let flows = flows(fixture("tcp4-events"));
    let story: Vec<_> = flows.iter().map(|(kind, flow)| (*kind, state(flow.protocol_info, 6))).collect();
    assert_eq!(
        story,
        [
            (New, "SYN_SENT"),
            (Update, "SYN_RECV"),
            (Update, "ESTABLISHED"),
            (Update, "FIN_WAIT"),
            (Update, "LAST_ACK"),
            (Update, "TIME_WAIT"),
            (Destroy, "TIME_WAIT"),
        ]
    );
    for (_, flow) in &flows {
        assert_eq!(flow.original, tuple("198.18.0.1", 40001, "198.18.0.2", 80, 6, 0));
        assert_eq!(flow.reply, tuple("198.18.0.2", 80, "198.18.0.1", 40001, 6, 0));
        assert_eq!(flow.mark, Some(0x040c_0100));
        assert_eq!(flow.id, flows[0].1.id);
        assert!(TIMES.contains(&flow.event_nsec.unwrap()));
    }
}

#[test]
fn a_new_event_has_the_label_that_nft_set_and_no_counters_and_no_start() {
    let new = flow("tcp4-events", New, 6, 80);
    assert_eq!(new.status, Some(Status::CONFIRMED));
    assert_eq!(new.timeout, Some(120));
    // Bit 77 of 128, in native words; the fixtures are little-endian.
    assert_eq!(new.labels, Some(&(1u128 << 77).to_le_bytes()[..]));
    assert_eq!(
        (new.original_counters, new.reply_counters, new.start_nsec, new.use_count),
        (None, None, None, None)
    );
    let Some(ProtocolInfo::Tcp(tcp)) = new.protocol_info else { panic!("TCP") };
    assert_eq!((tcp.wscale_original, tcp.wscale_reply), (Some(10), Some(0)));
    assert_eq!(tcp.flags_original, Some((0x03, 0)));
}

#[test]
fn a_destroy_has_counters_and_both_times_and_the_tcp_state_alone() {
    let destroy = flow("tcp4-events", Destroy, 6, 80);
    assert!(destroy.status.unwrap().contains(Status::DYING | Status::ASSURED));
    assert_eq!(destroy.original_counters, Some(Counters { packets: 6, bytes: 325 }));
    assert_eq!(destroy.reply_counters, Some(Counters { packets: 4, bytes: 221 }));
    let (start, stop) = (destroy.start_nsec.unwrap(), destroy.stop_nsec.unwrap());
    assert!(TIMES.contains(&start) && start < stop && stop <= destroy.event_nsec.unwrap());
    let Some(ProtocolInfo::Tcp(tcp)) = destroy.protocol_info else { panic!("TCP") };
    assert_eq!((tcp.wscale_original, tcp.flags_original, tcp.flags_reply), (None, None, None));
    assert_eq!(destroy.labels, None);
}

#[test]
fn a_dump_of_an_established_connection_has_everything_and_ends_with_done() {
    let messages = messages(fixture("tcp4-established-dump"));
    let [Message::Flow(header, Update, flow), Message::Done(done, 0)] = &messages[..] else {
        panic!("{messages:?}")
    };
    assert_eq!((header.sequence, done.sequence), (0x2026_1121, 0x2026_1121));
    assert_eq!(header.flags & NLM_F_MULTI, NLM_F_MULTI);
    assert_eq!(flow.status, Some(Status::SEEN_REPLY | Status::ASSURED | Status::CONFIRMED));
    assert_eq!(flow.original_counters, Some(Counters { packets: 4, bytes: 221 }));
    assert_eq!(flow.use_count, Some(1));
    assert_eq!(state(flow.protocol_info, 6), "ESTABLISHED");
    assert!((431_990..=432_000).contains(&flow.timeout.unwrap()));
    assert!(TIMES.contains(&flow.start_nsec.unwrap()));
    assert_eq!((flow.stop_nsec, flow.event_nsec), (None, None));
}

#[test]
fn without_accounting_timestamps_and_mark_all_of_them_are_absent() {
    let flows = flows(fixture("udp4-plain-events"));
    assert_eq!(flows.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [New, Update, Destroy]);
    for (_, flow) in flows {
        assert_eq!(flow.original, tuple("198.18.0.1", 40010, "198.18.0.2", 7001, 17, 0));
        assert_eq!((flow.original_counters, flow.reply_counters), (None, None));
        assert_eq!((flow.start_nsec, flow.stop_nsec, flow.event_nsec, flow.mark), (None, None, None, None));
        assert_eq!(flow.protocol_info, None);
    }
}

#[test]
fn an_event_says_which_process_caused_it() {
    let headers: Vec<_> = messages(fixture("udp4-plain-events"))
        .into_iter()
        .map(|message| match message {
            Message::Flow(header, _, _) => header,
            other => panic!("{other:?}"),
        })
        .collect();
    // Packets made the first two; conntrack -F, which has a port, the last.
    assert_eq!((headers[0].port, headers[1].port), (0, 0));
    assert_ne!(headers[2].port, 0);
    assert_eq!(headers[0].sequence, 0);
}

#[test]
fn ipv6_addresses_and_ports_decode() {
    for (protocol, sport, dport) in [(6, 40002, 80), (17, 40011, 7001)] {
        let new = flow("tcp6-udp6-icmp-events", New, protocol, dport);
        assert_eq!(new.original, tuple("2001:2::1", sport, "2001:2::2", dport, protocol, 0));
        assert_eq!(new.reply, tuple("2001:2::2", dport, "2001:2::1", sport, protocol, 0));
    }
}

#[test]
fn icmp_and_icmpv6_have_type_code_and_id_in_both_directions() {
    for (protocol, request, answer, id, bytes) in [(1, 8, 0, 0x1234, 28), (58, 128, 129, 0x5678, 48)] {
        let flow = flow("tcp6-udp6-icmp-events", Destroy, protocol, 0);
        assert_eq!(flow.original.layer4, Layer4::Icmp { kind: request, code: 0, id });
        assert_eq!(flow.reply.layer4, Layer4::Icmp { kind: answer, code: 0, id });
        assert_eq!(flow.original_counters, Some(Counters { packets: 1, bytes }));
    }
}

#[test]
fn a_zone_belongs_to_both_directions_or_to_one() {
    for (port, original, reply) in [(7001, 7, 7), (7002, 8, 0), (7003, 0, 9)] {
        for kind in [New, Destroy] {
            let flow = flow("zones-events", kind, 17, port);
            assert_eq!((flow.original.zone, flow.reply.zone), (original, reply), "{port}");
        }
    }
}

#[test]
fn translation_shows_in_the_reply_tuple() {
    let snat = flow("nat-dump", Update, 17, 7001);
    assert_eq!(snat.original, tuple("198.18.0.1", 40031, "198.18.0.2", 7001, 17, 0));
    assert_eq!(snat.reply, tuple("198.18.0.2", 7001, "198.18.0.111", 50000, 17, 0));
    assert!(snat.status.unwrap().contains(Status::SRC_NAT));
    assert_eq!(snat.mark, Some(0), "a dump sends the mark 0");

    let dnat = flow("nat-dump", Update, 6, 8080);
    assert_eq!(dnat.original, tuple("198.18.0.1", 40030, "198.19.0.9", 8080, 6, 0));
    assert_eq!(dnat.reply, tuple("198.18.0.2", 80, "198.18.0.1", 40030, 6, 0));
    assert!(dnat.status.unwrap().contains(Status::DST_NAT));

    let icmp = flow("nat-dump", Update, 1, 0);
    assert_eq!(icmp.reply.dst, "198.18.0.111".parse::<IpAddr>().unwrap());
}

#[test]
fn ftp_through_nat_has_a_helper_sequence_adjustment_and_a_flow_with_a_master() {
    let control = flow("ftp-dump", Update, 6, 21);
    assert_eq!(control.helper, Some(&b"ftp"[..]));
    assert!(control.status.unwrap().contains(Status::HELPER | Status::SEQ_ADJUST));
    // PORT 198,18,0,1,... became PORT 198,18,0,111,...: two bytes more.
    let adjust = control.sequence_adjust_original.unwrap();
    assert_eq!((adjust.offset_before, adjust.offset_after), (0, 2));
    assert_ne!(adjust.correction_position, 0);
    assert_eq!(control.sequence_adjust_reply.unwrap().offset_after, 0);
    assert_eq!(control.master, None);

    for data in [flow("ftp-dump", Update, 6, 51210), flow("ftp-events", New, 6, 51210)] {
        assert!(data.status.unwrap().contains(Status::EXPECTED));
        assert_eq!(data.master, Some(control.original));
    }
    assert_eq!(flow("ftp-events", New, 6, 21).helper, Some(&b"ftp"[..]));
}

#[test]
fn synproxy_has_its_three_numbers() {
    let flow = flow("synproxy-dump", Update, 6, 8080);
    let Synproxy { isn, its, tsoff } = flow.synproxy.unwrap();
    assert!(isn != 0 && its != 0 && tsoff != 0);
}

#[test]
fn protocols_that_conntrack_inserted_have_their_own_tuples() {
    for (protocol, sport, dport) in [(47, 1000, 2000), (136, 1001, 2001), (132, 1002, 2002), (6, 1004, 2004)]
    {
        let flow = flow("inserted-dump", Update, protocol, dport);
        assert_eq!(flow.original, tuple("198.18.0.1", sport, "198.18.0.2", dport, protocol, 0));
        assert_eq!(flow.reply, tuple("198.18.0.2", dport, "198.18.0.1", sport, protocol, 0));
    }
    // Linux 6.18 no longer tracks DCCP: like any protocol without a tracker it has addresses alone.
    for protocol in [253, 33] {
        let flow = flow("inserted-dump", Update, protocol, 0);
        assert_eq!((flow.original.layer4, flow.reply.layer4), (Layer4::None, Layer4::None));
        assert_eq!(flow.protocol_info, None);
    }
}

#[test]
fn sctp_has_a_state_and_verification_tags() {
    let flow = flow("inserted-dump", Update, 132, 2002);
    assert_eq!(state(flow.protocol_info, 132), "ESTABLISHED");
    let Some(ProtocolInfo::Sctp(sctp)) = flow.protocol_info else { panic!("SCTP") };
    // conntrack 1.4.7 writes the numbers 11 and 22 in host order where the kernel has the packet's bytes.
    assert_eq!((sctp.vtag_original, sctp.vtag_reply), (Some(0x0b00_0000), Some(0x1600_0000)));
}

#[test]
fn a_fixed_timeout_and_a_mark_of_an_inserted_flow_are_seen() {
    let flow = flow("inserted-dump", Update, 6, 2004);
    assert!(flow.status.unwrap().contains(Status::FIXED_TIMEOUT | Status::ASSURED | Status::SEEN_REPLY));
    assert_eq!(flow.mark, Some(41));
    assert_eq!(state(flow.protocol_info, 6), "CLOSE_WAIT");
}

#[test]
fn an_empty_table_is_done_at_once() {
    assert!(matches!(messages(fixture("empty-dump"))[..], [Message::Done(_, 0)]));
}

#[test]
fn a_refused_request_is_an_error_with_its_number() {
    assert!(matches!(messages(fixture("error"))[..], [Message::Error(_, -22)]));
}

#[test]
fn statistics_say_how_full_the_table_is() {
    let messages = messages(fixture("stats"));
    let [Message::Stats(_, stats)] = messages[..] else { panic!("{messages:?}") };
    assert_eq!((stats.entries, stats.maximum), (6, Some(262_144)));
}

#[test]
fn cpu_statistics_come_one_message_a_cpu() {
    let messages = messages(fixture("cpu-stats"));
    let [Message::CpuStats(_, first), Message::CpuStats(_, second), Message::Done(_, 0)] = messages[..]
    else {
        panic!("{messages:?}")
    };
    assert_eq!((first.cpu, second.cpu), (0, 1));
    assert_eq!(first.insert + second.insert, 6, "the six flows of conntrack -I");
}

#[test]
fn an_expectation_has_its_master_and_how_it_is_translated() {
    let messages = messages(fixture("ftp-expectation-events"));
    let [Message::Expectation(_, new, made), Message::Expectation(_, destroy, gone)] = messages.as_slice()
    else {
        panic!("{messages:?}");
    };
    assert_eq!((*new, *destroy), (New, Destroy));
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    for expectation in [made, gone] {
        assert_eq!(
            (expectation.master.src, expectation.master.dst),
            (address("198.18.0.1"), address("198.18.0.2"))
        );
        assert_eq!(expectation.master.layer4, Layer4::Ports { src: 40_040, dst: 21 });
        // The server connects to where the client seems to be.
        assert_eq!(
            (expectation.tuple.src, expectation.tuple.dst),
            (address("198.18.0.2"), address("198.18.0.111"))
        );
        assert!(matches!(expectation.mask.layer4, Layer4::Ports { src: 0, dst: 0xffff }), "{expectation:?}");
        assert_eq!(
            (expectation.helper, expectation.function),
            (Some(&b"ftp"[..]), Some(&b"nat-follow-master"[..]))
        );
        let nat = expectation.nat.unwrap();
        assert!(nat.reply, "{nat:?}");
        // FTP follows the master, so that the port alone is kept.
        assert_eq!(nat.tuple.src, address("0.0.0.0"));
        assert!(matches!(nat.tuple.layer4, Layer4::Ports { src: 0xc80a, .. }), "{nat:?}");
        assert_eq!((expectation.class, expectation.unknown_attributes), (Some(0), 0));
        assert!(expectation.id.is_some() && expectation.timeout.is_some_and(|left| left <= 300));
    }
    assert_eq!(made.id, gone.id);
}

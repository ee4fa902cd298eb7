//! The table listed and changed on the real kernel, each test in a network namespace of its own. They need root: without it
//! they fail.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod namespace;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ctnetlink::{
    Conntrack, Deleted, End, EventKind, Expectation, ExpectationFlags, Family, Flow, FlowFilter, Groups,
    Layer4, Message, Network, ProtocolInfo, Received, RequestError, Socket, Status, TcpInfo, Tuple, Update,
    messages,
};
use namespace::in_namespace;

const ESTABLISHED: ProtocolInfo = ProtocolInfo::Tcp(TcpInfo {
    state: 3,
    wscale_original: Some(7),
    wscale_reply: Some(8),
    flags_original: None,
    flags_reply: None,
});

fn tuple(src: &str, dst: &str, protocol: u8, layer4: Layer4) -> Tuple {
    Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap(), protocol, layer4, zone: 0 }
}

fn inverted(tuple: &Tuple) -> Tuple {
    let layer4 = match tuple.layer4 {
        Layer4::Ports { src, dst } => Layer4::Ports { src: dst, dst: src },
        // Echo and its reply.
        Layer4::Icmp { kind: 8, code, id } => Layer4::Icmp { kind: 0, code, id },
        Layer4::Icmp { kind: 128, code, id } => Layer4::Icmp { kind: 129, code, id },
        other => other,
    };
    Tuple { src: tuple.dst, dst: tuple.src, layer4, ..*tuple }
}

fn flow(original: Tuple) -> Flow<'static> {
    let mut flow = Flow::new(original, inverted(&original));
    flow.timeout = Some(600);
    flow
}

/// A UDP flow from 198.18.0.1 to 198.18.0.2.
fn udp(src: u16, dst: u16) -> Flow<'static> {
    flow(tuple("198.18.0.1", "198.18.0.2", 17, Layer4::Ports { src, dst }))
}

fn tuples(table: &mut Conntrack) -> Vec<Tuple> {
    let mut tuples = Vec::new();
    table.dump(None, |flow| tuples.push(flow.original)).unwrap();
    tuples
}

#[test]
fn a_flow_of_every_kind_is_made_got_changed_and_ended() {
    in_namespace(|| {
        let mut table = Conntrack::open().unwrap();
        let ports = |src, dst| Layer4::Ports { src, dst };
        let kinds = [
            tuple("198.18.0.1", "198.18.0.2", 6, ports(40_000, 443)),
            tuple("2001:2::1", "2001:2::2", 6, ports(40_000, 443)),
            tuple("198.18.0.1", "198.18.0.2", 17, ports(40_000, 53)),
            tuple("198.18.0.1", "198.18.0.2", 1, Layer4::Icmp { kind: 8, code: 0, id: 77 }),
            tuple("2001:2::1", "2001:2::2", 58, Layer4::Icmp { kind: 128, code: 0, id: 77 }),
            tuple("198.18.0.1", "198.18.0.2", 47, ports(1, 2)),
            tuple("198.18.0.1", "198.18.0.2", 136, ports(5, 6)),
            tuple("198.18.0.1", "198.18.0.2", 253, Layer4::None),
            // The same tuple again, in a zone.
            Tuple { zone: 7, ..tuple("198.18.0.1", "198.18.0.2", 17, ports(40_000, 53)) },
        ];
        for original in kinds {
            let mut made = flow(original);
            made.mark = Some(0xff);
            made.status = Some(Status::SEEN_REPLY | Status::ASSURED);
            made.protocol_info = (original.protocol == 6).then_some(ESTABLISHED);
            table.create(&made).unwrap_or_else(|error| panic!("{made}: {error}"));
            assert_eq!(table.create(&made), Err(RequestError::Exists), "{made}");

            let got = table.get(&original).unwrap();
            assert_eq!((got.original, got.reply), (made.original, made.reply));
            assert_eq!((got.mark, got.timeout.is_some_and(|left| left > 500)), (Some(0xff), true), "{got}");
            assert!(got.status.unwrap().contains(Status::SEEN_REPLY | Status::ASSURED | Status::CONFIRMED));
            if original.protocol == 6 {
                assert!(got.to_string().starts_with("tcp 6 "), "{got}");
                assert!(got.to_string().contains(" ESTABLISHED src="), "{got}");
            }
            let (id, status) = (got.id.unwrap(), got.status.unwrap());

            // Only the masked bits of the mark change; everything else stays.
            table.update(&original, &Update { mark: Some((0xa5, 0xf0)), ..Update::default() }).unwrap();
            table.update(&original, &Update { timeout: Some(60), ..Update::default() }).unwrap();
            let fixed = Update { status: Some(status | Status::FIXED_TIMEOUT), ..Update::default() };
            table.update(&original, &fixed).unwrap();
            let got = table.get(&original).unwrap();
            assert_eq!(got.mark, Some(0xaf));
            assert!(got.timeout.is_some_and(|left| left <= 60), "{got}");
            assert!(got.status.unwrap().contains(Status::FIXED_TIMEOUT | Status::ASSURED));

            assert_eq!(table.delete(&original, Some(id ^ 1)), Err(RequestError::NotFound));
            assert_eq!(table.get(&original).unwrap().id, Some(id));
            table.delete(&original, Some(id)).unwrap();
            assert_eq!(table.get(&original), Err(RequestError::NotFound));
            assert_eq!(table.delete(&original, None), Err(RequestError::NotFound));
            assert_eq!(
                table.update(&original, &Update { timeout: Some(1), ..Update::default() }),
                Err(RequestError::NotFound)
            );
        }
        assert_eq!(tuples(&mut table), []);
    });
}

#[test]
fn a_change_that_the_kernel_does_not_take_is_told_by_its_errno_alone() {
    in_namespace(|| {
        let mut table = Conntrack::open().unwrap();
        table.create(&udp(1, 2)).unwrap();
        let update = Update { helper: Some(b"nosuchhelper"), ..Update::default() };
        let error = table.update(&udp(1, 2).original, &update).unwrap_err();
        assert_eq!(error.to_string(), "IPCTNL_MSG_CT_NEW: Operation not supported (os error 95)");
        // No rule used labels when the flow was made, so it has no room for them.
        let update = Update { labels: Some((&[1; 16], &[1; 16])), ..Update::default() };
        let error = table.update(&udp(1, 2).original, &update).unwrap_err();
        assert_eq!(error.to_string(), "IPCTNL_MSG_CT_NEW: No space left on device (os error 28)");
    });
}

#[test]
fn a_flush_takes_one_family_or_all() {
    in_namespace(|| {
        let mut table = Conntrack::open().unwrap();
        let v6 = flow(tuple("2001:2::1", "2001:2::2", 17, Layer4::Ports { src: 1, dst: 2 }));
        table.create(&udp(1, 2)).unwrap();
        table.create(&v6).unwrap();
        assert_eq!(table.stats().unwrap().entries, 2);
        table.flush(Some(Family::Ipv4)).unwrap();
        assert_eq!(tuples(&mut table), [v6.original]);
        table.create(&udp(1, 2)).unwrap();
        table.flush(None).unwrap();
        assert_eq!(tuples(&mut table), []);
        assert!(!table.cpu_stats().unwrap().is_empty());
    });
}

/// The kernel makes the id of the flow's place in memory: used again in another order, places change hands.
#[test]
fn a_tuple_that_was_used_again_is_gone_and_left_alone() {
    in_namespace(|| {
        let mut table = Conntrack::open().unwrap();
        let mut reused = 0;
        for round in 0..100 {
            let (a, b) = (udp(1, round), udp(2, round));
            for flow in [&a, &b] {
                table.create(flow).unwrap();
            }
            let ids = [&a, &b].map(|flow| table.get(&flow.original).unwrap().id);
            for flow in [&a, &b] {
                table.delete(&flow.original, None).unwrap();
            }
            // What was freed last is given away first.
            for flow in [&a, &b] {
                table.create(flow).unwrap();
            }
            for (flow, old) in [&a, &b].into_iter().zip(ids) {
                let new = table.get(&flow.original).unwrap().id;
                let ended = table.delete(&flow.original, old);
                assert_eq!(ended.is_ok(), new == old, "{ended:?}");
                if new != old {
                    assert_eq!(ended, Err(RequestError::NotFound));
                    assert_eq!(table.get(&flow.original).unwrap().id, new);
                    reused += 1;
                }
            }
            table.flush(None).unwrap();
        }
        assert!(reused > 0, "no tuple ever got another id");
    });
}

#[test]
fn what_a_filter_matches_ends_and_nothing_else() {
    in_namespace(|| {
        let mut table = Conntrack::open().unwrap();
        for port in 0..20 {
            table.create(&udp(1000 + port, port % 2)).unwrap();
            let ports = Layer4::Ports { src: 1000 + port, dst: 443 };
            let network = port % 4;
            table.create(&flow(tuple("2001:2::1", &format!("2001:2:{network}::2"), 17, ports))).unwrap();
        }
        let everything: BTreeSet<String> = tuples(&mut table).iter().map(Tuple::to_string).collect();
        assert_eq!(everything.len(), 40);
        assert_eq!(table.delete_matching(None, &[FlowFilter::default()]).unwrap(), Deleted::default());
        assert_eq!(table.delete_matching(None, &[]).unwrap(), Deleted::default());

        let network = Network::new("2001:2:1::".parse().unwrap(), 48).unwrap();
        let mut v6 = FlowFilter::default();
        v6.address(End::OriginalDestination, network).unwrap();
        let mut odd = FlowFilter::default();
        odd.protocol(17).unwrap();
        odd.port(End::OriginalDestination, 1).unwrap();
        odd.address(End::ReplyAny, "198.18.0.1".parse::<IpAddr>().unwrap()).unwrap();
        assert_eq!(table.delete_matching(Some(Family::Ipv4), std::slice::from_ref(&v6)).unwrap().matched, 0);
        let ended = table.delete_matching(None, &[v6, odd]).unwrap();
        assert_eq!(ended, Deleted { matched: 15, deleted: 15, gone: 0, failed: 0 });
        let left: BTreeSet<String> = tuples(&mut table).iter().map(Tuple::to_string).collect();
        let gone: Vec<_> = everything.difference(&left).collect();
        assert!(
            gone.iter().all(|line| line.contains(" dport=1") || line.contains("dst=2001:2:1::2")),
            "{gone:?}"
        );
        assert_eq!(left.len(), 25);
    });
}

#[test]
fn expectations_are_made_listed_and_taken_back_and_their_events_told() {
    in_namespace(|| {
        let mut table = Conntrack::open().unwrap();
        let events = Socket::open().unwrap();
        events.join(Groups::EXPECTATION_NEW | Groups::EXPECTATION_DESTROY).unwrap();
        let mut master = flow(tuple("198.18.0.1", "198.18.0.2", 6, Layer4::Ports { src: 40_000, dst: 21 }));
        master.protocol_info = Some(ESTABLISHED);
        master.helper = Some(b"ftp");
        table.create(&master).unwrap();
        // FTP expects one connection a flow.
        let mut second = flow(tuple("198.18.0.1", "198.18.0.2", 6, Layer4::Ports { src: 40_001, dst: 21 }));
        (second.protocol_info, second.helper) = (master.protocol_info, master.helper);
        table.create(&second).unwrap();
        assert_eq!(table.get(&master.original).unwrap().helper, Some(&b"ftp"[..]));

        let all = Layer4::Ports { src: 0xffff, dst: 0xffff };
        let made = Expectation {
            timeout: Some(300),
            helper: Some(b"ftp"),
            flags: Some(ExpectationFlags::PERMANENT),
            class: Some(0),
            ..Expectation::new(
                master.original,
                tuple("198.18.0.2", "198.18.0.1", 6, Layer4::Ports { src: 0, dst: 50_000 }),
                tuple("255.255.255.255", "255.255.255.255", 6, Layer4::Ports { src: 0, dst: 0xffff }),
            )
        };
        table.create_expectation(&made).unwrap();
        let other = Expectation {
            master: second.original,
            tuple: tuple("198.18.0.2", "198.18.0.1", 6, Layer4::Ports { src: 7, dst: 50_001 }),
            mask: Tuple { layer4: all, ..made.mask },
            ..made.clone()
        };
        table.create_expectation(&other).unwrap();
        let strange = Expectation {
            master: udp(9, 9).original,
            tuple: tuple("198.18.0.2", "198.18.0.1", 6, Layer4::Ports { src: 0, dst: 50_002 }),
            ..made.clone()
        };
        assert_eq!(table.create_expectation(&strange), Err(RequestError::NotFound));

        let mut listed = Vec::new();
        table
            .expectations(None, |found| {
                assert!([master.original, second.original].contains(&found.master), "{found:?}");
                assert_eq!(found.mask.src, made.mask.src);
                assert_eq!((found.helper, found.unknown_attributes), (Some(&b"ftp"[..]), 0));
                assert_eq!(found.flags, Some(ExpectationFlags::PERMANENT));
                assert!(found.timeout.is_some_and(|left| (200..=300).contains(&left)), "{found:?}");
                listed.push((found.tuple, found.id));
            })
            .unwrap();
        listed.sort_by_key(|(tuple, _)| tuple.to_string());
        assert_eq!(listed.iter().map(|(tuple, _)| *tuple).collect::<Vec<_>>(), [made.tuple, other.tuple]);

        let (first, id) = listed[0];
        let wrong = table.delete_expectation(&first, id.map(|id| id ^ 1));
        assert_eq!(wrong, Err(RequestError::NotFound));
        table.delete_expectation(&first, id).unwrap();
        assert_eq!(table.delete_expectation(&first, id), Err(RequestError::NotFound));
        table.flush_expectations().unwrap();
        table.expectations(None, |found| panic!("{found:?}")).unwrap();

        let mut told = Vec::new();
        let mut buffer = vec![0; 65_536];
        while let Received::Datagram(length) = events.receive(&mut buffer).unwrap() {
            for message in messages(&buffer[..length]) {
                match message.unwrap() {
                    Message::Expectation(_, kind, expectation) => told.push((kind, expectation.tuple)),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(
            told,
            [
                (EventKind::New, made.tuple),
                (EventKind::New, other.tuple),
                (EventKind::Destroy, made.tuple),
                (EventKind::Destroy, other.tuple),
            ]
        );
    });
}

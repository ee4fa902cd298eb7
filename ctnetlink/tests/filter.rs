//! Filters of programs: what they refuse, and that nothing is matched by mistake.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::net::IpAddr;

use ctnetlink::{End, FilterError, Flow, FlowFilter, Layer4, Network, Status, Tuple};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn flow(src: &str, dst: &str) -> Flow<'static> {
    let original = Tuple {
        src: address(src),
        dst: address(dst),
        protocol: 6,
        layer4: Layer4::Ports { src: 40_000, dst: 443 },
        zone: 3,
    };
    let reply = Tuple {
        src: address(dst),
        dst: address(src),
        layer4: Layer4::Ports { src: 443, dst: 1 },
        ..original
    };
    Flow { mark: Some(0x040c_0100), status: Some(Status::ASSURED), ..Flow::new(original, reply) }
}

#[test]
fn an_empty_filter_matches_nothing() {
    assert!(!FlowFilter::default().matches(&flow("198.18.0.1", "198.18.0.2")));
}

#[test]
fn a_repeated_condition_is_an_error_and_the_first_stays() {
    let mut filter = FlowFilter::default();
    filter.protocol(6).unwrap();
    filter.address(End::OriginalSource, address("198.18.0.1")).unwrap();
    filter.port(End::OriginalDestination, 443).unwrap();
    filter.zone(3).unwrap();
    let first = filter.clone();
    assert_eq!(filter.protocol(17), Err(FilterError::Repeated("the protocol")));
    assert_eq!(filter.zone(4), Err(FilterError::Repeated("the zone")));
    assert!(filter.address(End::OriginalSource, address("198.18.0.2")).is_err());
    assert!(filter.port(End::OriginalDestination, 80).is_err());
    assert_eq!(filter, first);
    assert!(filter.matches(&flow("198.18.0.1", "198.18.0.2")));
}

#[test]
fn ports_need_a_protocol_that_has_them() {
    for protocol in [1, 47, 58, 253] {
        let mut filter = FlowFilter::default();
        filter.protocol(protocol).unwrap();
        assert_eq!(filter.port(End::OriginalSource, 1), Err(FilterError::NoPorts), "{protocol}");
    }
    assert_eq!(FlowFilter::default().port(End::OriginalSource, 1), Err(FilterError::NoPorts));
}

#[test]
fn networks_have_their_own_addresses_only() {
    let contains = |network: &str, prefix, inside: &str| {
        Network::new(address(network), prefix).unwrap().contains(address(inside))
    };
    assert!(contains("198.18.0.0", 15, "198.19.255.255") && !contains("198.18.0.0", 15, "198.20.0.0"));
    assert!(contains("2001:2::", 48, "2001:2::ffff") && !contains("2001:2::", 48, "2001:2:1::"));
    assert!(contains("0.0.0.0", 0, "255.0.0.1") && contains("::", 0, "ffff::"));
    assert!(!contains("0.0.0.0", 0, "::") && !contains("::", 0, "0.0.0.0"));
    assert!(contains("198.18.0.1", 32, "198.18.0.1") && !contains("2001:2::1", 128, "2001:2::2"));
    assert!(Network::new(address("198.18.0.1"), 33).is_err() && Network::new(address("::"), 129).is_err());
}

#[test]
fn every_condition_has_to_hold() {
    let seen = flow("198.18.0.1", "198.18.0.2");
    let matches = |build: &dyn Fn(&mut FlowFilter)| {
        let mut filter = FlowFilter::default();
        build(&mut filter);
        filter.matches(&seen)
    };
    assert!(matches(&|filter| filter.mark(0x0100, 0x3f00).unwrap()));
    assert!(!matches(&|filter| filter.mark(0x0200, 0x3f00).unwrap()));
    assert!(matches(&|filter| filter.status(Status::ASSURED, Status::DYING).unwrap()));
    assert!(!matches(&|filter| filter.status(Status::empty(), Status::ASSURED).unwrap()));
    assert!(!matches(&|filter| filter.labels(1).unwrap()));
    assert!(matches(&|filter| filter.address(End::ReplyAny, address("198.18.0.2")).unwrap()));
    assert!(!matches(&|filter| filter.address(End::ReplySource, address("198.18.0.1")).unwrap()));
    assert!(!matches(&|filter| {
        filter.zone(3).unwrap();
        filter.protocol(17).unwrap();
    }));
    assert!(matches(&|filter| {
        filter.protocol(6).unwrap();
        filter.port(End::ReplyDestination, 1).unwrap();
    }));
}

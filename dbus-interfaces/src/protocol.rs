//! Names of IP protocols beyond those that conntrack names, as /etc/protocols has them: the same wherever a query is read.

use ctnetlink::protocol_name;

/// The first name of a number is the one that is shown.
const NAMES: &[(u8, &str)] = &[
    (0, "ip"),
    (0, "hopopt"),
    (2, "igmp"),
    (3, "ggp"),
    (4, "ipencap"),
    (4, "ip-encap"),
    (5, "st"),
    (8, "egp"),
    (9, "igp"),
    (12, "pup"),
    (20, "hmp"),
    (22, "xns-idp"),
    (27, "rdp"),
    (29, "iso-tp4"),
    (36, "xtp"),
    (37, "ddp"),
    (38, "idpr-cmtp"),
    (41, "ipv6"),
    (43, "ipv6-route"),
    (44, "ipv6-frag"),
    (45, "idrp"),
    (46, "rsvp"),
    (50, "esp"),
    (50, "ipsec-esp"),
    (51, "ah"),
    (51, "ipsec-ah"),
    (57, "skip"),
    (58, "ipv6-icmp"),
    (59, "ipv6-nonxt"),
    (60, "ipv6-opts"),
    (73, "rspf"),
    (73, "cphb"),
    (81, "vmtp"),
    (88, "eigrp"),
    (89, "ospf"),
    (89, "ospfigp"),
    (93, "ax.25"),
    (94, "ipip"),
    (97, "etherip"),
    (98, "encap"),
    (103, "pim"),
    (108, "ipcomp"),
    (112, "vrrp"),
    (115, "l2tp"),
    (124, "isis"),
    (133, "fc"),
    (135, "mobility-header"),
    (137, "mpls-in-ip"),
    (138, "manet"),
    (139, "hip"),
    (140, "shim6"),
    (141, "wesp"),
    (142, "rohc"),
    (143, "ethernet"),
];

/// The number of a name of /etc/protocols or of conntrack, without regard to case.
pub fn protocol_number(name: &str) -> Option<u8> {
    let known = ctnetlink::PROTOCOLS.iter().chain(NAMES);
    known.clone().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|&(number, _)| number)
}

/// The name that people know a protocol by: conntrack's, else that of /etc/protocols.
pub fn protocol_title(number: u8) -> Option<&'static str> {
    protocol_name(number).or_else(|| NAMES.iter().find(|(known, _)| *known == number).map(|&(_, name)| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_has_names_and_one_that_is_shown() {
        for (name, number) in
            [("esp", 50), ("ESP", 50), ("ipsec-esp", 50), ("igmp", 2), ("ospf", 89), ("tcp", 6)]
        {
            assert_eq!(protocol_number(name), Some(number), "{name}");
        }
        assert_eq!(protocol_number("esq"), None);
        let titles = [50, 2, 89, 58, 6, 253].map(protocol_title);
        assert_eq!(titles, [Some("esp"), Some("igmp"), Some("ospf"), Some("icmpv6"), Some("tcp"), None]);
    }
}

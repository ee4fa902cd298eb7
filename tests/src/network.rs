//! Three namespaces in a row, client, router and server, and the router's rules: NAT, marks and zones by destination port.

use std::net::{IpAddr, SocketAddr};

use crate::Namespace;
use crate::traffic::{TcpService, UdpService};

/// A port that is forwarded as it is, with mark 0.
pub const PLAIN: u16 = 7000;
/// Marked 0x040C0100: source CHROME, routing table 1036, which is the interface [`UPLINK`].
pub const CHROME: u16 = 7001;
/// Marked 0x00002900: a source that nobody has named.
pub const UNKNOWN_SOURCE: u16 = 7002;
/// Marked 0x0000A160 when the flow is new: CROSTINI_VM, VPN route, QoS network-control.
pub const CROSTINI: u16 = 7003;
/// Marked 0x00000200 (USER) only by the second packet of the original direction.
pub const LATE_MARK: u16 = 7004;
/// A port whose flows leave behind the router's own address and a random port or ICMP identifier.
pub const MASQUERADED: u16 = 7100;
/// A port of the router's address that leads to [`PLAIN`] of the server.
pub const REDIRECTED: u16 = 7200;
/// A port of the router's address that leads to [`PLAIN`] of the server, and behind the router's address and a random port.
pub const BOTH_NAT: u16 = 7300;
/// A port whose flows are in zone 7, both directions.
pub const ZONED: u16 = 7900;
/// A port whose flows are in zone 9, original direction only.
pub const ORIGINAL_ZONED: u16 = 7901;

/// The interface of the router with index 36, the routing table of [`CHROME`].
pub const UPLINK: &str = "wlan0";

/// The router's address on the client's side.
pub const ROUTER_V4: &str = "198.18.0.1";
/// The router's IPv6 address on the client's side.
pub const ROUTER_V6: &str = "2001:2:0:1::1";
/// The server's address.
pub const SERVER_V4: &str = "198.18.1.2";
/// The server's IPv6 address.
pub const SERVER_V6: &str = "2001:2:0:2::2";
/// A second address of the server: echo requests to it leave behind the router's address and a random identifier.
pub const MASQUERADED_SERVER_V4: &str = "198.18.1.3";

const RULES: &str = r"
table inet network {
    chain zones {
        type filter hook prerouting priority raw;
        udp dport 7900 ct zone set 7
        udp sport 7900 ct zone set 7
        udp dport 7901 ct original zone set 9
    }
    chain marks {
        type filter hook prerouting priority mangle;
        meta l4proto { tcp, udp } th dport 7001 ct mark set 0x040c0100
        meta l4proto { tcp, udp } th dport 7002 ct mark set 0x00002900
        meta l4proto { tcp, udp } th dport 7003 ct state new ct mark set 0x0000a160
        ct state established meta l4proto { tcp, udp } th dport 7004 ct direction original ct mark set 0x00000200
        meta l4proto { icmp, icmpv6 } ct state new ct mark set 0x00000400
    }
    chain destination {
        type nat hook prerouting priority dstnat;
        ip daddr 198.18.0.1 meta l4proto { tcp, udp } th dport { 7200, 7300 } dnat ip to 198.18.1.2:7000
        ip6 daddr 2001:2:0:1::1 meta l4proto { tcp, udp } th dport { 7200, 7300 } dnat ip6 to [2001:2:0:2::2]:7000
    }
    chain source {
        type nat hook postrouting priority srcnat;
        meta l4proto { tcp, udp } th dport 7100 masquerade fully-random
        meta l4proto { tcp, udp } ct original proto-dst 7300 masquerade fully-random
        ip daddr 198.18.1.3 icmp type echo-request masquerade fully-random
    }
}
";

/// The three namespaces, connected.
#[derive(Debug)]
pub struct Network {
    /// Where connections are opened.
    pub client: Namespace,
    /// Where connections are tracked, and so where flowbusd runs.
    pub router: Namespace,
    /// Where connections are answered.
    pub server: Namespace,
}

impl Network {
    /// Makes the network; the router keeps counters and times of its flows.
    ///
    /// # Panics
    /// Without root's privileges.
    #[must_use]
    pub fn new() -> Self {
        let network = Self {
            client: Namespace::new("client"),
            router: Namespace::new("router"),
            server: Namespace::new("server"),
        };
        let (client, router, server) = (&network.client, &network.router, &network.server);
        for (host, number) in [(client, 1), (server, 2)] {
            let (v4, v6) = (format!("198.18.{}", number - 1), format!("2001:2:0:{number}:"));
            router.run(&format!("ip link add down{number} type veth peer name up0 netns {}", host.path()));
            router.run(&format!("ip link set down{number} up"));
            router.run(&format!("ip address add {v4}.1/24 dev down{number}"));
            router.run(&format!("ip address add {v6}:1/64 dev down{number} nodad"));
            host.run("ip link set up0 up");
            host.run(&format!("ip address add {v4}.2/24 dev up0"));
            host.run(&format!("ip address add {v6}:2/64 dev up0 nodad"));
            host.run(&format!("ip route add default via {v4}.1"));
            host.run(&format!("ip -6 route add default via {v6}:1"));
        }
        server.run(&format!("ip address add {MASQUERADED_SERVER_V4}/24 dev up0"));
        router.run(&format!("ip link add {UPLINK} index 36 type veth peer name {UPLINK}-far"));
        router.sysctl("net.ipv4.ip_forward", "1");
        router.sysctl("net.ipv6.conf.all.forwarding", "1");
        router.track_counters_and_times();
        // What no longer speaks must not end by itself while a test compares: a test ends what it wants to be over.
        for timeout in ["icmp_timeout", "icmpv6_timeout", "udp_timeout", "udp_timeout_stream"] {
            router.sysctl(&format!("net.netfilter.nf_conntrack_{timeout}"), "600");
        }
        // The last packets of a connection whose flow a test has deleted must not make a flow again.
        router.sysctl("net.netfilter.nf_conntrack_tcp_loose", "0");
        router.nft(RULES);
        network
    }

    /// Listens for TCP on the server, on an address of it.
    ///
    /// # Panics
    /// If the port is taken.
    #[must_use]
    pub fn tcp_service(&self, address: &str, port: u16) -> TcpService {
        TcpService::listen(&self.server, socket_address(address, port))
    }

    /// Binds a UDP socket on the server, on an address of it.
    ///
    /// # Panics
    /// If the port is taken.
    #[must_use]
    pub fn udp_service(&self, address: &str, port: u16) -> UdpService {
        UdpService::bind(&self.server, socket_address(address, port))
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

/// An address of this network with a port.
///
/// # Panics
/// If it is not an address.
#[must_use]
pub fn socket_address(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip_address(address), port)
}

/// An address of this network.
///
/// # Panics
/// If it is not an address.
#[must_use]
pub fn ip_address(address: &str) -> IpAddr {
    address.parse().unwrap_or_else(|error| panic!("{address:?}: {error}"))
}

//! The vocabulary of queries: one list of keys for D-Bus, streams and the options of `flowctl`.

use std::fmt;

/// What a query's key is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryPart {
    /// Which flows: listings and streams take it.
    Filter,
    /// What is shown of the flows: listings and streams take it.
    Answer,
    /// Which part of a listing: only listings take it, but for `after`, with which a stream is resumed.
    Page,
    /// What a stream sends: only streams take it.
    Stream,
}

/// Makes [`QueryKey`] and everything known of each key from one table, so that no two lists can disagree.
macro_rules! query_keys {
    ($($key:ident $name:literal $part:ident $takes:literal $description:literal)*) => {
        /// A key of a query.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum QueryKey {
            $(#[doc = concat!("`", $name, "`: ", $description, " Takes ", $takes, ".")] $key,)*
        }

        impl QueryKey {
            /// Every key.
            pub const ALL: &'static [Self] = &[$(Self::$key),*];

            /// The name on the wire, snake_case.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$key => $name,)* }
            }

            /// What the key is about.
            pub const fn part(self) -> QueryPart {
                match self { $(Self::$key => QueryPart::$part,)* }
            }

            /// What the key takes, in words.
            pub const fn takes(self) -> &'static str {
                match self { $(Self::$key => $takes,)* }
            }

            /// What the key means, in one sentence.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$key => $description,)* }
            }

            /// The key of this name, which is matched exactly.
            pub fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$key),)* _ => None }
            }
        }
    };
}

query_keys! {
    Family "family" Filter "ipv4 or ipv6" "The address family."
    Protocol "protocol" Filter
        "tcp, udp, icmp, icmpv6, sctp, dccp, gre, udplite, another name of /etc/protocols such as esp, or a number from 0 to 255" "The IP protocol."
    Src "src" Filter "an address or CIDR" "Source address of the original direction."
    Dst "dst" Filter "an address or CIDR" "Destination address of the original direction."
    ReplySrc "reply_src" Filter "an address or CIDR" "Source address of the reply direction."
    ReplyDst "reply_dst" Filter "an address or CIDR" "Destination address of the reply direction."
    NatSrc "nat_src" Filter "an address or CIDR" "Source address after translation, where the source is translated."
    NatDst "nat_dst" Filter "an address or CIDR"
        "Destination address after translation, where the destination is translated."
    Address "address" Filter "an address or CIDR" "Any of src, dst, reply_src and reply_dst."
    Sport "sport" Filter "a port from 0 to 65535 or a range \"low-high\"" "Source port of the original direction."
    Dport "dport" Filter "a port from 0 to 65535 or a range \"low-high\"" "Destination port of the original direction."
    ReplySport "reply_sport" Filter "a port from 0 to 65535 or a range \"low-high\"" "Source port of the reply direction."
    ReplyDport "reply_dport" Filter "a port from 0 to 65535 or a range \"low-high\""
        "Destination port of the reply direction."
    NatSport "nat_sport" Filter "a port from 0 to 65535 or a range \"low-high\""
        "Source port after translation, where the source is translated."
    NatDport "nat_dport" Filter "a port from 0 to 65535 or a range \"low-high\""
        "Destination port after translation, where the destination is translated."
    Port "port" Filter "a port from 0 to 65535 or a range \"low-high\"" "Any of sport, dport, reply_sport and reply_dport."
    IcmpType "icmp_type" Filter "an integer from 0 to 255" "ICMP type of the original direction."
    IcmpCode "icmp_code" Filter "an integer from 0 to 255" "ICMP code of the original direction."
    IcmpId "icmp_id" Filter "an integer from 0 to 65535" "ICMP identifier of the original direction."
    Nat "nat" Filter "source, destination, any or none" "What is translated."
    Mark "mark" Filter "a number from 0 to 4294967295 or \"value/mask\", decimal or after 0x, the value within the mask"
        "The connection mark, as far as the mask goes."
    Source "source" Filter "the name of a traffic source, or its number from 0 to 63" "Traffic source of the mark."
    Vpn "vpn" Filter "none, route, bypass or route+bypass"
        "VPN intent of the mark: none for flows of a Chromebook, where `interface` says which network a flow uses."
    Qos "qos" Filter
        "default, realtime-interactive, multimedia-conferencing, network-control, webrtc or a number from 0 to 7"
        "QoS category of the mark. Nothing sets webrtc today."
    RoutingTable "routing_table" Filter "an integer from 1000 to 65535" "Routing table of the mark."
    Interface "interface" Filter "the name of a network interface, 1 to 15 bytes"
        "The network interface of the mark's routing table."
    Zone "zone" Filter "an integer from 0 to 65535" "Conntrack zone of both directions; 0 is the default zone."
    OrigZone "orig_zone" Filter "an integer from 0 to 65535"
        "Conntrack zone of the original direction, whatever the reply has."
    ReplyZone "reply_zone" Filter "an integer from 0 to 65535"
        "Conntrack zone of the reply direction, whatever the original has."
    State "state" Filter
        "a state of TCP, SCTP or DCCP as conntrack prints it, such as ESTABLISHED, or for other protocols UNREPLIED, REPLIED \
         or ASSURED"
        "The protocol's state, or what is known of replies where the protocol has no states."
    Status "status" Filter
        "a status bit: expected, seen-reply, assured, confirmed, src-nat, dst-nat, \
         seq-adjust, src-nat-done, dst-nat-done, dying, fixed-timeout, template, nat-clash, helper, offload, hw-offload"
        "A status bit that is set."
    Helper "helper" Filter "the name of a helper, 1 to 15 bytes" "Connection tracking helper."
    Labels "labels" Filter
        "a label's number from 0 to 127, or a mask after 0x of labels of which the flow must have all"
        "Connection labels, counted from the lowest bit."
    Id "id" Filter "an integer from 0 to 18446744073709551615" "The flow's number."
    ConntrackId "conntrack_id" Filter "an integer from 0 to 4294967295" "The kernel's CTA_ID."
    Pid "pid" Filter "an integer from 0 to 4294967295" "Process at either end."
    Comm "comm" Filter "the name of a process, 1 to 15 bytes" "Name of the process at either end, or of its thread."
    Uid "uid" Filter "an integer from 0 to 4294967295" "User at either end."
    Unit "unit" Filter "the name of a systemd unit, 1 to 255 bytes" "systemd unit at either end."
    Container "container" Filter "the id of a container, or the first of its 64 hexadecimal digits, 1 to 255 bytes"
        "Container at either end."
    Pod "pod" Filter "the uid of a Kubernetes pod, 1 to 255 bytes" "Kubernetes pod at either end."
    Exe "exe" Filter "the path of a program, 1 to 255 bytes" "Program at either end, as the owner's `exe` has it."
    MinBytes "min_bytes" Filter "an integer from 0 to 18446744073709551615"
        "Minimum bytes of both directions together (with accounting)."
    Since "since" Filter "microseconds since 1970, an integer from 0 to 18446744073709551615"
        "Active at this time or later."
    Until "until" Filter "microseconds since 1970, from since to 18446744073709551615"
        "Started or first seen by this time."
    Fields "fields" Answer "names of fields, at least one" "Which fields of each flow are shown."
    Refresh "refresh" Answer "true or false" "Bring counters up to date by a dump first, at most one a second."
    After "after" Page "an integer from 0 to 18446744073709551615" "Where the page begins: the next of the page before."
    Limit "limit" Page "an integer from 1 to 1000" "The most flows of a page."
    Snapshot "snapshot" Stream "true or false" "Send the active flows."
    Follow "follow" Stream "true or false" "Continue with every change."
    Closed "closed" Stream "true or false" "Send the flows that ended first."
    Epoch "epoch" Stream "the epoch of a stream before, 32 hexadecimal digits"
        "Resume that stream, with `after`, the number of its last change, and `closed` true: the flows that ended since come \
         first, and a gap says how many are forgotten. In another epoch, or if that change is later than the table's, both are ignored."
    Connections "connections" Stream "true or false" "Send what sockets do: connect, accept, close, connect-failed."
    Expectations "expectations" Stream "true or false" "Send events of expectations."
    Events "events" Stream "new, update or destroy, or none" "Which changes are sent."
}

impl QueryKey {
    /// Whether streams take the key.
    pub fn is_of_streams(self) -> bool {
        self == Self::After || self.part() != QueryPart::Page
    }

    /// The keys of a flow's owners.
    pub(super) const OF_OWNERS: [Self; 7] =
        [Self::Pid, Self::Comm, Self::Uid, Self::Unit, Self::Container, Self::Pod, Self::Exe];
}

impl fmt::Display for QueryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

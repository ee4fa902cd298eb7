//! The vocabulary of a flow: one list of keys for D-Bus dictionaries, JSON lines, queries and `flowctl --fields`.

use std::fmt;

/// Makes [`Key`] and everything known of each key from one table, so that no two lists can disagree.
macro_rules! keys {
    ($($key:ident $name:literal $signature:literal $description:literal)*) => {
        /// A key of a flow's dictionary, in the order in which a flow shows them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Key {
            $(#[doc = concat!("`", $name, "`, `", $signature, "`: ", $description)] $key,)*
        }

        impl Key {
            /// Every key, in order.
            pub const ALL: &'static [Self] = &[$(Self::$key),*];

            /// The name on the wire, snake_case.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$key => $name,)* }
            }

            /// The D-Bus signature of the value.
            pub const fn signature(self) -> &'static str {
                match self { $(Self::$key => $signature,)* }
            }

            /// What the value means, in one sentence.
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

keys! {
    Event "event" "s" "What happened: new, update or destroy (events only)."
    Sequence "sequence" "t" "The number of the change: of an event its own, of a closed flow that of its end."
    EventUsec "event_usec" "t" "When the change was, CLOCK_REALTIME microseconds: the kernel's stamp where it gives one, else when flowbusd received it (events only)."
    Id "id" "t" "The flow's number, never reused within an epoch."
    ConntrackId "conntrack_id" "u" "The kernel's CTA_ID, which a later flow can have again."
    Family "family" "s" "ipv4 or ipv6."
    Protocol "protocol" "s" "tcp, udp, icmp, icmpv6, sctp, dccp, gre, udplite, else the number."
    ProtocolNumber "protocol_number" "y" "The IP protocol number."
    Src "src" "s" "Source address of the original direction."
    Sport "sport" "q" "Source port of the original direction (for GRE the key)."
    Dst "dst" "s" "Destination address of the original direction."
    Dport "dport" "q" "Destination port of the original direction (for GRE the key)."
    ReplySrc "reply_src" "s" "Source address of the reply direction."
    ReplySport "reply_sport" "q" "Source port of the reply direction."
    ReplyDst "reply_dst" "s" "Destination address of the reply direction."
    ReplyDport "reply_dport" "q" "Destination port of the reply direction."
    NatSrc "nat_src" "s" "The source address after translation, where the source is translated."
    NatSport "nat_sport" "q" "The source port after translation, where the source is translated."
    NatDst "nat_dst" "s" "The destination address after translation, where the destination is translated."
    NatDport "nat_dport" "q" "The destination port after translation, where the destination is translated."
    IcmpType "icmp_type" "y" "ICMP type of the original direction."
    IcmpCode "icmp_code" "y" "ICMP code of the original direction."
    IcmpId "icmp_id" "q" "ICMP identifier of the original direction."
    ReplyIcmpType "reply_icmp_type" "y" "ICMP type of the reply direction."
    ReplyIcmpCode "reply_icmp_code" "y" "ICMP code of the reply direction."
    ReplyIcmpId "reply_icmp_id" "q" "ICMP identifier of the reply direction."
    Zone "zone" "q" "Conntrack zone of both directions."
    OrigZone "orig_zone" "q" "Conntrack zone of the original direction, where the reply has another."
    ReplyZone "reply_zone" "q" "Conntrack zone of the reply direction, where the original has another."
    State "state" "s" "The protocol's state as conntrack prints it, such as SYN_SENT."
    Status "status" "as" "The kernel's status bits by name, such as seen-reply and assured."
    Timeout "timeout" "u" "Seconds until the flow ends without traffic, as last reported, not counted down."
    Use "use" "u" "The kernel's reference count."
    Mark "mark" "u" "The connection mark; 0 is a value."
    Source "source" "s" "Traffic source of the mark by name; UNKNOWN for 0, 0x29 for one without a name."
    SourceId "source_id" "y" "Traffic source of the mark by number, 0 to 63."
    Vpn "vpn" "s" "VPN intent of the mark: none, route, bypass or route+bypass. patchpanel keeps it on packets alone, so it is none for flows of a Chromebook: `interface` says which network a flow uses."
    Qos "qos" "s" "QoS category of the mark by name, or 0x5 for one without a name. Nothing sets webrtc today."
    RoutingTable "routing_table" "q" "Routing table of the mark; absent below 1000."
    Interface "interface" "s" "The network interface of the mark's routing table, also when it is gone, until its index is used again."
    LegacySnat "legacy_snat" "b" "Legacy SNAT bit of the mark. patchpanel keeps it on packets alone, so it is false for flows of a Chromebook."
    Labels "labels" "ay" "Connection labels, a bit mask in native words; hexadecimal in JSON."
    Helper "helper" "s" "Connection tracking helper, such as ftp."
    Secctx "secctx" "s" "Security context."
    OrigPackets "orig_packets" "t" "Packets of the original direction (with accounting)."
    OrigBytes "orig_bytes" "t" "Bytes of the original direction with IP headers (with accounting)."
    ReplyPackets "reply_packets" "t" "Packets of the reply direction (with accounting)."
    ReplyBytes "reply_bytes" "t" "Bytes of the reply direction with IP headers (with accounting)."
    StartUsec "start_usec" "t" "When the flow started, CLOCK_REALTIME microseconds."
    EndUsec "end_usec" "t" "When the flow ended, CLOCK_REALTIME microseconds."
    StartSource "start_source" "s" "How the start is known: kernel, event, observed or estimated."
    EndSource "end_source" "s" "How the end is known: kernel, event, observed or estimated."
    DurationUsec "duration_usec" "t" "Microseconds from start to end."
    EndReason "end_reason" "s" "Why the flow ended: destroyed, resync or replaced."
    Initiator "initiator" "a{sv}" "The local process that opened the connection."
    Responder "responder" "a{sv}" "The local process that accepted the connection."
}

impl Key {
    /// Whether flows of a listing can have the key: what happened and when is for events alone.
    pub(crate) const fn is_of_listings(self) -> bool {
        !matches!(self, Self::Event | Self::EventUsec)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of keys: which of a flow's fields an answer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FieldSet(u64);

const _: () = assert!(Key::ALL.len() < 64, "FieldSet needs a wider integer");

impl FieldSet {
    /// No field.
    pub const EMPTY: Self = Self(0);
    /// Every field, also those that later versions add.
    pub const ALL: Self = Self(u64::MAX);

    /// This set and one more key.
    #[must_use]
    pub const fn with(self, key: Key) -> Self {
        Self(self.0 | 1 << key as u8)
    }

    /// This set and one key less.
    #[must_use]
    pub const fn without(self, key: Key) -> Self {
        Self(self.0 & !(1 << key as u8))
    }

    /// Whether the set has the key.
    pub const fn contains(self, key: Key) -> bool {
        self.0 & 1 << key as u8 != 0
    }

    /// Whether the set has one of the keys of `other`.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Every field.
impl Default for FieldSet {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromIterator<Key> for FieldSet {
    fn from_iter<T: IntoIterator<Item = Key>>(keys: T) -> Self {
        keys.into_iter().fold(Self::EMPTY, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_by_its_name_and_has_a_valid_signature() {
        for &key in Key::ALL {
            assert_eq!(Key::parse(key.name()), Some(key));
            assert!(zbus::Signature::try_from(key.signature()).is_ok(), "{key}");
            assert!(key.description().ends_with('.'), "{key}");
        }
        assert_eq!(Key::parse("SRC"), None);
    }

    #[test]
    fn a_field_set_has_what_was_put_in() {
        let set: FieldSet = [Key::Src, Key::Responder].into_iter().collect();
        let members: Vec<_> = Key::ALL.iter().filter(|&&key| set.contains(key)).collect();
        assert_eq!(members, [&Key::Src, &Key::Responder]);
        assert!(FieldSet::default().contains(Key::Event));
        assert!(!FieldSet::EMPTY.contains(Key::Event));
    }
}

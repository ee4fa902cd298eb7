//! `enum ip_conntrack_status`, the bits of `CTA_STATUS` (linux/netfilter/nf_conntrack_common.h).

bitflags::bitflags! {
    /// What the kernel says of a flow. Bits that this crate does not know are kept.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Status: u32 {
        /// A helper expected the flow: it belongs to a master flow.
        const EXPECTED = 1 << 0;
        /// Packets were seen in both directions.
        const SEEN_REPLY = 1 << 1;
        /// The flow is not dropped early when the table is full.
        const ASSURED = 1 << 2;
        /// The first packet left the machine: the flow is in the hash table.
        const CONFIRMED = 1 << 3;
        /// The flow needs source translation in the original direction.
        const SRC_NAT = 1 << 4;
        /// The flow needs destination translation in the original direction.
        const DST_NAT = 1 << 5;
        /// The flow needs TCP sequence adjustment.
        const SEQ_ADJUST = 1 << 6;
        /// Source translation was set up (done even where nothing changes).
        const SRC_NAT_DONE = 1 << 7;
        /// Destination translation was set up (done even where nothing changes).
        const DST_NAT_DONE = 1 << 8;
        /// The flow was removed from the hash table.
        const DYING = 1 << 9;
        /// The timeout does not move with traffic.
        const FIXED_TIMEOUT = 1 << 10;
        /// A template of a `CT` target, not a flow.
        const TEMPLATE = 1 << 11;
        /// `IPS_NAT_CLASH`: its first packet lost to another's of the same tuple, and NAT makes the reply tuples differ, as of two
        /// DNS queries sent at once from one socket. It is `IPS_UNTRACKED` in the header, which no flow has had since Linux
        /// 4.12.
        const NAT_CLASH = 1 << 12;
        /// A helper was attached by a rule or is attached.
        const HELPER = 1 << 13;
        /// The flow is in a flow table: its packets bypass conntrack.
        const OFFLOAD = 1 << 14;
        /// The flow is in a flow table of the network card.
        const HW_OFFLOAD = 1 << 15;

        const _ = !0;
    }
}

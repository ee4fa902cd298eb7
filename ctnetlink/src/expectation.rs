//! An expectation: a connection that a helper has read about in another one, its master, and that will belong to it.

use crate::Tuple;

/// `enum ctattr_expect` (linux/netfilter/nfnetlink_conntrack.h), numbered apart from the attributes of flows.
pub(crate) const CTA_EXPECT_MASTER: u16 = 1;
pub(crate) const CTA_EXPECT_TUPLE: u16 = 2;
pub(crate) const CTA_EXPECT_MASK: u16 = 3;
pub(crate) const CTA_EXPECT_TIMEOUT: u16 = 4;
pub(crate) const CTA_EXPECT_ID: u16 = 5;
pub(crate) const CTA_EXPECT_HELP_NAME: u16 = 6;
pub(crate) const CTA_EXPECT_ZONE: u16 = 7;
pub(crate) const CTA_EXPECT_FLAGS: u16 = 8;
pub(crate) const CTA_EXPECT_CLASS: u16 = 9;
pub(crate) const CTA_EXPECT_NAT: u16 = 10;
pub(crate) const CTA_EXPECT_FN: u16 = 11;

/// What one message says of one expectation. A field that the message does not carry is `None`. Byte strings borrow from the
/// message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation<'a> {
    /// `CTA_EXPECT_MASTER`: the original tuple of the flow whose helper expects this.
    pub master: Tuple,
    /// `CTA_EXPECT_TUPLE`: what the first packet of the expected flow looks like, where `mask` has ones.
    pub tuple: Tuple,
    /// `CTA_EXPECT_MASK`: which bits of the source's address and port have to match; the destination has to match whole.
    pub mask: Tuple,
    /// `CTA_EXPECT_TIMEOUT`: seconds until it is given up.
    pub timeout: Option<u32>,
    /// `CTA_EXPECT_ID`: a hash.
    pub id: Option<u32>,
    /// `CTA_EXPECT_HELP_NAME`, without the terminating zero: the helper of the master.
    pub helper: Option<&'a [u8]>,
    /// `CTA_EXPECT_FLAGS`.
    pub flags: Option<ExpectationFlags>,
    /// `CTA_EXPECT_CLASS`: the helper's number for the kind of connection.
    pub class: Option<u32>,
    /// `CTA_EXPECT_NAT`: how the expected flow will be translated.
    pub nat: Option<ExpectationNat>,
    /// `CTA_EXPECT_FN`, without the terminating zero: what the kernel calls when the flow comes, such as `nat-follow-master`.
    pub function: Option<&'a [u8]>,
    /// How many attributes of this message the decoder did not know and skipped.
    pub unknown_attributes: u16,
}

impl Expectation<'_> {
    /// An expectation of which nothing is known but its tuples.
    pub const fn new(master: Tuple, tuple: Tuple, mask: Tuple) -> Self {
        Self {
            master,
            tuple,
            mask,
            timeout: None,
            id: None,
            helper: None,
            flags: None,
            class: None,
            nat: None,
            function: None,
            unknown_attributes: 0,
        }
    }
}

/// `CTA_EXPECT_NAT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectationNat {
    /// `CTA_EXPECT_NAT_DIR`: true where the expected flow goes against the master's original direction (`IP_CT_DIR_REPLY`).
    pub reply: bool,
    /// `CTA_EXPECT_NAT_TUPLE`: its source is what the address and port were before translation; helpers that follow the
    /// master (FTP) keep the port alone, and the address is 0.
    pub tuple: Tuple,
}

bitflags::bitflags! {
    /// `NF_CT_EXPECT_*` (linux/netfilter/nf_conntrack_common.h). Bits that this crate does not know are kept.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ExpectationFlags: u32 {
        /// The expectation stays when a connection has come.
        const PERMANENT = 1 << 0;
        /// The expectation does not match yet.
        const INACTIVE = 1 << 1;
        /// A helper in user space made the expectation.
        const USERSPACE = 1 << 2;

        const _ = !0;
    }
}

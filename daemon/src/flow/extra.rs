//! The part that few flows have.

use ctnetlink::Tuple;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::key::{Addresses, Shape};
use crate::checksum::{Checksummed, layout_of};
use flowbus_interfaces::fit;

/// What few flows have: a translated reply, labels, a helper, a security context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Extra {
    pub(super) reply: Addresses,
    pub(super) labels: [u8; 16],
    check: u32,
    pub(crate) helper: NameNumber,
    pub(crate) security_context: NameNumber,
    pub(super) reply_shape: Shape,
    pub(super) labels_len: u8,
    padding: [u8; 2],
}

layout_of!(Extra { reply, labels, check, helper, security_context, reply_shape, labels_len, padding });
layout_of!(NameNumber { 0 });

impl Checksummed for Extra {
    const CHECK: usize = std::mem::offset_of!(Self, check);
}

/// The number of an interned string; 0 is none. See `names.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub(crate) struct NameNumber(pub(crate) u16);

impl Extra {
    /// An extra part without anything, not even a reply tuple.
    pub(crate) const EMPTY: Self = zerocopy::transmute!([0_u8; size_of::<Self>()]);

    /// The extra part of a flow that has nothing but this reply tuple.
    pub(crate) fn new(reply: &Tuple) -> Self {
        Self { reply: Addresses::pack(reply), reply_shape: Shape::of(reply), ..Self::EMPTY }
    }

    /// The reply tuple of a flow of this protocol and reply zone.
    pub(crate) fn reply(&self, protocol: u8, zone: u16) -> Tuple {
        self.reply.unpack(self.reply_shape, protocol, zone)
    }

    /// The ports of the reply direction, where its protocol has some.
    pub(crate) fn ports(&self) -> &[u16] {
        self.reply.ports(self.reply_shape)
    }

    /// Keeps the labels; the kernel has at most 128 of them, longer ones are cut.
    pub(crate) fn set_labels(&mut self, labels: &[u8]) {
        let length = labels.len().min(self.labels.len());
        self.labels = [0; 16];
        self.labels[..length].copy_from_slice(&labels[..length]);
        self.labels_len = fit(length);
    }

    /// The labels, if the flow has ever had any.
    pub(crate) fn labels(&self) -> Option<&[u8]> {
        let length = usize::from(self.labels_len);
        (length > 0).then(|| &self.labels[..length.min(16)])
    }
}

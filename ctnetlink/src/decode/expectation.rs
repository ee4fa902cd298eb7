//! One expectation: the attributes of `IPCTNL_MSG_EXP_NEW` and `IPCTNL_MSG_EXP_DELETE` (`enum ctattr_expect`), which
//! are numbered apart from those of flows.

use crate::attribute::{Attribute, Attributes, Unknown};
use crate::error::present;
use crate::expectation::{
    CTA_EXPECT_CLASS, CTA_EXPECT_FLAGS, CTA_EXPECT_FN, CTA_EXPECT_HELP_NAME, CTA_EXPECT_ID, CTA_EXPECT_MASK,
    CTA_EXPECT_MASTER, CTA_EXPECT_NAT, CTA_EXPECT_TIMEOUT, CTA_EXPECT_TUPLE, CTA_EXPECT_ZONE,
};
use crate::{DecodeError, Expectation, ExpectationFlags, ExpectationNat, Tuple};

use super::tuple;

/// The expectation that a message's attributes describe.
pub(super) fn decode(mut attributes: Attributes<'_>) -> Result<Expectation<'_>, DecodeError> {
    let mut unknown = Unknown::default();
    let (mut master, mut expected, mut mask, mut zone) = (None, None, None, None);
    let mut expectation = Expectation::new(Tuple::UNSPECIFIED, Tuple::UNSPECIFIED, Tuple::UNSPECIFIED);
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            CTA_EXPECT_MASTER => master = Some(tuple::decode(attribute, "CTA_EXPECT_MASTER", &mut unknown)?),
            CTA_EXPECT_TUPLE => expected = Some(tuple::decode(attribute, "CTA_EXPECT_TUPLE", &mut unknown)?),
            CTA_EXPECT_MASK => mask = Some(tuple::decode(attribute, "CTA_EXPECT_MASK", &mut unknown)?),
            CTA_EXPECT_TIMEOUT => expectation.timeout = Some(attribute.u32("CTA_EXPECT_TIMEOUT")?),
            CTA_EXPECT_ID => expectation.id = Some(attribute.u32("CTA_EXPECT_ID")?),
            CTA_EXPECT_HELP_NAME => expectation.helper = Some(attribute.text()),
            CTA_EXPECT_ZONE => zone = Some(attribute.u16("CTA_EXPECT_ZONE")?),
            CTA_EXPECT_FLAGS => {
                let flags = attribute.u32("CTA_EXPECT_FLAGS")?;
                expectation.flags = Some(ExpectationFlags::from_bits_retain(flags));
            }
            CTA_EXPECT_CLASS => expectation.class = Some(attribute.u32("CTA_EXPECT_CLASS")?),
            CTA_EXPECT_NAT => expectation.nat = Some(decode_nat(attribute, &mut unknown)?),
            CTA_EXPECT_FN => expectation.function = Some(attribute.text()),
            kind => unknown.skip(kind),
        }
    }
    expectation.master = present(master, "message", "CTA_EXPECT_MASTER")?;
    expectation.tuple = present(expected, "message", "CTA_EXPECT_TUPLE")?;
    expectation.mask = present(mask, "message", "CTA_EXPECT_MASK")?;
    if let Some(zone) = zone {
        expectation.master.zone = zone;
        expectation.tuple.zone = zone;
    }
    expectation.unknown_attributes = unknown.0;
    Ok(expectation)
}

/// `CTA_EXPECT_NAT`.
fn decode_nat(attribute: Attribute<'_>, unknown: &mut Unknown) -> Result<ExpectationNat, DecodeError> {
    let mut attributes = attribute.nested("CTA_EXPECT_NAT");
    let (mut direction, mut translated) = (0, None);
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            1 => direction = attribute.u32("CTA_EXPECT_NAT_DIR")?,
            2 => translated = Some(tuple::decode(attribute, "CTA_EXPECT_NAT_TUPLE", unknown)?),
            kind => unknown.skip(kind),
        }
    }
    let tuple = present(translated, "CTA_EXPECT_NAT", "CTA_EXPECT_NAT_TUPLE")?;
    Ok(ExpectationNat { reply: direction != 0, tuple })
}

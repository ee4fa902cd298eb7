//! `CTA_PROTOINFO`.

use crate::attribute::{Attributes, Unknown};
use crate::error::present;
use crate::{DccpInfo, DecodeError, ProtocolInfo, SctpInfo, TcpInfo};

/// `enum ctattr_protoinfo`.
pub(super) const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_DCCP: u16 = 2;
const CTA_PROTOINFO_SCTP: u16 = 3;

/// What a protocol's nest begins with, whichever it is (`CTA_PROTOINFO_*_STATE`).
const STATE: u16 = 1;

/// `enum ctattr_protoinfo_tcp`.
const CTA_PROTOINFO_TCP_WSCALE_ORIGINAL: u16 = 2;
const CTA_PROTOINFO_TCP_WSCALE_REPLY: u16 = 3;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;

/// `enum ctattr_protoinfo_dccp`.
const CTA_PROTOINFO_DCCP_ROLE: u16 = 2;
const CTA_PROTOINFO_DCCP_HANDSHAKE_SEQ: u16 = 3;
const CTA_PROTOINFO_DCCP_PAD: u16 = 4;

/// `enum ctattr_protoinfo_sctp`.
const CTA_PROTOINFO_SCTP_VTAG_ORIGINAL: u16 = 2;
const CTA_PROTOINFO_SCTP_VTAG_REPLY: u16 = 3;

/// The protocol's part, `None` for a protocol that this crate does not know.
#[inline(always)]
pub(super) fn decode(
    mut attributes: Attributes<'_>,
    unknown: &mut Unknown,
) -> Result<Option<ProtocolInfo>, DecodeError> {
    let mut info = None;
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            CTA_PROTOINFO_TCP => {
                info = Some(ProtocolInfo::Tcp(tcp(attribute.nested("CTA_PROTOINFO_TCP"), unknown)?));
            }
            CTA_PROTOINFO_DCCP => {
                info = Some(ProtocolInfo::Dccp(dccp(attribute.nested("CTA_PROTOINFO_DCCP"), unknown)?));
            }
            CTA_PROTOINFO_SCTP => {
                info = Some(ProtocolInfo::Sctp(sctp(attribute.nested("CTA_PROTOINFO_SCTP"), unknown)?));
            }
            kind => unknown.skip(kind),
        }
    }
    Ok(info)
}

#[inline(always)]
fn tcp(mut attributes: Attributes<'_>, unknown: &mut Unknown) -> Result<TcpInfo, DecodeError> {
    let mut state = None;
    let mut tcp = TcpInfo {
        state: 0,
        wscale_original: None,
        wscale_reply: None,
        flags_original: None,
        flags_reply: None,
    };
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            STATE => state = Some(attribute.u8("CTA_PROTOINFO_TCP_STATE")?),
            CTA_PROTOINFO_TCP_WSCALE_ORIGINAL => {
                tcp.wscale_original = Some(attribute.u8("CTA_PROTOINFO_TCP_WSCALE_ORIGINAL")?);
            }
            CTA_PROTOINFO_TCP_WSCALE_REPLY => {
                tcp.wscale_reply = Some(attribute.u8("CTA_PROTOINFO_TCP_WSCALE_REPLY")?);
            }
            // struct nf_ct_tcp_flags: flags, mask.
            CTA_PROTOINFO_TCP_FLAGS_ORIGINAL => {
                tcp.flags_original = Some(attribute.bytes("CTA_PROTOINFO_TCP_FLAGS_ORIGINAL")?.into());
            }
            CTA_PROTOINFO_TCP_FLAGS_REPLY => {
                tcp.flags_reply = Some(attribute.bytes("CTA_PROTOINFO_TCP_FLAGS_REPLY")?.into());
            }
            kind => unknown.skip(kind),
        }
    }
    tcp.state = present(state, "CTA_PROTOINFO_TCP", "CTA_PROTOINFO_TCP_STATE")?;
    Ok(tcp)
}

fn dccp(mut attributes: Attributes<'_>, unknown: &mut Unknown) -> Result<DccpInfo, DecodeError> {
    let (mut state, mut role, mut handshake_sequence) = (None, None, None);
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            STATE => state = Some(attribute.u8("CTA_PROTOINFO_DCCP_STATE")?),
            CTA_PROTOINFO_DCCP_ROLE => role = Some(attribute.u8("CTA_PROTOINFO_DCCP_ROLE")?),
            CTA_PROTOINFO_DCCP_HANDSHAKE_SEQ => {
                handshake_sequence = Some(attribute.u64("CTA_PROTOINFO_DCCP_HANDSHAKE_SEQ")?);
            }
            CTA_PROTOINFO_DCCP_PAD => {}
            kind => unknown.skip(kind),
        }
    }
    let state = present(state, "CTA_PROTOINFO_DCCP", "CTA_PROTOINFO_DCCP_STATE")?;
    Ok(DccpInfo { state, role, handshake_sequence })
}

fn sctp(mut attributes: Attributes<'_>, unknown: &mut Unknown) -> Result<SctpInfo, DecodeError> {
    let (mut state, mut vtag_original, mut vtag_reply) = (None, None, None);
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            STATE => state = Some(attribute.u8("CTA_PROTOINFO_SCTP_STATE")?),
            CTA_PROTOINFO_SCTP_VTAG_ORIGINAL => {
                vtag_original = Some(attribute.u32("CTA_PROTOINFO_SCTP_VTAG_ORIGINAL")?);
            }
            CTA_PROTOINFO_SCTP_VTAG_REPLY => {
                vtag_reply = Some(attribute.u32("CTA_PROTOINFO_SCTP_VTAG_REPLY")?);
            }
            kind => unknown.skip(kind),
        }
    }
    let state = present(state, "CTA_PROTOINFO_SCTP", "CTA_PROTOINFO_SCTP_STATE")?;
    Ok(SctpInfo { state, vtag_original, vtag_reply })
}

//! Rules that choose which events a flow sends: `ct event set` of nftables, and the CT target of iptables-nft.
//!
//! The mask lies in the flow, where no message shows it. So the rules are read instead: those of nftables, which iptables-nft
//! writes as well. Masks that iptables-legacy and Open vSwitch set are not seen here.

use netlink_packet_core::NLM_F_DUMP;

use crate::attribute::{Attribute, Attributes, align};
use crate::event::NLM_F_DUMP_INTR;
use crate::request::request;
use crate::{DecodeError, Received, Socket, SocketError};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_*` (linux/netfilter/nf_tables.h).
const NEW_RULE: u16 = 0xa06;
const GET_RULE: u16 = 0xa07;
const NEW_GENERATION: u16 = 0xa0f;
const GET_GENERATION: u16 = 0xa10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `sizeof(struct nlmsghdr)`, and of `struct nfgenmsg` behind it.
const HEADER: usize = 16;
const NFGENMSG: usize = 4;

/// Where the rules set event masks. Rules are read again only when their generation has changed.
#[derive(Debug, Default)]
pub struct EventMasks {
    generation: Option<u32>,
    found: Option<String>,
}

/// What the kernel answers.
enum Answer {
    Generation(u32),
    /// A rule, and where it is if it sets a mask.
    Rule(Option<String>),
    /// The rules changed while they were read.
    Interrupted,
    Done,
    Refused(i32),
}

impl EventMasks {
    /// Reads the rules where they have changed; needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// When the kernel refuses, or has no nftables. [`EventMasks::place`] stays what it was.
    pub fn look(&mut self) -> Result<(), SocketError> {
        let socket = Socket::open()?;
        let generation = generation(&socket)?;
        if generation.is_none() || generation != self.generation {
            let (found, whole) = masking_chain(&socket)?;
            // Rules that changed while they were read are read again by the next look. Until then a mask may still be there.
            self.found = if whole { found } else { found.or_else(|| self.found.take()) };
            self.generation = if whole { generation } else { None };
        }
        Ok(())
    }

    /// The first chain of a rule that sets an event mask, as in "table m, chain p".
    #[must_use]
    pub fn place(&self) -> Option<&str> {
        self.found.as_deref()
    }
}

fn generation(socket: &Socket) -> Result<Option<u32>, SocketError> {
    let mut generation = None;
    ask(socket, GET_GENERATION, 0, |answer| {
        if let Answer::Generation(number) = answer {
            generation = Some(number);
        }
    })?;
    Ok(generation)
}

/// The first chain that sets a mask, and whether the answer was whole.
fn masking_chain(socket: &Socket) -> Result<(Option<String>, bool), SocketError> {
    let (mut found, mut whole, mut interrupted) = (None, false, false);
    ask(socket, GET_RULE, NLM_F_DUMP, |answer| match answer {
        Answer::Rule(place) if found.is_none() => found = place,
        Answer::Interrupted => interrupted = true,
        Answer::Done => whole = true,
        _ => {}
    })?;
    Ok((found, whole && !interrupted))
}

fn ask(socket: &Socket, kind: u16, flags: u16, mut hear: impl FnMut(Answer)) -> Result<(), SocketError> {
    socket.send(&request(kind, flags, 1, None, Vec::new()))?;
    let mut buffer = vec![0; 64 * 1024];
    // The kernel writes the answer while it is asked and read: it never has to be waited for.
    while let Received::Datagram(length) = socket.receive(&mut buffer)? {
        let mut rest = &buffer[..length];
        while let Some((answer, behind)) = next(rest) {
            rest = behind;
            match answer {
                // A message that cannot be read has no mask that could be.
                Err(_) => {}
                Ok(Answer::Refused(code)) => return Err(SocketError::refused("NFT_MSG_GETRULE", code)),
                Ok(answer) => hear(answer),
            }
        }
    }
    Ok(())
}

/// The next message, and what is behind it.
fn next(bytes: &[u8]) -> Option<(Result<Answer, DecodeError>, &[u8])> {
    let &[l0, l1, l2, l3, t0, t1, f0, f1, ..] = bytes.first_chunk::<HEADER>()?;
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
    let body = bytes.get(HEADER..length)?;
    let behind = bytes.get(align(length)..).unwrap_or_default();
    if u16::from_ne_bytes([f0, f1]) & NLM_F_DUMP_INTR != 0 {
        return Some((Ok(Answer::Interrupted), behind));
    }
    Some((answer(u16::from_ne_bytes([t0, t1]), body), behind))
}

fn answer(kind: u16, body: &[u8]) -> Result<Answer, DecodeError> {
    let attributes = || Attributes::new(body.get(NFGENMSG..).unwrap_or_default(), "NFT_MSG");
    Ok(match kind {
        NEW_GENERATION => match find(attributes(), 1)? {
            Some(id) => Answer::Generation(id.u32("NFTA_GEN_ID")?),
            None => Answer::Done,
        },
        NEW_RULE => Answer::Rule(masks(attributes())?),
        NLMSG_ERROR => match body.first_chunk() {
            Some(code) if i32::from_ne_bytes(*code) != 0 => Answer::Refused(i32::from_ne_bytes(*code)),
            _ => Answer::Done,
        },
        NLMSG_DONE => Answer::Done,
        _ => Answer::Rule(None),
    })
}

/// The attribute of this kind.
fn find<'a>(mut attributes: Attributes<'a>, kind: u16) -> Result<Option<Attribute<'a>>, DecodeError> {
    while let Some(attribute) = attributes.next()? {
        if attribute.kind == kind {
            return Ok(Some(attribute));
        }
    }
    Ok(None)
}

/// Where a rule is, if one of its expressions sets an event mask.
fn masks(rule: Attributes<'_>) -> Result<Option<String>, DecodeError> {
    let Some(expressions) = find(rule, 4)? else { return Ok(None) }; // NFTA_RULE_EXPRESSIONS
    let mut expressions = expressions.nested("NFTA_RULE_EXPRESSIONS");
    while let Some(expression) = expressions.next()? {
        if !sets_mask(expression.nested("NFTA_LIST_ELEM"))? {
            continue;
        }
        let name = |kind| -> Result<String, DecodeError> {
            let text = find(rule, kind)?.map(Attribute::text).unwrap_or_default();
            Ok(String::from_utf8_lossy(text).into_owned())
        };
        return Ok(Some(format!("table {}, chain {}", name(1)?, name(2)?))); // NFTA_RULE_TABLE, NFTA_RULE_CHAIN
    }
    Ok(None)
}

fn sets_mask(expression: Attributes<'_>) -> Result<bool, DecodeError> {
    /// `NFT_CT_EVENTMASK`.
    const EVENT_MASK: u32 = 18;
    // NFTA_EXPR_NAME and NFTA_EXPR_DATA.
    let (Some(name), Some(data)) = (find(expression, 1)?, find(expression, 2)?) else { return Ok(false) };
    let data = data.nested("NFTA_EXPR_DATA");
    match name.text() {
        b"ct" => {
            // NFTA_CT_KEY; only a statement that sets has NFTA_CT_SREG.
            let key = find(data, 2)?.map(|key| key.u32("NFTA_CT_KEY")).transpose()?;
            Ok(key == Some(EVENT_MASK) && find(data, 4)?.is_some())
        }
        b"target" => {
            let is_ct = find(data, 1)?.is_some_and(|name| name.text() == b"CT"); // NFTA_TARGET_NAME
            // struct xt_ct_target_info: flags and zone, 16 bits each, then the events, 0 for all of them.
            let info = find(data, 3)?.map(|info| info.bytes::<8>("NFTA_TARGET_INFO")).transpose()?;
            Ok(is_ct && info.is_some_and(|[_, _, _, _, events @ ..]| events != [0; 4]))
        }
        _ => Ok(false),
    }
}

//! A flow as one line, much as `conntrack -L` prints it: for people and logs. What is to be read by a program has better forms.

use std::fmt;

use crate::{Counters, Flow, Layer4, ProtocolInfo, Status, Tuple, protocol_name, state_name};

impl fmt::Display for Flow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status.unwrap_or(Status::SEEN_REPLY);
        let protocol = self.original.protocol;
        match protocol_name(protocol) {
            Some(name) => write!(f, "{name} {protocol}")?,
            None => write!(f, "unknown {protocol}")?,
        }
        if let Some(timeout) = self.timeout {
            write!(f, " {timeout}")?;
        }
        if let Some(state) = self.protocol_info.as_ref().map(ProtocolInfo::state) {
            write!(f, " {}", state_name(protocol, state).unwrap_or("UNKNOWN"))?;
        }
        write!(f, " {}", self.original)?;
        write_counters(f, self.original_counters)?;
        if !status.contains(Status::SEEN_REPLY) {
            f.write_str(" [UNREPLIED]")?;
        }
        write!(f, " {}", self.reply)?;
        write_counters(f, self.reply_counters)?;
        if status.contains(Status::OFFLOAD) {
            f.write_str(" [OFFLOAD]")?;
        } else if status.contains(Status::ASSURED) {
            f.write_str(" [ASSURED]")?;
        }
        write!(f, " mark={}", self.mark.unwrap_or(0))?;
        match (self.original.zone, self.reply.zone) {
            (0, 0) => {}
            (original, reply) if original == reply => write!(f, " zone={original}")?,
            (original, reply) => write!(f, " orig-zone={original} reply-zone={reply}")?,
        }
        if let Some(helper) = self.helper {
            write!(f, " helper={}", helper.escape_ascii())?;
        }
        if let Some(id) = self.id {
            write!(f, " id={id}")?;
        }
        Ok(())
    }
}

/// Addresses, then ports or what ICMP has.
impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src={} dst={}", self.src, self.dst)?;
        match self.layer4 {
            Layer4::Ports { src, dst } => write!(f, " sport={src} dport={dst}"),
            Layer4::Icmp { kind, code, id } => write!(f, " type={kind} code={code} id={id}"),
            Layer4::None => Ok(()),
        }
    }
}

fn write_counters(f: &mut fmt::Formatter<'_>, counters: Option<Counters>) -> fmt::Result {
    match counters {
        Some(Counters { packets, bytes }) => write!(f, " packets={packets} bytes={bytes}"),
        None => Ok(()),
    }
}

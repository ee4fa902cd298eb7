//! The line of `conntrack -L` and `conntrack -E`.

use std::io::{self, Write};

use flowbus_interfaces::{EventKind, Key};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::shown::{self, Direction, Modifiers, Shown, delta_time, event_time, stamp};
use crate::cell::clean;
use crate::fields::Fields;

/// Writes a line. `now` is in microseconds since 1970.
pub(super) fn line(
    out: &mut dyn Write,
    flow: &dyn Fields,
    event: Option<EventKind>,
    modifiers: &Modifiers,
    now: u64,
) -> io::Result<()> {
    let shown = Shown::of(event);
    if let Some(event) = event {
        if modifiers.timestamp {
            let time = event_time(flow, event, now);
            write!(out, "[{}.{:06}]\t", time / 1_000_000, time % 1_000_000)?;
        }
        let tag = match event {
            EventKind::New => "    [NEW] ",
            EventKind::Update => " [UPDATE] ",
            EventKind::Destroy => "[DESTROY] ",
        };
        out.write_all(tag.as_bytes())?;
    }
    if modifiers.extended {
        let family = flow.text(Key::Family).unwrap_or_default();
        write!(out, "{family:<8} {} ", shown::family_number(&family))?;
    }
    write!(out, "{:<8} {}", shown::protocol(flow), flow.number(Key::ProtocolNumber).unwrap_or(0))?;
    if let Some(timeout) = flow.number(Key::Timeout) {
        write!(out, " {timeout}")?;
    }
    if let Some(state) = flow.text(Key::State) {
        write!(out, " {state}")?;
    }
    tuple(out, flow, &shown::ORIGINAL, &shown)?;
    if flow.contains(Key::Status) && !flow.has(Key::Status, "seen-reply") {
        out.write_all(b" [UNREPLIED]")?;
    }
    tuple(out, flow, &shown::REPLY, &shown)?;
    let flags = [("hw-offload", " [HW_OFFLOAD]"), ("offload", " [OFFLOAD]"), ("assured", " [ASSURED]")];
    if let Some((_, flag)) = flags.iter().find(|(name, _)| flow.has(Key::Status, name)) {
        out.write_all(flag.as_bytes())?;
    }
    if let Some(mark) = flow.number(Key::Mark).filter(|mark| *mark != 0 || shown.mark_zero) {
        write!(out, " mark={mark}")?;
    }
    if shown.extensions {
        text(out, " secctx=", flow, Key::Secctx)?;
    }
    if let Some(zone) = flow.number(Key::Zone) {
        write!(out, " zone={zone}")?;
    }
    if let Some(seconds) = delta_time(flow, now, false).filter(|_| shown.delta) {
        write!(out, " delta-time={seconds}")?;
        if modifiers.ktimestamp {
            let times = [
                ("start", stamp(flow, Key::StartUsec, Key::StartSource)),
                ("stop", stamp(flow, Key::EndUsec, Key::EndSource)),
            ];
            for (word, usec) in times {
                if let Some(usec) = usec {
                    write!(out, " [{word}={}]", ctime(usec))?;
                }
            }
        }
    }
    if shown.extensions {
        text(out, " helper=", flow, Key::Helper)?;
    }
    if let Some(references) = flow.number(Key::Use).filter(|_| shown.references) {
        write!(out, " use={references}")?;
    }
    if let Some(id) = flow.number(Key::ConntrackId).filter(|_| modifiers.id) {
        write!(out, " id={id}")?;
    }
    if let Some(names) = modifiers.labels(flow).filter(|_| shown.extensions) {
        write!(out, " labels={}", names.join(","))?;
    }
    writeln!(out)
}

fn tuple(out: &mut dyn Write, flow: &dyn Fields, direction: &Direction, shown: &Shown) -> io::Result<()> {
    text(out, " src=", flow, direction.src)?;
    text(out, " dst=", flow, direction.dst)?;
    if let (Some(sport), Some(dport)) = (flow.number(direction.sport), flow.number(direction.dport)) {
        if flow.number(Key::ProtocolNumber) == Some(shown::GRE) {
            write!(out, " srckey={sport:#x} dstkey={dport:#x}")?;
        } else {
            write!(out, " sport={sport} dport={dport}")?;
        }
    }
    if let [Some(kind), Some(code), Some(id)] = direction.icmp.map(|key| flow.number(key)) {
        write!(out, " type={kind} code={code} id={id}")?;
    }
    if let Some(zone) = flow.number(direction.zone) {
        write!(out, " {}={zone}", direction.zone_word)?;
    }
    match (flow.number(direction.packets), flow.number(direction.bytes)) {
        (Some(packets), Some(bytes)) if shown.counters => write!(out, " packets={packets} bytes={bytes}"),
        _ => Ok(()),
    }
}

fn text(out: &mut dyn Write, word: &str, flow: &dyn Fields, key: Key) -> io::Result<()> {
    match flow.text(key) {
        Some(text) => write!(out, "{word}{}", clean(text)),
        None => Ok(()),
    }
}

/// A time as `ctime(3)` writes it, local: `Sun Nov 22 03:15:29 2026`.
fn ctime(usec: u64) -> String {
    let time = usec.try_into().ok().and_then(|usec| Timestamp::from_microsecond(usec).ok());
    match time {
        Some(time) => time.to_zoned(TimeZone::system()).strftime("%a %b %e %H:%M:%S %Y").to_string(),
        None => usec.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use flowbus_interfaces::OwnedFlow;

    use super::*;
    use crate::format::labels::LabelNames;

    const TCP: &str = r#"{"conntrack_id":4242,"family":"ipv4","protocol":"tcp","protocol_number":6,"src":"198.18.0.2",
        "sport":40000,"dst":"198.18.1.2","dport":80,"reply_src":"198.18.1.2","reply_sport":80,"reply_dst":"198.18.1.1",
        "reply_dport":50000,"zone":7,"state":"ESTABLISHED","status":["seen-reply","assured"],"timeout":431999,"use":2,
        "mark":0,"labels":"0180","helper":"ftp","secctx":"system_u","orig_packets":3,"orig_bytes":200,
        "reply_packets":2,"reply_bytes":120,"start_usec":1000000999999,"end_usec":1000002000000,"start_source":"kernel",
        "end_source":"kernel"}"#;

    fn printed(json: &str, event: Option<EventKind>, modifiers: &Modifiers) -> String {
        let mut out = Vec::new();
        line(&mut out, &OwnedFlow::from_json(json).unwrap(), event, modifiers, 1_000_005_000_000).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_has_conntracks_words_in_its_order() {
        let all = Modifiers {
            extended: true,
            id: true,
            timestamp: true,
            ktimestamp: true,
            labels: Some(LabelNames::default()),
        };
        let tuples = "src=198.18.0.2 dst=198.18.1.2 sport=40000 dport=80 packets=3 bytes=200 src=198.18.1.2 \
                      dst=198.18.1.1 sport=80 dport=50000 packets=2 bytes=120 [ASSURED]";
        assert_eq!(
            printed(TCP, None, &Modifiers::default()),
            format!(
                "tcp      6 431999 ESTABLISHED {tuples} mark=0 secctx=system_u zone=7 delta-time=2 helper=ftp use=2\n"
            )
        );
        let (start, stop) = (ctime(1_000_000_999_999), ctime(1_000_002_000_000));
        assert_eq!(
            printed(TCP, Some(EventKind::Destroy), &all),
            format!(
                "[1000002.000000]\t[DESTROY] ipv4     2 tcp      6 431999 ESTABLISHED {tuples} zone=7 delta-time=2 [start={start}] [stop={stop}] id=4242\n"
            )
        );
    }

    #[test]
    fn an_event_shows_what_the_kernels_carries() {
        let text = printed(TCP, Some(EventKind::Update), &Modifiers::default());
        assert!(text.starts_with(" [UPDATE] tcp      6 431999 ESTABLISHED src="), "{text}");
        for word in ["packets=", "delta-time=", "use=", "mark="] {
            assert!(!text.contains(word), "{word} in {text}");
        }
        let text = printed(
            TCP,
            Some(EventKind::New),
            &Modifiers { labels: Some(LabelNames::default()), ..Modifiers::default() },
        );
        assert!(text.ends_with(" secctx=system_u zone=7 helper=ftp labels=0,15\n"), "{text}");
        let marked = TCP.replace("\"mark\":0", "\"mark\":256");
        assert!(printed(&marked, Some(EventKind::New), &Modifiers::default()).contains(" mark=256 "));
    }

    #[test]
    fn gre_has_keys_icmp_types_and_others_nothing() {
        let gre = r#"{"protocol":"gre","protocol_number":47,"sport":1,"dport":32,"orig_zone":5,"status":["offload"]}"#;
        assert_eq!(
            printed(gre, None, &Modifiers::default()),
            "gre      47 srckey=0x1 dstkey=0x20 zone-orig=5 [UNREPLIED] [OFFLOAD]\n"
        );
        let icmp = r#"{"protocol":"icmp","protocol_number":1,"icmp_type":8,"icmp_code":0,"icmp_id":77}"#;
        assert_eq!(printed(icmp, None, &Modifiers::default()), "icmp     1 type=8 code=0 id=77\n");
        let other = r#"{"protocol":"99","protocol_number":99,"status":["seen-reply"]}"#;
        assert_eq!(printed(other, None, &Modifiers::default()), "unknown  99\n");
    }
}

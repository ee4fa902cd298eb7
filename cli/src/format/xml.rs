//! The XML of `conntrack -o xml`: one `flow` element a line, all of them in `conntrack`.

use std::borrow::Cow;
use std::io::{self, Write};

use flowbus_interfaces::{EventKind, Key, event_name};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::shown::{self, Direction, Modifiers, Shown};
use crate::cell::clean;
use crate::fields::Fields;

/// What comes before the first flow.
pub(super) const BEGIN: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<conntrack>\n";
/// What comes after the last flow.
pub(super) const END: &str = "</conntrack>\n";

/// Writes a flow. `now` is in microseconds since 1970.
pub(super) fn flow(
    out: &mut dyn Write,
    flow: &dyn Fields,
    event: Option<EventKind>,
    modifiers: &Modifiers,
    now: u64,
) -> io::Result<()> {
    let shown = Shown::of(event);
    match event {
        Some(event) => write!(out, "<flow type=\"{}\">", event_name(event))?,
        None => out.write_all(b"<flow>")?,
    }
    meta(out, flow, &shown::ORIGINAL, &shown)?;
    meta(out, flow, &shown::REPLY, &shown)?;
    out.write_all(b"<meta direction=\"independent\">")?;
    text(out, "state", flow.text(Key::State))?;
    number(out, "timeout", flow.number(Key::Timeout))?;
    number(out, "mark", flow.number(Key::Mark).filter(|mark| *mark != 0 || shown.mark_zero))?;
    if let Some(names) = modifiers.labels(flow).filter(|_| shown.extensions) {
        out.write_all(b"<labels>")?;
        names.into_iter().try_for_each(|name| text(out, "label", Some(name.into())))?;
        out.write_all(b"</labels>")?;
    }
    text(out, "secctx", flow.text(Key::Secctx).filter(|_| shown.extensions))?;
    number(out, "zone", flow.number(Key::Zone))?;
    number(out, "use", flow.number(Key::Use).filter(|_| shown.references))?;
    number(out, "id", flow.number(Key::ConntrackId))?;
    if flow.has(Key::Status, "assured") {
        out.write_all(b"<assured/>")?;
    }
    if flow.contains(Key::Status) && !flow.has(Key::Status, "seen-reply") {
        out.write_all(b"<unreplied/>")?;
    }
    if shown.delta {
        times(out, flow, modifiers, now)?;
    }
    out.write_all(b"</meta>")?;
    if let Some(event) = event.filter(|_| modifiers.timestamp) {
        when(out, shown::event_time(flow, event, now))?;
    }
    text(out, "helper", flow.text(Key::Helper).filter(|_| shown.extensions))?;
    out.write_all(b"</flow>\n")
}

/// Writes the kernel's stamps, in nanoseconds as conntrack has them, and the seconds between.
fn times(out: &mut dyn Write, flow: &dyn Fields, modifiers: &Modifiers, now: u64) -> io::Result<()> {
    let start = shown::stamp(flow, Key::StartUsec, Key::StartSource);
    if start.is_some() && modifiers.ktimestamp {
        out.write_all(b"<timestamp>")?;
        number(out, "start", start.map(nanoseconds))?;
        number(out, "stop", shown::stamp(flow, Key::EndUsec, Key::EndSource).map(nanoseconds))?;
        out.write_all(b"</timestamp>")?;
    }
    number(out, "deltatime", shown::delta_time(flow, now, true))
}

const fn nanoseconds(usec: u64) -> u64 {
    usec.saturating_mul(1000)
}

fn meta(out: &mut dyn Write, flow: &dyn Fields, direction: &Direction, shown: &Shown) -> io::Result<()> {
    let family = flow.text(Key::Family).unwrap_or_default();
    write!(
        out,
        "<meta direction=\"{}\"><layer3 protonum=\"{}\" protoname=\"{family}\">",
        direction.name,
        shown::family_number(&family)
    )?;
    text(out, "src", flow.text(direction.src))?;
    text(out, "dst", flow.text(direction.dst))?;
    let protocol = flow.number(Key::ProtocolNumber).unwrap_or(0);
    write!(out, "</layer3><layer4 protonum=\"{protocol}\" protoname=\"{}\">", shown::protocol(flow))?;
    if let (Some(sport), Some(dport)) = (flow.number(direction.sport), flow.number(direction.dport)) {
        if protocol == shown::GRE {
            write!(out, "<srckey>{sport:#x}</srckey><dstkey>{dport:#x}</dstkey>")?;
        } else {
            write!(out, "<sport>{sport}</sport><dport>{dport}</dport>")?;
        }
    }
    out.write_all(b"</layer4>")?;
    number(out, "zone", flow.number(direction.zone))?;
    if let (Some(packets), Some(bytes), true) =
        (flow.number(direction.packets), flow.number(direction.bytes), shown.counters)
    {
        write!(out, "<counters><packets>{packets}</packets><bytes>{bytes}</bytes></counters>")?;
    }
    out.write_all(b"</meta>")
}

/// Writes the local time of day and date; the week begins with 1 on Sunday.
fn when(out: &mut dyn Write, usec: u64) -> io::Result<()> {
    let time = usec.try_into().ok().and_then(|usec| Timestamp::from_microsecond(usec).ok());
    let Some(time) = time.map(|time| time.to_zoned(TimeZone::system())) else { return Ok(()) };
    write!(
        out,
        "<when><hour>{}</hour><min>{:02}</min><sec>{:02}</sec><wday>{}</wday><day>{}</day><month>{}</month>\
         <year>{}</year></when>",
        time.hour(),
        time.minute(),
        time.second(),
        time.weekday().to_sunday_one_offset(),
        time.day(),
        time.month(),
        time.year()
    )
}

fn number(out: &mut dyn Write, element: &str, number: Option<u64>) -> io::Result<()> {
    match number {
        Some(number) => write!(out, "<{element}>{number}</{element}>"),
        None => Ok(()),
    }
}

fn text(out: &mut dyn Write, element: &str, text: Option<Cow<'_, str>>) -> io::Result<()> {
    let Some(text) = text.map(clean) else { return Ok(()) };
    if text.contains(['&', '<']) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        return write!(out, "<{element}>{text}</{element}>");
    }
    write!(out, "<{element}>{text}</{element}>")
}

#[cfg(test)]
mod tests {
    use flowbus_interfaces::OwnedFlow;

    use super::*;

    #[test]
    fn a_flow_is_one_line_of_conntracks_elements() {
        let owned = OwnedFlow::from_json(
            r#"{"conntrack_id":9,"family":"ipv6","protocol":"udp","protocol_number":17,"src":"2001:2::1","sport":1,
            "dst":"2001:2::2","dport":2,"reply_src":"2001:2::2","reply_sport":2,"reply_dst":"2001:2::1","reply_dport":1,
            "orig_zone":5,"status":["assured"],"timeout":30,"use":1,"mark":0,"secctx":"a<b&c","orig_packets":1,
            "orig_bytes":2,"reply_packets":3,"reply_bytes":4,"start_usec":1000000,"start_source":"kernel"}"#,
        );
        let mut out = Vec::new();
        let modifiers = Modifiers { ktimestamp: true, ..Modifiers::default() };
        flow(&mut out, &owned.unwrap(), None, &modifiers, 3_000_000).unwrap();
        let expected = concat!(
            r#"<flow><meta direction="original"><layer3 protonum="10" protoname="ipv6"><src>2001:2::1</src>"#,
            r#"<dst>2001:2::2</dst></layer3><layer4 protonum="17" protoname="udp"><sport>1</sport><dport>2</dport>"#,
            r#"</layer4><zone>5</zone><counters><packets>1</packets><bytes>2</bytes></counters></meta>"#,
            r#"<meta direction="reply"><layer3 protonum="10" protoname="ipv6"><src>2001:2::2</src><dst>2001:2::1</dst>"#,
            r#"</layer3><layer4 protonum="17" protoname="udp"><sport>2</sport><dport>1</dport></layer4>"#,
            r#"<counters><packets>3</packets><bytes>4</bytes></counters></meta><meta direction="independent">"#,
            r#"<timeout>30</timeout><mark>0</mark><secctx>a&lt;b&amp;c</secctx><use>1</use><id>9</id><assured/>"#,
            r#"<unreplied/><timestamp><start>1000000000</start></timestamp><deltatime>2</deltatime></meta></flow>"#,
            "\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn the_time_of_an_event_is_a_calendars() {
        let mut out = Vec::new();
        when(&mut out, 1_795_317_361_000_000).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("<sec>01</sec><wday>") && text.contains("<year>2026</year></when>"), "{text}");
    }
}

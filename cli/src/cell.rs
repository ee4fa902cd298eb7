//! What people read in a column.

use std::borrow::Cow;

use flowbus_interfaces::{Key, OwnedValue, Span, protocol_title};
use jiff::{Timestamp, tz::TimeZone};

use crate::fields::Fields;
use crate::{names, resolve};

/// A field's text or number as it is; empty where the flow does not have it.
pub(crate) fn plain(flow: &dyn Fields, key: Key) -> String {
    match (flow.text(key), flow.number(key)) {
        (Some(text), _) => clean(text).into_owned(),
        (None, Some(number)) => number.to_string(),
        (None, None) => String::new(),
    }
}

/// Escapes what a terminal would take for a command, or would reorder: a process can call itself anything.
pub(crate) fn clean(text: Cow<'_, str>) -> Cow<'_, str> {
    flowbus_interfaces::printing(text)
}

/// `198.18.0.2:443`, `[2001:2::1]:443`, or the address alone.
pub(crate) fn address_and_port(address: &str, port: Option<u64>) -> String {
    match port {
        Some(port) => address_and(address, &port.to_string()),
        None => address.to_owned(),
    }
}

fn address_and(address: &str, port: &str) -> String {
    if address.contains(':') { ["[", address, "]:", port].concat() } else { [address, ":", port].concat() }
}

/// The processes at both ends, as far as they are known: `curl[9]`, `curl[9] > nginx[7]`.
pub(crate) fn process(flow: &dyn Fields) -> String {
    match [Key::Initiator, Key::Responder].map(|key| flow.value(key).map(|owner| owner_name(&owner))) {
        [Some(initiator), Some(responder)] => format!("{initiator} > {responder}"),
        [Some(initiator), None] => initiator,
        [None, Some(responder)] => format!("> {responder}"),
        [None, None] => String::new(),
    }
}

/// `curl[1234]`, or what is known of that. The name is the process's, not its thread's.
pub(crate) fn owner_name(owner: &OwnedValue) -> String {
    let OwnedValue::Dictionary(fields) = owner else { return String::new() };
    let text = |name: &str| fields.get(name).map(|value| clean(value.to_string().into()).into_owned());
    match (text("leader_comm").or_else(|| text("comm")), text("pid")) {
        (name, Some(pid)) => format!("{}[{pid}]", name.as_deref().unwrap_or("?")),
        (name, None) => name.unwrap_or_default(),
    }
}

/// The protocol's state; for ICMP type and identifier, for other protocols what is known of replies.
pub(crate) fn state(flow: &dyn Fields) -> String {
    if let Some(state) = flow.text(Key::State) {
        return state.into_owned();
    }
    if let (Some(kind), Some(id)) = (flow.number(Key::IcmpType), flow.number(Key::IcmpId)) {
        return format!("type {kind} id {id}");
    }
    match flow.contains(Key::Status) {
        false => String::new(),
        _ if flow.has(Key::Status, "assured") => "ASSURED".to_owned(),
        _ if flow.has(Key::Status, "seen-reply") => "REPLIED".to_owned(),
        _ => "UNREPLIED".to_owned(),
    }
}

/// `1 resync`, `2 resyncs`.
pub(crate) fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Three digits and a binary unit: `0`, `999`, `1.5K`, `23M`.
pub(crate) fn short_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];
    if bytes < 1000 {
        return bytes.to_string();
    }
    // Tenths of the unit, so that no float is needed.
    let mut tenths = u128::from(bytes) * 10 / 1024;
    for unit in UNITS {
        match tenths {
            0..100 => return format!("{}.{}{unit}", tenths / 10, tenths % 10),
            100..10_000 => return format!("{}{unit}", tenths / 10),
            _ => tenths /= 1024,
        }
    }
    bytes.to_string()
}

/// How cells are written: for people, or with numbers alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cells {
    pub(crate) numeric: bool,
    /// Addresses have names, which are cut to this many characters; absent where they are shown as they are.
    pub(crate) resolve: Option<usize>,
}

impl Cells {
    /// Cells with names, units and calendar times.
    pub(crate) const FOR_PEOPLE: Self = Self { numeric: false, resolve: None };

    /// The protocol by name or number.
    pub(crate) fn protocol(self, flow: &dyn Fields) -> String {
        if self.numeric {
            return plain(flow, Key::ProtocolNumber);
        }
        // D-Bus has a number where conntrack has.
        let text = plain(flow, Key::Protocol);
        text.parse().ok().and_then(protocol_title).map_or(text, str::to_owned)
    }

    /// An address, or its name where that is asked for and known by now.
    pub(crate) fn address(self, address: Cow<'_, str>) -> Cow<'_, str> {
        let name = self.resolve.and_then(|most| Some(resolve::shortened(&resolve::name(&address)?, most)));
        name.map_or(address, Cow::Owned)
    }

    /// An address of a flow with its port; empty without an address.
    fn endpoint(self, flow: &dyn Fields, address: Key, port: Key) -> String {
        let end = |address| address_and_port(&self.address(address), flow.number(port));
        flow.text(address).map(end).unwrap_or_default()
    }

    /// Address and port that the connection was opened from.
    pub(crate) fn source_end(self, flow: &dyn Fields) -> String {
        self.endpoint(flow, Key::Src, Key::Sport)
    }

    /// Address and port that the connection was opened to, the port by the name of its service.
    pub(crate) fn destination_end(self, flow: &dyn Fields) -> String {
        self.service_end(flow, Key::Dst, Key::Dport)
    }

    fn service_end(self, flow: &dyn Fields, address: Key, port: Key) -> String {
        let service = || {
            let (port, protocol) = (flow.number(port)?, flow.number(Key::ProtocolNumber)?);
            names::service(port.try_into().ok()?, protocol.try_into().ok()?)
        };
        match (flow.text(address), if self.numeric { None } else { service() }) {
            (Some(address), Some(service)) => address_and(&self.address(address), service),
            _ => self.endpoint(flow, address, port),
        }
    }

    /// What translation makes of the endpoints; empty without it.
    pub(crate) fn translation(self, flow: &dyn Fields) -> String {
        let mut source = self.endpoint(flow, Key::NatSrc, Key::NatSport);
        let destination = self.service_end(flow, Key::NatDst, Key::NatDport);
        // The identifier of ICMP is translated as a port is.
        if let (false, Some(id)) = (source.is_empty(), flow.number(Key::ReplyIcmpId)) {
            source = format!("{source} id {id}");
        }
        match (source.is_empty(), destination.is_empty()) {
            (true, true) => String::new(),
            (false, true) => format!("from {source}"),
            (true, false) => format!("to {destination}"),
            (false, false) => format!("from {source} to {destination}"),
        }
    }

    /// What is known of an owner, its user by name.
    pub(crate) fn part(self, name: &str, value: &OwnedValue) -> String {
        match (name, value) {
            ("uid", OwnedValue::Number(uid)) if !self.numeric => names::user_or_number(*uid),
            _ => clean(value.to_string().into()).into_owned(),
        }
    }

    /// The traffic source by name or number.
    pub(crate) fn source(self, flow: &dyn Fields) -> String {
        plain(flow, if self.numeric { Key::SourceId } else { Key::Source })
    }

    /// Bytes of both directions; empty without accounting.
    pub(crate) fn bytes(self, flow: &dyn Fields) -> String {
        match (flow.number(Key::OrigBytes), flow.number(Key::ReplyBytes)) {
            (Some(original), Some(reply)) if self.numeric => format!("{original}/{reply}"),
            (Some(original), Some(reply)) => [&short_bytes(original), "/", &short_bytes(reply)].concat(),
            _ => String::new(),
        }
    }

    /// Time since the start, at `now` (microseconds since 1970). A flow that was there before us is older than that.
    pub(crate) fn age(self, flow: &dyn Fields, now: u64) -> String {
        let start = flow.number(Key::StartUsec);
        start.map(|start| self.at_least(flow, now.saturating_sub(start))).unwrap_or_default()
    }

    /// How long a flow lasted; empty where that is not known.
    pub(crate) fn lasted(self, flow: &dyn Fields) -> String {
        flow.number(Key::DurationUsec).map(|usec| self.at_least(flow, usec)).unwrap_or_default()
    }

    fn at_least(self, flow: &dyn Fields, usec: u64) -> String {
        let mut text = if self.numeric { seconds(usec) } else { duration(usec) };
        if flow.text(Key::StartSource).as_deref() == Some("observed") {
            text.insert(0, '>');
        }
        text
    }

    /// A time of day, or the date of what is older than a day, local; seconds since 1970 if numeric.
    pub(crate) fn when(self, usec: u64, now: u64) -> String {
        if self.numeric { seconds(usec) } else { when(usec, now) }
    }

    /// A date and a time of day, local; seconds since 1970 if numeric.
    pub(crate) fn second(self, usec: u64) -> String {
        match timestamp(usec) {
            Some(time) if !self.numeric => {
                time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
            }
            _ => seconds(usec),
        }
    }

    /// A time of day with milliseconds, local; seconds since 1970 if numeric.
    pub(crate) fn time_of_day(self, usec: u64) -> String {
        match timestamp(usec) {
            Some(time) if !self.numeric => {
                time.to_zoned(TimeZone::system()).strftime("%H:%M:%S.%3f").to_string()
            }
            _ => seconds(usec),
        }
    }

    /// A value as people read it.
    pub(crate) fn value(self, key: Key, value: &OwnedValue) -> String {
        match (key, value) {
            _ if self.numeric => clean(value.to_string().into()).into_owned(),
            (Key::StartUsec | Key::EndUsec | Key::EventUsec, OwnedValue::Number(usec)) => exactly(*usec),
            (Key::DurationUsec, OwnedValue::Number(usec)) => duration(*usec),
            (Key::Mark, OwnedValue::Number(mark)) => format!("{mark} ({mark:#010x})"),
            (Key::Timeout, OwnedValue::Number(seconds)) => span(*seconds),
            _ => clean(value.to_string().into()).into_owned(),
        }
    }
}

/// Seconds with six digits behind the point.
fn seconds(usec: u64) -> String {
    format!("{}.{:06}", usec / 1_000_000, usec % 1_000_000)
}

/// `30s`, `2m5s`, `4d23h59m`: the three largest units that a time has.
fn span(seconds: u64) -> String {
    let units =
        [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let text: Vec<_> = units
        .iter()
        .filter(|(number, _)| *number > 0)
        .take(3)
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    if text.is_empty() { "0s".to_owned() } else { text.concat() }
}

/// `250ms`, `5s`, `3m12s`, `2h5m`, `4d3h`.
pub(crate) fn duration(usec: u64) -> String {
    Span(usec).to_string()
}

/// The time of day, or the date of what is older than a day: local time.
fn when(usec: u64, now: u64) -> String {
    let format = if now.abs_diff(usec) < 86_400_000_000 { "%H:%M:%S" } else { "%Y-%m-%d %H:%M" };
    match timestamp(usec) {
        Some(time) => time.to_zoned(TimeZone::system()).strftime(format).to_string(),
        None => usec.to_string(),
    }
}

/// The whole of a time, local, with microseconds.
pub(crate) fn exactly(usec: u64) -> String {
    match timestamp(usec) {
        Some(time) => time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S.%6f %:z").to_string(),
        None => usec.to_string(),
    }
}

/// `None` for a time that no calendar has.
fn timestamp(usec: u64) -> Option<Timestamp> {
    Timestamp::from_microsecond(usec.try_into().ok()?).ok()
}

/// Microseconds since 1970.
pub(crate) fn now() -> u64 {
    Timestamp::now().as_microsecond().try_into().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use flowbus_interfaces::OwnedFlow;

    use super::*;

    const CELLS: Cells = Cells::FOR_PEOPLE;

    fn flow(json: &str) -> OwnedFlow {
        OwnedFlow::from_json(json).unwrap()
    }

    #[test]
    fn endpoints_put_brackets_around_ipv6() {
        let v4 = flow(r#"{"src":"198.18.0.2","sport":443,"dst":"198.18.0.3"}"#);
        assert_eq!(CELLS.endpoint(&v4, Key::Src, Key::Sport), "198.18.0.2:443");
        assert_eq!(CELLS.endpoint(&v4, Key::Dst, Key::Dport), "198.18.0.3");
        let v6 = flow(r#"{"src":"2001:2::1","sport":443}"#);
        assert_eq!(CELLS.endpoint(&v6, Key::Src, Key::Sport), "[2001:2::1]:443");
        assert_eq!(CELLS.endpoint(&v6, Key::Dst, Key::Dport), "");
    }

    #[test]
    fn translation_names_its_direction() {
        let translation = |flow: &OwnedFlow| CELLS.translation(flow);
        assert_eq!(translation(&flow("{}")), "");
        assert_eq!(translation(&flow(r#"{"nat_src":"198.18.3.2","nat_sport":9}"#)), "from 198.18.3.2:9");
        assert_eq!(
            translation(&flow(r#"{"nat_src":"198.18.3.2","reply_icmp_id":7}"#)),
            "from 198.18.3.2 id 7"
        );
        let both = flow(r#"{"nat_src":"198.18.3.2","nat_sport":9,"nat_dst":"198.18.4.2","nat_dport":8}"#);
        assert_eq!(translation(&both), "from 198.18.3.2:9 to 198.18.4.2:8");
    }

    #[test]
    fn a_state_is_the_protocols_or_what_is_known_of_replies() {
        assert_eq!(state(&flow(r#"{"state":"SYN_SENT","status":["assured"]}"#)), "SYN_SENT");
        assert_eq!(state(&flow(r#"{"icmp_type":8,"icmp_id":77,"status":[]}"#)), "type 8 id 77");
        assert_eq!(state(&flow(r#"{"status":["seen-reply","assured"]}"#)), "ASSURED");
        assert_eq!(state(&flow(r#"{"status":["seen-reply"]}"#)), "REPLIED");
        assert_eq!(state(&flow(r#"{"status":["confirmed"]}"#)), "UNREPLIED");
        assert_eq!(state(&flow("{}")), "");
    }

    #[test]
    fn bytes_are_short() {
        for (bytes, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "0.9K"),
            (1024, "1.0K"),
            (10 * 1024, "10K"),
            (1023 * 1024, "0.9M"),
            (3 << 30, "3.0G"),
            (u64::MAX, "15E"),
        ] {
            assert_eq!(short_bytes(bytes), text);
        }
        assert_eq!(CELLS.bytes(&flow(r#"{"orig_bytes":84,"reply_bytes":2048}"#)), "84/2.0K");
    }

    #[test]
    fn a_timeout_has_units() {
        for (seconds, text) in [(0, "0s"), (30, "30s"), (125, "2m5s"), (431_999, "4d23h59m"), (86_400, "1d")]
        {
            assert_eq!(CELLS.value(Key::Timeout, &OwnedValue::Number(seconds)), text);
        }
    }

    #[test]
    fn the_age_of_a_flow_that_was_there_before_is_a_lower_bound() {
        assert_eq!(CELLS.age(&flow(r#"{"start_usec":1000000,"start_source":"event"}"#), 6_000_000), "5s");
        assert_eq!(CELLS.age(&flow(r#"{"start_usec":1000000,"start_source":"observed"}"#), 6_000_000), ">5s");
        assert_eq!(CELLS.age(&flow(r#"{"start_usec":9000000,"start_source":"event"}"#), 6_000_000), "0ms");
        assert_eq!(CELLS.age(&flow("{}"), 6_000_000), "");
    }

    #[test]
    fn a_time_outside_the_calendar_is_a_number() {
        assert_eq!(exactly(u64::MAX), u64::MAX.to_string());
        assert_eq!(when(u64::MAX, 0), u64::MAX.to_string());
    }
}

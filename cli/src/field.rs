//! What `--fields` takes: a field by its key, a column of the tables, or what is known of an owner.

use flowbus_interfaces::{EventKind, Key, OwnedValue, event_name};

use crate::cell::{self, Cells};
use crate::fields::{Fields, Recorded};

/// A column of the tables of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Title {
    Time,
    Event,
    Id,
    Proto,
    State,
    From,
    To,
    Nat,
    Source,
    Bytes,
    Age,
    Lasted,
    Ended,
    Reason,
    Process,
    Started,
    Machine,
    Epoch,
    Alive,
}

/// What is shown of a flow: a key, a column, or a part of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Key(Key),
    Title(Title),
    /// What is known of an owner: `initiator.comm`.
    Part(Key, &'static str),
}

/// What is known of an owner, in the order of its dictionary.
const PARTS: [&str; 12] = [
    "pid",
    "comm",
    "leader_comm",
    "uid",
    "unit",
    "cgroup",
    "exe",
    "container",
    "pod",
    "network_namespace",
    "opened",
    "confidence",
];

const OWNERS: [Key; 2] = [Key::Initiator, Key::Responder];

/// What a cell needs besides the flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) event: Option<EventKind>,
    /// Microseconds since 1970.
    pub(crate) now: u64,
}

impl Title {
    pub(crate) const ALL: [Self; 19] = [
        Self::Time,
        Self::Event,
        Self::Id,
        Self::Proto,
        Self::State,
        Self::From,
        Self::To,
        Self::Nat,
        Self::Source,
        Self::Bytes,
        Self::Age,
        Self::Lasted,
        Self::Ended,
        Self::Reason,
        Self::Process,
        Self::Started,
        Self::Machine,
        Self::Epoch,
        Self::Alive,
    ];

    /// The title as it stands above the column.
    pub(crate) const fn text(self) -> &'static str {
        self.names().0
    }

    /// The title as `--fields` takes it.
    const fn name(self) -> &'static str {
        self.names().1
    }

    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Time => ("TIME", "time"),
            Self::Event => ("EVENT", "event"),
            Self::Id => ("ID", "id"),
            Self::Proto => ("PROTO", "proto"),
            Self::State => ("STATE", "state"),
            Self::From => ("FROM", "from"),
            Self::To => ("TO", "to"),
            Self::Nat => ("NAT", "nat"),
            Self::Source => ("SOURCE", "source"),
            Self::Bytes => ("BYTES", "bytes"),
            Self::Age => ("AGE", "age"),
            Self::Lasted => ("LASTED", "lasted"),
            Self::Ended => ("ENDED", "ended"),
            Self::Reason => ("REASON", "reason"),
            Self::Process => ("PROCESS", "process"),
            Self::Started => ("STARTED", "started"),
            Self::Machine => ("MACHINE", "machine"),
            Self::Epoch => ("EPOCH", "epoch"),
            Self::Alive => ("ALIVE", "alive"),
        }
    }

    /// The keys that the column is made of.
    const fn keys(self, numeric: bool) -> &'static [Key] {
        match self {
            Self::Time => &[Key::EventUsec],
            Self::Event => &[Key::Event],
            Self::Id => &[Key::Id],
            Self::Proto if numeric => &[Key::ProtocolNumber],
            Self::Proto => &[Key::Protocol],
            Self::State => &[Key::State, Key::IcmpType, Key::IcmpId, Key::Status],
            Self::From => &[Key::Src, Key::Sport],
            Self::To => &[Key::Dst, Key::Dport, Key::ProtocolNumber],
            Self::Nat => &[
                Key::NatSrc,
                Key::NatSport,
                Key::NatDst,
                Key::NatDport,
                Key::ReplyIcmpId,
                Key::ProtocolNumber,
            ],
            Self::Source if numeric => &[Key::SourceId],
            Self::Source => &[Key::Source],
            Self::Bytes => &[Key::OrigBytes, Key::ReplyBytes],
            Self::Age => &[Key::StartUsec, Key::StartSource],
            Self::Lasted => &[Key::DurationUsec, Key::StartSource],
            Self::Ended => &[Key::EndUsec],
            Self::Reason => &[Key::EndReason],
            Self::Process => &OWNERS,
            Self::Started => &[Key::StartUsec],
            // Of these an id is part.
            Self::Machine | Self::Epoch | Self::Alive => &[Key::Id],
        }
    }

    fn cell(self, flow: &dyn Fields, cells: Cells, Moment { event, now }: Moment) -> String {
        let time = |key, text: fn(Cells, u64, u64) -> String| {
            flow.number(key).map(|usec| text(cells, usec, now)).unwrap_or_default()
        };
        match self {
            Self::Time => time(Key::EventUsec, |cells, usec, _| cells.time_of_day(usec)),
            Self::Event => event.map(event_name).unwrap_or_default().to_owned(),
            Self::Id => cell::plain(flow, Key::Id),
            Self::Proto => cells.protocol(flow),
            Self::State => cell::state(flow),
            Self::From => cells.source_end(flow),
            Self::To => cells.destination_end(flow),
            Self::Nat => cells.translation(flow),
            Self::Source => cells.source(flow),
            Self::Bytes => cells.bytes(flow),
            Self::Age => cells.age(flow, now),
            Self::Lasted => cells.lasted(flow),
            Self::Started => time(Key::StartUsec, |cells, usec, _| cells.second(usec)),
            // The past of a record is of any day.
            Self::Ended => match flow.recorded() {
                Some(Recorded { is_alive: Some(true), .. }) => "alive".to_owned(),
                Some(Recorded { is_alive: Some(false), .. }) => "unknown".to_owned(),
                Some(_) => time(Key::EndUsec, |cells, usec, _| cells.second(usec)),
                None => time(Key::EndUsec, Cells::when),
            },
            Self::Machine => {
                let machine = |at: Recorded<'_>| {
                    cell::clean(if cells.numeric { at.machine } else { at.name }.into()).into_owned()
                };
                flow.recorded().map(machine).unwrap_or_default()
            }
            Self::Epoch => {
                flow.recorded().map(|at| cell::clean(at.epoch.into()).into_owned()).unwrap_or_default()
            }
            Self::Alive => {
                let alive = |alive| if alive { "true" } else { "false" }.to_owned();
                flow.recorded().and_then(|at| at.is_alive).map(alive).unwrap_or_default()
            }
            Self::Reason => cell::plain(flow, Key::EndReason),
            Self::Process => cell::process(flow),
        }
    }
}

impl Field {
    /// A field by its name. A key goes before a column of the same name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        if let Some(key) = Key::parse(name) {
            return Some(Self::Key(key));
        }
        if let Some((owner, part)) = name.split_once('.') {
            let owner = Key::parse(owner).filter(|key| OWNERS.contains(key))?;
            return PARTS.into_iter().find(|known| *known == part).map(|part| Self::Part(owner, part));
        }
        Title::ALL.into_iter().find(|title| title.name() == name).map(Self::Title)
    }

    /// The names of all fields.
    pub(crate) fn names() -> Vec<String> {
        let titles = Title::ALL.iter().map(|title| title.name());
        let titles = titles.filter(|name| Key::parse(name).is_none()).map(str::to_owned);
        let parts = OWNERS.iter().flat_map(|owner| PARTS.map(|part| format!("{owner}.{part}")));
        titles.chain(Key::ALL.iter().map(|key| key.name().to_owned())).chain(parts).collect()
    }

    /// Whether flows have it in the log alone.
    pub(crate) const fn is_recorded(self) -> bool {
        matches!(self, Self::Title(Title::Machine | Title::Epoch | Title::Alive))
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::Key(key) => key.name().to_owned(),
            Self::Title(title) => title.name().to_owned(),
            Self::Part(owner, part) => format!("{owner}.{part}"),
        }
    }

    /// The keys that the field is made of, in a table or elsewhere.
    pub(crate) fn keys(self, in_table: bool, numeric: bool) -> Vec<Key> {
        match self {
            Self::Key(Key::State) if in_table => Title::State.keys(numeric).to_vec(),
            Self::Key(key) | Self::Part(key, _) => vec![key],
            Self::Title(title) => title.keys(numeric).to_vec(),
        }
    }

    /// What people read of the field in a table.
    pub(crate) fn cell(self, flow: &dyn Fields, cells: Cells, moment: Moment) -> String {
        match self {
            Self::Title(title) => title.cell(flow, cells, moment),
            Self::Key(Key::Event) => Title::Event.cell(flow, cells, moment),
            Self::Key(Key::State) => Title::State.cell(flow, cells, moment),
            Self::Key(key) => match flow.value(key) {
                Some(owner) if OWNERS.contains(&key) => cell::owner_name(&owner),
                value => value.map(|value| cells.value(key, &value)).unwrap_or_default(),
            },
            Self::Part(_, name) => self.part(flow).map(|value| cells.part(name, &value)).unwrap_or_default(),
        }
    }

    /// The part of an owner that the field names; `None` of other fields.
    pub(crate) fn part(self, flow: &dyn Fields) -> Option<OwnedValue> {
        let Self::Part(owner, part) = self else { return None };
        match flow.value(owner)?.as_ref() {
            OwnedValue::Dictionary(owner) => owner.get(part).cloned(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use flowbus_interfaces::OwnedFlow;

    use super::*;

    #[test]
    fn a_field_is_a_key_a_column_or_a_part_of_an_owner() {
        assert_eq!(Field::parse("dport"), Some(Field::Key(Key::Dport)));
        assert_eq!(Field::parse("proto"), Some(Field::Title(Title::Proto)));
        assert_eq!(Field::parse("state"), Some(Field::Key(Key::State)));
        assert_eq!(Field::parse("responder.unit"), Some(Field::Part(Key::Responder, "unit")));
        for wrong in ["", "PROTO", "initiator.", "initiator.colour", "src.pid", "colour"] {
            assert_eq!(Field::parse(wrong), None, "{wrong}");
        }
        for name in Field::names() {
            let field = Field::parse(&name).unwrap();
            assert!(field.name() == name && !field.keys(true, false).is_empty(), "{name}");
        }
    }

    #[test]
    fn a_column_shows_what_its_keys_have() {
        let flow = OwnedFlow::from_json(
            r#"{"event_usec":1,"id":7,"protocol":"udp","protocol_number":17,"src":"198.18.0.2","sport":40000,
            "dst":"2001:2::1","dport":7100,"nat_src":"198.18.3.2","nat_sport":1024,"status":["assured"],
            "source":"CHROME","source_id":1,"orig_bytes":84,"reply_bytes":2048,"start_usec":1,"end_usec":3,
            "duration_usec":2,"start_source":"kernel","end_reason":"destroyed",
            "initiator":{"pid":9,"comm":"curl","leader_comm":"curl","uid":0}}"#,
        )
        .unwrap();
        let moment = Moment { event: Some(EventKind::New), now: 9 };
        for numeric in [false, true] {
            let cells = Cells { numeric, resolve: None };
            for title in Title::ALL.into_iter().filter(|title| !Field::Title(*title).is_recorded()) {
                let keys = title.keys(numeric);
                let asked: OwnedFlow = flow
                    .iter()
                    .filter(|(key, _)| keys.contains(key))
                    .map(|(key, value)| (key, value.clone()))
                    .collect();
                let cell = title.cell(&flow, cells, moment);
                assert!(!cell.is_empty() && title.cell(&asked, cells, moment) == cell, "{title:?}: {cell}");
                let nothing = title.cell(&OwnedFlow::default(), cells, Moment { event: None, now: 0 });
                assert_eq!(nothing, "", "{title:?}");
            }
        }
        let shown = |name| Field::parse(name).unwrap().cell(&flow, Cells::FOR_PEOPLE, moment);
        assert_eq!(
            ["state", "initiator", "initiator.pid", "responder.pid", "initiator.uid"].map(shown),
            ["ASSURED", "curl[9]", "9", "", "root"]
        );
    }
}

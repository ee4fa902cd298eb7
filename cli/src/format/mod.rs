//! The forms in which flows are printed.

mod awk;
mod conntrack;
mod csv;
mod labels;
mod shown;
mod table;
mod xml;

use std::io::{self, Write};

use clap::Args;
use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use flowbus_interfaces::{EventKind, FieldSet, Key, QueryMap, event_name};

use crate::cell;
use crate::field::{Field, Moment, Title};
use crate::fields::Fields;
use crate::json::{Layout, Tabled};
use crate::query::Query;
use crate::resolve;
use crate::screen::Look;
use labels::LabelNames;
use shown::Modifiers;
use table::FlowTable;
pub(crate) use table::Kind;

/// What `-o` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
    Csv,
    Awk,
    Conntrack(Modifiers),
    Xml(Modifiers),
}

/// The words of `-o`, and what they mean.
const FORMS: [(&str, &str); 6] = [
    ("table", "Columns for people"),
    ("json", "One JSON object a line, with the keys of D-Bus"),
    ("csv", "Comma-separated values below a line of names"),
    (
        "awk",
        "Twelve words a line, as monitor-conntrack --awk prints them: id, source address and port, translated source \
         address and port, destination address and port, protocol, start and end (seconds since 1970), mark, traffic \
         source; None for what is unset",
    ),
    ("conntrack", "The line of conntrack -L, of events that of conntrack -E"),
    ("xml", "conntrack's XML"),
];

/// conntrack's own words of `-o`, which go with two of the forms.
const MODIFIERS: [&str; 5] = ["extended", "id", "timestamp", "ktimestamp", "labels"];

impl Format {
    /// Reads a form, and after commas conntrack's modifiers, in any order.
    fn parse(text: &str) -> Result<Self, String> {
        let (modifiers, forms): (Vec<_>, Vec<_>) = text.split(',').partition(|word| MODIFIERS.contains(word));
        let [form] = forms.as_slice() else {
            return Err(format!("takes one form, such as conntrack,{}", MODIFIERS.join(",")));
        };
        let has = |word| modifiers.contains(&word);
        let read = Modifiers {
            extended: has("extended"),
            id: has("id"),
            timestamp: has("timestamp"),
            ktimestamp: has("ktimestamp"),
            labels: has("labels").then(LabelNames::load),
        };
        let format = match *form {
            "conntrack" => return Ok(Self::Conntrack(read)),
            "xml" => return Ok(Self::Xml(read)),
            "table" => Self::Table,
            "json" => Self::Json,
            "csv" => Self::Csv,
            "awk" => Self::Awk,
            _ => return Err("there is no such form".to_owned()),
        };
        match modifiers.first() {
            Some(modifier) => Err(format!("{modifier} goes with conntrack and xml alone")),
            None => Ok(format),
        }
    }

    /// The keys that the form needs of each flow; none where it shows whatever there is. `fields` are those that were chosen,
    /// if any were.
    fn keys(&self, fields: &[Field], kind: Kind, numeric: bool) -> Vec<Key> {
        let is_table = *self == Self::Table;
        let made_of =
            |fields: &[Field]| fields.iter().flat_map(|field| field.keys(is_table, numeric)).collect();
        match self {
            Self::Table if fields.is_empty() => made_of(&kind.fields()),
            Self::Table | Self::Json | Self::Csv => made_of(fields),
            Self::Awk => awk::KEYS.to_vec(),
            Self::Conntrack(_) | Self::Xml(_) => shown::KEYS.to_vec(),
        }
    }

    /// What a flow that has ended is shown as: conntrack's forms know it as the event of its end.
    pub(crate) fn event_of_closed(&self) -> Option<EventKind> {
        matches!(self, Self::Conntrack(_) | Self::Xml(_)).then_some(EventKind::Destroy)
    }

    /// Whether the fields can be chosen.
    pub(crate) fn takes_fields(&self) -> bool {
        matches!(self, Self::Table | Self::Json | Self::Csv)
    }
}

/// Reads `-o`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FormatParser;

impl TypedValueParser for FormatParser {
    type Value = Format;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Format, clap::Error> {
        let text = value.to_string_lossy();
        Format::parse(&text).map_err(|reason| {
            let mut error = clap::Error::new(ErrorKind::InvalidValue).with_cmd(command);
            let arg = arg.map(ToString::to_string).unwrap_or_default();
            error.insert(ContextKind::InvalidArg, ContextValue::String(arg));
            error.insert(ContextKind::InvalidValue, ContextValue::String(format!("{text}: {reason}")));
            let known = FORMS.iter().map(|(name, _)| (*name).to_owned()).collect();
            error.insert(ContextKind::ValidValue, ContextValue::Strings(known));
            error
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(FORMS.iter().map(|&(name, help)| PossibleValue::new(name).help(help))))
    }
}

/// How flows are printed.
#[derive(Args, Clone, Debug)]
pub(crate) struct Output {
    #[command(flatten)]
    tabled: Tabled,
    /// How to print
    ///
    /// conntrack and xml take conntrack's modifiers after commas: extended, id, timestamp, ktimestamp, labels.
    #[arg(short, long, value_name = "FORM[,MODIFIER...]", value_parser = FormatParser, default_value = "table",
        conflicts_with = "layout")]
    output: Format,
    /// Print exact numbers: no names, no units, seconds since 1970
    #[arg(long)]
    numeric: bool,

    /// Show names of addresses, as systemd-resolved knows them
    ///
    /// Names are looked up in the background: an address is a number until its name is known. Names that arrive too late
    /// are printed below the list.
    #[arg(long, conflicts_with_all = ["numeric", "layout"])]
    resolve: bool,

    /// Show every column of a table, also where the terminal is too narrow for all
    #[arg(short, long)]
    wide: bool,
}

impl Output {
    /// A query with the fields that the form needs, where it does not show whatever there is.
    pub(crate) fn query<'a>(&self, query: &'a Query, kind: Kind) -> QueryMap<'a> {
        self.query_with(query, kind, &[])
    }

    /// A query with the fields that the form needs, and with keys that are not printed.
    pub(crate) fn query_with<'a>(&self, query: &'a Query, kind: Kind, also: &[Key]) -> QueryMap<'a> {
        let mut map = query.to_map();
        let mut keys = self.format().keys(query.fields(), kind, self.numeric);
        if !keys.is_empty() {
            keys.extend(also);
            map.insert("fields", names_of(&keys).into());
        }
        map
    }

    pub(crate) const fn format(&self) -> &Format {
        if self.tabled.json.is_on() { &Format::Json } else { &self.output }
    }

    /// What a table looks like.
    pub(crate) fn look(&self) -> Look {
        let look = Look::new(self.numeric);
        let width = look.width.filter(|_| !self.wide);
        Look { width, resolve: self.resolve, legend: self.tabled.legend(), ..look }
    }

    /// Whether names are asked for, which tables alone have.
    pub(crate) const fn resolve(&self) -> bool {
        self.resolve
    }
}

/// The names of keys, each once.
pub(crate) fn names_of(keys: &[Key]) -> Vec<&'static str> {
    let chosen: FieldSet = keys.iter().copied().collect();
    Key::ALL.iter().filter(|&&key| chosen.contains(key)).map(|key| key.name()).collect()
}

/// Prints flows in a form. Rows of a table are gathered until [`Printer::flush`] writes them; all else is written at once.
pub(crate) struct Printer {
    form: Form,
    /// The time that flows are printed at, microseconds since 1970.
    now: u64,
}

enum Form {
    Table(FlowTable),
    Json(Layout),
    Csv { columns: Vec<Field>, legend: bool },
    Awk,
    Conntrack(Modifiers),
    Xml(Modifiers),
}

impl Printer {
    /// A printer as the command line asks for it.
    pub(crate) fn of(query: &Query, output: &Output, kind: Kind) -> Self {
        Self::new(output, kind, query.fields().to_vec())
    }

    /// A printer. `fields` are the columns of a table and of CSV, where they were chosen.
    pub(crate) fn new(output: &Output, kind: Kind, fields: Vec<Field>) -> Self {
        Self::with_look(output.format().clone(), kind, fields, output.look(), output.tabled.json.layout())
    }

    /// A printer of the table of `flowctl list`, or of JSON.
    pub(crate) fn of_table(tabled: Tabled) -> Self {
        let format = if tabled.json.is_on() { Format::Json } else { Format::Table };
        let look = Look { legend: tabled.legend(), ..Look::new(false) };
        Self::with_look(format, Kind::Active, Vec::new(), look, tabled.json.layout())
    }

    fn with_look(format: Format, kind: Kind, fields: Vec<Field>, look: Look, layout: Layout) -> Self {
        let form = match format {
            Format::Table => Form::Table(FlowTable::new(kind, fields, look)),
            Format::Json => Form::Json(layout),
            Format::Csv => {
                let columns = if fields.is_empty() { all_columns(kind) } else { fields };
                Form::Csv { columns, legend: look.legend }
            }
            Format::Awk => Form::Awk,
            Format::Conntrack(modifiers) => Form::Conntrack(modifiers),
            Format::Xml(modifiers) => Form::Xml(modifiers),
        };
        Self { form, now: cell::now() }
    }

    /// Writes what comes before the first flow, and comes also where there is none.
    pub(crate) fn begin(&self, out: &mut dyn Write) -> io::Result<()> {
        match &self.form {
            Form::Csv { columns, legend: true } => csv::header(out, columns),
            Form::Xml(_) => out.write_all(xml::BEGIN.as_bytes()),
            _ => Ok(()),
        }
    }

    /// Prints a flow; `event` is what happened to it.
    pub(crate) fn flow(
        &mut self,
        out: &mut dyn Write,
        flow: &dyn Fields,
        event: Option<EventKind>,
    ) -> io::Result<()> {
        let now = self.now;
        match &mut self.form {
            Form::Table(table) => table.push(out, flow, Moment { event, now }),
            Form::Json(Layout::Short) => json(out, flow, event),
            Form::Json(layout) => {
                let mut text = Vec::new();
                json(&mut text, flow, event)?;
                layout.write(out, &String::from_utf8_lossy(&text))
            }
            Form::Csv { columns, .. } => csv::line(out, columns, flow, Moment { event, now }),
            Form::Awk => awk::line(out, flow),
            Form::Conntrack(modifiers) => conntrack::line(out, flow, event, modifiers, now),
            Form::Xml(modifiers) => xml::flow(out, flow, event, modifiers, now),
        }
    }

    /// Writes the rows that wait for others to be as wide as they are, and looks at the clock again.
    pub(crate) fn flush(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.now = cell::now();
        match &mut self.form {
            Form::Table(table) => table.flush(out),
            _ => Ok(()),
        }
    }

    /// Writes what comes after the last flow.
    pub(crate) fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.flush(out)?;
        match &self.form {
            Form::Table(table) => table.end(out),
            Form::Xml(_) => out.write_all(xml::END.as_bytes()),
            _ => Ok(()),
        }
    }
}

/// Writes the names that came after their lines, where names are asked for.
pub(crate) async fn late_names(output: &Output, out: &mut dyn Write) -> io::Result<()> {
    if !output.resolve {
        return Ok(());
    }
    // What is there is read meanwhile.
    out.flush()?;
    for (address, name) in resolve::late().await {
        writeln!(out, "{address} is {name}")?;
    }
    if let Some(failure) = resolve::failure() {
        anstream::eprintln!("flowctl: {failure}");
    }
    Ok(())
}

/// The flow's object as the daemon wrote it; of an event with what happened, as the signals have it.
fn json(out: &mut dyn Write, flow: &dyn Fields, event: Option<EventKind>) -> io::Result<()> {
    let members = flow.members();
    match event {
        Some(event) => {
            let comma = if members.is_empty() { "" } else { "," };
            writeln!(out, "{{\"event\":\"{}\"{comma}{members}}}", event_name(event))
        }
        None => {
            out.write_all(b"{")?;
            out.write_all(members.as_bytes())?;
            out.write_all(b"}\n")
        }
    }
}

/// A column for every key that flows of this kind can have.
fn all_columns(kind: Kind) -> Vec<Field> {
    let has = |key: &Key| match key {
        Key::Event | Key::EventUsec => kind == Kind::Events,
        Key::Sequence => kind != Kind::Active,
        _ => true,
    };
    let keys = Key::ALL.iter().copied().filter(has).map(Field::Key);
    if !matches!(kind, Kind::History | Kind::Fleet) {
        return keys.collect();
    }
    let before = [Title::Machine, Title::Epoch].map(Field::Title);
    before.into_iter().chain(keys).chain([Field::Title(Title::Alive)]).collect()
}

#[cfg(test)]
mod tests {
    use flowbus_interfaces::{FlowRef, OwnedFlow};

    use super::*;

    const FLOW: &str = r#"{"type":"new","sequence":3,"id":7,"protocol":"tcp","src":"198.18.0.2","sport":40000,
        "dst":"2001:2::1","dport":443,"mark":256,"source":"CHROME","start_usec":1000000}"#;

    fn printed(format: &str, kind: Kind, event: Option<EventKind>) -> String {
        let line = FLOW.replace('\n', "").replace("        ", "");
        let flow = FlowRef::parse(&line).unwrap();
        let mut out = Vec::new();
        let format = Format::parse(format).unwrap();
        let mut printer = Printer::with_look(format, kind, Vec::new(), Look::PLAIN, Layout::Short);
        printer.begin(&mut out).unwrap();
        printer.flow(&mut out, &flow, event).unwrap();
        printer.end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn modifiers_go_with_conntracks_forms_in_any_order() {
        let all = Format::parse("id,conntrack,extended").unwrap();
        assert!(matches!(&all, Format::Conntrack(m) if m.id && m.extended && !m.timestamp), "{all:?}");
        assert!(matches!(Format::parse("xml,timestamp,id"), Ok(Format::Xml(m)) if m.timestamp));
        for wrong in ["", "id", "yaml", "json,id", "json,xml", "conntrack,"] {
            assert!(Format::parse(wrong).is_err(), "{wrong}");
        }
        for (name, _) in FORMS {
            assert!(Format::parse(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn json_is_the_flow_and_of_an_event_what_happened() {
        let members = r#""sequence":3,"id":7,"protocol":"tcp","src":"198.18.0.2","sport":40000,"dst":"2001:2::1","dport":443,"mark":256,"source":"CHROME","start_usec":1000000}"#;
        assert_eq!(printed("json", Kind::Active, None), format!("{{{members}\n"));
        let event = printed("json", Kind::Events, Some(EventKind::New));
        assert_eq!(event, format!("{{\"event\":\"new\",{members}\n"));
        let owned = OwnedFlow::from_json(FLOW).unwrap();
        let mut out = Vec::new();
        json(&mut out, &owned, None).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), format!("{{{members}\n"));
    }

    #[test]
    fn what_has_a_frame_has_it_without_flows_too() {
        assert_eq!(printed("awk", Kind::Active, None).lines().count(), 1);
        let xml = printed("xml", Kind::Events, Some(EventKind::New));
        assert!(
            xml.starts_with(xml::BEGIN) && xml.ends_with(xml::END) && xml.contains("type=\"new\""),
            "{xml}"
        );
        let csv = printed("csv", Kind::Events, Some(EventKind::New));
        assert!(csv.starts_with("event,sequence,event_usec,id,") && csv.contains("\nnew,3,,7,"), "{csv}");
        assert!(printed("csv", Kind::Active, None).starts_with("id,conntrack_id,"));
    }
}

//! Comma-separated values, as RFC 4180 has them but for the line's end, which is a newline alone.

use std::borrow::Cow;
use std::io::{self, Write};

use flowbus_interfaces::{Key, OwnedValue, event_name};

use crate::cell::{Cells, clean};
use crate::field::{Field, Moment};
use crate::fields::Fields;

/// Writes the line of names.
pub(super) fn header(out: &mut dyn Write, columns: &[Field]) -> io::Result<()> {
    for (index, field) in columns.iter().enumerate() {
        write!(out, "{}{}", if index == 0 { "" } else { "," }, field.name())?;
    }
    writeln!(out)
}

/// Writes the line of a flow; what the flow does not have is empty.
pub(super) fn line(
    out: &mut dyn Write,
    columns: &[Field],
    flow: &dyn Fields,
    moment: Moment,
) -> io::Result<()> {
    for (index, &field) in columns.iter().enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        match (field, moment.event) {
            (Field::Key(Key::Event), Some(event)) => out.write_all(event_name(event).as_bytes())?,
            (Field::Key(key), _) => match (flow.number(key), flow.text(key)) {
                (Some(number), _) => write!(out, "{number}")?,
                (None, Some(text)) => cell(out, text)?,
                (None, None) => value(out, flow.value(key).as_deref())?,
            },
            (Field::Part(..), _) => value(out, field.part(flow).as_ref())?,
            // A column is for people, but what reads CSV wants numbers.
            (Field::Title(_), _) => {
                cell(out, field.cell(flow, Cells { numeric: true, resolve: None }, moment).into())?
            }
        }
    }
    writeln!(out)
}

fn value(out: &mut dyn Write, value: Option<&OwnedValue>) -> io::Result<()> {
    match value {
        None => Ok(()),
        Some(OwnedValue::Bool(value)) => write!(out, "{value}"),
        Some(value) => cell(out, value.to_string().into()),
    }
}

/// Writes a cell. What a terminal would take for a command is escaped, ends of lines as well: a row is a line.
fn cell(out: &mut dyn Write, text: Cow<'_, str>) -> io::Result<()> {
    let text = clean(text);
    if text.contains([',', '"']) {
        write!(out, "\"{}\"", text.replace('"', "\"\""))
    } else {
        out.write_all(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use flowbus_interfaces::{EventKind, OwnedFlow};

    use super::*;

    #[test]
    fn what_would_be_taken_for_a_separator_is_quoted() {
        let columns = ["event", "id", "status", "helper", "mark", "legacy_snat", "initiator.pid", "from"];
        let columns = columns.map(|name| Field::parse(name).unwrap());
        let flow = OwnedFlow::from_json(
            r#"{"id":7,"status":["assured","dying"],"helper":"a\"b","legacy_snat":true,"initiator":{"pid":9},"src":"198.18.0.2"}"#,
        );
        let mut out = Vec::new();
        header(&mut out, &columns).unwrap();
        let moment = Moment { event: Some(EventKind::New), now: 0 };
        line(&mut out, &columns, &flow.unwrap(), moment).unwrap();
        let expected = "event,id,status,helper,mark,legacy_snat,initiator.pid,from\n\
                        new,7,\"assured,dying\",\"a\"\"b\",,true,9,198.18.0.2\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn what_a_process_calls_itself_is_no_command_to_a_terminal() {
        let flow = OwnedFlow::from_json(r#"{"initiator":{"comm":"\u001b]0;\n,\u009b"},"helper":"\u001bc"}"#)
            .unwrap();
        let mut out = Vec::new();
        let columns = [Key::Initiator, Key::Helper].map(Field::Key);
        line(&mut out, &columns, &flow, Moment { event: None, now: 0 }).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "\"comm=\\u{1b}]0;\\n,\\u{9b}\",\\u{1b}c\n");
    }
}

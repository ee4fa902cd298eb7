//! Comma-separated values, as RFC 4180 has them but for the line's end, which is a newline alone.

use std::borrow::Cow;
use std::io::{self, Write};

use flowbus_interfaces::{Key, OwnedValue};

use crate::cell::clean;
use crate::fields::Fields;

/// The line of names.
pub(super) fn header(out: &mut dyn Write, columns: &[Key]) -> io::Result<()> {
    for (index, key) in columns.iter().enumerate() {
        write!(out, "{}{key}", if index == 0 { "" } else { "," })?;
    }
    writeln!(out)
}

/// The line of a flow: what it does not have is empty. `event` is what happened to it, of an event.
pub(super) fn line(
    out: &mut dyn Write,
    columns: &[Key],
    flow: &dyn Fields,
    event: Option<&str>,
) -> io::Result<()> {
    for (index, &key) in columns.iter().enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        match (key, event) {
            (Key::Event, Some(event)) => out.write_all(event.as_bytes())?,
            _ => match (flow.number(key), flow.text(key)) {
                (Some(number), _) => write!(out, "{number}")?,
                (None, Some(text)) => cell(out, text)?,
                (None, None) => match flow.value(key).as_deref() {
                    None => {}
                    Some(OwnedValue::Bool(value)) => write!(out, "{value}")?,
                    Some(value) => cell(out, value.to_string().into())?,
                },
            },
        }
    }
    writeln!(out)
}

/// What a terminal would take for a command is escaped, ends of lines as well: a row is a line.
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
    use flowbus_interfaces::OwnedFlow;

    use super::*;

    #[test]
    fn what_would_be_taken_for_a_separator_is_quoted() {
        let columns = [Key::Event, Key::Id, Key::Status, Key::Helper, Key::Mark, Key::LegacySnat];
        let flow = OwnedFlow::from_json(
            r#"{"id":7,"status":["assured","dying"],"helper":"a\"b","legacy_snat":true}"#,
        );
        let mut out = Vec::new();
        header(&mut out, &columns).unwrap();
        line(&mut out, &columns, &flow.unwrap(), Some("new")).unwrap();
        let expected = "event,id,status,helper,mark,legacy_snat\nnew,7,\"assured,dying\",\"a\"\"b\",,true\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn what_a_process_calls_itself_is_no_command_to_a_terminal() {
        let flow = OwnedFlow::from_json(r#"{"initiator":{"comm":"\u001b]0;\n,\u009b"},"helper":"\u001bc"}"#)
            .unwrap();
        let mut out = Vec::new();
        line(&mut out, &[Key::Initiator, Key::Helper], &flow, None).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "\"comm=\\u{1b}]0;\\n,\\u{9b}\",\\u{1b}c\n");
    }
}

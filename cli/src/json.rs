//! `--json`: objects in a line each, or indented.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::output::terminal_width;
use crate::table::{Column, Table};

/// How a JSON object is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// One object a line
    #[default]
    Short,
    /// Indented, a member a line
    Pretty,
}

/// Whether JSON is printed, and how.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Json {
    /// Print JSON
    #[arg(long = "json", value_enum, value_name = "short|pretty", num_args = 0..=1, require_equals = true,
        default_missing_value = "short")]
    layout: Option<Layout>,
}

impl Json {
    /// Whether JSON is asked for.
    pub(crate) const fn is_on(self) -> bool {
        self.layout.is_some()
    }

    pub(crate) fn layout(self) -> Layout {
        self.layout.unwrap_or_default()
    }

    /// Prints a value.
    pub(crate) fn print<T: Serialize + ?Sized>(self, out: &mut dyn Write, value: &T) -> io::Result<()> {
        let mut text = Vec::new();
        flowbus_interfaces::write_json(&mut text, value)?;
        self.layout().write(out, &String::from_utf8_lossy(&text))
    }
}

/// How a command prints that has a table or JSON.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Tabled {
    #[command(flatten)]
    pub(crate) json: Json,
    /// Print no titles above columns and nothing below them
    #[arg(long)]
    no_legend: bool,
}

impl Tabled {
    /// A table as it is asked for, on this terminal.
    pub(crate) fn table(self, columns: Vec<Column>) -> Table {
        Table::new(columns, terminal_width()).legend(!self.no_legend)
    }

    pub(crate) const fn legend(self) -> bool {
        !self.no_legend
    }
}

impl Layout {
    /// Writes JSON text and ends the line.
    pub(crate) fn write(self, out: &mut dyn Write, text: &str) -> io::Result<()> {
        match self {
            Self::Short => out.write_all(text.as_bytes())?,
            Self::Pretty => out.write_all(indented(text).as_bytes())?,
        }
        out.write_all(b"\n")
    }
}

/// Writes JSON anew with a line for each member, its numbers and order untouched.
fn indented(text: &str) -> String {
    let mut lines = String::with_capacity(text.len() * 2);
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    let mut letters = text.trim().chars().peekable();
    let new_line = |lines: &mut String, depth: usize| {
        lines.push('\n');
        lines.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(letter) = letters.next() {
        if in_text {
            lines.push(letter);
            in_text = letter != '"' || escaped;
            escaped = letter == '\\' && !escaped;
            continue;
        }
        match letter {
            '{' | '[' => {
                lines.push(letter);
                // What is empty stays in one piece.
                if let Some(end @ ('}' | ']')) = letters.peek().copied() {
                    lines.push(end);
                    letters.next();
                } else {
                    depth += 1;
                    new_line(&mut lines, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut lines, depth);
                lines.push(letter);
            }
            ',' => {
                lines.push(letter);
                new_line(&mut lines, depth);
            }
            ':' => lines.push_str(": "),
            '"' => {
                in_text = true;
                lines.push(letter);
            }
            letter if letter.is_ascii_whitespace() => {}
            letter => lines.push(letter),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn pretty_is_the_same_object_in_more_lines() {
        let text = r#"{"b":18446744073709551615,"a":["x,y","\"{\\",{}],"c":{"d":[],"e":null}}"#;
        let pretty = indented(text);
        assert_eq!(
            serde_json::from_str::<Value>(&pretty).unwrap(),
            serde_json::from_str::<Value>(text).unwrap()
        );
        assert!(
            pretty.starts_with("{\n  \"b\": 18446744073709551615,\n  \"a\": [\n    \"x,y\","),
            "{pretty}"
        );
        assert!(pretty.contains("\"d\": [],") && pretty.ends_with("\n  }\n}"), "{pretty}");
    }
}

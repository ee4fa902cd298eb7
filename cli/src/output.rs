//! Standard output.

use std::io::{self, BufWriter, IsTerminal, Write};

use serde::Serialize;

/// Standard output; colours are for terminals without NO_COLOR.
pub(crate) fn stdout() -> impl Write {
    BufWriter::new(anstream::stdout().lock())
}

/// Writes a JSON value on a line of its own.
pub(crate) fn json_line<W: Write + ?Sized, T: Serialize + ?Sized>(out: &mut W, value: &T) -> io::Result<()> {
    flowbus_interfaces::write_json(&mut *out, value)?;
    writeln!(out)
}

/// The terminal's width, where standard output is one.
pub(crate) fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| terminal_size::terminal_size_of(&stdout)).flatten();
    size.map(|(width, _)| usize::from(width.0))
}

//! Text that others choose (a process can call itself anything), made safe to show: what does not print is escaped.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

/// Whether a character shows itself. Controls (C0, DEL, C1), ends of lines and paragraphs, marks that reorder text, characters of
/// no width, spaces other than the ordinary one, private and unassigned characters do not. A combining mark does, behind another
/// character.
pub fn is_printing(character: char) -> bool {
    const INVISIBLE: [std::ops::RangeInclusive<char>; 7] = [
        '\u{34f}'..='\u{34f}',     // joins graphemes
        '\u{115f}'..='\u{1160}',   // Hangul fillers
        '\u{17b4}'..='\u{17b5}',   // Khmer vowels that are not shown
        '\u{180b}'..='\u{180f}',   // Mongolian variation selectors
        '\u{3164}'..='\u{3164}',   // a Hangul filler
        '\u{fe00}'..='\u{fe0f}',   // variation selectors
        '\u{e0100}'..='\u{e01ef}', // more of them
    ];
    if character.is_ascii() {
        return !character.is_ascii_control();
    }
    if character == '\u{ffa0}' || INVISIBLE.iter().any(|range| range.contains(&character)) {
        return false;
    }
    // The standard library knows what prints. It would escape a combining mark that stands alone, so that something has to be before it.
    let mut text = [b'a'; 5];
    let length = character.encode_utf8(&mut text[1..]).len();
    std::str::from_utf8(&text[..=length]).is_ok_and(|text| text.escape_debug().eq(text.chars()))
}

/// The text for a terminal or a line of text: as it is where all of it prints, else escaped, quotes and backslashes too. It has one
/// line, and its characters stand in the order of the text.
pub fn printing(text: Cow<'_, str>) -> Cow<'_, str> {
    let alone = |first: char| first.escape_debug().next() == Some('\\') && !first.is_ascii();
    if text.chars().all(is_printing) && !text.chars().next().is_some_and(alone) {
        return text;
    }
    let mut escaped = String::with_capacity(2 * text.len());
    for (index, character) in text.chars().enumerate() {
        match character {
            _ if is_printing(character) && index > 0 && !character.is_ascii() => escaped.push(character),
            _ if character.is_ascii() || is_printing(character) => escaped.extend(character.escape_debug()),
            _ => escaped.extend(character.escape_unicode()),
        }
    }
    escaped.into()
}

/// Writes JSON of which every character prints, so that a document without line ends of its own is one line to every reader
/// (Python's `splitlines` also ends lines at U+0085 and U+2028) and no text reorders what is around it. What does not print is
/// `\uXXXX`: the value is the same.
///
/// # Errors
/// If it cannot be written, or has a key that is not text.
pub fn write_json<T: Serialize + ?Sized>(out: impl Write, value: &T) -> serde_json::Result<()> {
    value.serialize(&mut Serializer::with_formatter(out, Printing))
}

/// The JSON of a value, as [`write_json`] writes it.
///
/// # Errors
/// If it has a key that is not text.
pub fn json_text<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    let mut json = Vec::new();
    write_json(&mut json, value)?;
    Ok(String::from_utf8(json).unwrap_or_default())
}

/// JSON that another program wrote, as [`write_json`] would: the value is the same, and every character prints.
pub fn printing_json(json: Cow<'_, str>) -> Cow<'_, str> {
    if json.bytes().all(|byte| (b' '..0x7f).contains(&byte)) || json.chars().all(is_printing) {
        return json;
    }
    let mut printing = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            _ if is_printing(character) => printing.push(character),
            // JSON has it between values alone.
            '\t' | '\n' | '\r' => printing.push(' '),
            _ => {
                let _ = fmt::Write::write_fmt(&mut printing, format_args!("{}", Escaped(character)));
            }
        }
    }
    printing.into()
}

/// A character as JSON escapes it.
struct Escaped(char);

impl fmt::Display for Escaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(f, "\\u{unit:04x}"))
    }
}

/// serde_json's compact form, with more escapes in texts.
struct Printing;

impl Formatter for Printing {
    fn write_string_fragment<W: Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        // Nearly every fragment ends here: ASCII without DEL. C0 controls are not part of a fragment.
        if fragment.bytes().all(|byte| byte < 0x7f) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some((at, character)) = rest.char_indices().find(|&(_, character)| !is_printing(character))
        {
            let (before, from) = rest.split_at(at);
            writer.write_all(before.as_bytes())?;
            write!(writer, "{}", Escaped(character))?;
            rest = from.get(character.len_utf8()..).unwrap_or_default();
        }
        writer.write_all(rest.as_bytes())
    }

    fn write_char_escape<W: Write + ?Sized>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        serde_json::ser::CompactFormatter.write_char_escape(writer, escape)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A character of each kind that is hidden: C0, DEL, C1, ends of lines and paragraphs, reordering marks, no width, other spaces,
    /// tags, selectors, fillers, private, unassigned.
    const HIDDEN: &str = "\u{7}\u{b}\u{c}\u{1c}\u{1e}\u{7f}\u{85}\u{9b}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}\u{200e}\
        \u{200f}\u{61c}\u{200b}\u{2060}\u{feff}\u{ad}\u{a0}\u{3000}\u{e0041}\u{e0100}\u{fe0f}\u{115f}\u{3164}\u{e000}\u{378}";

    #[test]
    fn what_does_not_print_is_escaped_and_what_prints_is_left() {
        for hidden in HIDDEN.chars() {
            assert!(!is_printing(hidden), "{hidden:?}");
            let text = printing(format!("a{hidden}b").into()).into_owned();
            assert!(text.chars().all(is_printing) && text.contains('\\'), "{text:?}");
        }
        for text in ["", "curl", "Что это", "日本語", "e\u{301}a", "naïve \"quoted\" C:\\", "👍"]
        {
            assert!(matches!(printing(text.into()), Cow::Borrowed(same) if same == text), "{text:?}");
        }
        assert_eq!(printing("a\u{202e}\"é\\".into()), "a\\u{202e}\\\"é\\\\");
        assert_eq!(printing("\u{301}x".into()), "\\u{301}x");
        assert_eq!(printing("\u{1b}[2J\n".into()), "\\u{1b}[2J\\n");
    }

    #[test]
    fn json_is_one_line_to_everybody() {
        let json = json_text(&[HIDDEN, "é \"\\ 👍\n"]).unwrap();
        assert!(json.chars().all(is_printing), "{json:?}");
        assert!(
            json.contains("\\u202e")
                && json.contains("\\udb40\\udc41")
                && json.ends_with("é \\\"\\\\ 👍\\n\"]"),
            "{json}"
        );
    }

    proptest! {
        #[test]
        fn json_keeps_the_value(text: String) {
            let json = json_text(&text).unwrap();
            prop_assert!(json.chars().all(is_printing));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text.clone());
            let json = serde_json::to_string_pretty(&[&text]).unwrap();
            let json = printing_json(json.into());
            prop_assert!(json.chars().all(is_printing));
            prop_assert_eq!(serde_json::from_str::<[String; 1]>(&json).unwrap(), [text]);
        }
    }
}

//! Markdown to the man macros of roff, as far as manual pages need it.

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// The date on manual pages: that of the version.
const DATE: &str = "2026-11-22";

/// A page whose first heading is `name(section): summary`, with `##` for sections and `###` for subsections, paragraphs, lists,
/// definition lists and code.
///
/// # Panics
/// If the first line is no such heading, or there is what no page has so far.
#[must_use]
pub fn roff(markdown: &str) -> String {
    let mut writer = Writer::default();
    Parser::new_ext(markdown, Options::ENABLE_DEFINITION_LIST).for_each(|event| writer.event(event));
    // One line's end is enough everywhere.
    let mut text = writer.text;
    while text.contains("\n\n") {
        text = text.replace("\n\n", "\n");
    }
    text
}

#[derive(Default)]
struct Writer {
    text: String,
    /// The text of a heading until its end.
    heading: Option<String>,
    /// How many lists the writer is in.
    depth: usize,
    /// Whether the next paragraph goes on in a line that a macro has begun.
    inside: bool,
}

impl Writer {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(Tag::Heading { .. }) => self.heading = Some(String::new()),
            Event::End(TagEnd::Heading(level)) => self.end_heading(level),
            Event::Start(Tag::Paragraph) => self.paragraph(),
            Event::End(TagEnd::Paragraph | TagEnd::DefinitionListTitle) => self.text.push('\n'),
            Event::Start(Tag::List(None) | Tag::DefinitionList) => self.begin_list(),
            Event::End(TagEnd::List(_) | TagEnd::DefinitionList) => self.end_list(),
            Event::Start(Tag::Item) => self.begin_item("\n.IP \\(bu 2\n"),
            Event::Start(Tag::DefinitionListTitle) => self.text.push_str("\n.TP\n"),
            Event::Start(Tag::DefinitionListDefinition) => self.begin_item("\n"),
            Event::End(TagEnd::Item | TagEnd::DefinitionListDefinition) => {
                self.inside = false;
                self.text.push('\n');
            }
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(_) | CodeBlockKind::Indented)) => {
                self.paragraph();
                self.text.push_str(if self.depth > 0 { "\n.EX\n" } else { "\n.RS 4\n.EX\n" });
            }
            Event::End(TagEnd::CodeBlock) => {
                self.text.push_str(if self.depth > 0 { "\n.EE\n" } else { "\n.EE\n.RE\n" });
            }
            Event::Start(Tag::Emphasis) => self.text.push_str("\\fI"),
            Event::Start(Tag::Strong) => self.text.push_str("\\fB"),
            Event::End(TagEnd::Emphasis | TagEnd::Strong) => self.text.push_str("\\fR"),
            Event::Code(code) => {
                let code = format!("\\fB{}\\fR", escaped(&code));
                self.push(&code);
            }
            Event::Text(text) => match &mut self.heading {
                Some(heading) => heading.push_str(&text),
                None => {
                    let text = escaped(&text);
                    self.push(&text);
                }
            },
            Event::SoftBreak => self.text.push('\n'),
            Event::HardBreak => self.text.push_str("\n.br\n"),
            other => panic!("no manual page has {other:?} so far"),
        }
    }

    /// Adds escaped text; at the begin of a line it must not look like a macro.
    fn push(&mut self, text: &str) {
        for line in text.split_inclusive('\n') {
            // An empty line of code is one, not the end of a paragraph.
            if self.text.ends_with('\n') && line.starts_with(['.', '\'', '\n']) {
                self.text.push_str("\\&");
            }
            self.text.push_str(line);
        }
    }

    fn paragraph(&mut self) {
        if std::mem::take(&mut self.inside) {
            return;
        }
        // In a list a paragraph after the first keeps the indentation.
        self.text.push_str(if self.depth > 0 { "\n.IP\n" } else { "\n.PP\n" });
    }

    fn begin_list(&mut self) {
        self.depth += 1;
        if self.depth > 1 {
            self.text.push_str("\n.RS\n");
        }
    }

    fn end_list(&mut self) {
        if self.depth > 1 {
            self.text.push_str("\n.RE\n");
        }
        self.depth -= 1;
    }

    fn begin_item(&mut self, begin: &str) {
        self.text.push_str(begin);
        self.inside = true;
    }

    fn end_heading(&mut self, level: HeadingLevel) {
        let heading = self.heading.take().unwrap_or_default();
        let line = match level {
            HeadingLevel::H1 => title(&heading),
            HeadingLevel::H2 => format!("\n.SH \"{}\"\n", escaped(&heading)),
            _ => format!("\n.SS \"{}\"\n", escaped(&heading)),
        };
        self.text.push_str(&line);
        self.inside = level != HeadingLevel::H1;
    }
}

fn title(heading: &str) -> String {
    let (name, summary) =
        heading.split_once("): ").unwrap_or_else(|| panic!("{heading:?}: want name(section): summary"));
    let (name, section) =
        name.split_once('(').unwrap_or_else(|| panic!("{heading:?}: want name(section): summary"));
    let [plain, upper, summary] = [name, &name.to_uppercase(), summary].map(escaped);
    format!(
        ".\\\" Generated by docs/man/generate: edit docs/man/{name}.{section}.md, or what it is made of.\n\
         .TH \"{upper}\" \"{section}\" \"{DATE}\" \"flowbus {}\"\n.SH NAME\n{plain} \\- {summary}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Text as roff prints it: no character of it is a command or becomes typographic.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '`' => escaped.push_str("\\(ga"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            '"' => escaped.push_str("\\(dq"),
            plain if plain.is_ascii() => escaped.push(plain),
            other => escaped.push_str(&format!("\\[u{:04X}]", u32::from(other))),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::roff;

    #[test]
    fn a_page_has_what_its_markdown_says() {
        let markdown = "\
# name(8): it's a summary

## DESCRIPTION

A `--flag` of *VALUE*.
.no macro

And more.

`one`
: First.

  Second.

`two`
: Third.

## EXAMPLES

```
a\\b

.c
```

- x
- y
";
        let expected = r#".\" Generated by docs/man/generate: edit docs/man/name.8.md, or what it is made of.
.TH "NAME" "8" "2026-11-22" "flowbus 0.1.0"
.SH NAME
name \- it\(aqs a summary
.SH "DESCRIPTION"
A \fB\-\-flag\fR of \fIVALUE\fR.
\&.no macro
.PP
And more.
.TP
\fBone\fR
First.
.IP
Second.
.TP
\fBtwo\fR
Third.
.SH "EXAMPLES"
.RS 4
.EX
a\eb
\&
\&.c
.EE
.RE
.IP \(bu 2
x
.IP \(bu 2
y
"#;
        assert_eq!(roff(markdown), expected.replace("0.1.0", env!("CARGO_PKG_VERSION")));
    }
}

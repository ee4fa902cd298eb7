//! Manual pages, made of Markdown and of what the programs know of themselves. For tests alone.
//!
//! `docs/man/NAME.SECTION.md` is the prose of a page; a line `<!-- part -->` in it is the place of what is generated, by
//! that name. The page itself is committed next to it, and [`check`] compares: with `FLOWBUS_MANUAL=write` it writes.
#![allow(clippy::expect_used, clippy::panic, reason = "for tests: what fails here is a failed test")]

mod roff;

use std::path::Path;

pub use roff::roff;

/// The variable that has pages written and not compared, where it is `write`.
const VARIABLE: &str = "FLOWBUS_MANUAL";

/// Compares the committed page `flowctl.1` with its prose and the parts that are generated, each by its name.
///
/// # Panics
/// If they differ, and if a part has no place or a place no part.
pub fn check(page: &str, parts: &[(&str, String)]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/man");
    let prose = directory.join(format!("{page}.md"));
    let mut text =
        std::fs::read_to_string(&prose).unwrap_or_else(|error| panic!("{}: {error}", prose.display()));
    for (name, part) in parts {
        let place = format!("<!-- {name} -->");
        assert!(text.contains(&place), "{} has no line {place}", prose.display());
        text = text.replace(&place, part);
    }
    assert!(!text.contains("<!--"), "{} has a place for which there is no part", prose.display());
    let (generated, file) = (roff(&text), directory.join(page));
    if std::env::var_os(VARIABLE).is_some_and(|value| value == "write") {
        std::fs::write(&file, generated).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        return;
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    for (number, (committed, generated)) in committed.lines().zip(generated.lines()).enumerate() {
        assert_eq!(committed, generated, "line {} of {}: run docs/man/generate", number + 1, file.display());
    }
    assert_eq!(committed.len(), generated.len(), "{}: run docs/man/generate", file.display());
}

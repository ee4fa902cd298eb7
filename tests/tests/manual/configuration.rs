//! The configuration file that is installed, as Markdown for its manual page.

use std::fmt::Write as _;

/// An option as the file shows it: a comment, then `#key = default`.
pub(crate) struct ConfigOption {
    pub(crate) section: String,
    pub(crate) key: String,
    default: String,
    description: String,
}

/// The options of the file, in order.
pub(crate) fn options(toml: &str) -> Vec<ConfigOption> {
    let (mut section, mut comment, mut options) = (String::new(), Vec::new(), Vec::new());
    for line in toml.lines() {
        let assignment = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            comment.clear();
        } else if let Some((key, default)) = assignment.and_then(|text| text.split_once(" = ")) {
            assert!(!comment.is_empty(), "{section}.{key} has no comment above it");
            options.push(ConfigOption {
                section: section.clone(),
                key: key.to_owned(),
                default: default.to_owned(),
                description: std::mem::take(&mut comment).join("\n"),
            });
        } else if let Some(text) = line.strip_prefix("# ") {
            comment.push(text.to_owned());
        } else {
            assert!(line.is_empty(), "not an option, a section or a comment: {line}");
            comment.clear();
        }
    }
    options
}

/// A subsection for each section, with its options.
pub(crate) fn described(options: &[ConfigOption]) -> String {
    let (mut text, mut section) = (String::new(), "");
    for option in options {
        if option.section != section {
            section = &option.section;
            write!(text, "### [{section}]\n\n").unwrap();
        }
        let description = option.description.replace('\n', "\n  ");
        let is_example = section == "sources";
        let default = if is_example { "Example" } else { "Default" };
        let key = if is_example { "NAME" } else { &option.key };
        let value =
            if is_example { format!("{} = {}", option.key, option.default) } else { option.default.clone() };
        write!(text, "`{key}`\n: {description} {default}: `{value}`.\n\n").unwrap();
    }
    text
}

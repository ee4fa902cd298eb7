//! flowctl(1), made of the command line and of docs/man/flowctl.1.md.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command, CommandFactory};
use flowbus_interfaces::QueryKey;

use crate::arguments::Arguments;

/// Whether an option is a key of a query: these are described once for all commands.
fn is_condition(arg: &Arg) -> bool {
    arg.get_help_heading().is_some() && QueryKey::parse(arg.get_id().as_str()).is_some()
}

/// What clap adds to every command.
fn is_general(arg: &Arg) -> bool {
    arg.is_global_set()
        || matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpShort | ArgAction::Version)
}

/// The longer help, where there is one.
fn help(arg: &Arg) -> String {
    let text = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut text = sentence(&text);
    let values: Vec<_> = arg.get_possible_values().into_iter().filter(|value| !value.is_hide_set()).collect();
    if arg.get_action().takes_values() && !values.is_empty() {
        text.push('\n');
        for value in values {
            let help = value.get_help().map(|help| format!(": {help}")).unwrap_or_default();
            let _ = write!(text, "\n  - `{}`{help}", value.get_name());
        }
        text.push_str("\n\n ");
    }
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if arg.get_action().takes_values() && !defaults.is_empty() {
        let _ = write!(text, " Default: `{}`.", defaults.join(","));
    }
    text
}

/// Help without a full stop is a sentence too. Paragraphs after the first belong to the same item.
fn sentence(text: &str) -> String {
    let end = |paragraph: &str| if paragraph.ends_with(['.', ':']) { "" } else { "." };
    let paragraphs = text.trim().split("\n\n").map(|paragraph| format!("{paragraph}{}", end(paragraph)));
    paragraphs.collect::<Vec<_>>().join("\n\n  ")
}

/// An option as it is written: `-o`, `--output` *FORM*.
fn spelt(arg: &Arg) -> String {
    let values = arg.get_value_names().unwrap_or_default().iter().map(|name| format!("*{name}*"));
    let values: Vec<_> = if arg.get_action().takes_values() { values.collect() } else { Vec::new() };
    let short = arg.get_short().map(|short| format!("`-{short}`"));
    let long = arg.get_long().map(|long| format!("`--{long}`"));
    let names: Vec<_> = short.into_iter().chain(long).collect();
    let separator = if arg.is_require_equals_set() { "=" } else { " " };
    [names.join(", "), values.join(" ")]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(separator)
}

fn items<'a>(args: impl Iterator<Item = &'a Arg>) -> String {
    let mut text = String::new();
    for arg in args.filter(|arg| !arg.is_hide_set()) {
        let _ = write!(text, "{}\n: {}\n\n", spelt(arg), help(arg));
    }
    text
}

/// Whether an option is about the output: the manual describes those once for all commands.
fn is_output(arg: &Arg) -> bool {
    ["layout", "output", "numeric", "wide", "no_legend"].contains(&arg.get_id().as_str())
}

/// An operand, in brackets where it may be absent.
fn operand(arg: &Arg) -> String {
    let name = spelt(arg).replace('*', "");
    let several = arg.get_num_args().is_some_and(|number| number.max_values() > 1);
    let name = if several && !name.ends_with("...") { format!("{name}...") } else { name };
    if arg.is_required_set() { name } else { format!("[{name}]") }
}

fn commands(flowctl: &Command, before: &str) -> String {
    let mut text = String::new();
    for command in
        flowctl.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
    {
        let name = format!("{before}{}", command.get_name());
        if command.has_subcommands() {
            text.push_str(&commands(command, &format!("{name} ")));
            continue;
        }
        let words = [name, "[OPTIONS]".to_owned()].into_iter().chain(command.get_positionals().map(operand));
        let _ = write!(text, "### {}\n\n", words.collect::<Vec<_>>().join(" "));
        let about =
            command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
        let _ = write!(text, "{}\n\n", sentence(&about).replace("\n\n  ", "\n\n"));
        if command.get_arguments().any(is_condition) {
            text.push_str("Takes the conditions below, as options and as words.\n\n");
        }
        let output: Vec<_> =
            command.get_arguments().filter(|arg| is_output(arg)).filter_map(Arg::get_long).collect();
        if !output.is_empty() {
            let _ = write!(text, "Output options, see below: `--{}`.\n\n", output.join("`, `--"));
        }
        let own = |arg: &&Arg| !is_condition(arg) && !is_general(arg) && !is_output(arg);
        text.push_str(&items(command.get_arguments().filter(own)));
    }
    text
}

fn conditions(flowctl: &Command) -> String {
    let list = flowctl.find_subcommand("list").expect("flowctl lists");
    items(list.get_arguments().filter(|arg| is_condition(arg)))
}

#[test]
fn the_manual_page_is_what_the_command_line_says() {
    let mut flowctl = Arguments::command();
    flowctl.build();
    let options = items(flowctl.get_arguments().filter(|arg| is_general(arg)));
    let list = flowctl.find_subcommand("list").expect("flowctl lists");
    let output = items(list.get_arguments().filter(|arg| is_output(arg)));
    let parts = [
        ("commands", commands(&flowctl, "")),
        ("conditions", conditions(&flowctl)),
        ("options", options),
        ("output", output),
    ];
    flowbus_manual::check("flowctl.1", &parts);
}

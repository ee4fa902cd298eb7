//! The manual pages: what they are made of, that nothing is missing, and that their form is right.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod configuration;
mod interface;
mod readme;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use flowbus_interfaces::{
    FLOW_CONTROL_XML, FLOW_EVENTS_XML, FLOW_MONITOR_XML, Key, Owner, QueryKey, QueryPart, Statistic,
};
use flowbus_tests::daemon::binary;
use flowbus_tests::process::{Directory, output_of};

const PAGES: [&str; 9] = [
    "flowctl.1",
    "flowbusd.8",
    "flowbus-control.8",
    "flowbus-attribution.8",
    "flowbus-export.8",
    "flowbusd.toml.5",
    "org.flowbus.FlowMonitor1.5",
    "org.flowbus.FlowEvents1.5",
    "org.flowbus.FlowControl1.5",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn configuration_file() -> String {
    std::fs::read_to_string(root().join("systemd/etc/flowbus/flowbusd.toml")).unwrap()
}

/// A page as people read it, without the terminal's bold.
fn rendered(page: &str) -> String {
    let file = root().join("docs/man").join(page);
    let mut man = Command::new("man");
    man.args(["--warnings", "-E", "UTF-8", "-l"]).arg(&file).env("MANWIDTH", "200").env("LC_ALL", "C.UTF-8");
    let output = man.env("GROFF_NO_SGR", "1").output().unwrap();
    let warnings = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && warnings.is_empty(), "{page}: {warnings}");
    let text = String::from_utf8(output.stdout).unwrap();
    // Struck over: bold is x BACKSPACE x.
    let mut plain = String::new();
    for character in text.chars() {
        if character == '\u{8}' {
            plain.pop();
        } else {
            plain.push(character)
        }
    }
    plain
}

#[test]
fn the_pages_of_the_interfaces_are_written_of_their_xml_and_tables() {
    use interface::{described, error_list, flow_keys, members, query_keys, statistics, synopsis};
    let monitor = members(FLOW_MONITOR_XML);
    flowbus_manual::check(
        "org.flowbus.FlowMonitor1.5",
        &[
            ("synopsis", synopsis(&monitor)),
            ("methods", described(&monitor, "method")),
            ("properties", described(&monitor, "property")),
            ("flow", flow_keys()),
            ("filter", query_keys(QueryPart::Filter)),
            ("answer", query_keys(QueryPart::Answer)),
            ("page", query_keys(QueryPart::Page)),
            ("stream", query_keys(QueryPart::Stream)),
            ("statistics", statistics()),
            ("errors", error_list()),
        ],
    );
    let events = members(FLOW_EVENTS_XML);
    flowbus_manual::check(
        "org.flowbus.FlowEvents1.5",
        &[("synopsis", synopsis(&events)), ("signals", described(&events, "signal"))],
    );
    let control = members(FLOW_CONTROL_XML);
    flowbus_manual::check(
        "org.flowbus.FlowControl1.5",
        &[
            ("synopsis", synopsis(&control)),
            ("methods", described(&control, "method")),
            ("errors", error_list()),
        ],
    );
}

#[test]
fn the_page_of_the_configuration_is_written_of_the_file_that_is_installed() {
    let options = configuration::options(&configuration_file());
    flowbus_manual::check("flowbusd.toml.5", &[("options", configuration::described(&options))]);
}

#[test]
fn the_pages_of_the_daemons_are_written_of_their_prose() {
    flowbus_manual::check("flowbusd.8", &[]);
    flowbus_manual::check("flowbus-control.8", &[]);
    flowbus_manual::check("flowbus-attribution.8", &[]);
    flowbus_manual::check("flowbus-export.8", &[]);
}

#[test]
fn every_page_is_clean() {
    let directory = root().join("docs/man");
    for page in PAGES {
        output_of(Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(directory.join(page)));
        assert!(rendered(page).contains("SEE ALSO"), "{page} leads nowhere");
    }
    let mut found: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(['1', '5', '8']))
        .collect();
    found.sort();
    let mut pages = PAGES.map(str::to_owned);
    pages.sort();
    assert_eq!(found, pages, "the pages of docs/man and those that are looked at here");
}

#[test]
fn every_member_key_and_error_is_in_a_page() {
    let words = |page: &str| -> Vec<String> {
        let text = rendered(page);
        let is_of_word = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
        let words = text.split(|letter: char| !is_of_word(letter)).filter(|word| !word.is_empty());
        words.map(|word| word.trim_end_matches('.').to_owned()).collect()
    };
    let monitor = words("org.flowbus.FlowMonitor1.5");
    for (page, xml) in [
        ("org.flowbus.FlowMonitor1.5", FLOW_MONITOR_XML),
        ("org.flowbus.FlowEvents1.5", FLOW_EVENTS_XML),
        ("org.flowbus.FlowControl1.5", FLOW_CONTROL_XML),
    ] {
        let words = words(page);
        let members = interface::members(xml);
        assert!(!members.is_empty());
        for member in members {
            assert!(words.contains(&member.name), "{} is not in {page}", member.name);
        }
    }
    let mut names: Vec<String> = interface::errors().into_iter().map(|(name, _)| name).collect();
    names.extend(Key::ALL.iter().map(|key| key.name().to_owned()));
    names.extend(QueryKey::ALL.iter().map(|key| key.name().to_owned()));
    names.extend(Statistic::ALL.iter().map(|statistic| statistic.name.to_owned()));
    let owner = Owner {
        pid: Some(1),
        comm: Some("a"),
        leader_comm: Some("a"),
        uid: Some(1),
        unit: Some("a"),
        cgroup: Some("a"),
        container: Some("a"),
        pod: Some("a"),
        exe: Some("a"),
        network_namespace: Some(1),
        opened: Some(true),
        confidence: Some("a"),
    };
    owner.visit(|name, _| names.push(name.to_owned()));
    for name in names {
        assert!(monitor.contains(&name), "{name} is not in org.flowbus.FlowMonitor1(5)");
    }
    let configuration = words("flowbusd.toml.5");
    for option in configuration::options(&configuration_file()) {
        let expected = if option.section == "sources" { option.section } else { option.key };
        assert!(configuration.contains(&expected), "{expected} is not in flowbusd.toml(5)");
    }
}

/// The names that flowbusd would take, from its refusal of one that it does not know.
fn taken(section: &str) -> Vec<String> {
    let directory = Directory::new("configuration");
    let file = directory.file("flowbusd.toml", &format!("{section}\nunheard_of = 1\n"));
    let output = Command::new(binary("flowbusd")).arg("--check").arg("--config").arg(file).output().unwrap();
    let refusal = String::from_utf8(output.stderr).unwrap();
    let (_, expected) = refusal.split_once("`unheard_of`, expected").unwrap_or_else(|| panic!("{refusal}"));
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_option_of_the_configuration_is_in_the_file_that_is_installed() {
    let options = configuration::options(&configuration_file());
    let sections = taken("");
    assert!(sections.contains(&"sources".to_owned()), "{sections:?}");
    for section in sections.iter().filter(|section| *section != "sources") {
        let keys =
            options.iter().filter(|option| option.section == *section).map(|option| option.key.clone());
        assert_eq!(
            keys.collect::<BTreeSet<_>>(),
            taken(&format!("[{section}]")).into_iter().collect(),
            "[{section}]"
        );
    }
}

#[test]
fn every_option_of_the_programs_is_in_their_page() {
    for (program, page) in [
        ("flowctl", "flowctl.1"),
        ("flowbusd", "flowbusd.8"),
        ("flowbus-control", "flowbus-control.8"),
        ("flowbus-export", "flowbus-export.8"),
    ] {
        let page_text = rendered(page);
        let help = output_of(Command::new(binary(program)).arg("--help"));
        let is_option = |word: &&str| word.starts_with("--") && word.len() > 2;
        let options =
            help.split(|letter: char| letter.is_whitespace() || ",=[]".contains(letter)).filter(is_option);
        let mut seen = 0;
        for option in options {
            assert!(page_text.contains(option), "{option} of {program} is not in {page}");
            seen += 1;
        }
        assert!(seen >= 3, "{program} has more options than {seen}");
    }
}

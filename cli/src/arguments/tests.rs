use clap::CommandFactory;

use super::*;
use crate::format::Format;

#[test]
fn the_command_line_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn marks_are_decimal_or_hexadecimal() {
    assert_eq!(mark("67895552"), Ok(Mark(0x040c_0100)));
    assert_eq!(mark("0x040C0100"), Ok(Mark(0x040c_0100)));
    for wrong in ["010", "0x100000000", "-1", "red", ""] {
        assert!(mark(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn json_has_a_short_form_and_the_bus_goes_anywhere() {
    let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
    let format = |line: &str| match parse(line).unwrap().command {
        Command::List { listed, .. } => listed.output.format().clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(format("flowctl list"), Format::Table);
    assert_eq!(format("flowctl list --json"), Format::Json);
    assert_eq!(format("flowctl list -o json"), Format::Json);
    assert_eq!(format("flowctl list -o awk"), Format::Awk);
    assert!(parse("flowctl list --json -o awk").is_err());
    assert_eq!(parse("flowctl list --bus unix:path=/x").unwrap().bus.to_string(), "unix:path=/x");
    assert_eq!(parse("flowctl list").unwrap().bus.to_string(), "system");
    for wrong in ["/run/my-bus", "session", ""] {
        assert!(Arguments::try_parse_from(["flowctl", "--bus", wrong, "list"]).is_err(), "{wrong}");
    }
}

#[test]
fn a_form_takes_its_modifiers_and_no_fields_of_others() {
    let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
    assert!(parse("flowctl list -o xml,timestamp,id").is_ok());
    let wrong = parse("flowctl list -o awk,id").unwrap_err();
    assert_eq!(wrong.exit_code(), 2);
    assert!(wrong.to_string().contains("id goes with conntrack and xml alone"), "{wrong}");
    for (line, good) in [
        ("flowctl list --fields id -o csv", true),
        ("flowctl monitor fields=id", true),
        ("flowctl list --fields id -o conntrack", false),
        ("flowctl monitor fields=id -o awk", false),
    ] {
        let checked = parse(line).unwrap().check();
        assert_eq!(checked.map_err(|error| error.exit_code()), if good { Ok(()) } else { Err(2) }, "{line}");
    }
}

#[test]
fn a_monitor_takes_kinds_of_events() {
    let events = |line: &str| match Arguments::try_parse_from(line.split(' ')).map(|line| line.command) {
        Ok(Command::Monitor(monitored)) => Some(monitored.events()),
        _ => None,
    };
    assert_eq!(events("flowctl monitor --events new,DESTROY dport=443"), Some(vec!["new", "destroy"]));
    assert_eq!(events("flowctl monitor"), Some(vec![]));
    assert_eq!(events("flowctl monitor --events end"), None);
}

#[test]
fn a_listing_takes_conditions_before_and_after_its_options() {
    let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
    for line in [
        "flowctl list source=CHROME --json dport=443",
        "flowctl closed --json --source CHROME --dport 443",
        "flowctl --bus system closed dport=443 source=CHROME --json",
    ] {
        match parse(line).unwrap().command {
            Command::List { listed, .. } | Command::Closed(listed) => {
                assert_eq!(listed.output.format(), &Format::Json);
                assert_eq!(listed.query.to_map().len(), 2, "{line}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(parse("flowctl list --port nosuch").unwrap_err().exit_code(), 2);
}

#[test]
fn a_report_is_redacted_unless_asked_otherwise() {
    let options = |line: &str| match Arguments::try_parse_from(line.split(' ')).unwrap().command {
        Command::Report(report) => report.options(),
        other => panic!("{other:?}"),
    };
    assert_eq!(options("flowctl report"), ReportOptions::default());
    let all = options("flowctl report --max-bytes 4096 --processes --no-redact");
    assert_eq!(all, ReportOptions { max_bytes: 4096, redact: false, processes: true, flows: true, since: 0 });
    for wrong in ["4095", "524289", "4x", "1K"] {
        assert!(Arguments::try_parse_from(["flowctl", "report", "--max-bytes", wrong]).is_err(), "{wrong}");
    }
}

#[test]
fn a_number_that_is_none_is_told_what_it_should_be() {
    for (line, value, told) in [
        ("flowctl show", "x", "the first column of flowctl list"),
        ("flowctl show", "18446744073709551616", "the first column of flowctl list"),
        ("flowctl set-timeout", "1h", "takes whole seconds, 0 to 4294967295"),
        ("flowctl connections --netns", "host", "takes an inode number"),
    ] {
        let error = Arguments::try_parse_from(line.split(' ').chain([value])).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        let text = error.to_string();
        assert!(text.contains(&format!("'{value}'")) && text.contains(told), "{text}");
        assert!(!text.contains("digit"), "{text}");
    }
}

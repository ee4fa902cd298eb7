//! What the log does not have is said.

use std::process::Command;

use flowbus_tests::daemon::binary;
use serde_json::Value;

use super::log::*;

#[test]
fn an_answer_says_where_the_record_begins_and_ends() {
    let log = three();
    assert_eq!(log.reasons(&["--at", &instant(at(0) - 1)]), ["record-begins"]);
    assert_eq!(log.ids(&["--at", &instant(at(0) - 1)]), [1], "what was alive when it began");
    assert_eq!(log.reasons(&["--since", &instant(at(0) - 1), "--until", &instant(at(3))]), ["record-begins"]);
    assert_eq!(log.reasons(&["--at", &instant(at(5))]), [""; 0]);
    assert_eq!(log.reasons(&["--at", &instant(at(40))]), ["record-ends"]);
    let answer = log.ask(&["--at", "2026-11-22 11:00", "nat_sport=7"]);
    assert_eq!(answer.stdout, "");
    assert!(
        answer.stderr.starts_with("No recorded connection matches. The record of ")
            && answer.stderr.contains("begins at 2026-11-22 12:00:00.000000 +00:00")
            && answer.stderr.contains("flowctl: gateway: the record begins at "),
        "{}",
        answer.stderr
    );
    let answer = log.ask(&["--at", &instant(at(40))]);
    assert!(
        answer.stderr.contains("the last line of the record is of 2026-11-22 12:21:00"),
        "{}",
        answer.stderr
    );
}

#[test]
fn a_gap_in_the_time_that_is_asked_about_is_said() {
    let log = Log::new();
    let one = |end| flow(1, 1, 1001, at(1), end);
    log.add(
        &File::begin(at(0), 10, None)
            .end_of_snapshot(10)
            .flow("new", Some(11), &one(None))
            .line(&format!(
                r#""type":"gap","first":12,"last":20,"lost":9,"reason":"overrun","event_usec":{}"#,
                at(3)
            ))
            .line(&format!(
                r#""type":"resync","reason":"overrun","lost":9,"closed":0,"added":0,"event_usec":{}"#,
                at(3)
            ))
            .flow("destroy", Some(21), &one(Some(at(8))))
            .line(&format!(
                r#""type":"resync","reason":"new-socket","lost":0,"closed":0,"added":0,"event_usec":{}"#,
                at(9)
            ))
            .end(at(10)),
    );
    assert_eq!(log.reasons(&["--at", &instant(at(2))]), ["overrun"]);
    assert_eq!(log.reasons(&["--at", &instant(at(5))]), [""; 0], "what was alive then is known again");
    assert_eq!(log.reasons(&["--at", &instant(at(8) + 1)]), ["new-socket"]);
    let answer = log.ask(&["--at", &instant(at(2))]);
    assert!(
        answer.stderr.contains(
            "up to 9 changes missing between 2026-11-22 12:01:00.000000 +00:00 and 2026-11-22 12:03:00"
        ),
        "{}",
        answer.stderr
    );
    assert!(answer.stdout.contains("198.18.0.1:40000"), "{}", answer.stdout);
}

#[test]
fn an_end_that_is_missing_is_unknown_and_not_alive() {
    let [first, second, _] = three_files();
    // Another epoch: the machine was started again.
    let log = Log::new();
    log.add(&first);
    log.add(&File::of(MACHINE, OTHER, "gateway", at(30), 5, None).end_of_snapshot(5));
    let (rows, notices) = log.found(&["--at", &instant(at(9))]);
    let alive: Vec<_> =
        rows.iter().map(|row| (row["id"].as_u64().unwrap(), row["alive"].as_bool())).collect();
    assert_eq!(alive, [(1, Some(false)), (3, Some(false))]);
    assert_eq!(notices, [""; 0]);
    assert_eq!(log.reasons(&["--at", &instant(at(20))]), ["new-epoch"]);
    assert!(log.ask(&["--at", &instant(at(9))]).stdout.contains("unknown"));

    // The same epoch, without the ends.
    let log = Log::new();
    log.add(&first);
    let forgotten =
        r#""type":"gap","first":14,"last":16,"lost":2,"reason":"forgotten","event_usec":1795349400000000"#;
    log.add(&File::begin(at(10), 16, Some(13)).line(forgotten).end_of_snapshot(16));
    let (rows, notices) = log.found(&["--at", &instant(at(10) - 1)]);
    assert!(rows.iter().all(|row| row["alive"] == false) && rows.len() == 2, "{rows:?}");
    assert_eq!(notices[0]["reason"], "forgotten");
    assert_eq!((&notices[0]["lost"], &notices[0]["to_usec"]), (&Value::from(2), &Value::from(at(10))));

    // A file between two others is gone.
    let log = Log::new();
    log.add(&first);
    log.add(&File::begin(at(20), 19, Some(19)).end_of_snapshot(19));
    assert_eq!(log.reasons(&["--at", &instant(at(12))]), ["missing"]);
    assert_eq!(log.reasons(&["--at", &instant(at(3))]), [""; 0]);

    // A file lost its end, and the writer went on behind it.
    let log = Log::new();
    let mut cut = first.clone();
    cut.text.truncate(cut.text.find(r#""sequence":12"#).unwrap());
    log.add(&cut);
    log.add(&second);
    assert_eq!(log.reasons(&["--at", &instant(at(6))]), ["missing"]);
    let rows = log.found(&["--at", &instant(at(4))]).0;
    assert_eq!((&rows[0]["id"], &rows[0]["alive"]), (&Value::from(2), &Value::from(false)));

    // It has no end, but the next file goes on where it was: nothing is missing.
    let log = Log::new();
    let mut torn = first.clone();
    torn.text.truncate(torn.text.find(r#""type":"end""#).unwrap());
    log.add(&torn);
    log.add(&second);
    assert_eq!(log.reasons(&["--at", &instant(at(9))]), [""; 0]);
    assert_eq!(log.ids(&["--at", &instant(at(9))]), [3, 1]);
}

#[test]
fn a_file_that_is_written_may_end_in_the_middle_of_a_line() {
    let log = Log::new();
    let [first, second, third] = three_files();
    log.add_compressed(&first);
    log.add(&second);
    let mut torn = third.clone();
    torn.text.truncate(torn.text.len() - 20);
    log.add(&torn);
    assert_eq!(log.ids(&["--at", &instant(at(13))]), [4, 1]);
    assert_eq!(log.reasons(&["--at", &instant(at(13))]), [""; 0]);
    assert_eq!(log.reasons(&["--at", &instant(at(21))]), ["record-ends"]);
    // A file that has just been made has no line.
    std::fs::write(log.0.path().join(File::begin(at(30), 1, None).name(false)), "").unwrap();
    assert_eq!(log.ids(&["--at", &instant(at(13))]), [4, 1]);
}

#[test]
fn lines_that_are_no_lines_of_a_log_are_counted() {
    let log = Log::new();
    let [first, ..] = three_files();
    let lines: Vec<_> = first.text.lines().collect();
    let long = "x".repeat(3 << 20);
    let bad = ["[1]", "7", "null", "\0\0\0\0", "{\"type\":", "not json", &long, r#"{"type":"new","id":"x"}"#];
    let strange = r#"{ "id": 8, "type": "new", "machine": "m", "src": "198.18.0.8", "dst": "198.18.1.2", "start_usec": 1795348920000000 }"#;
    let all: Vec<_> = lines[..3].iter().copied().chain(bad).chain([strange, r#"{"type":"later"}"#]).collect();
    let path = log.0.path().join(first.name(false));
    let end = first.text.lines().last().unwrap().replace("\"records\":6", "\"records\":15");
    std::fs::write(&path, format!("{}\n{}\n{end}\n", all.join("\n"), lines[3..6].join("\n"))).unwrap();
    let (rows, notices) = log.found(&["--at", &instant(at(3))]);
    let ids: Vec<_> = rows.iter().map(|row| row["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [2, 1, 8], "{notices:?}");
    assert_eq!(
        (notices.len(), &notices[0]["reason"], &notices[0]["lost"]),
        (1, &Value::from("lines"), &Value::from(8))
    );
    // A record that lacks lines says so by the number in its end.
    let whole = first.text.replace("\"records\":6", "\"records\":9");
    std::fs::write(&path, whole).unwrap();
    assert_eq!(log.found(&["--at", &instant(at(3))]).1[0]["lost"], 3);
}

#[test]
fn a_condition_on_what_the_log_leaves_out_has_no_answer() {
    let log = three();
    let (rows, notices) = log.found(&["status=assured", "--at", &instant(at(3))]);
    assert!(rows.is_empty());
    assert_eq!(notices[0]["reason"], "not-recorded");
    let answer = log.ask(&["status=assured", "--at", &instant(at(3))]);
    assert!(
        answer.stderr.contains("not compared with status, which the log does not record"),
        "{}",
        answer.stderr
    );
    for (arguments, told) in [
        (&["--at", "soon"][..], "how long ago it was"),
        (&["--at", "1h", "since=2h"], "--at does not go with since or until"),
        (&["--at", "1h", "--since", "2h"], "cannot be used with"),
        (&["source=GUEST"], "give the number"),
        (&["dprt=5"], "did you mean dport?"),
        (&["--fields", "id", "-o", "awk"], "--fields goes with"),
    ] {
        let refused = log.ask(arguments);
        assert_eq!(refused.code, Some(2), "{arguments:?}");
        assert!(refused.stderr.contains(told), "{}", refused.stderr);
    }
    let mut list = Command::new(binary("flowctl"));
    let refused = run(list.args(["list", "--fields", "machine"]));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("only history has the field machine"), "{}", refused.stderr);
    assert_eq!(log.ask(&["--at", "3 weeks ago"]).code, Some(0));
}

/// A log for carriers: destinations are left out.

#[test]
fn a_destination_that_is_left_out_is_not_said_to_be_absent() {
    let log = Log::new();
    let only_src = flow(1, 1, 1001, at(1), Some(at(2))).replace(r#""dst":"198.18.1.2","dport":443,"#, "");
    let untranslated =
        only_src.replace(r#","nat_src":"198.18.9.9","nat_sport":1001"#, "").replace(":1,", ":2,");
    for begin in [
        File::begin(at(0), 1, None),
        File::begin(at(0), 1, None).fields(&[
            "id",
            "src",
            "sport",
            "nat_src",
            "nat_sport",
            "start_usec",
            "end_usec",
        ]),
    ] {
        log.add(
            &begin
                .end_of_snapshot(1)
                .flow("destroy", Some(2), &only_src)
                .flow("destroy", Some(3), &untranslated)
                .end(at(9)),
        );
        for words in ["dst=198.18.1.2", "dport=443", "address=198.18.1.2", "port=443", "reply_src=198.18.1.2"]
        {
            let (rows, notices) = log.found(&[words, "--until", &instant(at(8))]);
            assert!(rows.is_empty(), "{words}");
            assert_eq!((notices.len(), notices[0]["lost"].as_u64()), (1, Some(2)), "{words}: {notices:?}");
            assert_eq!(notices[0]["reason"], "not-recorded", "{words}");
        }
        assert_eq!(log.ids(&["address=198.18.9.9", "port=1001", "nat_src=198.18.9.9"]), [1]);
        assert_eq!(log.reasons(&["src=198.18.9.9", "sport=7", "--until", &instant(at(8))]), [""; 0]);
    }
}

#[test]
fn a_field_that_the_log_does_not_have_is_told_from_one_that_the_flow_does_not_have() {
    let log = Log::new();
    let one = flow(1, 1, 1001, at(1), Some(at(2)));
    let file = |fields: &[&str]| {
        File::begin(at(0), 1, None)
            .fields(fields)
            .end_of_snapshot(1)
            .flow("destroy", Some(2), &one)
            .end(at(9))
    };
    const FIELDS: &[&str] = &[
        "id",
        "protocol_number",
        "src",
        "sport",
        "dst",
        "dport",
        "nat_src",
        "nat_sport",
        "mark",
        "start_usec",
        "end_usec",
        "initiator",
    ];
    log.add(&file(FIELDS));
    for words in [
        "interface=wan0",
        "interface!=wan0",
        "comm=sshd",
        "comm!=sshd",
        "helper=ftp",
        "labels=1",
        "zone=7",
        "nat=destination",
        "nat_dst=198.18.1.2",
        "nat_dport!=443",
    ] {
        let (rows, notices) = log.found(&[words, "--until", &instant(at(8))]);
        assert!(rows.is_empty(), "{words}");
        assert_eq!(notices.first().map(|notice| &notice["reason"]), Some(&"not-recorded".into()), "{words}");
    }
    assert_eq!(
        log.ids(&["comm=curl", "nat=source,destination", "min_bytes=400"]),
        [1],
        "the line says enough"
    );
    log.add(&file(&[FIELDS, &["interface", "responder", "nat_dst", "nat_dport"]].concat()));
    assert_eq!(log.ids(&["interface!=wan0", "comm!=sshd", "nat!=destination", "nat_dst!=198.18.1.2"]), [1]);
    assert_eq!(log.reasons(&["interface=wan0", "--until", &instant(at(8))]), [""; 0]);
    assert_eq!(log.reasons(&["comm=sshd", "--until", &instant(at(8))]), [""; 0]);
}

#[test]
fn ends_are_sought_until_the_beginning_of_a_file_is_whole() {
    let log = Log::new();
    let one = |end| flow(1, 1, 1001, at(1), end);
    log.add(&File::begin(at(0), 1, None).end_of_snapshot(1).flow("new", Some(2), &one(None)).end(at(4)));
    // It was killed before it had written what ended.
    log.add(&File::begin(at(5), 4, Some(2)));
    let asked = ["--at", &instant(at(4) + 1)];
    assert_eq!(log.reasons(&asked), ["record-ends"], "what ended since is nowhere");
    log.add(
        &File::begin(at(6), 4, Some(2))
            .flow("closed", Some(3), &one(Some(at(5) - 1)))
            .flow("closed", Some(4), &flow(2, 2, 1002, at(4), Some(at(5) - 1)))
            .end_of_snapshot(4),
    );
    assert_eq!(log.ids(&asked), [1, 2]);
    assert_eq!(log.reasons(&asked), [""; 0]);
}

#[test]
fn a_file_that_cannot_be_read_may_be_of_each_machine() {
    let log = Log::new();
    log.add(&File::begin(at(0), 1, None).end_of_snapshot(1).end(at(1)));
    log.add(&File::of("22222222222222222222222222222222", OTHER, "west", at(10), 1, None).end_of_snapshot(1));
    // Files that are just being made, of both machines.
    for minute in [4, 30] {
        std::fs::write(log.0.path().join(File::begin(at(minute), 1, None).name(false)), "").unwrap();
    }
    let code = || log.ask(&["--at", &instant(at(20))]).code;
    assert_eq!(code(), Some(0));
    // The first machine has no file after it.
    let path = log.0.path().join(File::begin(at(5), 1, None).name(true));
    std::fs::write(&path, "no zstd").unwrap();
    assert_eq!(code(), Some(1));
    log.add(&File::begin(at(15), 1, None).end_of_snapshot(1));
    assert_eq!(code(), Some(0), "each machine has a later file");
}

#[test]
fn a_log_that_was_written_with_a_query_says_what_it_has() {
    let log = Log::new();
    let one = flow(1, 1, 1001, at(1), Some(at(2)));
    let file = |begin, from: Option<u64>| File::begin(begin, from.unwrap_or(10), from);
    let nat = |file: File| file.query(&["nat=any", "dport=80,443"]);
    log.add(&nat(file(at(0), None)).end_of_snapshot(10).flow("destroy", Some(11), &one).end(at(10)));
    log.add(&nat(file(at(10) + 1, Some(11))).end_of_snapshot(11).end(at(20)));
    log.add(&file(at(20) + 1, Some(11)).query(&["comm=\u{1b}[2J"]).end_of_snapshot(11).end(at(30)));
    log.add(&file(at(30) + 1, Some(11)).end_of_snapshot(11).end(at(40)));
    assert_eq!(log.reasons(&["--at", &instant(at(1))]), ["selected"]);
    assert_eq!(log.reasons(&["--at", &instant(at(35))]), [""; 0], "this one has all");
    assert_eq!(log.reasons(&["--since", &instant(at(1)), "--until", &instant(at(35))]), ["selected"; 2]);
    let answer = log.ask(&["--at", &instant(at(1))]);
    assert!(
        answer.stderr.contains("the log has only connections that match nat=any dport=80,443\n"),
        "{}",
        answer.stderr
    );
    let answer = log.ask(&["--at", &instant(at(25))]);
    assert!(answer.stderr.contains("match comm=") && !answer.stderr.contains('\u{1b}'), "{}", answer.stderr);
}

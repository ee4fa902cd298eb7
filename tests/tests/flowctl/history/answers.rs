//! What is found, and how it is shown.

use std::process::Command;

use flowbus_tests::daemon::binary;
use flowbus_tests::process::Directory;
use serde_json::Value;

use super::log::*;

#[test]
fn an_instant_has_the_flows_that_were_alive_then() {
    let log = three();
    for (time, ids) in [
        (at(0), vec![1]),
        (at(1), vec![2, 1]),
        (at(5), vec![2, 1]),
        (at(6), vec![1]),
        (at(9), vec![3, 1]),
        // What ended while nobody wrote is in the head of the next file.
        (at(10) - 1, vec![3, 5, 1]),
        (at(11), vec![1]),
        (at(13), vec![4, 1]),
        (at(19), vec![]),
        (at(21), vec![6]),
    ] {
        assert_eq!(log.ids(&["--at", &instant(time)]), ids, "{}", (time - NOON) / MINUTE);
    }
    let who = |time| log.found(&["nat_src=198.18.9.9", "nat_sport=1002", "--at", &instant(time)]).0;
    assert_eq!(who(at(3))[0]["src"], "198.18.0.2");
    assert_eq!(who(at(13))[0]["src"], "198.18.0.4");
    assert!(who(at(7)).is_empty());
    let rows = log.found(&["--at", "2026-11-22T12:03:00Z"]).0;
    assert_eq!((&rows[0]["end_usec"], rows[0].get("alive")), (&Value::from(at(5)), None));
    assert_eq!(rows[0]["machine"], MACHINE);
    assert_eq!(rows[0]["epoch"], EPOCH);
    // The end of flow 1 is in a later file: an instant needs no more than the head of it.
    assert_eq!((&rows[1]["id"], &rows[1]["alive"]), (&Value::from(1), &Value::from(true)));
}

#[test]
fn a_span_has_each_flow_once() {
    let log = three();
    assert_eq!(log.ids(&[]), [2, 3, 5, 4, 1, 6]);
    let since = |from: u64, to: u64| log.ids(&["--since", &instant(from), "--until", &instant(to)]);
    assert_eq!(since(at(2), at(13)), [2, 3, 5, 4, 1]);
    assert_eq!(since(at(11), at(16)), [4, 1]);
    assert_eq!(since(at(16), at(30)), [1, 6]);
    assert_eq!(log.ids(&["dport!=443"]), [0_u64; 0]);
    assert_eq!(log.ids(&["--port", "1002,1006", "src!=198.18.0.2"]), [4, 6]);
    assert_eq!(log.ids(&["min_bytes=400", "comm=CURL"]), [2, 3, 5, 4, 1], "an end has the bytes");
    assert_eq!(log.ids(&["-n", "2"]), [2, 3]);
    assert_eq!(log.ids(&["-n", "0"]), [0_u64; 0]);
    let fields = log.ask(&["--json", "--fields", "src,epoch,alive", "--at", &instant(at(3))]).stdout;
    assert_eq!(
        fields,
        format!(
            "{{\"epoch\":\"{EPOCH}\",\"src\":\"198.18.0.2\"}}\n{{\"epoch\":\"{EPOCH}\",\"alive\":true,\"src\":\"198.18.0.1\"}}\n"
        )
    );
}

#[test]
fn every_form_of_list_is_there() {
    let log = three();
    let printed = |form: &str| {
        let answer = log.ask(&["nat_sport=1002,1006", "-o", form]);
        assert_eq!(answer.code, Some(0), "{}", answer.stderr);
        answer.stdout
    };
    let table = printed("table");
    let lines: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(
        lines[0].starts_with(&["ID", "PROTO", "FROM", "TO", "NAT", "SOURCE", "BYTES", "STARTED", "ENDED"]),
        "{table}"
    );
    assert!(table.contains("2026-11-22 12:01:00  2026-11-22 12:05:00  destroyed  curl[9]"), "{table}");
    assert!(table.contains("from 198.18.9.9:1002  CHROME"), "{table}");
    assert!(lines[3].contains(&"alive") && lines[3].contains(&"198.18.0.6:40000"), "{table}");
    assert!(printed("csv").starts_with("machine,epoch,sequence,id,"), "{}", printed("csv"));
    assert!(printed("csv").lines().nth(3).unwrap().ends_with(",true"));
    let awk = "2 198.18.0.2 40000 198.18.9.9 1002 198.18.1.2 443 tcp 1795348860 1795349100 256 CHROME\n";
    assert!(printed("awk").starts_with(awk), "{}", printed("awk"));
    // The reply direction follows from the translation.
    let conntrack = printed("conntrack");
    let reply = "src=198.18.1.2 dst=198.18.9.9 sport=443 dport=1002";
    assert!(conntrack.starts_with("[DESTROY] tcp") && conntrack.contains(reply), "{conntrack}");
    assert!(printed("xml").contains("<sport>443</sport><dport>1002</dport>"), "{}", printed("xml"));
    let answer = run(log.command(&["-o", "table"]).env("NO_COLOR", "1"));
    assert!(!answer.stdout.contains('\u{1b}') && answer.stderr.lines().count() == 1, "{}", answer.stderr);
}

#[test]
fn machines_are_told_apart() {
    let log = three();
    const FOREIGN: &str = "22222222222222222222222222222222";
    let file = File::of(FOREIGN, OTHER, "west", at(2), 3, None)
        .end_of_snapshot(3)
        .flow("new", Some(4), &flow(2, 7, 1002, at(3), None))
        .flow("destroy", Some(5), &flow(2, 7, 1002, at(3), Some(at(4))))
        .end(at(30));
    log.add_compressed(&file);
    let who = ["nat_sport=1002", "--at", &instant(at(3))];
    let machines: Vec<_> =
        log.found(&who).0.iter().map(|row| row["machine"].as_str().unwrap().to_owned()).collect();
    assert_eq!(machines, [MACHINE, FOREIGN]);
    let table = log.ask(&who).stdout;
    assert!(
        table.starts_with("MACHINE  ID  PROTO")
            && table.contains("gateway  2 ")
            && table.contains("west     2 "),
        "{table}"
    );
    assert!(
        log.ask(&[&who[..], &["-o", "csv"]].concat()).stdout.contains(&format!("\n{FOREIGN},{OTHER},5,2,"))
    );
    for machine in ["west", "2222", FOREIGN] {
        assert_eq!(log.found(&[&who[..], &["--machine", machine]].concat()).0[0]["src"], "198.18.0.7");
    }
    let refused = log.ask(&["-o", "awk"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("choose one with --machine: gateway, west"), "{}", refused.stderr);
    assert_eq!(log.ask(&["-o", "awk", "--machine", "west"]).stdout.lines().count(), 1);
    assert_eq!(log.ask(&["--machine", "east"]).code, Some(2));
    log.add(&File::of(FOREIGN, OTHER, "gateway", at(40), 5, Some(5)).end_of_snapshot(5).end(at(41)));
    let table = log.ask(&who).stdout;
    assert!(table.contains("gateway-11111111  2 ") && table.contains("gateway-22222222  2 "), "{table}");
    // Each record has its own begin and end.
    let reasons = log.found(&["--at", &instant(at(1))]).1;
    assert_eq!((reasons.len(), &reasons[0]["machine"]), (1, &Value::from(FOREIGN)));
}

#[test]
fn other_names_are_not_of_the_log_and_of_two_forms_one_is_read() {
    let log = three();
    let [first, ..] = three_files();
    log.add(&first);
    for name in
        ["flows-.ndjson", "flows-20261122T120000.000000Z.ndjson.zst.new", "notes.txt", "flows-x.ndjson.zst"]
    {
        std::fs::write(log.0.path().join(name), "no log").unwrap();
    }
    assert_eq!(log.ids(&["--at", &instant(at(3))]), [2, 1]);
    assert_eq!(log.reasons(&["--at", &instant(at(3))]), [""; 0]);

    let nothing = Directory::new("nothing");
    let ask = |directory: &std::path::Path| {
        run(Command::new(binary("flowctl")).args(["history", "--directory"]).arg(directory))
    };
    let empty = ask(nothing.path());
    assert_eq!((empty.code, empty.stdout.as_str()), (Some(1), ""));
    assert!(
        empty.stderr.contains("there is no flow log in ") && empty.stderr.contains("flowbus-export@log"),
        "{}",
        empty.stderr
    );
    let absent = ask(&nothing.path().join("absent"));
    assert_eq!(absent.code, Some(1));
    assert!(
        absent.stderr.contains("No such file") && absent.stderr.contains("--directory"),
        "{}",
        absent.stderr
    );
}

#[test]
fn files_are_read_in_the_order_of_changes_where_the_clock_was_set_back() {
    let log = Log::new();
    let one = |end| flow(1, 1, 1001, at(61), end);
    log.add(&File::begin(at(60), 1, None).end_of_snapshot(1).flow("new", Some(2), &one(None)).end(at(70)));
    log.add(
        &File::begin(at(10), 2, Some(2))
            .flow("flow", None, &one(None))
            .end_of_snapshot(2)
            .flow("destroy", Some(3), &one(Some(at(75))))
            .end(at(75)),
    );
    log.add(&File::begin(at(75), 3, Some(3)).end_of_snapshot(3));
    for time in [at(62), at(69)] {
        let (rows, notices) = log.found(&["--at", &instant(time)]);
        assert_eq!((rows.len(), rows[0]["end_usec"].as_u64()), (1, Some(at(75))), "{rows:?}");
        assert_eq!((notices.len(), &notices[0]["reason"]), (1, &Value::from("clock-set-back")));
    }
    assert_eq!(log.reasons(&["--at", &instant(at(74))]), [""; 0], "that time was once");
    assert_eq!(log.reasons(&["--at", &instant(at(9))]), ["record-begins"]);
    let answer = log.ask(&["--at", &instant(at(62))]);
    assert!(answer.stderr.contains("the clock was set back from "), "{}", answer.stderr);
}

#[test]
fn the_last_line_of_a_connection_says_whose_it_is() {
    let log = Log::new();
    let of = |id, end, comm: &str| {
        flow(id, 1, 1000 + u16::try_from(id).unwrap(), at(1), end).replace("curl", comm)
    };
    log.add(
        &File::begin(at(0), 10, None)
            .flow("flow", None, &of(5, None, "curl"))
            .flow("flow", None, &of(6, None, "wget"))
            .end_of_snapshot(10)
            .flow("new", Some(11), &of(1, None, "curl"))
            .flow("new", Some(12), &of(2, None, "wget"))
            .flow("new", Some(13), &of(3, None, "curl"))
            .flow("new", Some(14), &of(4, None, "curl"))
            .flow("destroy", Some(15), &of(1, Some(at(2)), "wget"))
            .flow("destroy", Some(16), &of(2, Some(at(2)), "curl"))
            .flow("destroy", Some(17), &of(3, Some(at(2)), "curl"))
            .end(at(10)),
    );
    assert_eq!(log.ids(&["comm=curl"]), [2, 3, 4, 5]);
    assert_eq!(log.ids(&["comm=wget"]), [1, 6]);
    assert_eq!(log.ids(&["comm=cu"]), [0; 0]);
    assert_eq!(log.ids(&["comm=curl", "nat_sport=1002"]), [2]);
    assert_eq!(log.ids(&["comm!=curl"]), [1, 6]);
}

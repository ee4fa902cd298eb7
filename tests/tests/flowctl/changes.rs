//! The commands of flowctl that change the kernel's table: what they show, ask, do, and how they end.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::process::{Command, Output, Stdio};

use ctnetlink::{Conntrack, Expectation, Flow, Layer4, Update};
use flowbus_tests::daemon::binary;
use flowbus_tests::inject::tuple;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Daemon, Helper, Screen, conntrack, inject};
use serde_json::Value;

fn flowctl(helper: &Helper, line: &str) -> Output {
    let mut command = Command::new(binary("flowctl"));
    command.args(["--bus", &helper.bus.address()]).args(line.split(' ')).stdin(Stdio::null());
    command.output().unwrap()
}

/// Exit status, standard output, standard error.
fn answer(helper: &Helper, line: &str) -> (i32, String, String) {
    let output = flowctl(helper, line);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn flows(helper: &Helper) -> usize {
    conntrack::list(&helper.namespace).len()
}

#[test]
fn delete_shows_what_would_go_and_asks_before_it_goes() {
    let helper = Helper::start(&["--user", "nobody"]);
    inject::udp(&helper.namespace, 53, 30);
    inject::udp(&helper.namespace, 80, 5);
    let (code, shown, said) = answer(&helper, "delete dport=53 --dry-run");
    assert_eq!((code, shown.lines().count()), (0, 31), "{said}");
    assert!(
        shown.contains("198.18.0.7:4000") && said.contains("30 connections would be deleted"),
        "{shown}{said}"
    );
    let (code, shown, _) = answer(&helper, "delete --dport 53 --dry-run --json --limit 3");
    assert_eq!(code, 0);
    let shown: Vec<_> = shown.lines().map(json).collect();
    assert!(
        shown.len() == 3 && shown.iter().all(|flow| flow["dport"] == 53 && flow["id"].is_null()),
        "{shown:?}"
    );

    // Nobody can be asked here, and what is not understood asks nobody.
    for (line, code, words) in [
        ("delete dport=53", 2, "--yes"),
        ("delete", 2, "name at least one condition"),
        ("delete --yes", 2, "name at least one condition"),
        ("delete dport=nosuch", 2, "dport"),
        ("delete id=7 --yes", 1, "flowbusd is not on"),
        ("delete dport=53 --yes --dry-run", 2, "cannot be used with"),
        ("flush", 2, "--yes"),
        ("set-mark 0x100/0xff dport=53 --yes", 2, "within the mask"),
    ] {
        let (found, shown, said) = answer(&helper, line);
        assert!(found == code && shown.is_empty() && said.contains(words), "{line}: {found} {shown}{said}");
    }
    assert_eq!(flows(&helper), 35);

    let (code, shown, said) = answer(&helper, "delete dport=53 --yes");
    assert_eq!((code, shown.as_str(), said.as_str()), (0, "", "30 connections deleted.\n"));
    let (code, _, said) = answer(&helper, "delete dport=53 --yes");
    assert_eq!((code, said.as_str()), (1, "flowctl: no connection matches\n"));
    let (code, _, _) = answer(&helper, "delete dport=53 --dry-run");
    assert_eq!((code, flows(&helper)), (1, 5));
}

#[test]
fn what_only_flowbusd_knows_chooses_what_is_deleted_by_tuple_and_number() {
    let helper = Helper::start(&["--user", "nobody"]);
    let daemon = Daemon::start_attributed(&helper.namespace, &helper.bus);
    inject::udp(&helper.namespace, 53, 3);
    // A flow whose process is this one.
    let socket = helper.namespace.enter(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", "127.0.0.1:9").unwrap();
        socket
    });
    let me = std::process::id();
    let id = wait_for("the owned flow", || {
        let (_, shown, _) = answer(&helper, &format!("list --json pid={me} dport=9"));
        Some(json(shown.lines().next()?)["id"].clone())
    });
    let (code, shown, said) = answer(&helper, &format!("delete pid={me} --dry-run"));
    assert!(code == 0 && said.contains("1 connection would be deleted. Nothing was."), "{said}");
    let title =
        answer(&helper, "list").1.lines().next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    let of_dry_run: Vec<_> = shown.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(of_dry_run.join(" "), title, "the table of list");
    assert!(shown.contains(&format!("[{me}]")) && shown.contains(&id.to_string()), "{shown}");
    let (code, _, said) = answer(&helper, &format!("delete pid={me} --yes"));
    assert_eq!((code, said.as_str(), flows(&helper)), (0, "1 connection deleted.\n", 3));
    for (line, words) in [
        (format!("delete pid={me} --yes"), "no connection matches"),
        ("delete since=2h until=1h --yes".to_owned(), "no connection matches"),
    ] {
        let (code, _, said) = answer(&helper, &line);
        assert!(code == 1 && said.contains(words), "{line}: {said}");
    }
    let (code, _, said) = answer(&helper, "set-timeout 100 since=1h dport!=80 --yes --limit 2");
    assert_eq!((code, said.as_str()), (0, "2 connections changed; more match than --limit let through.\n"));
    let (code, shown, said) = answer(&helper, "delete since=1h --yes --json");
    assert_eq!(code, 0, "{said}");
    assert_eq!((json(&shown)["deleted"].clone(), flows(&helper)), (3.into(), 0));
    let (code, _, said) = answer(&helper, "delete source=nosuch --yes");
    assert!(code == 2 && said.contains("source takes a traffic source: "), "{said}");
    drop(socket);
    daemon.stop();
}

#[test]
fn a_person_is_asked_on_a_terminal() {
    let helper = Helper::start(&["--user", "nobody"]);
    inject::udp(&helper.namespace, 53, 3);
    let command = format!("{} --bus {} delete dport=53", binary("flowctl").display(), helper.bus.address());
    let screen = Screen::start(&format!("{command}; echo status $?; {command}; echo status $?"));
    screen.wait_for("Delete 3 connections? [y/N]");
    screen.press(&["n", "Enter"]);
    screen.wait_for("status 1");
    assert_eq!(flows(&helper), 3);
    screen.press(&["y", "Enter"]);
    screen.wait_for("3 connections deleted.");
    screen.wait_for("status 0");
    assert_eq!(flows(&helper), 0);
}

#[test]
fn marks_and_timeouts_are_set_and_all_is_flushed() {
    let helper = Helper::start(&["--user", "nobody"]);
    inject::udp(&helper.namespace, 53, 3);
    inject::udp(&helper.namespace, 80, 3);
    let (code, shown, said) = answer(&helper, "set-mark 0x100/0x3f00 dport=53 --yes --json");
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        json(&shown),
        serde_json::json!({"matched": 3, "changed": 3, "gone": 0, "failed": 0, "more": false})
    );
    let (code, _, said) = answer(&helper, "set-timeout 100 source=CHROME --yes");
    assert_eq!((code, said.as_str()), (0, "3 connections changed.\n"));
    helper
        .table()
        .dump(None, |flow| assert_eq!(flow.mark == Some(0x100), flow.timeout.unwrap() <= 100, "{flow}"))
        .unwrap();
    let (code, _, said) = answer(&helper, "flush --yes");
    assert_eq!((code, flows(&helper)), (0, 0), "{said}");
}

#[test]
fn expectations_are_listed_and_taken_back() {
    let helper = Helper::start(&["--user", "nobody"]);
    let (code, shown, said) = answer(&helper, "expect list");
    assert_eq!((code, shown.as_str(), said.as_str()), (0, "", "No connection is expected.\n"));
    let (master, reply) =
        (tuple("198.18.0.1", "198.18.0.2", 6, 4000, 21), tuple("198.18.0.2", "198.18.0.1", 6, 21, 4000));
    let mut table = helper.table();
    table.create(&Flow { helper: Some(b"ftp"), timeout: Some(600), ..Flow::new(master, reply) }).unwrap();
    let expected = Expectation {
        timeout: Some(300),
        helper: Some(b"ftp"),
        ..Expectation::new(
            master,
            tuple("198.18.0.2", "198.18.0.1", 6, 0, 5000),
            tuple("255.255.255.255", "255.255.255.255", 6, 0, 0xffff),
        )
    };
    table.create_expectation(&expected).unwrap();

    let (code, shown, _) = answer(&helper, "expect list --json helper=ftp");
    let expectation = json(shown.trim());
    assert_eq!((code, &expectation["helper"], &expectation["dport"]), (0, &"ftp".into(), &5000.into()));
    assert_eq!(expectation["master_src"], "198.18.0.1");
    let (code, shown, _) = answer(&helper, "expect list");
    assert!(code == 0 && shown.contains("198.18.0.1:5000") && shown.contains("198.18.0.2:21"), "{shown}");
    assert_eq!(answer(&helper, "expect delete dport=1 --yes").0, 1);
    assert_eq!(answer(&helper, "expect delete --yes").0, 2);
    let (code, _, said) = answer(&helper, "expect delete dport=5000 --dry-run");
    assert!(code == 0 && said.contains("1 expectation would be deleted"), "{said}");
    // The helper keeps one expectation of a connection.
    let (master, reply) =
        (tuple("198.18.0.1", "198.18.0.2", 6, 4001, 21), tuple("198.18.0.2", "198.18.0.1", 6, 21, 4001));
    table.create(&Flow { helper: Some(b"ftp"), timeout: Some(600), ..Flow::new(master, reply) }).unwrap();
    let other = tuple("198.18.0.2", "198.18.0.1", 6, 0, 5001);
    table.create_expectation(&Expectation { master, tuple: other, ..expected }).unwrap();
    let (code, shown, said) = answer(&helper, "expect delete helper=ftp --dry-run --limit 1");
    assert_eq!((code, shown.lines().count()), (0, 2), "{shown}");
    assert!(said.contains("1 expectation would be deleted, and more match than --limit"), "{said}");
    let (_, shown, _) = answer(&helper, "expect delete dport=5000 --dry-run --json");
    assert_eq!(json(shown.trim())["dport"], 5000);
    let (code, shown, said) = answer(&helper, "expect delete dport=5000");
    assert!(code == 2 && shown.is_empty() && said.contains("--yes"), "{shown}{said}");
    let (code, _, said) = answer(&helper, "expect delete dport=5000 --yes");
    assert_eq!((code, said.as_str()), (0, "1 expectation deleted.\n"));
    assert_eq!(answer(&helper, "expect delete dport=5001 --yes").0, 0);
    table.expectations(None, |left| panic!("{left:?}")).unwrap();
}

#[test]
fn who_may_not_is_told_who_may_and_where_the_helper_is_missing_how_it_starts() {
    let mut helper = Helper::start(&["--user", "root", "--idle", "5"]);
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(binary("flowctl"));
    let address = helper.bus.address();
    nobody.args(["--bus", &address, "delete", "dport=53", "--yes"]).stdin(Stdio::null());
    let output = nobody.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("sudo") && said.contains("polkit"), "{said}");
    helper.process.ended();
    for line in ["delete dport=53 --yes", "flush --yes", "expect list", "stats --cpu"] {
        let (code, _, said) = answer(&helper, line);
        let start = format!("flowbus-control --bus {address} --user root");
        assert!(
            code == 1 && said.contains("flowbus-control is not on") && said.contains(&start),
            "{line}: {said}"
        );
    }
}

#[test]
fn each_cpu_has_a_line() {
    let helper = Helper::start(&["--user", "nobody"]);
    let (code, shown, said) = answer(&helper, "stats --cpu");
    assert!(code == 0 && shown.contains("insert_failed"), "{said}");
    let (_, lines, _) = answer(&helper, "stats --cpu --json");
    assert_eq!(lines.lines().count() + 1, shown.lines().count());
    assert!(lines.lines().map(json).all(|cpu| cpu["cpu"].is_number() && cpu["early_drop"] == 0));
}

/// The rows of docs/coming-from-conntrack.md about changes: conntrack's command, and flowctl's.
fn rows() -> Vec<(String, String)> {
    let text = include_str!("../../../docs/coming-from-conntrack.md");
    let section = text.split_once("## Changing the table").unwrap().1.split("\n## ").next().unwrap();
    let command = |cell: &str| cell.trim().trim_matches('`').to_owned();
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').collect();
        (command(cells[1]), command(cells[2]))
    };
    section.lines().filter(|line| line.starts_with("| `")).map(row).collect()
}

/// Every flow: its tuple, its mark, and whether its timeout is long.
fn state(table: &mut Conntrack) -> BTreeSet<String> {
    let mut state = BTreeSet::new();
    table
        .dump(None, |flow| {
            let long = flow.timeout.unwrap() > 100;
            state.insert(format!("{} {:#x} {long}", flow.original, flow.mark.unwrap_or(0)));
        })
        .unwrap();
    state
}

#[test]
fn each_change_leaves_the_table_that_conntrack_leaves() {
    let helper = Helper::start(&["--user", "nobody"]);
    let mut table = helper.table();
    let mut filled = || {
        table.flush(None).unwrap();
        inject::udp(&helper.namespace, 53, 8);
        inject::udp(&helper.namespace, 80, 5);
        let mut web = Vec::new();
        table
            .dump(None, |flow| {
                let Layer4::Ports { dst, .. } = flow.original.layer4 else { unreachable!("injected UDP") };
                web.extend((dst == 80).then_some(flow.original));
            })
            .unwrap();
        for tuple in web {
            table.update(&tuple, &Update { mark: Some((5, u32::MAX)), ..Update::default() }).unwrap();
        }
        state(&mut table)
    };
    let rows = rows();
    assert!(rows.len() > 9, "{rows:?}");
    for (theirs, ours) in rows {
        let before = filled();
        let mut words = theirs.split(' ');
        let status = helper.namespace.command(words.next().unwrap()).args(words).output().unwrap().status;
        assert!(status.success(), "{theirs}");
        let expected = state(&mut helper.table());
        let reads = theirs.contains(" -L ") || theirs.contains(" -S");
        assert_eq!(expected == before, reads, "{theirs}");

        assert_eq!(filled(), before);
        let (code, _, said) = answer(&helper, ours.strip_prefix("flowctl ").unwrap());
        assert_eq!(code, 0, "{ours}: {said}");
        assert_eq!(state(&mut helper.table()), expected, "{theirs}: {ours}");
    }
}
